"""The sections of benchmarks/card.py; each yields its readings one by one, so that a budget can end it."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from our_update import Parts, our_distillation
from random_sd3 import RandomTexts, random_backbone, random_bank

from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.options import PlanSettings
from flow_opd.method.rounds import PromptRounds
from flow_opd.planning.architectures import read_architecture
from flow_opd.planning.machines import GIB
from flow_opd.planning.plan import Plan
from flow_opd.runs.base import Base
from flow_opd.stages.plan import plan_training
from flow_opd.types import Prompt

TASKS = ("composition", "text", "preference", "quality")
GUIDANCE = 4.5
ROWS = 4  # micro-batch where only one is tried
SWITCHES = 200

Reading = dict[str, Any]


class NotHereError(Exception):
    """What a section needs is not on this machine."""


@dataclass(frozen=True)
class Bench:
    """What is measured: which base, on which device, how often."""

    device: torch.device
    base: str  # hub id or folder, of which only the config files are read
    dtype: str
    resolution: int | None
    text_tokens: int
    rank: int
    repeats: int
    micro_batches: tuple[int, ...]
    demo: tuple[str, ...]  # settings of the miniature's demonstration
    demo_seconds: float  # that it gets at most
    folder: Path  # for what is written on the way
    peak: float | None = None  # FLOPs a second of the device, where it is known
    steps: int = 2  # of a walk; all cost the same

    def settings(self, rows: int, *, guidance: float = 1.0, **compute: Any) -> DistillSettings:
        """Returns a distillation of four teachers and an anchor, in micro-batches of `rows` trajectories."""
        base = {"path": self.base, "dtype": self.dtype, "resolution": self.resolution}
        teachers = [
            {"name": task, "tasks": [task], "adapter": f"random/{task}", "guidance_scale": guidance}
            for task in TASKS
        ]
        return DistillSettings.model_validate(
            {
                "run": {"out": str(self.folder), "rounds": 1000},
                "base": {**base, "max_sequence_length": self.text_tokens},
                "compute": {"device": self.device.type, **compute},
                "embeddings": {},  # as in a training: the text encoders are gone
                "lora": {"rank": self.rank, "alpha": 2.0 * self.rank},
                "teachers": teachers,
                "anchor": {"teacher": "quality", "guidance_scale": guidance},
                "prompts": [{"path": "none.jsonl"}],
                "prompts_per_round": max(rows, len(TASKS)),
                "micro_batch_size": rows,
                "sampling": {
                    "num_steps": self.steps,
                    "stochastic_steps": (0, 0),
                    "guidance_scale": guidance,
                },
            }
        )

    def parts(self, settings: DistillSettings, teachers: tuple[str, ...] = TASKS) -> Parts:
        """Returns random weights in the shapes of the settings, on the device."""
        backbone = random_backbone(settings.base, settings.compute, self.device)
        texts = RandomTexts(read_architecture(settings.base), settings.base)
        bank = random_bank(backbone, teachers, LoraSettings(rank=self.rank, alpha=2.0 * self.rank))
        return Parts(Base(settings.base, settings.compute, backbone, bank), texts, _rounds(settings))

    def seconds(self, work: Callable[[], object]) -> float:
        """Returns how long work takes, until the device has done it."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def measured(bench: Bench, settings: DistillSettings, parts: Parts) -> Reading:
    """Returns seconds, FLOPs and memory of an update, the median of a few after a first one."""
    update = our_distillation(settings, replace(parts, prompts=_rounds(settings)), bench.folder).update
    on_card = bench.device.type == "cuda"
    try:
        first = bench.seconds(update)
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        seconds = median(bench.seconds(update) for _ in range(bench.repeats))
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    flops, memory = _expected(bench, settings)
    return {
        "first_seconds": first,
        "seconds": seconds,
        "trajectories": settings.prompts_per_round,
        "tflops": flops / 1e12,
        "utilisation": flops / seconds / bench.peak if bench.peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if on_card else None,
        "planned_gib": memory / GIB,
    }


def _checkpointed(parts: Parts) -> None:
    assert isinstance(parts.base.backbone, SD3Backbone)
    parts.base.backbone.pipe.transformer.enable_gradient_checkpointing()


