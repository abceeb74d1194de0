"""One whole distillation update of a transformer in the true size of Stable Diffusion 3.5 Medium, on a CPU.

Random weights, random text embeddings; the student, one teacher and an anchor of rank 32,
gradient checkpointing, AdamW: the project's own bank, walk, objective and loop. It says how long each
pass takes and how much memory the process has needed. Products of float16, the default at the real size, take
a processor ten times as long as those of bfloat16, so that bfloat16 is the default here:

    python benchmarks/full_size_update.py [--layers 24] [--resolution 256] [--prompts 1] [--steps 2]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from random_sd3 import RandomTexts, random_backbone, random_bank
from torch import Tensor

from flow_opd.backbones.loading import DTYPES
from flow_opd.config.common import BaseModelSettings, LoraSettings, OptimizerSettings, TrainingComputeSettings
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.flow.path import make_schedule
from flow_opd.method.objectives import OPDPolicies, Target
from flow_opd.method.opd import direct_opd
from flow_opd.method.policy import Policy
from flow_opd.method.walk import Walks
from flow_opd.planning.architectures import read_architecture
from flow_opd.protocols import VelocityField
from flow_opd.seeding import generator
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning, Prompt

BASE = BaseModelSettings(path="stabilityai/stable-diffusion-3.5-medium", max_sequence_length=128)


class Timed:
    """A policy that says how long its velocities take."""

    def __init__(self, name: str, field: VelocityField) -> None:
        """Names the policy."""
        self.name, self.field = name, field

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the field's velocity, [M, C, H, W]."""
        start = time.perf_counter()
        velocity = self.field.velocity(latents, sigma, conditioning)
        seconds = time.perf_counter() - start
        print(f"  {self.name} forward at sigma {float(sigma[0]):.3f}: {seconds:.1f} s", flush=True)
        return velocity


def peak_gib() -> float:
    """Returns the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Builds, takes one update, and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    asked = parser.parse_args()
    start = time.perf_counter()
    base = BASE.model_copy(update={"resolution": asked.resolution, "dtype": asked.dtype})
    compute = TrainingComputeSettings(gradient_checkpointing=True)
    backbone = random_backbone(base, compute, torch.device("cpu"), asked.layers)
    count = sum(each.numel() for each in backbone.transformer.parameters())
    bank = random_bank(backbone, ("teacher", "anchor"), LoraSettings(rank=32, alpha=64.0))
    print(
        f"{count / 1e9:.3f} billion parameters, built in {time.perf_counter() - start:.0f} s, "
        f"{peak_gib():.1f} GiB"
    )
    fields = {
        name: Timed(name, Policy(backbone, adapters=bank, adapter=name))
        for name in ("student", "teacher", "anchor")
    }
    walks = Walks(
        prompts_of_round=lambda index: [Prompt("x" * row, "task") for row in range(asked.prompts)],
        encoder=RandomTexts(read_architecture(base), base),
        seeder=lambda index, row: generator(0, "walk", index, row),
        schedule=make_schedule(
            backbone.sigmas(asked.steps), noise_level=0.7, stochastic_steps=(0, asked.steps - 1)
        ),
        dynamics=DynamicsSettings.of("sde").build(),
        micro_batch_size=asked.prompts,
    )
    anchor = Target("anchor_gap", fields["anchor"], weight=0.02)
    policies = OPDPolicies(backbone, fields["student"], fields["teacher"], anchor)
    source, objective = direct_opd(policies, walks)
    before = bank.state("student")
    lines: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            parameters=bank.parameters("student"),
            source=source,
            objective=objective,
            settings=LoopSettings(rounds=1, optimizer=OptimizerSettings(learning_rate=1e-4)),
            folder=Path(folder),
            identity="full-size",
            callbacks=[Recorder(lines)],
        )
        start = time.perf_counter()
        trainer.run()
    seconds = time.perf_counter() - start
    moved = sum(float((value - before[name]).square().sum()) for name, value in bank.state("student").items())
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in lines[0].items())
    print(
        f"update in {seconds:.0f} s, peak {peak_gib():.1f} GiB, student moved by {moved**0.5:.3g}  {numbers}"
    )


class Recorder:
    """Keeps the metrics of the update."""

    def __init__(self, lines: list[dict[str, float]]) -> None:
        """Takes the list to write to."""
        self.lines = lines

    def on_update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics."""
        self.lines.append(dict(metrics))

    def on_resume(self, step: int) -> None:
        """Has nothing to do."""

    def on_end(self) -> None:
        """Has nothing to do."""


if __name__ == "__main__":
    main()
