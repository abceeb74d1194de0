"""Which estimators have the gradient of the transition KL in expectation, and which only look like it.

A toy flow of eight dimensions, two small networks, nine SDE steps, a = 0.7. The reference is the closed
form w |v_student - v_teacher|^2 over 131,072 trajectories, written out here without the package's loop.

| estimator, 36,864 trajectories each | cosine with the reference | norm / its norm |
|-------------------------------------|---------------------------|-----------------|
| direct KL, fused walk               |  1.000                    | 0.999           |
| PPO, sampled log-ratio              |  1.000                    | 0.999           |
| the same, clipped at 1 deviation    |  1.000                    | 0.684           |
| PPO, detached state KL              | -0.412                    | 0.012           |

(`pytest -s` prints the table.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flow_opd.flow.dynamics import sde_step, transition_kl
from flow_opd.flow.path import make_schedule
from flow_opd.method.corrections import Correction, clip_advantages, detached_state_kl, sampled_log_ratio
from flow_opd.method.objectives import OPDPolicies
from flow_opd.method.opd import direct_opd, policy_gradient_opd
from flow_opd.method.walk import Walks
from flow_opd.protocols import BatchSource, Objective
from flow_opd.seeding import generator
from flow_opd.types import Prompt, StepDistribution
from tiny import PlainPrompts, SmallNet, gradients, unconditional

pytestmark = pytest.mark.slow
STEPS, LEVEL = 9, 0.7
ROUNDS, PER_ROUND = 9, 4096
GRID = torch.linspace(1, 0, STEPS + 2)[: STEPS + 1]  # the last step of the SDE is not walked
STUDENT, TEACHER = SmallNet(1), SmallNet(2)
WALKS = Walks(
    encoder=PlainPrompts(),
    prompts_of_round=lambda index: [Prompt("", "any")] * PER_ROUND,
    seeder=lambda index, row: generator(7, index, row),
    schedule=make_schedule(GRID, noise_level=LEVEL, stochastic_steps=(0, STEPS)),
    dynamics=sde_step,
    micro_batch_size=PER_ROUND,
)
POLICIES = OPDPolicies(PlainPrompts(), STUDENT, TEACHER, anchor=None)


def reference_chunks(chunks: int, count: int) -> Iterator[Tensor]:
    """Yields the mean over rows of w |v_student - v_teacher|^2 / D of fresh trajectories, in chunks."""
    draw = torch.Generator().manual_seed(99)
    for _ in range(chunks):
        x = torch.randn(count, 2, 2, 2, generator=draw)
        total = torch.zeros(())
        for now, after in zip(GRID[:-1].tolist(), GRID[1:].tolist(), strict=True):
            sigma, dsigma = torch.full((count,), now), after - now
            ours = STUDENT.velocity(x, sigma, unconditional(0))
            with torch.no_grad():
                theirs = TEACHER.velocity(x, sigma, unconditional(0))
            inside = after if now == 1 else now
            g = LEVEL * (inside / (1 - inside)) ** 0.5
            weight = -dsigma / 2 * (g * (1 - now) / (2 * now) + 1 / g) ** 2
            total = total + weight * (ours - theirs).pow(2).sum() / (8 * count * STEPS)
            with torch.no_grad():
                drift = g * g / (2 * now)
                mean = x * (1 + drift * dsigma) + ours * (1 + drift * (1 - now)) * dsigma
                x = mean + g * (-dsigma) ** 0.5 * torch.randn(x.shape, generator=draw)
        yield total / chunks


@pytest.fixture(scope="module")
def reference() -> Tensor:
    def backward() -> None:
        for part in reference_chunks(8, 16_384):
            part.backward()

    return torch.cat([grad.flatten() for grad in gradients(STUDENT.parameters(), backward)])


def expected_gradient(source: BatchSource, objective: Objective) -> Tensor:
    """Returns the gradient that the training loop would see, averaged over all rounds."""

    def backward() -> None:
        count = 0
        for index in range(ROUNDS):
            for update in source.round(index):
                for batch in update:
                    output = objective(batch)
                    output.total.backward()
                    count += output.count
        torch._foreach_div_([parameter.grad for parameter in STUDENT.parameters()], float(count))

    return torch.cat([grad.flatten() for grad in gradients(STUDENT.parameters(), backward)])


def by_policy_gradient(correction: Correction, advantage_clip: float = 1e6) -> tuple[BatchSource, Objective]:
    return policy_gradient_opd(
        POLICIES,
        WALKS,
        correction=correction,
        updates_per_round=1,
        clip_range=0.2,
        advantage_clip=advantage_clip,
    )


def compare(name: str, found: Tensor, reference: Tensor) -> tuple[float, float]:
    cosine = torch.cosine_similarity(found, reference, dim=0).item()
    ratio = (found.norm() / reference.norm()).item()
    print(f"| {name:<40}| {cosine:6.3f} | {ratio:10.3f} |")
    return cosine, ratio


def test_direct_kl_has_the_gradient(reference: Tensor) -> None:
    cosine, ratio = compare(
        "direct KL, fused walk", expected_gradient(*direct_opd(POLICIES, WALKS)), reference
    )
    assert cosine > 0.999
    assert ratio == pytest.approx(1, abs=0.01)


def test_the_sampled_log_ratio_has_the_gradient(reference: Tensor) -> None:
    found = expected_gradient(*by_policy_gradient(sampled_log_ratio))
    cosine, ratio = compare("PPO, sampled log-ratio", found, reference)
    assert cosine > 0.995
    assert ratio == pytest.approx(1, abs=0.02)


def test_the_detached_state_kl_has_none(reference: Tensor) -> None:
    """The negative control: an advantage that ignores the action teaches nothing."""
    found = expected_gradient(*by_policy_gradient(detached_state_kl))
    _, ratio = compare("PPO, detached state KL", found, reference)
    assert ratio < 0.1


def test_a_clip_keeps_the_share_that_its_deviations_have(reference: Tensor) -> None:
    found = expected_gradient(*by_policy_gradient(sampled_log_ratio, advantage_clip=1.0))
    cosine, ratio = compare("PPO, log-ratio clipped at 1 deviation", found, reference)
    assert cosine > 0.99
    assert ratio == pytest.approx(math.erf(1 / 2**0.5), abs=0.02)


@pytest.mark.parametrize(("side", "in_nats"), [(4, 1.0), (64, 0.34)])
def test_a_clip_keeps_the_same_share_at_every_resolution(side: int, in_nats: float) -> None:
    """Latents [16, side, side] with a KL of 1e-3 in each dimension; 64 is a picture of 512 pixels.

    E[A z] is minus the gap (mean - mean') / std, so the share that a clip keeps shows along the gap alone.
    """
    draw, shape, sums = torch.Generator().manual_seed(3), (16, side, side), torch.zeros(3)
    gap = torch.randn(shape, generator=draw).sign() * (2 * 1e-3) ** 0.5
    for _ in range(16):
        noise = torch.randn(100, *shape, generator=draw)
        std = torch.ones(100, 1, 1, 1)
        student, teacher = (StepDistribution(mean.expand(100, *shape), std) for mean in (0 * gap, -gap))
        free = sampled_log_ratio(student, teacher, noise)
        along = (noise * -gap).flatten(1).sum(1)
        cuts = (free, clip_advantages(free, transition_kl(student, teacher), 1.0), free.clamp(-5, 5))
        sums += torch.stack([(cut * along).sum() for cut in cuts])
    assert float(sums[0]) == pytest.approx(1600 * float(gap.pow(2).sum()), rel=0.1)
    assert float(sums[1] / sums[0]) == pytest.approx(math.erf(1 / 2**0.5), abs=0.03)
    assert float(sums[2] / sums[0]) == pytest.approx(in_nats, abs=0.03)
