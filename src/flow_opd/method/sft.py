"""SFT cold start: the student matches the images that its teachers have drawn."""

from __future__ import annotations

from flow_opd.method.objectives import VelocityMatching, WeightedTerms
from flow_opd.method.teacher_images import ImageBatches, SFTBatching, TeacherImages
from flow_opd.protocols import BatchSource, PromptEncoder, VelocityField


def sft_cold_start(
    student: VelocityField, encoder: PromptEncoder, samples: TeacherImages, batching: SFTBatching
) -> tuple[BatchSource, WeightedTerms]:
    """Returns the teachers' images, and |v_student - (eps - x0)|^2 at noise levels on the way to them.

    Source: Flow-OPD, arXiv 2605.08063 (cold start by supervised fine-tuning).
    """
    source = ImageBatches(samples, encoder, batching)
    return source, WeightedTerms(student, [(1.0, VelocityMatching())])
