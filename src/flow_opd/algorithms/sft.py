"""SFT cold start: the student matches the images that its teachers have drawn."""

from __future__ import annotations

from flow_opd.objectives.velocity_matching import VelocityMatching
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.protocols import BatchSource, PromptEncoder, VelocityField
from flow_opd.rollout.image_batches import ImageBatches, SFTBatching
from flow_opd.rollout.teacher_images import TeacherImages


def sft_cold_start(
    student: VelocityField, encoder: PromptEncoder, samples: TeacherImages, batching: SFTBatching
) -> tuple[BatchSource, WeightedTerms]:
    """Returns the teachers' images, and |v_student - (eps - x0)|^2 at noise levels on the way to them.

    Source: Flow-OPD, arXiv 2605.08063 (cold start by supervised fine-tuning).
    """
    source = ImageBatches(samples, encoder, batching)
    return source, WeightedTerms(student, [(1.0, VelocityMatching())])
