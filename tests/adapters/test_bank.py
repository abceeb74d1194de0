"""The bank: what is active, what has gradients, what comes back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import ATTENTION_PROJECTIONS, LoraSettings
from flow_opd.errors import AdapterError
from tiny import PROMPTS, Tiny, new_tiny_pipeline


def velocity(backbone: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return backbone.transformer(**inputs).sample


def trainable(backbone: Any) -> set[str]:
    return {name for name, parameter in backbone.transformer.named_parameters() if parameter.requires_grad}


def student_gradients(bank: AdapterBank, backbone: Any, inputs: Any, between: Any) -> list[torch.Tensor]:
    parameters = bank.parameters("student").values()
    for parameter in parameters:
        parameter.grad = None
    out = velocity(backbone, inputs)
    between()
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    return [parameter.grad.clone() for parameter in parameters]


def test_default_targets_hit_the_fifteen_projections(bank: AdapterBank) -> None:
    assert len(bank.parameters("student")) == 2 * 15  # two blocks of eight; the last has no to_add_out
    assert len(ATTENTION_PROJECTIONS) == 8


def test_fresh_adapter_has_no_effect_and_a_gaussian_a(backbone: Any, inputs: Any) -> None:
    before = velocity(backbone, inputs)
    bank = AdapterBank(backbone)
    bank.add("new", LoraSettings(rank=4, alpha=8.0), seed=7)
    with bank.using("new"):
        assert torch.equal(velocity(backbone, inputs), before)
    down = torch.cat([value.flatten() for key, value in bank.state("new").items() if "lora_A" in key])
    assert down.std() == pytest.approx(1 / 4, rel=0.05)
    assert down.mean().abs() < 0.02


def test_fresh_adapter_depends_on_the_seed_only_and_leaves_the_global_generator(backbone: Any) -> None:
    bank = AdapterBank(backbone)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        bank.add(name, LoraSettings(rank=3, alpha=3.0), seed)
    assert torch.equal(torch.get_rng_state(), before)
    one, two, three = (
        bank.state(name)["transformer_blocks.0.attn.to_q.lora_A.weight"] for name in bank.names
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_no_adapter_active_before_a_student_is_named(backbone: Any, inputs: Any, fill: Any) -> None:
    before = velocity(backbone, inputs)
    bank = AdapterBank(backbone)
    fill(bank, "teacher", LoraSettings(rank=2, alpha=6.0), 2)
    assert bank.active is None
    assert torch.equal(velocity(backbone, inputs), before)
    assert trainable(backbone) == set()


def test_bare_base_is_bit_equal(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    bare = type(backbone.transformer.get_base_model()).from_config(
        backbone.transformer.get_base_model().config
    )
    base = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in backbone.transformer.get_base_model().state_dict().items()
        if ".lora_" not in name
    }
    bare.load_state_dict(base)
    with bank.using(None):
        assert torch.equal(velocity(backbone, inputs), bare.eval()(**inputs).sample)
    assert not torch.equal(velocity(backbone, inputs), bare(**inputs).sample)


def test_each_adapter_has_its_own_velocity(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    student = velocity(backbone, inputs)
    with bank.using("teacher"):
        teacher = velocity(backbone, inputs)
    with bank.using("student"):
        assert torch.equal(velocity(backbone, inputs), student)
    assert not torch.allclose(student, teacher, atol=1e-3)


def test_using_nests_and_restores_after_errors(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    student = velocity(backbone, inputs)
    with bank.using("teacher"):
        teacher = velocity(backbone, inputs)
        with bank.using(None), bank.using("student"), bank.using("teacher"):
            assert bank.active == "teacher"
        with pytest.raises(KeyError), bank.using(None):
            raise KeyError
        assert torch.equal(velocity(backbone, inputs), teacher)
        with refused(AdapterError, value="studnet", names=["student"]), bank.using("studnet"):
            pass
        assert bank.active == "teacher"
    assert bank.active == "student"
    assert torch.equal(velocity(backbone, inputs), student)


@pytest.mark.parametrize("name", ["teacher", None, "student"])
def test_only_the_student_is_trainable_whatever_is_active(
    bank: AdapterBank, backbone: Any, name: Any
) -> None:
    expected = trainable(backbone)
    assert len(expected) == 30
    assert all("adapter_student" in parameter for parameter in expected)
    with bank.using(name):
        assert trainable(backbone) == expected
        bank.add("late", LoraSettings(rank=2, alpha=2.0), 0)
        assert trainable(backbone) == expected
        assert bank.active == name
    assert trainable(backbone) == expected


def test_an_adapter_costs_its_factors_and_no_copy_of_the_base(backbone: Any) -> None:
    """N teachers are N LoRAs in memory, not N transformers."""
    plain = {tensor.data_ptr() for tensor in backbone.transformer.parameters()}
    base = sum(tensor.numel() for tensor in backbone.transformer.parameters())
    bank = AdapterBank(backbone)
    for name in ("one", "two", "three"):
        bank.add(name, LoraSettings(rank=4, alpha=4.0), seed=1)
    factors = sum(tensor.numel() for tensor in bank.state("one").values())
    assert factors < base / 2
    assert sum(tensor.numel() for tensor in backbone.transformer.parameters()) == base + 3 * factors
    assert plain <= {tensor.data_ptr() for tensor in backbone.transformer.parameters()}


def test_train_moves_the_gradients(bank: AdapterBank, backbone: Any) -> None:
    bank.train("teacher")
    assert bank.active == bank.student == "teacher"
    assert all("adapter_teacher" in parameter for parameter in trainable(backbone))
    assert all(parameter.requires_grad for parameter in bank.parameters("teacher").values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("other", ["teacher", None])
def test_teacher_between_forward_and_backward_leaves_the_gradients(
    bank: AdapterBank, backbone: Any, inputs: Any, checkpointing: bool, other: str | None
) -> None:
    if checkpointing:
        backbone.transformer.get_base_model().enable_gradient_checkpointing()
    backbone.transformer.train()

    def ask_teacher() -> None:
        with bank.using(other), torch.no_grad():
            velocity(backbone, inputs)

    alone = student_gradients(bank, backbone, inputs, lambda: None)
    touched = student_gradients(bank, backbone, inputs, ask_teacher)
    assert all(torch.equal(a, b) for a, b in zip(alone, touched, strict=True))
    assert sum(gradient.norm() for gradient in alone) > 1
    assert all(parameter.grad is None for parameter in bank.parameters("teacher").values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_inside_another_adapter_is_right_or_loud(
    bank: AdapterBank, backbone: Any, inputs: Any, checkpointing: bool
) -> None:
    """Plain PEFT gives no gradients and no error here."""
    alone = student_gradients(bank, backbone, inputs, lambda: None)
    if checkpointing:
        backbone.transformer.get_base_model().enable_gradient_checkpointing()
    backbone.transformer.train()
    for parameter in bank.parameters("student").values():
        parameter.grad = None
    loss = velocity(backbone, inputs).square().sum()
    with pytest.raises(CheckpointError) if checkpointing else nullcontext(), bank.using("teacher"):
        loss.backward()
    if not checkpointing:
        got = [parameter.grad for parameter in bank.parameters("student").values()]
        assert all(torch.equal(a, b) for a, b in zip(alone, got, strict=True))
    assert bank.active == "student"


def test_optimizer_step_changes_the_student_alone(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    teacher, student = bank.state("teacher"), bank.state("student")
    base = {k: v.clone() for k, v in backbone.transformer.state_dict().items() if ".lora_" not in k}
    optimizer = torch.optim.AdamW(bank.parameters("student").values(), lr=1e-2)
    velocity(backbone, inputs).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, bank.state("teacher")[key]) for key, value in teacher.items())
    assert not any(torch.equal(value, bank.state("student")[key]) for key, value in student.items())
    assert all(torch.equal(value, backbone.transformer.state_dict()[key]) for key, value in base.items())


def test_state_round_trip_between_names(bank: AdapterBank, backbone: Any, inputs: Any) -> None:
    state = bank.state("student")
    assert all("student" not in key for key in state)
    bank.add("ema", LoraSettings(rank=4, alpha=8.0), 9)
    bank.load_state("ema", state)
    with bank.using("ema"):
        copied = velocity(backbone, inputs)
    assert torch.equal(copied, velocity(backbone, inputs))
    for parameter in bank.parameters("ema").values():
        parameter.data.zero_()
    assert all(torch.equal(value, bank.state("student")[key]) for key, value in state.items())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_load_state_is_strict_and_changes_nothing_on_error(bank: AdapterBank, damage: str) -> None:
    before = bank.state("student")
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    key = next(iter(state))
    if damage == "missing":
        del state[key]
    elif damage == "extra":
        state["other.lora_A.weight"] = torch.zeros(1)
    else:
        state[key] = state[key][:1]
    with refused(AdapterError, names=["other" if damage == "extra" else key]):
        bank.load_state("student", state)
    assert all(torch.equal(value, bank.state("student")[name]) for name, value in before.items())


def test_deltas_are_what_the_layers_add(bank: AdapterBank, backbone: Any) -> None:
    layer = backbone.transformer.get_base_model().transformer_blocks[0].attn.to_q
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with bank.using("teacher"):
        added = layer(x) - layer.base_layer(x)
    delta = bank.weights("teacher").delta("transformer_blocks.0.attn.to_q")
    assert delta.dtype == torch.float32
    torch.testing.assert_close(x @ delta.T, added, atol=1e-5, rtol=1e-4)


def test_lora_stays_float32_under_a_bfloat16_base(backbone: Any, inputs: Any, fill: Any) -> None:
    backbone.transformer.to(torch.bfloat16)
    bank = AdapterBank(backbone)
    fill(bank, "first", LoraSettings(rank=2, alpha=4.0), 1)
    fill(bank, "second", LoraSettings(rank=2, alpha=4.0), 2)
    bank.train("second")
    assert {p.dtype for name in bank.names for p in bank.parameters(name).values()} == {torch.float32}
    low = {key: value.bfloat16() for key, value in inputs.items()}
    velocity(backbone, low).float().square().sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in bank.parameters("second").values()
    )


@pytest.mark.parametrize("name", ["student", "", "a.b", "a/b"])
def test_names_that_are_taken_or_unfit(bank: AdapterBank, name: str) -> None:
    with refused(AdapterError, value=name):
        bank.add(name, LoraSettings(rank=2, alpha=2.0), 0)


@pytest.mark.parametrize("name", ["lora", "keys", "update", "a", "default"])
def test_names_that_clash_inside_peft_work(bank: AdapterBank, backbone: Any, inputs: Any, name: str) -> None:
    bank.add(name, LoraSettings(rank=4, alpha=8.0), 0)
    student = velocity(backbone, inputs)
    with bank.using(name):
        assert not torch.equal(velocity(backbone, inputs), student)  # it is fresh
    bank.load_state(name, bank.state("student"))
    with bank.using(name):
        assert torch.equal(velocity(backbone, inputs), student)
    assert name in bank.names


@pytest.mark.parametrize("target", ["attn.to_z", "norm_out", "attn.to_out"])
def test_targets_that_this_base_cannot_adapt(backbone: Any, target: str) -> None:
    bank = AdapterBank(backbone)
    with refused(AdapterError, names=[target]):
        bank.add("new", LoraSettings(rank=2, alpha=2.0, target_modules=("attn.to_q", target)), 0)
    assert bank.names == ()


def test_second_bank_on_one_backbone_is_refused(bank: AdapterBank, backbone: Any) -> None:
    with refused(AdapterError, value="PeftModel"):
        AdapterBank(backbone)


def test_rows_use_the_adapters_of_their_parts(tiny: Tiny) -> None:
    inputs = tiny.backbone.encode_prompts(PROMPTS)
    here = (torch.randn(4, *tiny.backbone.latent_shape), torch.full((4,), 0.6), inputs)
    with torch.no_grad():
        with tiny.bank.using_rows([("anchor", 1), (None, 2), ("teacher-signs", 1)]):
            found = tiny.backbone.velocity(*here)
        for row, name in enumerate(("anchor", None, None, "teacher-signs")):
            with tiny.bank.using(name):
                alone = tiny.backbone.velocity(here[0][[row]], here[1][[row]], inputs.rows([row]))
            torch.testing.assert_close(found[[row]], alone, rtol=1e-4, atol=1e-5)
    assert tiny.bank.active == "student"
    with refused(AdapterError, value="anchr", names=["anchor"]), tiny.bank.using_rows([("anchr", 4)]):
        pass


def test_switching_visits_no_layer(tiny: Tiny) -> None:
    """What it costs does not depend on how many layers and adapters there are."""

    class Visited(dict):  # type: ignore[type-arg]
        def _visit(self, *at: object) -> None:
            raise AssertionError("a layer was visited")

        __iter__ = __getitem__ = items = values = keys = _visit  # type: ignore[assignment]

    tiny.bank._layers = Visited()
    for name in (*tiny.bank.names, None):
        with tiny.bank.using(name):
            assert tiny.bank.active == name


def test_adapters_come_and_go(tiny: Tiny) -> None:
    """Whichever is taken off, the others keep their velocities, and the bare base has its own again."""
    backbone = SD3Backbone(new_tiny_pipeline(), max_sequence_length=0)
    bank = AdapterBank(backbone)
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *backbone.latent_shape, generator=draw)
    here = (latents, torch.tensor([0.9, 0.4]), backbone.encode_prompts(PROMPTS[:2]))

    def velocity(name: str | None) -> torch.Tensor:
        with torch.no_grad(), bank.using(name):
            return backbone.velocity(*here)

    bare = velocity(None)
    bank.put("only", tiny.bank.weights("anchor"))
    expected = velocity("only")
    bank.remove("only")
    assert bank.names == ()
    assert torch.equal(velocity(None), bare)
    for name in ("first", "second", "third"):
        bank.put(name, tiny.bank.weights("anchor" if name == "third" else "teacher-shapes"))
    bank.train("second")
    for name in ("first", "second"):
        bank.remove(name)
        assert torch.equal(velocity("third"), expected)
        assert torch.equal(velocity(None), bare)
    assert bank.names == ("third",)
    assert bank.student is None
    bank.put("first", tiny.bank.weights("teacher-shapes"))
    bank.train("first")
    assert [key for key, value in bank.parameters("third").items() if value.requires_grad] == []
    with refused(AdapterError, value="second"):
        bank.remove("second")
