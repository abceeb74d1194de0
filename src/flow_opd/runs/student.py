"""The adapter that a training trains, at its start: fresh, an adapter that exists, or a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.merging import merge
from flow_opd.config.common import LoraSettings
from flow_opd.config.distill import DistillConfig
from flow_opd.config.merge import ColdStartSettings
from flow_opd.config.state_weights import StateWeightsSettings
from flow_opd.config.teacher import GRPOConfig
from flow_opd.errors import ConfigError
from flow_opd.method.rounds import PromptRounds
from flow_opd.method.walk import Walks, build_walks
from flow_opd.protocols import PromptEncoder
from flow_opd.runs.adapters import load_lora, print_report
from flow_opd.runs.base import Base
from flow_opd.runs.training import STUDENT
from flow_opd.seeding import derived_seed
from flow_opd.types import Prompt


def first_weights(
    start: ColdStartSettings | None,
    base: Base,
    *,
    seed: int,
    teachers: Mapping[str, LoraWeights] | None = None,
) -> LoraWeights | None:
    """Returns the weights that a student starts with, or None for a fresh adapter.

    Args:
        start: a merge or an adapter, or None.
        base: that they belong to.
        seed: of the run.
        teachers: name -> adapter that a merge takes which names none.
    """
    if start is None:
        return None
    if start.adapter is not None:
        return load_lora(start.adapter, base.settings, key="cold_start.adapter")
    assert start.merge is not None
    merged = dict(teachers or {})
    if start.adapters is not None:
        merged = {name: load_lora(name, base.settings, key="cold_start.adapters") for name in start.adapters}
    weights, report = merge(list(merged.values()), start.merge.build(), seed=seed)
    if base.processes.is_main:
        print_report(report, list(merged))
    return weights


def place_student(
    base: Base, start: LoraWeights | None, lora: LoraSettings | None, *, seed: int
) -> tuple[str, LoraWeights]:
    """Puts the student on the base, to be trained there, and returns its name in the bank and its weights.

    Args:
        base: that it is put on.
        start: its first weights, or None for a fresh adapter.
        lora: rank, alpha and targets of a fresh adapter; None takes the defaults.
        seed: of the run.

    Raises:
        ConfigError: if the weights are something else.
        AdapterError: if they do not fit the base.
    """
    if not isinstance(start, LoraWeights | None):
        fix = "load it with flow_opd.load_adapter, and give what that returns"
        raise ConfigError("first weights of a student", value=start, allowed="an adapter, or None", fix=fix)
    name = base.bank.free_name(STUDENT)
    if start is None:
        base.bank.add(name, lora or LoraSettings(), derived_seed(seed, "lora"))
    else:
        base.bank.put(name, start)
    base.bank.train(name)
    return name, base.bank.weights(name)


def student_walks(
    base: Base,
    encoder: PromptEncoder,
    prompts: Sequence[Prompt],
    config: DistillConfig | GRPOConfig,
    *,
    per_round: int,
    weights: StateWeightsSettings,
    seed: int,
) -> Walks:
    """Returns how the student walks in a training.

    Args:
        base: that it is on.
        encoder: of the prompts.
        prompts: of which rounds are made.
        config: sampling, shares of the tasks, micro-batches.
        per_round: prompts of a round.
        weights: of the states in a loss of velocities.
        seed: of the run.

    Raises:
        ConfigError: if tasks and shares do not match, or the walk does not suit its dynamics.
    """
    return build_walks(
        base.backbone,
        encoder,
        PromptRounds(prompts, derived_seed(seed, "prompts"), per_round, config.task_shares),
        config.sampling,
        weights=weights,
        seed=seed,
        micro_batch_size=config.micro_batch_size,
        processes=base.processes,
    )
