"""A base in half precision: what stays float32, and how far an update may differ from the exact one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.types import TransitionBatch
from tiny import gradients
from tiny_pipelines import TinyOn, tiny_flux, tiny_sd3

pytestmark = pytest.mark.slow

# A bfloat16 has 8 significant bits: a rounding is off by 2^-9 = 0.2 % at most. A velocity passes some 30 of
# them one after another (two or three blocks of about 10, the embeddings, the output); they add up like a
# random walk, 0.2 % * sqrt(30) = 1.1 %, and as many again on the gradient's way back: 1.5 %. Twice that
# is allowed. float16 has 11 bits. The KL's gradient is made of differences of two velocities, which lose
# as much more as they are smaller than the velocities themselves.
ALLOWED = {"bfloat16": 0.03, "float16": 0.03 / 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    for name, pipe in (("sd3", tiny_sd3()), ("flux", tiny_flux())):
        pipe.save_pretrained(root / name)
    return {name: root / name for name in ("sd3", "flux")}


def cast(folder: Path, dtype: str) -> TinyOn:
    """Returns student, teachers and anchor on the saved base in a number format."""
    flux = {"embedded_guidance": 3.5, "resolution": 8} if folder.name == "flux" else {}
    base = BaseModelSettings(path=str(folder), max_sequence_length=6, dtype=dtype, **flux)
    return TinyOn(load_backbone(base, ComputeSettings(device="cpu")))


def opd_update(tiny: TinyOn) -> tuple[list[TransitionBatch], list[Tensor], float]:
    """Returns what the walk yielded, the student's gradients, and the loss, of one OPD update."""
    source, objective = tiny.algorithm("opd")
    seen: list[TransitionBatch] = []
    losses: list[float] = []

    def loss() -> None:
        for batch in next(iter(source.round(0))):
            output = objective(batch)
            output.total.backward()
            seen.append(batch)
            losses.append(output.total.item())
            assert output.total.dtype == torch.float32

    found = gradients(tiny.parameters.values(), loss)
    return seen, found, sum(losses)


def cancellation(tiny: TinyOn, visited: list[TransitionBatch]) -> float:
    """Returns |v| / |v_student - v_teacher| over the visited states, 1 at least."""
    with torch.no_grad():
        pairs = [(b.velocity, tiny.teachers().velocity(b.latents, b.sigma, b.conditioning)) for b in visited]
    own, teacher = (torch.cat([pair[i].detach() for pair in pairs]) for i in (0, 1))
    return max(1.0, (own.norm() / (own - teacher).norm()).item())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.slow
def test_an_update_on_a_half_precision_base_is_the_exact_one_up_to_rounding(
    folders: dict[str, Path], name: str, dtype: str
) -> None:
    exact, half = cast(folders[name], "float32"), cast(folders[name], dtype)
    bare = half.backbone.pipe.transformer
    assert {p.dtype for key, p in bare.named_parameters() if "lora_" not in key} == {half.backbone.dtype}
    for adapter in half.bank.names:
        assert {p.dtype for p in half.bank.parameters(adapter).values()} == {torch.float32}

    visited, expected, exact_loss = opd_update(exact)
    seen, found, loss = opd_update(half)
    assert {t.dtype for b in seen for t in (b.latents, b.sigma, b.noise_level, b.velocity)} == {torch.float32}
    flat, exact_flat = (torch.cat([each.flatten() for each in part]) for part in (found, expected))
    assert flat.dtype == torch.float32
    allowed = ALLOWED[dtype] * cancellation(exact, visited)
    error = ((flat - exact_flat).norm() / exact_flat.norm()).item()
    assert 0 < error < allowed < 0.5
    assert loss == pytest.approx(exact_loss, rel=allowed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_pictures_are_decoded_and_encoded_in_float32_whatever_the_base(
    folders: dict[str, Path], name: str, dtype: str
) -> None:
    exact, half = cast(folders[name], "float32").backbone, cast(folders[name], dtype).backbone
    assert {p.dtype for p in half.pipe.vae.parameters()} == {torch.float32}
    assert half.dtype != torch.float32
    x0 = torch.randn(2, *exact.latent_shape, generator=torch.Generator().manual_seed(0))
    pictures = exact.decode_latents(x0)
    assert pictures.std() > 0
    assert torch.equal(half.decode_latents(x0), pictures)
    assert torch.equal(half.encode_images(pictures), exact.encode_images(pictures))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_what_goes_from_block_to_block_is_not_rounded(folders: dict[str, Path], name: str) -> None:
    half = cast(folders[name], "bfloat16")
    seen: list[torch.dtype] = []

    def look(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        kinds = {**dict(enumerate(positional)), **named}
        seen.extend(kinds[key].dtype for key in ("hidden_states", "encoder_hidden_states") if key in kinds)

    for module in half.backbone.transformer.modules():
        if type(module).__name__.endswith("TransformerBlock"):
            module.register_forward_pre_hook(look, with_kwargs=True)
    visited, _, _ = opd_update(half)
    assert len(seen) >= 4
    assert set(seen) == {torch.float32}
    velocity = torch.cat([batch.velocity for batch in visited])
    assert (velocity == velocity.bfloat16().float()).float().mean() < 0.05  # it was not rounded at the end


def test_small_differences_of_velocities_keep_their_direction(folders: dict[str, Path]) -> None:
    """In bfloat16 all through, the cosine of v_student - v_teacher with float32's is .9905 here."""
    exact, half = (cast(folders["flux"], dtype) for dtype in ("float32", "bfloat16"))
    visited, _, _ = opd_update(exact)
    with torch.no_grad():
        found, expected = (
            torch.cat(
                [
                    tiny.student.velocity(b.latents, b.sigma, b.conditioning)
                    - tiny.teachers().velocity(b.latents, b.sigma, b.conditioning)
                    for b in visited
                ]
            ).flatten()
            for tiny in (half, exact)
        )
    assert 0.999 < torch.nn.functional.cosine_similarity(found, expected, dim=0) < 1
