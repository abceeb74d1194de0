"""The teachers of a run, each asked for its own tasks."""

from __future__ import annotations

from flow_opd.config.distill import DistillSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.policies.policy import Adapters, Policy
from flow_opd.policies.routed import RoutedTeachers
from flow_opd.prompts.routing import HardRouter
from flow_opd.protocols import Backbone, PromptEncoder


def routed_teachers(
    settings: DistillSettings | SFTSettings, backbone: Backbone, encoder: PromptEncoder, bank: Adapters
) -> RoutedTeachers:
    """Returns the teachers of the settings as one velocity field; the bank has an adapter of each name."""
    teachers = {
        teacher.name: Policy(
            backbone,
            adapters=bank,
            adapter=teacher.name,
            encoder=encoder,
            guidance_scale=teacher.guidance_scale,
            guidance_batching=settings.compute.guidance_batching,
        )
        for teacher in settings.teachers
    }
    return RoutedTeachers(
        teachers, HardRouter(settings.teacher_of_task()), lockstep=settings.compute.shard_base
    )
