"""The plan of a training: parameters, memory, FLOPs and hours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from flow_opd.backbones.encoders import T5_PARTS
from flow_opd.backbones.loading import dtypes_of
from flow_opd.config.distill import DistillSettings
from flow_opd.config.options import PlanSettings
from flow_opd.planning.architectures import Architecture
from flow_opd.planning.flops import gpu_hours, update_flops
from flow_opd.planning.job import Job, TrainingSettings, Work
from flow_opd.planning.machines import MACHINES, RESERVE, Machine
from flow_opd.planning.memory import FLOAT32, Memory, module_size, optimizer_size, sharded_size, size
from flow_opd.planning.probe import Measurements
from flow_opd.planning.shapes import ShapeModel, build_network, count
from flow_opd.planning.verdicts import Options, Saving, Verdict, judge

SCHEMA = 2  # of the JSON; raised when a key goes or changes its meaning


@dataclass(frozen=True)
class Parameters:
    """How many numbers there are."""

    transformer: int
    vae: int
    text_encoders: Mapping[str, int]
    reward_models: int
    adapters: Mapping[str, int]  # name -> of both factors in all modules
    adapted_modules: int  # of the student


@dataclass(frozen=True)
class Share:
    """What one process does of an update."""

    trajectories: int  # of a round, in the largest share
    micro_batch_size: int  # rows of the largest micro-batch


@dataclass(frozen=True)
class Plan:
    """All that is known before a run."""

    kind: str  # "distill" or "teacher"
    base: Mapping[str, Any]
    parameters: Parameters
    work: Work  # rows of an update, over all processes
    naive_work: Work
    share: Share
    updates: int
    checkpointing: bool  # as configured
    memory: Mapping[bool, Memory]  # with checkpointing? -> of one process
    encoding: int  # bytes while prompts are encoded, before the training: the whole pipeline is loaded
    naive_memory: int  # bytes, with a pipeline for each policy
    flops: Mapping[str, float]  # part -> of one update
    naive_flops: Mapping[str, float]
    cpu_seconds: float  # of one update, for rewards that a processor works out while the card waits
    bytes_per_prompt: int  # of an embedding
    verdicts: tuple[Verdict, ...]
    assumed: PlanSettings
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns plain data; bytes and FLOPs are whole or floating numbers, None is what is not counted."""
        memory = {
            _NAMES[on]: {**one.fixed, "activations": one.kept, "working_set": one.working, "total": one.total}
            for on, one in self.memory.items()
        }
        flops, naive = (
            dict[str, float | None]({**parts, "total": sum(parts.values())})
            for parts in (self.flops, self.naive_flops)
        )
        if not self.naive_work.scored:
            naive["rewards"] = None  # it scores every image, by rewards that this configuration does not name
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "base": dict(self.base),
            "parameters": asdict(self.parameters),
            "update": {
                "updates": self.updates,
                "processes": self.assumed.processes,
                **asdict(self.share),
                "rows": asdict(self.work),
                "naive_rows": asdict(self.naive_work),
                "reward_cpu_seconds": self.cpu_seconds,
            },
            "memory": {
                "configured": _NAMES[self.checkpointing],
                **memory,
                "encoding_prompts": self.encoding,
                "naive": self.naive_memory,
                "reserve_gib": RESERVE,
            },
            "flops": {
                "update": flops,
                "naive_update": naive,
                "run": sum(self.flops.values()) * self.updates,
                "naive_run": sum(self.naive_flops.values()) * self.updates,
            },
            "embedding_bytes_per_prompt": self.bytes_per_prompt,
            "utilisation": self.assumed.utilisation,
            "machines": [asdict(verdict) for verdict in self.verdicts],
            "notes": list(self.notes),
        }


_NAMES = {False: "without_checkpointing", True: "with_checkpointing"}


def make_plan(
    job: Job, architecture: Architecture, model: ShapeModel, measured: Measurements, assumed: PlanSettings
) -> Plan:
    """Returns the plan of a job.

    Args:
        job: what the configuration asks for.
        architecture: the base.
        model: the same as shapes, with its adapters.
        measured: measurements of one micro-batch of the largest share.
        assumed: number of processes and utilisation.
    """
    settings = job.settings
    networks = _networks(settings, architecture)
    sizes = {name: module_size(network) for name, network in networks.items()}
    share = share_of_process(job, assumed.processes)
    prompt = size([model.backbone.text, model.backbone.pooled])
    sharded = sharded_size(networks["transformer"], assumed.processes)
    scoring = measured.scoring
    embeddings = share.trajectories * prompt
    fixed = _fixed(job, model, sizes, sharded=sharded, embeddings=embeddings, rewards=scoring.bytes)
    dynamic = {on: measured.of(on).dynamic for on in (False, True)}
    checkpointing = settings.compute.gradient_checkpointing
    flops, naive_flops = (
        update_flops(work, measured.costs, checkpointing=checkpointing) for work in (job.work, job.naive)
    )
    whole = sum(sizes.values())
    copies = job.pipelines * whole - sum(fixed[part] for part in ("base", "vae", "text_encoders"))
    peak = max(dynamic[checkpointing].peak, measured.decode.peak, scoring.peak)
    options = Options(
        fixed=sum(fixed.values()),
        dynamic=dynamic,
        checkpointing=checkpointing,
        rows=share.trajectories,
        encoding=whole,
        savings=_savings(settings, fixed, sizes["transformer"] - sharded),
        t5_may_go=any(part in networks for part in T5_PARTS),
        scoring=scoring.peak,
    )
    seconds = job.work.scored * scoring.cpu_seconds
    return Plan(
        kind="distill" if isinstance(settings, DistillSettings) else "teacher",
        base=_base(job, architecture, model),
        parameters=_parameters(model, networks, job, scoring.parameters),
        work=job.work,
        naive_work=job.naive,
        share=share,
        updates=job.updates,
        checkpointing=checkpointing,
        memory={on: Memory.of(fixed, one, scoring.peak) for on, one in dynamic.items()},
        encoding=whole,
        naive_memory=sum(fixed.values()) + copies + peak,
        flops=flops,
        naive_flops=naive_flops,
        cpu_seconds=seconds,
        bytes_per_prompt=prompt,
        verdicts=_verdicts(job, options, flops, naive_flops, assumed.utilisation, seconds),
        assumed=assumed,
        notes=(*job.notes, *scoring.notes, *_caveats(settings)),
    )


