"""Times every merge method on four adapters with the shapes of the published SD3.5-M teachers.

Random factors: 24 layers of width 1536, the eight attention projections (the last layer has no to_add_out),
rank 32. Each method runs in a process of its own, so that the peak memory is its own. Run it with

    python benchmarks/merge_at_scale.py [--layers 24] [METHOD ...]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.merging import merge
from flow_opd.config.common import ATTENTION_PROJECTIONS
from flow_opd.config.merge import MergeMethodSettings

WIDTH, RANK, ALPHA, TEACHERS = 1536, 32, 64.0, 4
CUT = ("svd", "ties", "dare")  # methods that are given a rank


def random_lora(seed: int, layers: int) -> LoraWeights:
    """Returns a LoRA with the modules and shapes of a published teacher, and random factors."""
    draw = torch.Generator().manual_seed(seed)
    modules = [
        f"transformer_blocks.{layer}.{name}" for layer in range(layers) for name in ATTENTION_PROJECTIONS
    ]
    modules.remove(f"transformer_blocks.{layers - 1}.attn.to_add_out")
    factors = {
        module: (
            torch.randn(RANK, WIDTH, generator=draw) / RANK,
            torch.randn(WIDTH, RANK, generator=draw) / 100,
        )
        for module in modules
    }
    return LoraWeights(RANK, ALPHA, factors, ATTENTION_PROJECTIONS)


def measure(method: str, layers: int) -> None:
    """Merges by one method and prints a row of the table."""
    loras = [random_lora(seed, layers) for seed in range(TEACHERS)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = [1 / TEACHERS] * TEACHERS if method == "weighted" else None
    chosen = MergeMethodSettings.of(method, {"rank": RANK} if method in CUT else None).build()
    started, spent = time.perf_counter(), time.process_time()
    merged, report = merge(loras, chosen, weights)
    seconds, spent = time.perf_counter() - started, time.process_time() - spent
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"| {method} | {merged.rank} | {100 * report.kept_energy:.1f} % | {seconds:.1f} | {spent:.1f} | "
        f"{after / 1024:.0f} | {(after - before) / 1024:.0f} |",
        flush=True,
    )


def main() -> None:
    """Prints the table, one process for each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="methods to time (all)")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    words = parser.parse_args()
    if words.here:
        measure(words.methods[0], words.layers)
        return
    print(
        f"{TEACHERS} adapters, {words.layers} layers, {8 * words.layers - 1} modules, "
        f"{torch.get_num_threads()} threads"
    )
    print("| method | rank | energy kept | seconds | CPU seconds | peak RSS, MB | of it by the merge, MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for method in words.methods or MergeMethodSettings.kind.own:
        subprocess.run(
            [sys.executable, __file__, method, "--layers", str(words.layers), "--here"], check=True
        )


if __name__ == "__main__":
    main()
