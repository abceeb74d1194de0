"""Several fields in one pass: the answers of each alone, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from flow_opd.method.joint import FieldShare, joint_velocities, whole_share
from flow_opd.method.policy import Policy
from flow_opd.method.routing import HardRouter, RoutedTeachers, TeacherField
from flow_opd.types import Conditioning, Prompt
from tiny import PROMPTS, SHAPE, SIGN, GaussianFlow, Tiny

Here = tuple[Tensor, Tensor, Conditioning]
ALL = torch.arange(4)


@pytest.fixture
def here(tiny: Tiny) -> Here:
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, *tiny.backbone.latent_shape, generator=draw)
    return latents, torch.tensor([0.9, 0.7, 0.5, 0.2]), tiny.backbone.encode_prompts(PROMPTS)


class CountedBase:
    """The tiny base, remembering how many rows each of its passes had."""

    def __init__(self, tiny: Tiny) -> None:
        self.inner = tiny.backbone
        self.passes: list[int] = []

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.passes.append(len(latents))
        return self.inner.velocity(latents, sigma, conditioning)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        return self.inner.encode_prompts(prompts)


def policies(
    tiny: Tiny, base: CountedBase, batching: Literal["batched", "sequential"] = "batched"
) -> dict[str, Policy]:
    made = {
        "shapes": ("teacher-shapes", 1.0),
        "signs": ("teacher-signs", 2.0),
        "anchor": ("anchor", 4.5),
        "base": (None, 1.0),
    }
    return {
        name: Policy(
            base, adapters=tiny.bank, adapter=adapter, guidance_scale=scale, guidance_batching=batching
        )
        for name, (adapter, scale) in made.items()
    }


@pytest.mark.parametrize("batching", ["batched", "sequential"])
def test_each_policy_answers_as_it_does_alone(
    tiny: Tiny, here: Here, batching: Literal["batched", "sequential"]
) -> None:
    base = CountedBase(tiny)
    fields = policies(tiny, base, batching)
    rows = {"shapes": [0, 2], "signs": [1, 3], "anchor": [3], "base": [0, 1, 2, 3]}
    targets = [whole_share(fields[name], torch.tensor(rows[name])) for name in rows]
    found = joint_velocities(targets, *here)
    assert base.passes == ([12] if batching == "batched" else [3, 9])  # nine rows, three of them guided
    with torch.no_grad():
        for velocity, (name, own) in zip(found, rows.items(), strict=True):
            alone = fields[name].velocity(here[0][own], here[1][own], here[2].rows(own))
            torch.testing.assert_close(velocity[own], alone, rtol=1e-4, atol=1e-5)
            others = [row for row in range(4) if row not in own]
            assert not velocity[others].any()
    assert tiny.bank.active == "student"


def test_what_two_targets_need_is_computed_once(tiny: Tiny, here: Here) -> None:
    base = CountedBase(tiny)
    one, same = policies(tiny, base)["shapes"], policies(tiny, base)["shapes"]
    first, second = joint_velocities([whole_share(one, ALL), whole_share(same, torch.tensor([2, 3]))], *here)
    assert base.passes == [4]
    assert torch.equal(first[2:], second[2:])
    other_guidance = Policy(base, adapters=tiny.bank, adapter="teacher-shapes", guidance_scale=2.0)
    joint_velocities([whole_share(one, ALL), whole_share(other_guidance, ALL)], *here)
    assert base.passes == [4, 12]


def test_a_target_is_the_weighted_sum_of_its_shares(tiny: Tiny, here: Here) -> None:
    fields = policies(tiny, CountedBase(tiny))
    shares = [
        FieldShare(fields["shapes"], torch.tensor([0, 1]), torch.tensor([0.25, 2.0])),
        FieldShare(fields["base"], torch.tensor([1, 3]), torch.tensor([-1.0, 1.0])),
    ]
    (found,) = joint_velocities([shares], *here)
    with torch.no_grad():
        shapes, bare = (fields[name].velocity(*here) for name in ("shapes", "base"))
    expected = torch.stack([0.25 * shapes[0], 2 * shapes[1] - bare[1], torch.zeros_like(bare[0]), bare[3]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fields_of_other_kinds_answer_beside_policies(tiny: Tiny, here: Here) -> None:
    flow = GaussianFlow(0.3, 0.8)
    field, policy = joint_velocities(
        [whole_share(flow, torch.tensor([1])), whole_share(tiny.policy("anchor"), ALL)], *here
    )
    expected = flow.velocity(*here)[1]
    torch.testing.assert_close(field[1], expected)
    assert policy.abs().sum(dim=(1, 2, 3)).gt(0).all()


@pytest.mark.parametrize("collective", [True, False])
def test_in_lockstep_the_number_of_passes_does_not_depend_on_rows(
    tiny: Tiny, here: Here, collective: bool
) -> None:
    """Processes that share a sharded base call it together, whatever teachers their rows ask."""
    batchings: dict[Literal["batched", "sequential"], int] = {"batched": 1, "sequential": 2}
    for batching, passes in batchings.items():
        for rows in ([], [0], [0, 1, 2, 3]):
            base = CountedBase(tiny)
            anchor = policies(tiny, base, batching)["anchor"]
            anchor.collective = collective
            (found,) = joint_velocities([whole_share(anchor, torch.tensor(rows, dtype=torch.long))], *here)
            assert len(base.passes) == (passes if rows or collective else 0)
            assert found.flatten(1).any(1).tolist() == [row in rows for row in range(4)]


def test_an_extrapolated_teacher_lies_beyond_itself_as_seen_from_the_base(tiny: Tiny, here: Here) -> None:
    shapes, signs, bare = (
        tiny.policy("teacher-shapes"),
        tiny.policy("teacher-signs", 2.0),
        tiny.policy(None, 2.0),
    )
    routed = RoutedTeachers(
        {"shapes": TeacherField(shapes), "signs": TeacherField(signs, bare, extrapolation=1.6)},
        HardRouter({SHAPE: "shapes", SIGN: "signs"}),
    )
    found = routed.velocity(*here)
    with torch.no_grad():
        teacher, base = signs.velocity(*here), bare.velocity(*here)
        expected = teacher + 0.6 * (teacher - base)
        torch.testing.assert_close(found[[1, 3]], expected[[1, 3]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[[0, 2]], shapes.velocity(*here)[[0, 2]], rtol=1e-4, atol=1e-5)
        assert (expected - teacher).abs().max() > 0.01


def test_no_gradient_reaches_a_target(tiny: Tiny, here: Here) -> None:
    (found,) = joint_velocities([whole_share(tiny.student, ALL)], *here)
    assert not found.requires_grad
