"""Settings of memory and speed: each really happens, and changes nothing that is computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from errors import refused
from flow_opd.backbones import compute
from flow_opd.backbones.compute import DispatchedJointAttention, prepare
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BackboneSettings, TrainingComputeSettings
from flow_opd.errors import ConfigError
from flow_opd.method.rollouts import draw_noise
from flow_opd.types import Conditioning
from tiny import PROMPTS, gradients
from tiny_pipelines import TinyOn, tiny_backbone, tiny_sd3

pytestmark = pytest.mark.slow

KINDS = sorted(BackboneSettings.kind.own)
MATH, FLASH = "aten::_scaled_dot_product_attention_math", "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def diffusers_own_attention() -> Iterator[None]:
    """Puts back what `set_attention_backend` changes for the whole process."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def cast(kind: str, **settings: object) -> TinyOn:
    """Returns student, teachers and anchor on a base with these settings."""
    backbone = tiny_backbone(kind)
    prepare(backbone, TrainingComputeSettings(device="cpu", **settings))
    return TinyOn(backbone)


def state(tiny: TinyOn) -> tuple[Tensor, Tensor, Conditioning]:
    draws = [torch.Generator().manual_seed(row) for row in range(4)]
    noise = draw_noise(tiny.backbone.latent_shape, draws)
    return noise, torch.tensor([0.9, 0.7, 0.5, 0.2]), tiny.backbone.encode_prompts(PROMPTS)


def opd_gradients(tiny: TinyOn) -> list[Tensor]:
    """Returns the gradients of one OPD update: student, routed teachers and anchor take turns on the base."""
    source, objective = tiny.algorithm("opd", micro_batch_size=3)

    def loss() -> None:
        for batch in next(iter(source.round(0))):
            objective(batch).total.backward()

    return gradients(tiny.parameters.values(), loss)


