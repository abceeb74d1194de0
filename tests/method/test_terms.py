"""The terms of a loss, by hand and by what they must refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from flow_opd.flow.dynamics import log_prob_mean, sde_step, transition_kl
from flow_opd.method.objectives import (
    ClippedPolicyGradient,
    Target,
    VelocityGap,
    VelocityMatching,
    WeightedTerms,
)
from flow_opd.protocols import VelocityField
from flow_opd.types import ImageBatch, TransitionBatch
from oracles import sde_kl_weight
from tiny import GaussianFlow, Tiny, gradients, unconditional

ROWS = 5
TARGET = GaussianFlow(mean=0.5, std=0.7)


def transition_batch() -> TransitionBatch:
    draw = torch.Generator().manual_seed(0)
    latents, next_latents = (torch.randn(ROWS, 2, 2, 2, generator=draw) for _ in range(2))
    sigma = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2])
    return TransitionBatch(
        latents=latents,
        sigma=sigma,
        sigma_next=sigma - 0.1,
        noise_level=torch.full((ROWS,), 0.7),
        weight=sde_kl_weight(sigma, sigma - 0.1, torch.tensor(0.7)),
        conditioning=unconditional(ROWS),
        next_latents=next_latents,
        behaviour_log_prob=torch.zeros(ROWS),
        advantage=torch.tensor([1.0, -1.0, 2.0, -2.0, 5.0]),
    )


def velocities() -> torch.Tensor:
    return torch.randn(ROWS, 2, 2, 2, generator=torch.Generator().manual_seed(1))


def log_prob(batch: TransitionBatch, velocity: torch.Tensor) -> torch.Tensor:
    assert batch.next_latents is not None
    step = sde_step(batch.latents, velocity, batch.sigma, batch.sigma_next, batch.noise_level)
    return log_prob_mean(step, batch.next_latents)


def test_policy_gradient_by_hand() -> None:
    batch, velocity = transition_batch(), velocities()
    ratios = torch.tensor([1.0, 0.5, 1.3, 1.1, 2.0])
    batch = replace(batch, behaviour_log_prob=log_prob(batch, velocity) - ratios.log())
    out = ClippedPolicyGradient(sde_step, clip_range=0.2)(velocity, batch)
    # A r | A clip(r, .8, 1.2), the smaller of both, negated:
    # 1*1; -1*.5 | -1*.8 -> -.8; 2*1.3 | 2*1.2 -> 2.4; -2*1.1; 5*2 | 5*1.2 -> 6
    assert out.total.item() == pytest.approx(-(1.0 - 0.8 + 2.4 - 2.2 + 6.0), abs=1e-3)
    assert out.count == ROWS
    assert out.metrics["clipped"] == 3
    assert out.metrics["ratio"] == pytest.approx(5.9, abs=1e-3)


def test_a_clipped_row_has_no_gradient() -> None:
    batch = transition_batch()
    velocity = velocities().requires_grad_()
    ratios = torch.tensor([1.0, 0.5, 1.3, 1.1, 2.0])
    batch = replace(batch, behaviour_log_prob=log_prob(batch, velocity.detach()) - ratios.log())
    ClippedPolicyGradient(sde_step, clip_range=0.2)(velocity, batch).total.backward()
    assert velocity.grad is not None
    assert velocity.grad.flatten(1).norm(dim=1).gt(0).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("field", ["advantage", "behaviour_log_prob"])
def test_a_column_is_refused_before_it_broadcasts(field: str) -> None:
    batch = transition_batch()
    column = replace(batch, **{field: getattr(batch, field)[:, None]})
    with pytest.raises(ValueError, match=rf"{field} must have shape \(5,\), got \(5, 1\)"):
        ClippedPolicyGradient(sde_step, clip_range=0.2)(velocities(), column)


def test_with_transition_weights_the_gap_is_the_kl_of_the_steps_over_dimensions() -> None:
    batch, velocity = transition_batch(), velocities()
    out = VelocityGap([Target("teacher_gap", TARGET)])(velocity, batch)
    grid = (batch.sigma, batch.sigma_next, batch.noise_level)
    target = TARGET.velocity(batch.latents, batch.sigma, batch.conditioning)
    ours, theirs = (sde_step(batch.latents, field, *grid) for field in (velocity, target))
    expected = (transition_kl(ours, theirs) / velocity[0].numel()).sum()
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert out.count == ROWS
    assert out.metrics["teacher_gap"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_target_gets_no_gradient(tiny: Tiny) -> None:
    """A target made of the student's own weights acts as the constant that it is at these states."""
    batch = next(iter(next(iter(tiny.algorithm("opd")[0].round(0)))))
    moving = tiny.policy("student", guidance_scale=2.0)
    with torch.no_grad():
        still = moving.velocity(batch.latents, batch.sigma, batch.conditioning)

    class Still:
        def velocity(self, *at: object) -> torch.Tensor:
            return still

    def backward(target: VelocityField) -> None:
        velocity = tiny.student.velocity(batch.latents, batch.sigma, batch.conditioning)
        VelocityGap([Target("gap", target)])(velocity, batch).total.backward()

    found, expected = (
        gradients(tiny.parameters.values(), partial(backward, target)) for target in (moving, Still())
    )
    assert max(grad.abs().max() for grad in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_velocity_matching_by_hand() -> None:
    x0, noise = torch.ones(2, 1, 1, 2), torch.full((2, 1, 1, 2), 3.0)  # target velocity 2
    batch = ImageBatch(x0, noise, torch.tensor([0.5, 0.25]), unconditional(2))
    assert batch.latents[:, 0, 0, 0].tolist() == [2.0, 1.5]
    velocity = torch.tensor([[2.0, 4.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    out = VelocityMatching()(velocity, batch)
    assert out.total.item() == pytest.approx((0 + 4) / 2 + (1 + 1) / 2)
    assert out.count == 2


def test_terms_add_up_with_their_weights_and_share_one_forward() -> None:
    batch, velocity = transition_batch(), velocities()
    one, two = (VelocityGap([Target(f"gap{m}", GaussianFlow(m, 0.7))]) for m in (0.0, 1.0))
    calls = []

    class Student:
        def velocity(self, *at: object) -> torch.Tensor:
            calls.append(at)
            return velocity

    out = WeightedTerms(Student(), [(1.0, one), (0.3, two)])(batch)
    expected = one(velocity, batch).total + 0.3 * two(velocity, batch).total
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(out.metrics) == {"loss", "gap0.0", "gap1.0"}
    assert out.metrics["gap1.0"].item() == pytest.approx(two(velocity, batch).total.item())
    assert len(calls) == 1
    WeightedTerms(Student(), [(1.0, one)])(replace(batch, velocity=velocity))
    assert len(calls) == 1  # the walk brings its velocity along


def test_a_target_asked_at_a_share_has_the_same_mean_and_a_fraction_of_the_calls() -> None:
    """Over all orders of five states, each is asked in two of five and counts 5 / 2."""
    batch, velocity = transition_batch(), velocities().requires_grad_()
    rows: list[int] = []

    class Counted:
        def velocity(self, latents: torch.Tensor, *rest: object) -> torch.Tensor:
            rows.append(len(latents))
            return TARGET.velocity(latents, *rest)  # type: ignore[arg-type]

    def gradient(share: float, order: list[int]) -> torch.Tensor:
        places = (torch.tensor(order) + 0.5) / ROWS
        term = VelocityGap([Target("gap", Counted(), weight=0.3, share=share)])
        (found,) = torch.autograd.grad(term(velocity, replace(batch, order=places)).total, velocity)
        return found

    turns = [[(row + turn) % ROWS for row in range(ROWS)] for turn in range(ROWS)]
    mean = torch.stack([gradient(2 / ROWS, turn) for turn in turns]).mean(0)
    assert rows == [2] * ROWS
    torch.testing.assert_close(mean, gradient(1.0, turns[0]), rtol=1e-5, atol=1e-7)


def test_targets_add_up_with_their_weights() -> None:
    batch, velocity = transition_batch(), velocities()
    one, two = Target("one", GaussianFlow(0.0, 0.7)), Target("two", GaussianFlow(1.0, 0.7), weight=0.3)
    both = VelocityGap([one, two])(velocity, batch)
    expected = both.metrics["one"] + 0.3 * both.metrics["two"]
    assert both.total.item() == pytest.approx(expected.item(), rel=1e-6)
    alone = VelocityGap([two])(velocity, batch)
    assert alone.metrics["two"].item() == pytest.approx(both.metrics["two"].item(), rel=1e-6)
