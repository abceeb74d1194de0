"""The guide's backbone is taken from the page, registered by one line, and compared with its pipeline."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from flow_opd.adapters.bank import AdapterBank
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, TrainingComputeSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.sampling import DynamicsSettings
from flow_opd.method.policy import Policy
from flow_opd.method.rollouts import WalkNoise, draw_noise, rollout
from oracles import ode_schedule
from tiny import PROMPTS, fill
from tiny_pipelines import TEXT_WIDTH, frozen, t5_tokenizer, tiny_autoencoder

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "bring-your-own-backbone.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def tiny_aura_flow() -> AuraFlowPipeline:
    tokenizer = t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = AuraFlowTransformer2DModel(
            sample_size=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=16,
            pos_embed_max_size=16,
        )
        config = UMT5Config(
            vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2
        )
        pipe = AuraFlowPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(config),
            vae=tiny_autoencoder(shift_factor=None),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    return frozen(pipe)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    file = tmp_path / "aura_flow.py"
    file.write_text(CODE[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aura_flow", raising=False)  # of the case before
    tiny_aura_flow().save_pretrained(tmp_path / "base")
    values = {
        "path": str(tmp_path / "base"),
        "max_sequence_length": 256,
        "backbone": "aura_flow:AuraFlowBackbone",
    }
    settings = from_values(values, BaseModelSettings)
    return load_backbone(settings, TrainingComputeSettings(device="cpu", gradient_checkpointing=True))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_every_step_is_that_of_diffusers(base: Any, guidance_scale: float) -> None:
    visited: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        visited.append(seen["latents"].clone())
        return {}

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(len(PROMPTS))]

    base.pipe(
        prompt=[prompt.text for prompt in PROMPTS],
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        latents=draw_noise(base.latent_shape, seeds()),
        height=8,
        width=8,
        output_type="latent",
        callback_on_step_end=keep,
    )
    ours = rollout(
        Policy(base, guidance_scale=guidance_scale),
        base.encode_prompts(PROMPTS),
        PROMPTS,
        schedule=(schedule := ode_schedule(base.sigmas(4))),
        dynamics=DynamicsSettings.of("sde").build(),
        noise=WalkNoise(base.latent_shape, schedule, seeds(), base.device),
    )
    assert len(visited) == 4
    for step, latents in enumerate(visited):
        torch.testing.assert_close(ours.latents[:, step + 1], latents, rtol=0, atol=5e-6)
    assert (ours.latents[:, 1:] - ours.latents[:, :-1]).flatten(2).norm(dim=2).min() > 1e-3
    assert base.decode_latents(ours.x0).shape == (4, 3, 8, 8)


def test_its_adapters_learn(base: Any) -> None:
    bank = AdapterBank(base)
    fill(bank, "student", 1)
    bank.train("student")
    noise = draw_noise(base.latent_shape, [torch.Generator().manual_seed(row) for row in range(4)])
    base.velocity(noise, torch.full((4,), 0.5), base.encode_prompts(PROMPTS)).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in bank.parameters("student").values())


def test_the_sections_of_the_page_are_good_settings() -> None:
    sections = [
        yaml.safe_load(text)["base"] for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    ]
    assert [BaseModelSettings.model_validate(each).embedded_guidance for each in sections] == [
        None,
        3.5,
        None,
    ]


def test_the_lines_for_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(CODE[1], "the guide", "exec"), {})
    assert capsys.readouterr().out.startswith("SD3Backbone (")
