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
from flow_opd.assembly.base import load_backbone
from flow_opd.assembly.prompts import load_prompts
from flow_opd.assembly.training import STUDENT, loop_settings
from flow_opd.assembly.walks import build_walks
from flow_opd.config.distill import DistillSettings
from flow_opd.processes import ALONE
from flow_opd.prompts.rounds import PromptRounds
from flow_opd.protocols import VelocityField
from flow_opd.stages.distill import algorithm_of, bank_of, policies_of
from flow_opd.training.seeding import derived_seed
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
        load_prompts(settings.prompts),
        derived_seed(settings.run.seed, "prompts"),
        settings.prompts_per_round,
        settings.task_shares,
    )


def our_distillation(
    settings: DistillSettings, folder: Path
) -> tuple[Distillation, Mapping[str, LoraWeights]]:
    """Returns the distillation of the stage `distill`, and the adapters that it begins with.

    Args:
        settings: of the stage.
        folder: for checkpoints; none is written here.
    """
    backbone = load_backbone(settings.base, settings.compute)
    bank = bank_of(settings, backbone, ALONE)
    adapters = {name: bank.weights(name) for name in bank.names}
    walks = build_walks(
        backbone,
        backbone,
        prompt_rounds(settings),
        settings.sampling,
        seed=settings.run.seed,
        micro_batch_size=settings.micro_batch_size,
        processes=ALONE,
    )
    policies = policies_of(settings, backbone, backbone, bank)
    source, objective = algorithm_of(settings, policies, walks)
    trainer = Trainer(
        parameters=bank.parameters(STUDENT),
        source=source,
        objective=objective,
        settings=loop_settings(settings, settings.updates_per_round()),
        folder=folder,
        identity="benchmark",
    )
    updates = chain.from_iterable(source.round(index) for index in count())
    ours = Distillation(
        update=lambda: trainer.update(next(updates)),
        student=policies.student,
        parameters=bank.parameters(STUDENT),
        networks=(backbone.transformer,),
    )
    return ours, adapters


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
