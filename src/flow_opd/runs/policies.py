"""The policies of a run, and its teachers, each asked for its own tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flow_opd.config.common import TrainingComputeSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.method.policy import Adapters, Policy
from flow_opd.method.routing import HardRouter, RoutedTeachers, Teacher
from flow_opd.protocols import Backbone, PromptEncoder


def policies_on(
    compute: TrainingComputeSettings, backbone: Backbone, encoder: PromptEncoder, bank: Adapters
) -> Callable[..., Policy]:
    """Returns what makes policies of one base by their `adapter` and `guidance_scale`."""
    return partial(
        Policy,
        backbone,
        adapters=bank,
        encoder=encoder,
        guidance_batching=compute.guidance_batching,
        lockstep=compute.shard_base,
    )


def routed_teachers(
    settings: DistillSettings | SFTSettings, backbone: Backbone, encoder: PromptEncoder, bank: Adapters
) -> RoutedTeachers:
    """Returns the teachers of the settings as one velocity field; the bank has an adapter of each name."""
    policy = policies_on(settings.compute, backbone, encoder, bank)
    teachers = {
        teacher.name: Teacher(
            policy(adapter=teacher.name, guidance_scale=teacher.guidance_scale),
            policy(adapter=None, guidance_scale=teacher.guidance_scale),
            teacher.extrapolation,
        )
        for teacher in settings.teachers
    }
    return RoutedTeachers(teachers, HardRouter(settings.teacher_of_task()))
