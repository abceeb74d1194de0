"""The settings of a training in the words of a model card."""

from __future__ import annotations

from flow_opd.config.cold_start import ColdStartSettings
from flow_opd.config.common import OptimizerSettings, SamplingSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.rewards import RewardSpec
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings

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
        ("objective", settings.objective.name),
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


def _reward(reward: RewardSpec) -> str:
    judged = "" if reward.tasks is None else f" on {' and '.join(reward.tasks)}"
    return f"{reward.name}{judged} (weight {reward.weight:g})"


def _start(start: ColdStartSettings | None, *, merged: str) -> str:
    if start is None:
        return "fresh adapter"
    if start.merge is None:
        return str(start.adapter)
    return f"merge of {', '.join(start.adapters or (merged,))} ({start.merge.name})"


def _sampling(sampling: SamplingSettings) -> str:
    text = f"{sampling.num_steps} steps, {sampling.dynamics}"
    if sampling.dynamics != "ode":
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