def block_calls(tiny: TinyOn) -> list[int]:
    """Returns a list whose first entry counts the forward passes of all transformer blocks."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    for module in tiny.backbone.transformer.modules():
        if isinstance(module, nn.ModuleList) and type(module[0]).__name__.endswith("TransformerBlock"):
            for block in module:
                block.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradients_are_the_gradients(kind: str) -> None:
    plain, checkpointed = cast(kind), cast(kind, gradient_checkpointing=True)
    for expected, found in zip(opd_gradients(plain), opd_gradients(checkpointed), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_blocks_run_again_for_the_student_alone(kind: str) -> None:
    plain, checkpointed = cast(kind), cast(kind, gradient_checkpointing=True)
    here = state(checkpointed)
    for tiny, once_more in ((plain, 0), (checkpointed, 1)):
        calls = block_calls(tiny)
        velocity = tiny.student.velocity(*here)
        blocks = calls[0]
        assert blocks >= 2
        with torch.no_grad():
            tiny.policy("anchor").velocity(*here)
            tiny.policy(None).velocity(*here)
        assert calls[0] == 3 * blocks  # no gradient, nothing to come back to
        velocity.square().sum().backward()
        assert calls[0] == (3 + once_more) * blocks


def attention_kernels(backbone: SD3Backbone, here: tuple[Tensor, Tensor, Conditioning]) -> dict[str, int]:
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        backbone.velocity(*here)
    return {event.key: event.count for event in seen.key_averages() if event.key in (MATH, FLASH)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_backend_is_the_one_that_was_asked_for(kind: str) -> None:
    plain = cast(kind)
    here = state(plain)
    assert FLASH in attention_kernels(plain.backbone, here)  # what torch chooses by itself on a CPU
    usual = opd_gradients(plain)
    chosen = cast(kind, attention_backend="_native_math")
    assert attention_kernels(chosen.backbone, here).keys() == {MATH}
    for expected, found in zip(usual, opd_gradients(chosen), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dual", [False, True])
def test_our_sd3_attention_is_that_of_diffusers(dual: bool) -> None:
    """All that the processor meets: image alone (dual attention), text dropped (last block), normed heads."""
    theirs = SD3Backbone(tiny_sd3(dual=dual), max_sequence_length=6)
    ours = SD3Backbone(tiny_sd3(dual=dual), max_sequence_length=6)
    prepare(ours, TrainingComputeSettings(attention_backend="native"))
    blocks = ours.transformer.transformer_blocks
    processors = [block.attn.processor for block in blocks] + [
        block.attn2.processor for block in blocks[: int(dual)]
    ]
    assert all(isinstance(each, DispatchedJointAttention) for each in processors)
    noise = draw_noise(theirs.latent_shape, [torch.Generator().manual_seed(row) for row in range(4)])
    here = (noise, torch.tensor([0.9, 0.7, 0.5, 0.2]), theirs.encode_prompts(PROMPTS))
    torch.testing.assert_close(ours.velocity(*here), theirs.velocity(*here), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_backend_that_is_not_here_is_refused(kind: str) -> None:
    names = ["'compute.attention_backend'", "'flash'", *(backend.value for backend in AttentionBackendName)]
    with refused(ConfigError, value="flesh", names=names):
        cast(kind, attention_backend="flesh")
    with refused(ConfigError, value="flash"):
        cast(kind, attention_backend="flash")


def test_a_base_that_ignores_the_choice_is_refused() -> None:
    backbone = tiny_backbone("FluxPipeline")

    class Deaf:
        """A processor from before diffusers had attention backends."""

    backbone.transformer.transformer_blocks[0].attn.processor = Deaf()
    with refused(ConfigError, value="native"):
        prepare(backbone, TrainingComputeSettings(attention_backend="native"))


@pytest.mark.slow
def test_compiled_blocks_follow_the_active_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and guarded by dynamo, which is what adapters could confuse; its compilers take minutes here."""
    monkeypatch.setattr(compute, "COMPILER", "eager")
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep all of it
    torch._dynamo.reset()
    counters.clear()
    kind = "StableDiffusion3Pipeline"
    plain, compiled = cast(kind), cast(kind, compile=True, gradient_checkpointing=True)
    here = state(plain)
    for name in ("student", None, "anchor", "student"):
        with torch.no_grad():
            expected, found = (tiny.policy(name).velocity(*here) for tiny in (plain, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for tiny in (plain, compiled):
        tiny.student.velocity(*here).square().sum().backward()
    for name, parameter in plain.parameters.items():
        torch.testing.assert_close(compiled.parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
    kinds_of_block, variants = 2, 4  # two adapters, none, and the student with gradients
    assert counters["stats"]["unique_graphs"] >= kinds_of_block * variants
    assert not counters["unimplemented"]  # no break in a graph, and no block that gave up
    assert torch._dynamo.config.recompile_limit >= compute.COMPILED_VARIANTS > 8  # dynamo's own limit
    torch._dynamo.reset()


def test_a_tiled_vae_decodes_in_tiles() -> None:
    whole, tiled = (SD3Backbone(tiny_sd3(), max_sequence_length=6, resolution=16) for _ in range(2))
    prepare(tiled, TrainingComputeSettings(vae_tiling=True))
    x0 = torch.randn(1, *whole.latent_shape, generator=torch.Generator().manual_seed(0))
    sizes: list[tuple[int, ...]] = []
    for base in (whole, tiled):
        base.pipe.vae.decoder.register_forward_pre_hook(
            lambda _, given: sizes.append(tuple(given[0].shape[2:]))
        )
    assert whole.decode_latents(x0).shape == (1, 3, 16, 16)
    assert sizes == [(8, 8)]
    assert tiled.decode_latents(x0).shape == (1, 3, 16, 16)
    assert len(sizes) > 4
    assert max(size for _, size in sizes[1:]) == 4  # a tile is what the VAE was made for


def test_by_default_nothing_is_changed() -> None:
    tiny = cast("StableDiffusion3Pipeline")
    transformer = tiny.backbone.pipe.transformer
    assert not transformer.is_gradient_checkpointing
    assert not tiny.backbone.pipe.vae.use_tiling
    assert not any(isinstance(p, DispatchedJointAttention) for p in transformer.attn_processors.values())
    assert not any(module._compiled_call_impl for module in transformer.modules())
