"""SFT cold start: the student matches the images that its teachers have drawn."""

from __future__ import annotations

from flow_opd.objectives.velocity_matching import VelocityMatching
from flow_opd.objectives.weighted import WeightedTerms
from flow_opd.protocols import BatchSource, PromptEncoder, VelocityField
from flow_opd.rollout.sample_batches import Lessons, SampleBatches
from flow_opd.rollout.samples import TeacherSamples


def sft_cold_start(
    student: VelocityField, encoder: PromptEncoder, samples: TeacherSamples, lessons: Lessons
) -> tuple[BatchSource, WeightedTerms]:
    """Returns the teachers' images, and |v_student - (eps - x0)|^2 at noise levels on the way to them.

    Source: Flow-OPD, arXiv 2605.08063 (cold start by supervised fine-tuning).
    """
    source = SampleBatches(samples, encoder, lessons)
    return source, WeightedTerms(student, [(1.0, VelocityMatching())])
