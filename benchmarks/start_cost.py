"""CPU-seconds that a command spends on imports before it does anything, beside what its libraries take.

    python benchmarks/start_cost.py [--repeats 5] [--only "flow-opd merge" torch]

Each import runs in a process of its own, all of them in turn, so that a busy machine weighs on all alike; the
table has medians of user and system time. Read the stages beside "diffusers: Stable Diffusion 3": diffusers
itself imports torch's compiler, peft, transformers' modelling code and, where it is installed, bitsandbytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from statistics import median

LIBRARIES = {
    "torch": "import torch",
    "peft": "import peft",
    "diffusers: Stable Diffusion 3": "from diffusers import StableDiffusion3Pipeline",
    "the same, as if without bitsandbytes": (
        "import sys; sys.modules['bitsandbytes'] = None; from diffusers import StableDiffusion3Pipeline"
    ),
}
STAGES = (
    *("teacher", "sft", "distill", "evaluate", "generate", "demo", "export", "plan"),
    *("merge", "card", "publish", "report", "prompts"),  # these load no model
)


def cpu_seconds(code: str) -> float:
    """Returns the user and system time of a process of its own that runs `code`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    codes = LIBRARIES | {f"flow-opd {stage}": f"import flow_opd.stages.{stage}" for stage in STAGES}
    parser.add_argument("--only", nargs="+", choices=codes, default=list(codes), metavar="IMPORT")
    asked = parser.parse_args()
    codes = {name: codes[name] for name in asked.only}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for code in codes.values():  # writes the byte code and fills the disk's cache
        cpu_seconds(code)
    for _ in range(asked.repeats):
        for name, code in codes.items():
            seconds[name].append(cpu_seconds(code))
    print("| import | CPU-seconds | smallest to largest |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


if __name__ == "__main__":
    main()
