"""One update by the schedule of the official Flow-OPD code, written anew from its description.

The student draws whole trajectories without gradients and all their states are kept; the pictures are decoded
and scored; then every state is gone through again: a student pass with gradients, the prompt's teacher, the
anchor. Each of them is a network of its own, in float32, with its PEFT adapter active beside the weights.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from our_update import Distillation, prompt_rounds
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter

from flow_opd.adapters.lora import LoraWeights
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.distill import DistillSettings
from flow_opd.flow.path import make_schedule
from flow_opd.method.policy import Policy
from flow_opd.protocols import Dynamics, LoadedBackbone, VelocityField
from flow_opd.runs.teachers import ANCHOR
from flow_opd.runs.training import STUDENT
from flow_opd.seeding import generator
from flow_opd.training.optimizer import EMA, build_optimizer, learning_rate
from flow_opd.types import Conditioning, Prompt, Schedule

# (std of a step [M], sigma - sigma' [M]) -> weight of |mean_student - mean_target|^2 per dimension, [M]
GapWeight = Callable[[Tensor, Tensor], Tensor]
Judge = Callable[[Tensor, Sequence[Prompt]], object]  # (pictures, prompts) -> scores


def over_variance(std: Tensor, length: Tensor) -> Tensor:
    """Returns 1 / (2 std^2), with which the gap of the means is the transition KL; 1/2 without noise."""
    return 0.5 / torch.where(std > 0, std, 1.0).square()


def over_diffusion(std: Tensor, length: Tensor) -> Tensor:
    """Returns 1 / (2 g^2) with std^2 = g^2 |dsigma|: the official code's weight, the KL times |dsigma|."""
    return over_variance(std, length) * torch.where(std > 0, length, 1.0)


@dataclass(frozen=True)
class OfficialNetworks:
    """The networks of a distillation, none of which shares a weight with another."""

    backbone: LoadedBackbone  # the base, and all that is not a transformer
    student: PeftModel
    teachers: Mapping[str, PeftModel]  # by task
    anchor: PeftModel

    def field(self, network: nn.Module, guidance_scale: float) -> VelocityField:
        """Returns the velocity field of one network."""
        own = copy.copy(self.backbone)
        own.transformer = network
        return Policy(own, encoder=self.backbone, guidance_scale=guidance_scale)


def official_networks(settings: DistillSettings, adapters: Mapping[str, LoraWeights]) -> OfficialNetworks:
    """Returns a copy of the base for the student, each teacher and the anchor, with its adapter."""
    assert settings.anchor is not None, "the official schedule has an anchor"
    backbone = load_backbone(settings.base, settings.compute)

    def network(name: str) -> PeftModel:
        with tempfile.TemporaryDirectory() as folder:
            adapters[name].write(folder)
            own = copy.deepcopy(backbone.transformer)
            return PeftModel.from_pretrained(own, folder, is_trainable=name == STUDENT)

    teachers = {each.name: network(each.name) for each in settings.teachers}
    return OfficialNetworks(
        backbone,
        network(STUDENT),
        {task: teachers[name] for task, name in settings.teacher_of_task().items()},
        network(settings.anchor.teacher or ANCHOR),
    )


