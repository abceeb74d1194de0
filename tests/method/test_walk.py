"""The fused on-policy walk: the same states and the same gradient as rolling out first and training later."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flow_opd.flow.weights import given_weights
from flow_opd.method.objectives import Target, VelocityGap
from flow_opd.method.opd import direct_opd
from flow_opd.method.rollouts import WalkNoise, rollout
from flow_opd.method.walk import WalkBatches, Walks, on_policy_walk
from flow_opd.types import TransitionBatch
from tiny import PROMPTS, Tiny, gradients


def walk(tiny: Tiny) -> list[TransitionBatch]:
    (update,) = WalkBatches(tiny.student, tiny.backbone, tiny.walks(num_steps=4)).round(0)
    return list(update)


def noise(tiny: Tiny, walks: Walks) -> WalkNoise:
    seeds = [walks.seeder(0, row) for row in range(4)]
    return WalkNoise(tiny.backbone.latent_shape, walks.schedule, seeds, tiny.backbone.device)


def test_the_walk_visits_the_states_of_a_rollout(tiny: Tiny) -> None:
    walks = tiny.walks(num_steps=4)
    drawn = rollout(
        tiny.student,
        tiny.backbone.encode_prompts(PROMPTS),
        PROMPTS,
        schedule=walks.schedule,
        dynamics=walks.dynamics,
        noise=noise(tiny, walks),
    )
    batches = walk(tiny)
    by_task = sorted(range(4), key=lambda row: PROMPTS[row].task)
    assert len(batches) == 4
    for step, batch in enumerate(batches):
        assert torch.equal(batch.latents, drawn.latents[by_task, step])


def test_states_are_detached_and_velocities_are_not(tiny: Tiny) -> None:
    for batch in walk(tiny):
        assert not batch.latents.requires_grad
        assert batch.velocity is not None
        assert batch.velocity.requires_grad


def test_the_gradient_of_a_walk_is_that_of_its_stored_states(tiny: Tiny) -> None:
    objective = VelocityGap([Target("teacher_gap", tiny.teachers())])
    stored: list[TransitionBatch] = []

    def during() -> None:
        for update in WalkBatches(tiny.student, tiny.backbone, tiny.walks(num_steps=4)).round(0):
            for batch in update:
                assert batch.velocity is not None
                stored.append(batch)
                objective(batch.velocity, batch).total.backward()

    def afterwards() -> None:
        for batch in stored:
            velocity = tiny.student.velocity(batch.latents, batch.sigma, batch.conditioning)
            objective(velocity, batch).total.backward()

    found, expected = (gradients(tiny.parameters.values(), way) for way in (during, afterwards))
    assert len(stored) == 4
    assert max(grad.abs().max() for grad in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_micro_batches_are_parts_of_the_same_walk(tiny: Tiny) -> None:
    whole = walk(tiny)
    (update,) = WalkBatches(tiny.student, tiny.backbone, tiny.walks(num_steps=4, micro_batch_size=3)).round(0)
    parts = list(update)
    assert [len(part) for part in parts] == [3] * 4 + [1] * 4
    for step in range(4):
        joined = torch.cat([parts[step].latents, parts[4 + step].latents])
        torch.testing.assert_close(joined, whole[step].latents, rtol=1e-5, atol=1e-5)


def test_rounds_differ_and_repeat(tiny: Tiny) -> None:
    source = WalkBatches(tiny.student, tiny.backbone, tiny.walks())
    first, again, other = (next(iter(next(iter(source.round(index))))) for index in (0, 0, 1))
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


def test_the_walk_asks_for_one_forward_a_step(tiny: Tiny) -> None:
    calls = []

    class Counted:
        def velocity(self, *at: torch.Tensor) -> torch.Tensor:
            calls.append(len(at[0]))
            return tiny.student.velocity(*at)  # type: ignore[arg-type]

    walks = tiny.walks(num_steps=4)
    steps = on_policy_walk(
        Counted(),
        tiny.backbone.encode_prompts(PROMPTS),
        schedule=walks.schedule,
        dynamics=walks.dynamics,
        weights=walks.weights(),
        noise=noise(tiny, walks),
    )
    next(steps)
    assert calls == [4]
    assert len(list(steps)) == 3
    assert calls == [4] * 4


def test_a_state_without_weight_is_walked_without_gradient_and_not_yielded(tiny: Tiny) -> None:
    walks = replace(tiny.walks(num_steps=4), state_weights=given_weights((1.0, 0.0, 2.0, 0.0)))
    (update,) = WalkBatches(tiny.student, tiny.backbone, walks).round(0)
    batches = list(update)
    whole = walk(tiny)
    assert len(batches) == 2
    for batch, same in zip(batches, (whole[0], whole[2]), strict=True):
        assert torch.equal(batch.latents, same.latents)
    assert [batch.weight.unique().item() for batch in batches if batch.weight is not None] == [0.5, 1.0]


def test_an_update_can_be_gone_through_again(tiny: Tiny) -> None:
    (update,) = WalkBatches(tiny.student, tiny.backbone, tiny.walks(num_steps=4)).round(0)
    for one, other in zip(list(update), list(update), strict=True):
        assert torch.equal(one.latents, other.latents)


def test_the_random_order_of_states_is_one_for_each_step_whatever_the_micro_batch(tiny: Tiny) -> None:
    def orders(size: int) -> torch.Tensor:
        (update,) = WalkBatches(tiny.student, tiny.backbone, tiny.walks(micro_batch_size=size)).round(0)
        found = [batch.order for batch in update if batch.order is not None]
        return torch.cat([torch.stack(found[at : at + 3]) for at in range(0, len(found), 3)], 1)  # [T, B]

    whole = orders(4)
    assert torch.equal(whole, orders(3))
    for step in whole:
        assert step.sort().values.diff().tolist() == pytest.approx([0.25] * 3)
        assert 0 <= step.min() < 0.25
    assert len({tuple(step.tolist()) for step in whole}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.125, 0.6])
def test_a_share_that_is_no_multiple_of_a_row_is_kept_in_the_mean(tiny: Tiny, share: float) -> None:
    source = WalkBatches(tiny.student, tiny.backbone, tiny.walks(micro_batch_size=4))
    with torch.no_grad():
        orders = torch.cat([batch.order for index in range(60) for batch in next(source.round(index))])
    assert len(orders) == 60 * 3 * 4
    assert float((orders < share).double().mean()) == pytest.approx(share, abs=0.03)


class NumbersRead(TorchDispatchMode):
    """Counts how often a number of a tensor is asked for: each time, an accelerator would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_number_is_read_between_the_first_state_and_the_last_gradient(tiny: Tiny) -> None:
    source, objective = direct_opd(
        tiny.policies(anchor_share=0.5), tiny.walks(num_steps=4, micro_batch_size=3)
    )
    (update,) = source.round(0)
    with NumbersRead() as read:
        for batch in update:
            objective(batch).total.backward()
    assert read.count == 0
