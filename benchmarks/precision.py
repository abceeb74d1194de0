"""What the base's number format does to a difference of velocities, to gradients, to a whole distillation.

    python benchmarks/precision.py differences    # v_student - v_teacher at every noise level
    python benchmarks/precision.py gradients      # of the student's LoRA, with and without a scaled loss
    python benchmarks/precision.py training       # short distillations, held against float32's student

Two bases, or one of them by `--base`: the miniature with its own teachers, and a random Stable Diffusion 3 of
3.5 Medium's width (24 heads of 64). Guidance is 4.5, adapters are float32, prompts are encoded in float32. It
runs on a CPU, where a float16 product takes ten times as long as a bfloat16 one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from precision_bases import (
    GUIDANCE,
    STUDENT,
    THROUGH,
    Cast,
    Encoded,
    Laboratory,
    miniature,
    random_laboratory,
)
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.flow.dynamics import sample, sde_step, transition_kl
from flow_opd.flow.path import make_schedule
from flow_opd.method.opd import distillation
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.walk import build_walks
from flow_opd.processes import ALONE
from flow_opd.protocols import Objective
from flow_opd.runs.teachers import named_policies
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import LossOutput, TransitionBatch

DIMENSIONS = 16 * 64 * 64  # of the latents at 512 pixels
HALVES = ("bfloat16", "float16")
NOISE_LEVEL = 0.7


@torch.no_grad()
def visited(lab: Laboratory, cast: Cast, prompts: int) -> list[TransitionBatch]:
    """Returns the states that the student visits by the SDE, step by step, for `prompts` of each task."""
    conditioning = cast.texts.encode_prompts(lab.looked_at(prompts))
    first, last = lab.window
    sigmas = cast.backbone.sigmas(lab.num_steps)
    schedule = make_schedule(sigmas, noise_level=NOISE_LEVEL, stochastic_steps=(first, last + 1))
    draw = torch.Generator().manual_seed(0)
    shape, ones = (len(conditioning), *cast.backbone.latent_shape), torch.ones(len(conditioning))
    state, batches = torch.randn(shape, generator=draw), []
    for step in range(lab.num_steps):
        grid = (sigmas[step] * ones, sigmas[step + 1] * ones, schedule.noise_levels[step] * ones)
        batches.append(TransitionBatch(state, *grid, conditioning))
        gaussian = sde_step(state, cast.velocity(STUDENT, batches[-1]), *grid)
        state = sample(gaussian, torch.randn(shape, generator=draw))
    return batches


def cosine(one: Tensor, other: Tensor) -> float:
    """Returns the cosine of two tensors as vectors."""
    return float(cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


@torch.no_grad()
def differences(lab: Laboratory) -> None:
    """Prints cosine and KL of v_student - v_teacher beside float32's, by noise level."""
    exact = Cast(lab, "float32", texts := Encoded(lab))
    batches = visited(lab, exact, prompts=2)
    row("sigma", [f"{float(batch.sigma[0]):.3f}" for batch in batches])
    expected = [exact.velocity(STUDENT, batch) - exact.teachers(batch) for batch in batches]
    sizes = [float(exact.velocity(STUDENT, batch).norm()) for batch in batches]
    row("|difference| / |v|", [f"{float(e.norm()) / s:.3f}" for e, s in zip(expected, sizes, strict=True)])
    for name in (*(half + THROUGH for half in HALVES), *HALVES):
        half = Cast(lab, name, texts)
        found = [half.velocity(STUDENT, batch) - half.teachers(batch) for batch in batches]
        pairs = list(zip(found, expected, strict=True))
        row(f"{name}: cosine", [f"{cosine(f, e):.4f}" for f, e in pairs])
        row(f"{name}: KL ratio", [f"{float(f.square().sum() / e.square().sum()):.3f}" for f, e in pairs])


def lora_gradient(
    cast: Cast, batches: Sequence[TransitionBatch], targets: Sequence[Tensor], scale: float
) -> Tensor:
    """Returns the gradient of an update's transition KL, the loss being multiplied by `scale` on the way.

    The KL is divided by the dimensions of latents at 512 pixels, however large these latents are.
    """
    parameters = list(cast.bank.parameters(STUDENT).values())
    for parameter in parameters:
        parameter.grad = None
    for batch, target in zip(batches, targets, strict=True):
        grid = (batch.sigma, batch.sigma_next, batch.noise_level)
        ours = sde_step(batch.latents, cast.velocity(STUDENT, batch), *grid)
        kl = transition_kl(ours, sde_step(batch.latents, target, *grid)).sum() / DIMENSIONS
        (kl * scale).backward()
    return torch.cat(
        [parameter.grad.flatten() / scale for parameter in parameters if parameter.grad is not None]
    )


def gradients(lab: Laboratory) -> None:
    """Prints how far gradients are from float32's, and how many are zero, by the scale of the loss."""
    exact = Cast(lab, "float32", texts := Encoded(lab))
    batches = visited(lab, exact, prompts=1)
    # The same targets for all: what is asked here is what the backward pass loses.
    targets = [exact.teachers(batch) for batch in batches]
    expected = lora_gradient(exact, batches, targets, 1.0)
    print(f"latents {exact.backbone.latent_shape}, norm of float32's gradient {float(expected.norm()):.3g}")
    row("", ["cosine", "norm", "zero", "finite"])
    zero = f"{float((expected == 0).float().mean()):.4f}"
    row("float32", ["1", "1", zero, "yes"])
    for name, scale in (
        ("bfloat16" + THROUGH, 1.0),
        ("float16" + THROUGH, 1.0),
        ("bfloat16", 1.0),
        ("float16", 1.0),
        ("float16", 1024.0),
        ("float16", float(DIMENSIONS)),
    ):
        found = lora_gradient(Cast(lab, name, texts), batches, targets, scale)
        ratio, zeros = float(found.norm() / expected.norm()), float((found == 0).float().mean())
        finite = "yes" if bool(torch.isfinite(found).all()) else "NO"
        row(
            f"{name}, loss x {scale:g}",
            [f"{cosine(found, expected):.4f}", f"{ratio:.4f}", f"{zeros:.4f}", finite],
        )