def _networks(settings: TrainingSettings, architecture: Architecture) -> dict[str, nn.Module]:
    """Returns the networks of the base in the number formats in which they are loaded."""
    formats = dtypes_of(settings.base)
    return {
        name: build_network(one, formats.get(name, formats["default"]))
        for name, one in architecture.networks.items()
    }


def _verdicts(
    job: Job,
    options: Options,
    flops: Mapping[str, float],
    naive_flops: Mapping[str, float],
    utilisation: float,
    cpu_seconds: float,
) -> tuple[Verdict, ...]:
    """Returns what each known card says to the run, and to the naive one."""

    def hours(of_update: Mapping[str, float], card: Machine) -> float:
        return job.updates * gpu_hours(of_update, card, utilisation, cpu_seconds=cpu_seconds)

    return tuple(
        judge(card, options, hours=hours(flops, card), naive_hours=hours(naive_flops, card))
        for card in MACHINES
    )


def share_of_process(job: Job, processes: int) -> Share:
    """Returns what the process with the largest share of a round does."""
    rows = math.ceil(job.trajectories / processes)
    return Share(rows, min(job.settings.micro_batch_size, rows))


def _fixed(
    job: Job, model: ShapeModel, sizes: Mapping[str, int], *, sharded: int, embeddings: int, rewards: int
) -> dict[str, int]:
    """Returns part -> bytes that a process holds all the time."""
    settings = job.settings
    student = list(model.trained.values())
    adapters = {name: size(model.adapters.parameters(name).values()) for name in job.loras}
    encoders = sum(bytes_ for name, bytes_ in sizes.items() if name.startswith("text_encoder"))
    return {
        "base": sharded if settings.compute.shard_base else sizes["transformer"],
        "vae": sizes["vae"] if job.decodes else 0,
        "text_encoders": encoders if settings.embeddings is None else 0,
        "frozen_adapters": sum(bytes_ for name, bytes_ in adapters.items() if name != model.student),
        "student_adapter": adapters[model.student],
        "gradients": size(student),
        "optimizer": optimizer_size(student, settings.optimizer),
        "moving_average": FLOAT32 * sum(one.numel() for one in student) if settings.ema else 0,
        "text_embeddings": embeddings,
        "reward_models": rewards,
    }


def _savings(settings: TrainingSettings, fixed: Mapping[str, int], by_shards: int) -> tuple[Saving, ...]:
    """Returns what makes less stay in memory, the cheapest first; `by_shards` is what FSDP2 would save."""
    savings = []
    if fixed["text_encoders"]:
        savings.append(Saving("set embeddings to {}", fixed["text_encoders"]))
    if settings.base.dtype == "float32":
        savings.append(Saving("set base.dtype to bfloat16", fixed["base"] // 2, at_least=True))
    elif by_shards and not settings.compute.shard_base:
        savings.append(Saving("turn on compute.shard_base", by_shards))
    return tuple(savings)


def _caveats(settings: TrainingSettings) -> list[str]:
    """Returns what about these settings is not planned."""
    notes = []
    if settings.base.dtype == "float32":
        notes.append("base.dtype float32 runs at half of the bfloat16 peak at best: double the hours")
    if settings.compute.compile:
        notes.append("compute.compile is not planned: it saves time and working set")
    if settings.compute.shard_base:
        notes.append("a sharded base is counted as its share, two whole blocks and all outside of the blocks")
    return notes


def _base(job: Job, architecture: Architecture, model: ShapeModel) -> dict[str, Any]:
    base = job.settings.base
    return {
        "path": base.path,
        "config_files": architecture.source,
        "pipeline": architecture.pipeline,
        "dtype": base.dtype,
        "latent_shape": list(model.backbone.latent_shape),
        "text_tokens": model.backbone.text.shape[1],
    }


def _parameters(
    model: ShapeModel, networks: Mapping[str, nn.Module], job: Job, reward_models: int
) -> Parameters:
    adapters = {
        name: sum(parameter.numel() for parameter in model.adapters.parameters(name).values())
        for name in job.loras
    }
    return Parameters(
        transformer=count(networks["transformer"]),
        vae=count(networks["vae"]),
        text_encoders={
            name: count(network) for name, network in networks.items() if name.startswith("text_encoder")
        },
        reward_models=reward_models,
        adapters=adapters,
        adapted_modules=len(model.trained) // 2,
    )