@dataclass
class OfficialSchedule:
    """What an update of the official schedule does, one phase after the other."""

    settings: DistillSettings
    networks: OfficialNetworks
    weight: GapWeight = over_variance
    anchor_weight: float = 0.02
    noisy_steps: tuple[int, int] | None = None  # first <= t < stop; None: those of the settings
    trained_steps: int | None = None  # the first of the walk; None: all
    judge: Judge | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each phase, by update
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        """Builds optimizer, average and walk."""
        settings, sampling = self.settings, self.settings.sampling
        assert settings.anchor is not None
        guidance = {task: each.guidance_scale for each in settings.teachers for task in each.tasks}
        self.student = self.networks.field(self.networks.student, sampling.guidance_scale)
        self.teachers = {
            task: self.networks.field(network, guidance[task])
            for task, network in self.networks.teachers.items()
        }
        self.anchor = self.networks.field(self.networks.anchor, settings.anchor.guidance_scale)
        self.parameters = _trained(self.networks.student)
        self.optimizer = build_optimizer(self.parameters.values(), settings.optimizer)
        self.average = EMA(self.parameters, settings.ema) if settings.ema else None
        self.rounds = prompt_rounds(settings)
        self.dynamics: Dynamics = sampling.dynamics.build()
        self.schedule: Schedule = make_schedule(
            self.networks.backbone.sigmas(sampling.num_steps),
            noise_level=sampling.noise_level,
            stochastic_steps=self.noisy_steps or sampling.stochastic_range(),
        )
        self.step = 0

    def update(self) -> None:
        """Takes one optimizer step."""
        settings = self.settings
        prompts = sorted(enumerate(self.rounds.round(self.step)), key=lambda each: each[1].task)
        draws = [generator(settings.run.seed, "walk", self.step, row) for row, _ in prompts]
        asked = [prompt for _, prompt in prompts]
        with self._timed("rollout"), torch.no_grad():
            texts = self.networks.backbone.encode_prompts(asked)
            states = self.rollout(self.student, texts, draws)
        if self.judge is not None:
            with self._timed("decoding"), torch.no_grad():
                pictures = self.networks.backbone.decode_latents(states[-1])
            with self._timed("rewards"):
                self.judge(pictures, asked)
        with self._timed("training"):
            self._train(states, texts)

    def rollout(
        self, policy: VelocityField, texts: Conditioning, draws: Sequence[torch.Generator]
    ) -> list[Tensor]:
        """Returns all states of a policy's trajectories, T + 1 times [B, C, H, W]."""

        def noise() -> Tensor:
            shape = self.networks.backbone.latent_shape
            return torch.stack([torch.randn(shape, generator=draw) for draw in draws])

        states = [noise()]
        for step in range(len(self.schedule)):
            grid = self._grid(step, len(texts))
            gaussian = self.dynamics(states[-1], policy.velocity(states[-1], grid[0], texts), *grid)
            noisy = bool(self.schedule.noise_levels[step] > 0)
            states.append(gaussian.mean + gaussian.std * noise() if noisy else gaussian.mean)
        return states

    def target(self, state: Tensor, sigma: Tensor, texts: Conditioning) -> Tensor:
        """Returns the velocity of each row's teacher, [B, C, H, W]."""
        found = torch.empty_like(state)
        for task, teacher in self.teachers.items():
            rows = [row for row, own in enumerate(texts.tasks) if own == task]
            if rows:
                found[rows] = teacher.velocity(state[rows], sigma[rows], texts.rows(rows))
        return found

    def _train(self, states: list[Tensor], texts: Conditioning) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        steps = self.trained_steps or len(self.schedule)
        for step in range(steps):
            state, grid = states[step], self._grid(step, len(texts))
            with torch.no_grad():
                teacher = self.target(state, grid[0], texts)
                anchor = self.anchor.velocity(state, grid[0], texts)
            velocity = self.student.velocity(state, grid[0], texts)
            loss = self._gap(velocity, teacher, state, grid)
            loss = loss + self.anchor_weight * self._gap(velocity, anchor, state, grid)
            (loss.mean() / steps).backward()
        optimizer = self.settings.optimizer
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), optimizer.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optimizer, self.step, self.settings.run.rounds)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.step)

    def _gap(self, velocity: Tensor, target: Tensor, state: Tensor, grid: tuple[Tensor, ...]) -> Tensor:
        sigma, sigma_next, noise_level = grid
        student = self.dynamics(state, velocity, sigma, sigma_next, noise_level)
        other = self.dynamics(state, target, sigma, sigma_next, noise_level)
        gap = (student.mean - other.mean).flatten(1).pow(2).mean(1)
        return self.weight(student.std.flatten(), sigma - sigma_next) * gap

    def _grid(self, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        sigmas = self.schedule.sigmas
        return (
            sigmas[step].expand(count),
            sigmas[step + 1].expand(count),
            self.schedule.noise_levels[step].expand(count),
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = self.clock()
        yield
        self.seconds.setdefault(phase, []).append(self.clock() - started)


def official_distillation(schedule: OfficialSchedule) -> Distillation:
    """Returns the schedule as a distillation."""
    networks = schedule.networks
    return Distillation(
        schedule.update,
        schedule.student,
        schedule.parameters,
        (networks.student, *dict.fromkeys(networks.teachers.values()), networks.anchor),
    )


def _trained(network: PeftModel) -> dict[str, Parameter]:
    """Returns the parameters of PEFT's adapter by `<module>.lora_A.weight`."""
    return {
        name.removeprefix("base_model.model.").replace(".default.weight", ".weight"): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