@dataclass(frozen=True)
class Scaled:
    """An objective whose loss is multiplied."""

    inner: Objective
    scale: float

    def __call__(self, batch: TransitionBatch) -> LossOutput:
        """Returns the loss, times the scale."""
        output = self.inner(batch)
        return LossOutput(output.total * self.scale, output.count, output.metrics)


def distilled(lab: Laboratory, name: str, texts: Encoded, *, scale: float, seed: int) -> Mapping[str, Tensor]:
    """Returns the student of a short distillation on a base in a number format."""
    teachers = [{"name": t, "tasks": [t], "adapter": "unused", "guidance_scale": GUIDANCE} for t in lab.tasks]
    first, last = lab.window
    values = {
        "base": {"path": lab.base, "max_sequence_length": 0},
        "teachers": teachers,
        "anchor": None,
        "cold_start": {"adapter": "unused"},
        "prompts": [{"path": "unused"}],
        "sampling": {
            "num_steps": lab.num_steps,
            "stochastic_steps": [first, last],
            "guidance_scale": GUIDANCE,
        },
        **lab.training,
    }
    settings = from_values(values, DistillSettings)
    cast = Cast(lab, name, texts)
    groups = PromptRounds(lab.prompts, seed, settings.prompts_per_round)
    walks = build_walks(
        cast.backbone,
        texts,
        groups,
        settings.sampling,
        weights=settings.state_weights,
        seed=seed,
        micro_batch_size=settings.micro_batch_size,
        processes=ALONE,
    )
    source, objective = distillation(settings, named_policies(settings, cast.base, texts), walks)
    parameters = cast.bank.parameters(STUDENT)
    hooks = [one.register_hook(lambda gradient: gradient / scale) for one in parameters.values()]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            parameters=parameters,
            source=source,
            objective=Scaled(objective, scale),
            settings=LoopSettings(rounds=settings.run.rounds, optimizer=settings.optimizer),
            folder=Path(folder),
            identity="",
        ).run()
    for hook in hooks:
        hook.remove()
    return cast.bank.state(STUDENT)


def training(lab: Laboratory) -> None:
    """Prints how far students trained in each format are from their teachers, and from float32's student.

    All are judged in float32, on states that the first student has visited. What another seed of the noise
    does in float32 stands beside it.
    """
    exact = Cast(lab, "float32", texts := Encoded(lab))
    batches = visited(lab, exact, prompts=4)
    targets = torch.cat([exact.teachers(batch) for batch in batches])

    @torch.no_grad()
    def velocities(student: Mapping[str, Tensor]) -> Tensor:
        exact.bank.load_state(STUDENT, student)
        return torch.cat([exact.velocity(STUDENT, batch) for batch in batches])

    begun = exact.bank.state(STUDENT)
    start = velocities(begun)
    best = velocities(distilled(lab, "float32", texts, scale=1.0, seed=0))
    gap = float((start - targets).square().mean())
    moved = float((best - start).square().mean())
    row("", ["gap left", "off", "seconds"])
    row("float32", [f"{float((best - targets).square().mean()) / gap:.4f}", "0", ""])
    runs = [
        ("float32", 1.0, 1),
        ("bfloat16" + THROUGH, 1.0, 0),
        ("bfloat16", 1.0, 0),
        ("float16", 1.0, 0),
        ("float16", float(DIMENSIONS), 0),
    ]
    for name, scale, seed in runs:
        clock = time.monotonic()
        found = velocities(distilled(lab, name, texts, scale=scale, seed=seed))
        left, off = (
            float((found - targets).square().mean()) / gap,
            float((found - best).square().mean()) / moved,
        )
        label = f"{name}, loss x {scale:g}" + (f", seed {seed}" if seed else "")
        row(label, [f"{left:.4f}", f"{off:.4f}", f"{time.monotonic() - clock:.0f}"])


def row(name: str, cells: Sequence[str]) -> None:
    """Prints a row of a table."""
    print(f"{name:42}", *(f"{cell:>8}" for cell in cells), flush=True)


PARTS: Mapping[str, Callable[[Laboratory], None]] = {
    "differences": differences,
    "gradients": gradients,
    "training": training,
}
WIDE: Mapping[str, Mapping[str, int]] = {
    "differences": {"layers": 4, "heads": 24, "latent_side": 16},
    "gradients": {"layers": 2, "heads": 24, "latent_side": 16},
    "training": {"layers": 2, "heads": 24, "latent_side": 8},
}
TRUE_SIDE = {"layers": 2, "heads": 4, "latent_side": 64}  # narrow, with latents as large as at 512 pixels


def laboratories(part: str, base: str, folder: Path) -> Iterator[tuple[str, Laboratory]]:
    """Yields the bases of a part by name."""
    if base in ("miniature", "both"):
        yield "miniature", miniature()
    if base in ("wide", "both"):
        yield f"random, {WIDE[part]}", random_laboratory(folder / "wide", **WIDE[part])
        if part == "gradients":
            yield f"random, {TRUE_SIDE}", random_laboratory(folder / "side", **TRUE_SIDE)


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--base", choices=("miniature", "wide", "both"), default="both")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for label, lab in laboratories(asked.part, asked.base, Path(name)):
            print(f"\n{asked.part}, {label}", flush=True)
            PARTS[asked.part](lab)


if __name__ == "__main__":
    main()
