"""Holds `flow-opd plan` against a real round: FLOPs by FlopCounterMode, memory by torch's profiler.

    python benchmarks/plan_vs_measured.py

Real weights, real batches, a real optimizer step, on the CPU: the miniature (`asset:base`, its own four
teachers) and a random Stable Diffusion 3 of 8 layers and 8 heads of 64, each with and without gradient
checkpointing, in float32 and in bfloat16. The plan of the same configuration knows none of that.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_base import write_adapter, write_base
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import flow_opd
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.options import PlanSettings
from flow_opd.planning.meter import CPU_ATTENTION
from flow_opd.protocols import PromptEncoder
from flow_opd.quiet import quiet_loading
from flow_opd.runs.base import Base
from flow_opd.runs.teachers import anchor_of, teacher_of
from flow_opd.stages.plan import plan_training
from flow_opd.training.trainer import Trainer
from flow_opd.types import Conditioning, Prompt

MIB = 2**20
FLOPS_TOLERANCE, MEMORY_TOLERANCE = 0.05, 0.10


class Encoded:
    """Prompts that were encoded beforehand, as by the embedding cache."""

    def __init__(self, encoder: PromptEncoder, prompts: Sequence[Prompt]) -> None:
        """Encodes all prompts that there will be."""
        with torch.no_grad():
            self.known = {prompt.text: encoder.encode_prompts([prompt]) for prompt in prompts}

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns what is known of the prompts."""
        parts = [self.known[prompt.text] for prompt in prompts]
        tasks = tuple(prompt.task for prompt in prompts)
        return Conditioning(
            torch.cat([part.embeds for part in parts]), torch.cat([part.pooled for part in parts]), tasks
        )


def training(settings: DistillSettings) -> tuple[Trainer, Any]:
    """Returns the real training of the settings, with weights, and its base."""
    prompts = [Prompt("a red circle", task) for task in settings.teacher_of_task()]
    base = Base.load(settings.base, settings.compute)
    encoder = Encoded(base.backbone, [*prompts, Prompt("", "")])
    base.backbone.free_encoders()
    base.backbone.free_vae()
    assert settings.anchor is not None
    assert settings.cold_start is not None
    anchor = settings.anchor.teacher or flow_opd.load_adapter(str(settings.anchor.adapter))
    made = flow_opd.distill(
        base,
        {each.name: teacher_of(each, flow_opd.load_adapter(each.adapter)) for each in settings.teachers},
        prompts,
        settings,
        rounds=3,
        student=flow_opd.load_adapter(str(settings.cold_start.adapter)),
        anchor=anchor_of(settings.anchor, anchor),
        encoder=encoder,
    )
    return made.trainer, base.backbone


def one_round(trainer: Trainer) -> None:
    """Runs the next round, optimizer step included, and drops the gradients, as the one after it would."""
    trainer.settings = replace(trainer.settings, rounds=trainer.progress.round + 1)
    trainer.run()
    trainer.optimizer.zero_grad(set_to_none=True)


def measured_flops(trainer: Trainer) -> int:
    """Returns the FLOPs of a round, as FlopCounterMode counts them."""
    with FlopCounterMode(display=False, custom_mapping=dict(CPU_ATTENTION)) as counter:
        one_round(trainer)
    return counter.get_total_flops()


