"""What a card does with this project: ten minutes, one GPU, no network, no weights.

    python benchmarks/card.py [--out card.json] [--skip compile demo] [--dtype bfloat16]
    python benchmarks/card.py --tiny --device cpu          # every line of it in a minute, without a card

Stable Diffusion 3.5 Medium in its true shapes with random weights, at 512 pixels in float16 (or --dtype),
four teachers and an anchor of rank 32. One after another, each with a share of the time:

    updates    an update of two steps at growing micro-batches, with and without gradient checkpointing:
               seconds, model FLOP utilisation, peak memory beside that of `flow-opd plan`
    guidance   a guided update, both halves in one pass or in two
    switching  microseconds to activate another of 2, 5 and 9 adapters
    waiting    how often an update makes the processor wait for the card, and in which lines
    compile    the same update with compiled blocks
    demo       the miniature's demonstration on this device

It needs PyTorch and what `pip install flow-opd` takes along. What cannot be had here is said and left out,
and so is what the time does not suffice for. The table goes to the terminal, all readings to --out as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from card_sections import SECTIONS, TASKS, Bench, NotHereError, Reading
from random_base import write_base

from flow_opd.backbones.compute import choose_device
from flow_opd.backbones.loading import DTYPES
from flow_opd.planning.machines import GIB, MACHINES

SHARES = {"updates": 0.4, "guidance": 0.15, "switching": 0.05, "waiting": 0.05, "compile": 0.15, "demo": 0.2}
DEMO = ("distill.run.rounds=30", *(f"evaluate.domains.{task}.limit=40" for task in TASKS))
TINY_DEMO = (
    *("distill.run.rounds=1", "distill.prompts_per_round=4"),
    *("evaluate.num_steps=1", "evaluate.grid_prompts=0"),
    *(f"evaluate.domains.{task}.limit=2" for task in TASKS),
)


def rate_of(name: str) -> float | None:
    """Returns the dense bf16 FLOPs a second of a card by the name that PyTorch gives it, if known."""
    words = name.replace("-", " ").split()
    if "PCIe" in words:  # slower than what the data sheets' figures are of
        return None
    for card in MACHINES:
        kind = next(word for word in card.name.split() if word[-1].isdigit())  # "H100" of "H100 SXM"
        if kind in words:
            return card.tflops * 1e12
    return None


def machine(device: torch.device) -> Reading:
    """Returns where the readings come from."""
    facts: Reading = {
        "device": device.type,
        "name": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["name"] = torch.cuda.get_device_name(device)
        facts["memory_gib"] = torch.cuda.get_device_properties(device).total_memory / GIB
    return facts


def full_size(device: torch.device, folder: Path, seconds: float) -> Bench:
    """Returns the benchmark of the true size; the demonstration gets `seconds`."""
    return Bench(
        device,
        base="stabilityai/stable-diffusion-3.5-medium",
        dtype="float16",
        resolution=512,
        text_tokens=128,
        rank=32,
        repeats=3,
        micro_batches=(1, 2, 4, 8, 16, 32),
        demo=DEMO,
        demo_seconds=seconds,
        folder=folder,
        peak=rate_of(machine(device)["name"]),
    )


def tiny(device: torch.device, folder: Path, seconds: float) -> Bench:
    """Returns the same for a base that takes no time."""
    write_base(folder / "base", layers=2, heads=1, latent_side=4)
    return Bench(
        device,
        base=str(folder / "base"),
        dtype="float32",
        resolution=None,
        text_tokens=0,
        rank=2,
        repeats=1,
        micro_batches=(1, 4),
        demo=TINY_DEMO,
        demo_seconds=seconds,
        folder=folder,
    )


def run_section(readings: Iterator[Reading], seconds: float) -> Reading:
    """Returns the readings of a section until its time is up, and why it has no more of them."""
    found: list[Reading] = []
    started = time.perf_counter()
    ended = ""
    try:
        for reading in readings:
            found.append(reading)
            print("  " + "  ".join(f"{key} {shown(value)}" for key, value in reading.items()), flush=True)
            if time.perf_counter() - started > seconds:
                ended = f"left out the rest after {seconds:.0f} s"
                break
    except (NotHereError, ImportError) as absent:
        ended = f"not here: {absent}"
    except Exception as fault:  # the other sections may work all the same
        ended = f"failed: {type(fault).__name__}: {fault}"
    if ended:
        print(f"  {ended}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where there is no CUDA
    return {"readings": found, "ended": ended, "seconds": time.perf_counter() - started}


def shown(value: Any) -> str:
    """Returns a reading as the table shows it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Runs the sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu ...")
    parser.add_argument("--tiny", action="store_true", help="a base of two small blocks")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of the base; default float16, with --tiny float32"
    )
    parser.add_argument("--skip", nargs="+", choices=SECTIONS, default=[], help="sections to leave out")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of all sections together")
    parser.add_argument("--peak", type=float, help="TFLOPs a second of a card that is not known here")
    parser.add_argument("--out", type=Path, help="JSON file for all readings")
    asked = parser.parse_args()
    device = choose_device(asked.device)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    result: Reading = {"machine": machine(device), "sections": {}}
    print("  ".join(f"{key} {shown(value)}" for key, value in result["machine"].items()))
    with tempfile.TemporaryDirectory() as folder:
        size = tiny if asked.tiny else full_size
        bench = size(device, Path(folder), SHARES["demo"] * asked.budget)
        if asked.dtype:
            bench = replace(bench, dtype=asked.dtype)
        if asked.peak:
            bench = replace(bench, peak=1e12 * asked.peak)
        for name, section in SECTIONS.items():
            if name not in asked.skip:
                print(name, flush=True)
                result["sections"][name] = run_section(section(bench), SHARES[name] * asked.budget)
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
