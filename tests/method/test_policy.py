"""A policy is a base, one adapter and one guidance scale; routed teachers are their mixture."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from errors import refused
from flow_opd.errors import DataError
from flow_opd.method.policy import Policy
from flow_opd.method.routing import HardRouter, RoutedTeachers, TeacherField
from flow_opd.protocols import VelocityField
from flow_opd.types import Conditioning, Prompt
from tiny import PROMPTS, SHAPE, SIGN, Tiny


@pytest.fixture
def here(tiny: Tiny) -> tuple[Tensor, Tensor, Conditioning]:
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, *tiny.backbone.latent_shape, generator=draw)
    return latents, torch.tensor([0.9, 0.7, 0.5, 0.2]), tiny.backbone.encode_prompts(PROMPTS)


class Counted:
    """A field that remembers how many rows each of its calls had."""

    def __init__(self, field: VelocityField) -> None:
        self.field = field
        self.calls: list[int] = []

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls.append(len(latents))
        return self.field.velocity(latents, sigma, conditioning)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        return self.field.encode_prompts(prompts)


class SoftRouter:
    teachers = ("one", "two", "three")

    def weights(self, conditioning: Conditioning) -> Tensor:
        return torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])


def test_scale_one_is_the_conditional_velocity(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    bare = Policy(tiny.backbone, guidance_scale=1.0)
    with tiny.bank.using(None):
        assert torch.equal(tiny.policy(None).velocity(*here), bare.velocity(*here))
        assert torch.equal(bare.velocity(*here), tiny.backbone.velocity(*here))


def test_every_policy_has_its_own_guidance(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    latents, sigma, conditioning = here
    null = tiny.backbone.encode_prompts([Prompt("", "")] * 4)
    with torch.no_grad():
        plain, strong = tiny.policy("anchor"), tiny.policy("anchor", 4.5)
        conditional = plain.velocity(latents, sigma, conditioning)
        unconditional = plain.velocity(latents, sigma, null)
        expected = unconditional + 4.5 * (conditional - unconditional)
        torch.testing.assert_close(strong.velocity(*here), expected, rtol=1e-4, atol=1e-5)
        assert (expected - conditional).abs().max() > 0.01
        torch.testing.assert_close(plain.velocity(*here), conditional)  # untouched by its neighbour


def test_guidance_one_half_after_the_other_is_the_same_guidance(
    tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]
) -> None:
    gradients: dict[str, list[Tensor]] = {}
    velocities: dict[str, Tensor] = {}
    for batching, rows in (("batched", [8]), ("sequential", [4, 4])):
        base = Counted(tiny.backbone)
        policy = Policy(
            base, adapters=tiny.bank, adapter="student", guidance_scale=4.5, guidance_batching=batching
        )
        velocity = policy.velocity(*here)
        assert base.calls == rows
        for parameter in tiny.parameters.values():
            parameter.grad = None
        velocity.square().sum().backward()
        velocities[batching] = velocity.detach()
        gradients[batching] = [parameter.grad.clone() for parameter in tiny.parameters.values()]
    torch.testing.assert_close(velocities["sequential"], velocities["batched"], rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients["sequential"], gradients["batched"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = Policy(base := Counted(tiny.backbone), guidance_batching="sequential")
    plain.velocity(*here)
    assert base.calls == [4]  # without guidance there are no halves


def test_each_policy_uses_its_own_adapter_and_leaves_the_student_active(
    tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]
) -> None:
    with torch.no_grad():
        student, anchor = tiny.student.velocity(*here), tiny.policy("anchor").velocity(*here)
        assert (student - anchor).abs().max() > 0.01
        assert torch.equal(tiny.backbone.velocity(*here), student)
    assert tiny.student.velocity(*here).requires_grad
    assert not tiny.policy("anchor").velocity(*here).requires_grad


def test_routed_rows_are_each_teachers_own(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    shapes, signs = Counted(tiny.policy("teacher-shapes")), Counted(tiny.policy("teacher-signs", 2.0))
    routed = RoutedTeachers(
        {"shapes": TeacherField(shapes), "signs": TeacherField(signs)},
        HardRouter({SHAPE: "shapes", SIGN: "signs"}),
    )
    with torch.no_grad():
        found = routed.velocity(*here)
        assert shapes.calls == [2]
        assert signs.calls == [2]
        for row, prompt in enumerate(PROMPTS):
            own = (shapes if prompt.task == SHAPE else signs).field
            one = [row]
            alone = own.velocity(here[0][one], here[1][one], here[2].rows(one))
            torch.testing.assert_close(found[one], alone, rtol=1e-4, atol=1e-5)


def test_a_teacher_without_rows_is_not_called(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    shapes, signs = Counted(tiny.policy("teacher-shapes")), Counted(tiny.policy("teacher-signs"))
    routed = RoutedTeachers(
        {"shapes": TeacherField(shapes), "signs": TeacherField(signs)},
        HardRouter({SHAPE: "shapes", SIGN: "signs"}),
    )
    latents, sigma, conditioning = here
    routed.velocity(latents[[0, 2]], sigma[[0, 2]], conditioning.rows([0, 2]))
    assert (shapes.calls, signs.calls) == ([2], [])


def test_soft_routing_mixes_linearly(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    fields = {
        "one": Counted(tiny.policy("teacher-shapes")),
        "two": Counted(tiny.policy("teacher-signs")),
        "three": Counted(tiny.policy("anchor")),
    }
    with torch.no_grad():
        found = RoutedTeachers(
            {name: TeacherField(field) for name, field in fields.items()}, SoftRouter()
        ).velocity(*here)
        one, two = (fields[name].field.velocity(*here) for name in ("one", "two"))
        alpha = SoftRouter().weights(here[2])[:, :, None, None, None]
        torch.testing.assert_close(found, alpha[:, 0] * one + alpha[:, 1] * two, rtol=1e-5, atol=1e-6)
    assert [fields[name].calls for name in fields] == [[3], [3], []]


def test_a_task_without_a_teacher_is_refused(tiny: Tiny, here: tuple[Tensor, Tensor, Conditioning]) -> None:
    routed = RoutedTeachers(
        {"shapes": TeacherField(tiny.policy("teacher-shapes"))}, HardRouter({SHAPE: "shapes"})
    )
    with refused(DataError):
        routed.velocity(*here)
