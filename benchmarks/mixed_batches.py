"""Asks four teachers for one batch: by PEFT's mixed batches in one pass, and by one pass for each teacher.

    python benchmarks/mixed_batches.py [--rows 8] [--layers 8] [--heads 8]

The same velocities, a random Stable Diffusion 3 and four random LoRAs of rank 32. Prints the largest
difference and the seconds of both ways.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_base import write_adapter, write_base
from torch import Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.reading import read_adapter
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings

TEACHERS = ("one", "two", "three", "four")


def timed(work: Callable[[], Tensor], repeats: int = 5) -> tuple[Tensor, float]:
    """Returns the result and the seconds of one call, the best of `repeats` after a first one."""
    result, best = work(), float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return result, best


def main() -> None:
    """Builds base and teachers, and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8, help="of the batch, as many for each teacher")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        write_base(folder / "base", layers=asked.layers, heads=asked.heads, latent_side=32)
        base = BaseModelSettings(path=str(folder / "base"), max_sequence_length=0)
        bank = AdapterBank(backbone := load_backbone(base, ComputeSettings(device="cpu")))
        for seed, teacher in enumerate(TEACHERS):
            write_adapter(folder / "base", folder / teacher, rank=32, seed=seed)
            bank.put(teacher, read_adapter(folder / teacher))
        backbone.transformer.eval()  # PEFT refuses mixed batches in training mode
        config = backbone.transformer.config
        each = asked.rows // len(TEACHERS)
        rows = each * len(TEACHERS)
        inputs = {
            "hidden_states": torch.randn(rows, *backbone.latent_shape),
            "timestep": torch.full((rows,), 500.0),
            "encoder_hidden_states": torch.randn(rows, 77, config.joint_attention_dim),
            "pooled_projections": torch.randn(rows, config.pooled_projection_dim),
        }

        def mixed() -> Tensor:
            names = [f"adapter_{teacher}" for teacher in TEACHERS for _ in range(each)]
            with bank.using(TEACHERS[0]):  # PEFT ignores the names without a word where adapters are off
                return backbone.transformer(**inputs, adapter_names=names, return_dict=False)[0]

        def one_by_one() -> Tensor:
            parts = []
            for index, teacher in enumerate(TEACHERS):
                own = slice(index * each, (index + 1) * each)
                with bank.using(teacher):
                    parts.append(
                        backbone.transformer(
                            **{key: value[own] for key, value in inputs.items()}, return_dict=False
                        )[0]
                    )
            return torch.cat(parts)

        apart, seconds_apart = timed(one_by_one)
        together, seconds_together = timed(mixed)
        print(f"{rows} rows, {len(TEACHERS)} teachers, {torch.get_num_threads()} threads")
        print(f"largest difference {(apart - together).abs().max():.1e}, velocities {apart.abs().mean():.2f}")
        print(f"one pass for each teacher {seconds_apart:.3f} s, one mixed pass {seconds_together:.3f} s")


if __name__ == "__main__":
    main()
