"""The recipe of a training in words, and what it has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_opd.config.common import OptimizerSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.merge import ColdStartSettings
from flow_opd.config.objectives import ObjectiveSettings
from flow_opd.config.rewards import RewardSettings
from flow_opd.config.sampling import SamplingSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.reports.tables import duration, percent

Training = DistillSettings | SFTSettings | TeacherSettings


def recipe(settings: Training) -> list[tuple[str, str]]:
    """Returns what decides the result of a training, as (name, value), in the order of a table."""
    ema = settings.ema
    return [
        *_own_part(settings),
        ("optimizer", _optimizer(settings.optimizer)),
        (
            "average of the weights",
            "none" if ema is None else f"decay {ema.decay:g}, every {ema.every} updates",
        ),
        ("number format of the base", settings.base.dtype),
        ("seed", str(settings.run.seed)),
    ]


def method(settings: Training) -> str:
    """Returns how the adapter was trained, in one sentence."""
    if isinstance(settings, TeacherSettings):
        names = ", ".join(reward.name for reward in settings.rewards)
        if len(settings.rewards) == 1:
            return f"Flow-GRPO on the reward {names}."
        mixed = any(reward.tasks is not None for reward in settings.rewards)
        return f"{'GRPO-Mix: ' if mixed else ''}Flow-GRPO on the rewards {names}."
    count = len(settings.teachers)
    teachers = "one teacher" if count == 1 else f"{count} teachers"
    if isinstance(settings, DistillSettings):
        anchored = " with a quality anchor on every prompt (MAR)" if settings.anchor else ""
        return f"Multi-teacher on-policy distillation (Flow-OPD) of {teachers}{anchored}."
    return f"Supervised fine-tuning (SFT) on images that {teachers} drew."


def _own_part(settings: Training) -> list[tuple[str, str]]:
    if isinstance(settings, SFTSettings):
        return _sft(settings)
    own = _distillation(settings) if isinstance(settings, DistillSettings) else _flow_grpo(settings)
    return [*own, ("sampling in training", _sampling(settings.sampling))]


def _sft(settings: SFTSettings) -> list[tuple[str, str]]:
    return [
        ("images", f"{settings.images_per_prompt} of each prompt, {settings.num_steps} ODE steps"),
        ("updates", f"{settings.run.rounds} of {settings.batch_size} images"),
        ("noise levels", settings.sigmas.name),
        ("captions left out", f"{settings.caption_dropout:.0%}"),
    ]


def _distillation(settings: DistillSettings) -> list[tuple[str, str]]:
    anchor = settings.anchor
    return [
        ("objective", _objective(settings.objective)),
        ("anchor", f"{anchor.teacher or anchor.adapter}, weight {anchor.weight:g}" if anchor else "none"),
        ("cold start", _start(settings.cold_start, merged="the teachers")),
        ("rounds", f"{settings.run.rounds} of {settings.prompts_per_round} prompts"),
    ]


def _flow_grpo(settings: TeacherSettings) -> list[tuple[str, str]]:
    return [
        ("rewards", ", ".join(_reward(reward) for reward in settings.rewards)),
        (
            "advantages",
            f"normalization {settings.reward_normalization}, spread of the {settings.advantage_spread}",
        ),
        ("cold start", _start(settings.cold_start, merged="")),
        (
            "rounds",
            f"{settings.run.rounds} of {settings.groups_per_round} x {settings.group_size} images",
        ),
        ("clip range", f"{settings.clip_range:g}"),
        ("KL to the base", f"{settings.kl_weight:g}"),
    ]


def _objective(objective: ObjectiveSettings) -> str:
    """Returns its name, with what it is set by."""
    given = {key: value for key, value in objective.model_dump(mode="json").items() if key != "name"}
    return objective.name + "".join(f", {key} {value}" for key, value in given.items())


def _reward(reward: RewardSettings) -> str:
    judged = "" if reward.tasks is None else f" on {' and '.join(reward.tasks)}"
    return f"{reward.name}{judged} (weight {reward.weight:g})"


def _start(start: ColdStartSettings | None, *, merged: str) -> str:
    if start is None:
        return "fresh adapter"
    if start.merge is None:
        return str(start.adapter)
    return f"merge of {', '.join(start.adapters or (merged,))} ({start.merge.name})"


def _sampling(sampling: SamplingSettings) -> str:
    text = f"{sampling.num_steps} steps, {sampling.dynamics.name}"
    if sampling.dynamics.adds_noise:
        first, stop = sampling.stochastic_range()
        text += f" with noise level {sampling.noise_level:g} in steps {first} to {stop - 1}"
    return f"{text}, guidance {sampling.guidance_scale:g}"


def _optimizer(optimizer: OptimizerSettings) -> str:
    first, second = optimizer.betas
    return (
        f"AdamW, learning rate {optimizer.learning_rate:g}, {optimizer.decay} after {optimizer.warmup_steps} "
        f"steps of warm-up, betas {first:g} and {second:g}, weight decay {optimizer.weight_decay:g}, "
        f"gradient norm up to {optimizer.max_grad_norm:g}"
    )


@dataclass(frozen=True)
class Cost:
    """Wall time and optimizer steps of a training; None where it was not recorded."""

    name: str
    seconds: float | None = None
    steps: int | None = None
    processes: int = 1  # one to a device

    @property
    def time(self) -> str:
        """The wall time in words."""
        if self.seconds is None:
            return "unknown"
        return duration(self.seconds) + (f" on {self.processes} devices" if self.processes > 1 else "")

    @property
    def device_seconds(self) -> float:
        """Wall time times devices, 0 where it is unknown."""
        return (self.seconds or 0.0) * self.processes


def ledger(own: Cost, teachers: Sequence[Cost], cold_start: Cost | None = None) -> tuple[list[Cost], str]:
    """Returns the lines of the ledger, and a sentence with the sum and the teachers' share of it."""
    lines = [own, *([] if cold_start is None else [cold_start]), *teachers]
    if lines == [own]:
        return lines, f"The training took {own.time}."
    unknown = [cost.name for cost in lines if cost.seconds is None]
    if unknown:
        return lines, (
            f"The cost of {', '.join(unknown)} is unknown here, and so are the sum and the teachers' share."
        )
    spent = sum(cost.device_seconds for cost in teachers)
    total = sum(cost.device_seconds for cost in lines)
    share = percent(spent / total) if total > 0 else "–"
    return lines, (
        f"Together {duration(total)} of a device, of which the teachers took {share}. The base's training is "
        "not counted."
    )