def updates(bench: Bench) -> Iterator[Reading]:
    """Yields an update at each micro-batch, with and without gradient checkpointing, until memory ends."""
    parts = bench.parts(bench.settings(ROWS))
    for checkpointing in (False, True):
        if checkpointing:
            _checkpointed(parts)
        for rows in bench.micro_batches:
            settings = bench.settings(rows, gradient_checkpointing=checkpointing)
            reading = measured(bench, settings, parts)
            yield {"micro_batch": rows, "checkpointing": checkpointing, **reading}
            if "failed" in reading:
                break


def guidance(bench: Bench) -> Iterator[Reading]:
    """Yields a guided update with both halves in one pass, and one after the other."""
    parts = bench.parts(bench.settings(ROWS, gradient_checkpointing=True))
    for batching in ("batched", "sequential"):
        compute = {"guidance_batching": batching, "gradient_checkpointing": True}
        settings = bench.settings(ROWS, guidance=GUIDANCE, **compute)
        yield {"guidance": batching, **measured(bench, settings, parts)}


def compiled(bench: Bench) -> Iterator[Reading]:
    """Yields an update with compiled blocks; the first one has the compilation in it."""
    settings = bench.settings(ROWS, compile=True)
    yield {"compile": True, **measured(bench, settings, bench.parts(settings))}


def switching(bench: Bench) -> Iterator[Reading]:
    """Yields what it takes to activate another adapter, with few and with many of them."""
    bank = bench.parts(bench.settings(ROWS), TASKS[:1]).base.bank
    modules = len(bank.weights(TASKS[0]).factors)
    for count in (2, 5, 9):
        for index in range(len(bank.names), count):
            bank.add(f"other-{index}", bank.settings(TASKS[0]), index)

        def there_and_back() -> None:
            for _ in range(SWITCHES // 2):
                with bank.using(TASKS[0]):
                    pass

        microseconds = 1e6 * bench.seconds(there_and_back) / SWITCHES
        yield {"adapters": count, "modules": modules, "microseconds_a_switch": microseconds}


def waiting(bench: Bench) -> Iterator[Reading]:
    """Yields how often an update makes the processor wait for the card, and where."""
    if bench.device.type != "cuda":
        raise NotHereError("PyTorch tells of waiting on CUDA devices only")
    settings = bench.settings(ROWS)
    update = our_distillation(settings, bench.parts(settings), bench.folder).update
    update()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(each.filename).name}:{each.lineno}" for each in seen if "synchroniz" in str(each.message)
    )
    yield {"waits_an_update": places.total(), "places": dict(places.most_common())}


def demo(bench: Bench) -> Iterator[Reading]:
    """Yields how long the miniature's demonstration takes on the same device."""
    devices = [f"{part}.compute.device={bench.device.type}" for part in ("distill", "evaluate")]
    words = ["demo", "--out", str(bench.folder / "demo")]
    words += [word for setting in (*bench.demo, *devices) for word in ("--set", setting)]
    command = [sys.executable, "-m", "flow_opd", *words]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=bench.demo_seconds, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise NotHereError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    yield {"seconds": time.perf_counter() - started}


SECTIONS: dict[str, Callable[[Bench], Iterator[Reading]]] = {
    "updates": updates,
    "guidance": guidance,
    "switching": switching,
    "waiting": waiting,
    "compile": compiled,
    "demo": demo,
}


def _rounds(settings: DistillSettings) -> PromptRounds:
    prompts = [Prompt("x" * len(task), task) for task in TASKS]
    return PromptRounds(prompts, 0, settings.prompts_per_round)


def _expected(bench: Bench, settings: DistillSettings) -> tuple[float, float]:
    """Returns the FLOPs of an update, without what checkpointing computes again, and the planned bytes."""
    compute = settings.compute
    plan = _plan(bench, settings.sampling.guidance_scale, compute.guidance_batching)
    more = settings.prompts_per_round / len(TASKS)  # than the plan's update has
    flops = more * sum(spent for part, spent in plan.flops.items() if part != "recompute")
    memory = plan.memory[compute.gradient_checkpointing]
    texts = (more - 1) * memory.fixed["text_embeddings"]
    worst = settings.micro_batch_size * (memory.kept + memory.working)
    return flops, sum(memory.fixed.values()) + texts + worst


@cache
def _plan(bench: Bench, scale: float, batching: str) -> Plan:
    """Returns the plan for micro-batches of one trajectory; what comes and goes grows with them."""
    return plan_training(bench.settings(1, guidance=scale, guidance_batching=batching), PlanSettings())
