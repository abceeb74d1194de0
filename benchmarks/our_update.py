"""This project's distillation, taken one update at a time; and what it asks of its network in an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.distill import DistillSettings
from flow_opd.method.objectives import OPDPolicies, WeightedTerms
from flow_opd.method.opd import distillation
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.walk import build_walks
from flow_opd.processes import ALONE
from flow_opd.protocols import BatchSource, PromptEncoder, VelocityField
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base
from flow_opd.runs.prompts import prompts_of
from flow_opd.runs.student import first_weights, place_student
from flow_opd.runs.teachers import ANCHOR, named_policies
from flow_opd.runs.training import STUDENT, loop_settings
from flow_opd.seeding import derived_seed
from flow_opd.training.trainer import Trainer


@dataclass(frozen=True)
class Distillation:
    """A distillation that waits between its updates."""

    update: Callable[[], None]
    student: VelocityField
    parameters: Mapping[str, Parameter]  # of the student, by `<module>.lora_A.weight`
    networks: Sequence[nn.Module]  # whose weights are in memory

    def mebibytes(self) -> float:
        """Returns the memory of all weights, adapters included."""
        weights = [weight for network in self.networks for weight in network.parameters()]
        return sum(weight.numel() * weight.element_size() for weight in weights) / 2**20


def prompt_rounds(settings: DistillSettings) -> PromptRounds:
    """Returns the prompts of each round, as the stage deals them out."""
    return PromptRounds(
        prompts_of(settings.prompts),
        derived_seed(settings.run.seed, "prompts"),
        settings.prompts_per_round,
        settings.task_shares,
    )


@dataclass(frozen=True)
class Parts:
    """What a distillation is made of, before it is known how it trains."""

    base: Base  # with all adapters, the student in training
    encoder: PromptEncoder
    prompts: PromptRounds

    def adapters(self) -> dict[str, LoraWeights]:
        """Returns copies of all adapters, as they are now."""
        return {name: self.base.bank.weights(name) for name in self.base.bank.names}


def loaded_parts(settings: DistillSettings) -> Parts:
    """Returns the base of the settings, its teachers, and the student at its cold start."""
    base = Base.load(settings.base, settings.compute)
    key = "teachers.adapter"
    loras = {each.name: load_lora(each.adapter, settings.base, key=key) for each in settings.teachers}
    for name, lora in loras.items():
        base.put(name, lora)
    if settings.anchor is not None and settings.anchor.adapter is not None:
        base.put(ANCHOR, load_lora(settings.anchor.adapter, settings.base, key="anchor.adapter"))
    start = first_weights(settings.cold_start, base, seed=settings.run.seed, teachers=loras)
    place_student(base, start, settings.lora, seed=settings.run.seed)
    return Parts(base, base.backbone, prompt_rounds(settings))


def source_and_objective(
    settings: DistillSettings, parts: Parts
) -> tuple[BatchSource, WeightedTerms, OPDPolicies]:
    """Returns where the updates of the stage `distill` come from, what they minimise, and its policies."""
    walks = build_walks(
        parts.base.backbone,
        parts.encoder,
        parts.prompts,
        settings.sampling,
        weights=settings.state_weights,
        seed=settings.run.seed,
        micro_batch_size=settings.micro_batch_size,
        processes=ALONE,
    )
    policies = named_policies(settings, parts.base, parts.encoder)
    return *distillation(settings, policies, walks), policies


def our_distillation(settings: DistillSettings, parts: Parts, folder: Path) -> Distillation:
    """Returns the distillation of the stage `distill`.

    Args:
        settings: of the stage.
        parts: which the settings name, or others in their place.
        folder: for checkpoints; none is written here.
    """
    backbone, bank = parts.base.backbone, parts.base.bank
    source, objective, policies = source_and_objective(settings, parts)
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, parts.base, rounds=settings.run.rounds),
        folder=folder,
        identity="benchmark",
    )
    updates = chain.from_iterable(source.round(index) for index in count())
    return Distillation(
        update=lambda: trainer.update(next(updates)),
        student=policies.student,
        parameters=bank.parameters(STUDENT),
        networks=(backbone.transformer,),
    )


@dataclass
class Rows:
    """How many states a network was asked for."""

    with_gradient: int = 0
    without_gradient: int = 0


@contextmanager
def counted_rows(network: nn.Module) -> Iterator[Rows]:
    """Yields the rows of the network's forward passes inside the context, counted as they come."""
    rows = Rows()

    def see(module: nn.Module, args: tuple[Any, ...], values: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            rows.with_gradient += len(values["hidden_states"])
        else:
            rows.without_gradient += len(values["hidden_states"])

    handle = network.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()
