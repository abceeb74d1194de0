"""Advantages that come from the teachers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flow_opd.flow.dynamics import cps_step, sde_step, transition_kl
from flow_opd.flow.path import make_schedule
from flow_opd.method.corrections import (
    CorrectedRollouts,
    Correction,
    clip_advantages,
    detached_state_kl,
    sampled_log_ratio,
)
from flow_opd.types import StepDistribution
from tiny import Tiny

STD = torch.tensor([0.5, 1.5]).view(2, 1, 1, 1)


def steps() -> tuple[StepDistribution, StepDistribution, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ours, theirs, following = (torch.randn(2, 2, 2, 2, generator=draw) for _ in range(3))
    return StepDistribution(ours, STD), StepDistribution(theirs, STD), following


def source(
    tiny: Tiny, correction: Correction, *, micro: int = 8, updates: int = 1, clip: float = 1e3
) -> CorrectedRollouts:
    return CorrectedRollouts(
        tiny.student,
        tiny.teachers(),
        tiny.backbone,
        tiny.walks(prompts=6, micro_batch_size=micro),
        correction,
        advantage_clip=clip,
        updates_per_round=updates,
    )


def test_the_log_ratio_is_that_of_the_densities_above_its_expectation() -> None:
    ours, theirs, following = steps()
    log_probs = [Normal(s.mean, s.std).log_prob(following).flatten(1).sum(1) for s in (theirs, ours)]
    kl = kl_divergence(Normal(ours.mean, ours.std), Normal(theirs.mean, theirs.std)).flatten(1).sum(1)
    expected = log_probs[0] - log_probs[1] + kl
    torch.testing.assert_close(sampled_log_ratio(ours, theirs, following), expected, rtol=1e-4, atol=1e-4)


def test_the_log_ratio_is_centred_by_the_kl() -> None:
    ours, theirs, _ = steps()
    noise = torch.randn(40_000, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    for row in range(2):
        many = StepDistribution(ours.mean[row].expand(noise.shape), STD[row].expand(len(noise), 1, 1, 1))
        target = replace(many, mean=theirs.mean[row].expand(noise.shape))
        kl = kl_divergence(Normal(ours.mean[row], STD[row]), Normal(theirs.mean[row], STD[row])).sum()
        sampled = sampled_log_ratio(many, target, many.mean + many.std * noise)
        error = (2 * kl.item() / len(noise)) ** 0.5  # the log-ratio's variance is twice the KL
        assert abs(sampled.mean().item()) < 4 * error < 0.1 * kl.item()
        assert detached_state_kl(many, target, noise)[0].item() == pytest.approx(-kl.item(), rel=1e-4)


def test_a_clip_counts_standard_deviations_of_the_log_ratio() -> None:
    # sqrt(2 KL) = 2, 2, 6
    kl, advantages = torch.tensor([2.0, 2.0, 18.0]), torch.tensor([2.5, -4.0, 5.0])
    assert clip_advantages(advantages, kl, 1.0).tolist() == [2.0, -2.0, 5.0]
    assert clip_advantages(advantages, kl, 1.5).tolist() == [2.5, -3.0, 5.0]
    assert clip_advantages(torch.zeros(1), torch.zeros(1), 5.0).tolist() == [0.0]


def test_rollouts_are_cut_where_their_correction_is(tiny: Tiny) -> None:
    free, cut = source(tiny, sampled_log_ratio), source(tiny, sampled_log_ratio, clip=0.5)
    found = torch.stack([torch.cat([b.advantage for b in next(iter(one.round(0)))]) for one in (free, cut)])
    assert (found[0] - found[1]).abs().max() > 0
    assert (found[0].sign() == found[1].sign()).all()
    changed = found[0] != found[1]
    assert 0.3 < changed.float().mean() < 0.9, "62 % of a normal distribution lies beyond half a deviation"


def test_the_state_kl_ignores_the_action_and_the_log_ratio_does_not() -> None:
    ours, theirs, following = steps()
    assert torch.equal(
        detached_state_kl(ours, theirs, following), detached_state_kl(ours, theirs, -following)
    )
    assert not torch.equal(
        sampled_log_ratio(ours, theirs, following), sampled_log_ratio(ours, theirs, -following)
    )


@pytest.mark.parametrize("correction", [sampled_log_ratio, detached_state_kl])
def test_rollouts_carry_the_correction_of_every_step(tiny: Tiny, correction: Correction) -> None:
    made = source(tiny, correction)
    (update,) = made.round(0)
    batches = list(update)
    assert [len(batch) for batch in batches] == [6, 6]  # two of the three steps are stochastic
    divergence = []
    for batch in batches:
        assert batch.next_latents is not None
        at = (batch.latents, batch.sigma, batch.conditioning)
        grid = (batch.sigma, batch.sigma_next, batch.noise_level)
        with torch.no_grad():
            ours = sde_step(batch.latents, tiny.student.velocity(*at), *grid)
            theirs = sde_step(batch.latents, tiny.teachers().velocity(*at), *grid)
        expected = correction(ours, theirs, batch.next_latents)
        torch.testing.assert_close(batch.advantage, expected, rtol=1e-4, atol=1e-4)
        divergence.append(transition_kl(ours, theirs) / batch.latents[0].numel())
    assert made.metrics["teacher_kl"] == pytest.approx(torch.cat(divergence).mean().item(), rel=1e-5)


def test_updates_share_trajectories_not_steps_whatever_the_micro_batch(tiny: Tiny) -> None:
    """Splitting micro-batches would give one update the noisy steps and the other the clean ones."""
    seen = {}
    for micro in (8, 4):
        updates = [
            list(update) for update in source(tiny, sampled_log_ratio, micro=micro, updates=2).round(0)
        ]
        assert len(updates) == 2
        for update in updates:
            levels = {round(float(batch.sigma[0]), 4) for batch in update}
            assert len(levels) == 2
            assert sum(len(batch) for batch in update) == 3 * 2
        seen[micro] = [torch.cat([batch.latents for batch in update]) for update in updates]
    for one, other in zip(seen[8], seen[4], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_cps_on_all_steps_trains_those_with_a_density(tiny: Tiny) -> None:
    made = source(tiny, sampled_log_ratio)
    schedule = make_schedule(tiny.backbone.sigmas(3), noise_level=0.5, stochastic_steps=(0, 3))
    walks = replace(made.walks, schedule=schedule, dynamics=cps_step)
    cps = CorrectedRollouts(
        made.student,
        made.teachers,
        made.backbone,
        walks,
        made.correction,
        advantage_clip=5.0,
        updates_per_round=1,
    )
    (update,) = cps.round(0)
    assert len(list(update)) == 2
