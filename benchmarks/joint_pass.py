"""Asks four teachers for one batch in one pass, and by one pass for each; and what switching adapters costs.

    python benchmarks/joint_pass.py [--rows 8] [--layers 8] [--heads 8]

A random Stable Diffusion 3 and random LoRAs of rank 32. Prints the largest difference of the velocities, the
seconds of both ways (medians, taken in turn), and the microseconds of a switch there and back with 4 and 8
adapters.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from random_base import write_adapter, write_base

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.method.joint import joint_velocities, whole_share
from flow_opd.method.policy import Policy
from flow_opd.types import Conditioning

TEACHERS = ("one", "two", "three", "four")
REPEATS = 7


def medians(ways: Mapping[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Returns the median seconds of each way; they are taken in turn, after a first call of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def switch_there_and_back(bank: AdapterBank, times: int = 1000) -> None:
    """Activates a teacher for a moment, `times` times."""
    for _ in range(times):
        with bank.using(TEACHERS[0]):
            pass


def main() -> None:
    """Builds base and teachers, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="of the batch, as many for each teacher")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        write_base(folder / "base", layers=asked.layers, heads=asked.heads, latent_side=32)
        base = BaseModelSettings(path=str(folder / "base"), max_sequence_length=0)
        bank = AdapterBank(backbone := load_backbone(base, ComputeSettings(device="cpu")))
        loras = []
        for seed, teacher in enumerate(TEACHERS):
            write_adapter(folder / "base", folder / teacher, rank=32, seed=seed)
            loras.append(read_adapter(folder / teacher))
            bank.put(teacher, loras[-1])
        config = backbone.transformer.config
        each = asked.rows // len(TEACHERS)
        rows = each * len(TEACHERS)
        texts = Conditioning(
            torch.randn(rows, 16, config.joint_attention_dim),
            torch.randn(rows, config.pooled_projection_dim),
            ("any",) * rows,
        )
        latents, sigma = torch.randn(rows, *backbone.latent_shape), torch.full((rows,), 0.5)
        policies = [Policy(backbone, adapters=bank, adapter=teacher) for teacher in TEACHERS]
        own = torch.arange(rows).split(each)

        def one_pass() -> torch.Tensor:
            shares = [share for pair in zip(policies, own, strict=True) for share in whole_share(*pair)]
            return joint_velocities([shares], latents, sigma, texts)[0]

        def one_by_one() -> torch.Tensor:
            parts = [
                policy.velocity(latents[places], sigma[places], texts.rows(places))
                for policy, places in zip(policies, own, strict=True)
            ]
            return torch.cat(parts)

        difference = (one_pass() - one_by_one()).abs().max().item()
        taken = medians({"one pass": one_pass, "one by one": one_by_one})
        print(f"{rows} rows, largest difference {difference:.1e}")
        print("  ".join(f"{way} {seconds:.3f} s" for way, seconds in taken.items()))
        for count in (4, 8):
            while len(bank.names) < count:
                bank.put(f"more-{len(bank.names)}", loras[0])
            taken = medians({"switch": lambda: switch_there_and_back(bank)})
            print(f"{count} adapters: a switch there and back {1000 * taken['switch']:.2f} microseconds")


if __name__ == "__main__":
    main()