def measured_peak(trainer: Trainer) -> int:
    """Returns the most bytes that a round allocates at a time, by the events of torch's own allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_round(trainer)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def held(trainer: Trainer, backbone: Any) -> int:
    """Returns the bytes that are there between two rounds: weights, moments, average, embeddings."""
    transformer = backbone.transformer
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    average = trainer.average.average.values() if trainer.average else ()
    tensors = [*transformer.parameters(), *transformer.buffers(), *states, *average]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compare(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields a row of the table for each setting of gradient checkpointing and number format."""
    for dtype in ("float32", "bfloat16"):
        for checkpointing in (False, True):
            settings = from_values(
                values,
                DistillSettings,
                [f"base.dtype={dtype}", f"compute.gradient_checkpointing={str(checkpointing).lower()}"],
            )
            begun = time.monotonic()
            plan = plan_training(settings, PlanSettings())
            seconds = time.monotonic() - begun
            trainer, backbone = training(settings)
            one_round(trainer)  # moments and average exist from now on
            flops = measured_flops(trainer)
            fixed, peak = held(trainer, backbone), measured_peak(trainer)
            planned_flops = sum(plan.flops.values())
            planned = plan.memory[checkpointing]
            planned_peak = planned.kept + planned.working + planned.fixed["gradients"]
            yield (
                name,
                dtype,
                "with" if checkpointing else "without",
                f"{flops / 1e9:.3f}",
                f"{planned_flops / 1e9:.3f}",
                judged(planned_flops / flops, FLOPS_TOLERANCE),
                f"{peak / MIB:.1f}",
                f"{planned_peak / MIB:.1f}",
                judged(planned_peak / peak, MEMORY_TOLERANCE),
                f"{(fixed + peak) / MIB:.1f}",
                f"{planned.total / MIB:.1f}",
                judged(planned.total / (fixed + peak), MEMORY_TOLERANCE),
                f"{seconds:.1f}",
            )


def judged(ratio: float, tolerance: float) -> str:
    """Returns how far the plan is from what was measured, in percent, with a mark if that is too far."""
    return f"{100 * (ratio - 1):+.2f} %" + ("" if abs(ratio - 1) <= tolerance else "  TOO FAR")


def miniature() -> dict[str, Any]:
    """Returns a distillation on the embedded miniature; two of its four teachers have guidance."""
    return {
        "run": {"out": "unused", "rounds": 3},
        "base": {"path": "asset:base", "max_sequence_length": 0},
        "embeddings": {},
        "teachers": [
            {"name": name, "tasks": [name], "adapter": f"asset:teachers/{name}", "guidance_scale": guidance}
            for name, guidance in (("composition", 1.0), ("text", 4.5), ("preference", 4.5), ("quality", 1.0))
        ],
        "anchor": {"teacher": "quality", "share": 1.0, "guidance_scale": 1.0},
        "cold_start": {"adapter": "asset:teachers/composition"},
        "prompts": [{"path": "asset:prompts/train/text.jsonl"}],
        "prompts_per_round": 16,
        "micro_batch_size": 8,
        "sampling": {"num_steps": 3, "guidance_scale": 4.5},
    }


def middle(folder: Path) -> dict[str, Any]:
    """Writes a random base of 8 layers and 8 heads of 64 and returns a distillation on it."""
    write_base(folder / "base", layers=8, heads=8, latent_side=16)
    for seed, name in enumerate(("one", "two", "anchor", "student")):
        write_adapter(folder / "base", folder / name, rank=32, seed=seed)
    return {
        "run": {"out": "unused", "rounds": 3},
        "base": {"path": str(folder / "base"), "max_sequence_length": 0},
        "embeddings": {},
        "teachers": [
            {"name": name, "tasks": [name], "adapter": str(folder / name), "guidance_scale": 4.5}
            for name in ("one", "two")
        ],
        "anchor": {"adapter": str(folder / "anchor"), "share": 1.0, "guidance_scale": 4.5},
        "cold_start": {"adapter": str(folder / "student")},
        "prompts": [{"path": "asset:prompts/train/text.jsonl"}],
        "prompts_per_round": 4,
        "micro_batch_size": 4,
        "sampling": {"num_steps": 2, "guidance_scale": 4.5},
    }


def main() -> None:
    """Prints the table; ends with an error if the plan is off by more than promised."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    columns = ("base", "format", "checkpointing", "GFLOP measured", "planned", "off")
    memory = ("MiB of an update", "planned", "off", "MiB in all", "planned", "off")
    table = Table(*columns, *memory, "seconds to plan")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with quiet_loading():
            bases = {"miniature": miniature(), "8 x 8 x 64": middle(folder)}
        for label, values in bases.items():
            for row in compare(label, values):
                print(*row, flush=True)
                table.add_row(*row)
    Console(width=170).print(table)
    if any("TOO FAR" in cell for column in table.columns for cell in map(str, column.cells)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
