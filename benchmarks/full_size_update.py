"""Takes one whole OPD update with a full-size SD3.5-M transformer of random weights, on the CPU.

    nice python benchmarks/full_size_update.py                # 24 layers: 2.5 billion numbers in bfloat16
    nice python benchmarks/full_size_update.py --layers 2     # a quick look

Student, teacher and anchor are LoRAs of rank 32 on one base. The student walks; each state costs it a forward
and a backward pass, and teacher and anchor a forward pass each; AdamW steps at the end. The weights, the
embedded prompts and the size of the pictures are not the real ones, all else is. Says what it does as it
goes, then seconds and peak memory, beside what the plan says of the same update.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.settings import LoraSettings
from flow_opd.backbones.quiet import quiet_loading
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.distill import DistillSettings
from flow_opd.config.plan import PlanSettings
from flow_opd.config.reader import from_values
from flow_opd.planning.architectures import BASES, read_architecture
from flow_opd.planning.machines import GIB
from flow_opd.planning.plan import Plan
from flow_opd.planning.shapes import text_tokens
from flow_opd.policies.policy import Policy
from flow_opd.prompts.batches import PromptGroups
from flow_opd.protocols import VelocityField
from flow_opd.stages.assembly import build_walks
from flow_opd.stages.distill import algorithm_of, cast_of
from flow_opd.stages.plan import plan_training
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning, Prompt

MEDIUM = BASES / "stabilityai" / "stable-diffusion-3.5-medium"
BEGUN = time.monotonic()


def say(words: str) -> None:
    """Prints a line with the seconds since the start and the memory of the process now."""
    print(f"{time.monotonic() - BEGUN:7.1f} s  {memory('VmRSS'):6.2f} GiB  {words}", flush=True)


def memory(entry: str) -> float:
    """Returns VmRSS (now) or VmHWM (at most) of this process in GiB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith(entry))


class Told:
    """A velocity field that says when it is asked and how long it took."""

    def __init__(self, field: VelocityField, name: str) -> None:
        """Takes the field and what it is called."""
        self.field = field
        self.name = name

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the field's velocity, [M, C, H, W]."""
        begun = time.monotonic()
        velocity = self.field.velocity(latents, sigma, conditioning)
        say(f"{self.name} at sigma {sigma[0]:.2f}, {len(latents)} rows: {time.monotonic() - begun:.1f} s")
        return velocity


class RandomPrompts(SD3Backbone):
    """The backbone without text encoders: embedded prompts are noise of the right shape."""

    tokens: int

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns noise, [B, L, 4096] and [B, 2048]."""
        config, rows = self.pipe.transformer.config, len(prompts)
        return Conditioning(
            torch.randn(rows, self.tokens, config.joint_attention_dim, dtype=self.dtype),
            torch.randn(rows, config.pooled_projection_dim, dtype=self.dtype),
            tuple(prompt.task for prompt in prompts),
        )


def read_arguments() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--pixels", type=int, default=128, help="height and width of the pictures")
    parser.add_argument("--steps", type=int, default=2, help="steps of the walk")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_configs(folder: Path, layers: int) -> Path:
    """Returns a folder with the config files of SD3.5-M, cut to `layers` layers."""
    shutil.copytree(MEDIUM, folder)
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    config["num_layers"] = layers
    config["dual_attention_layers"] = [one for one in config["dual_attention_layers"] if one < layers]
    file.write_text(json.dumps(config))
    return folder


def settings_of(arguments: argparse.Namespace, base: Path) -> DistillSettings:
    """Returns one round of distillation: teacher, anchor, a fresh student."""
    guidance = {"guidance_scale": arguments.guidance}
    values = {
        "run": {"out": "unused", "rounds": 1},
        "base": {
            "path": str(base),
            "dtype": "bfloat16",
            "max_sequence_length": 128,
            "resolution": arguments.pixels,
        },
        "compute": {"gradient_checkpointing": arguments.checkpointing},
        "teachers": [{"name": "teacher", "tasks": ["any"], "adapter": "random/teacher", **guidance}],
        "anchor": {"adapter": "random/anchor", **guidance},
        "prompts": [{"path": "unused"}],
        "prompts_per_round": arguments.prompts,
        "micro_batch_size": arguments.prompts,
        "sampling": {"num_steps": arguments.steps, **guidance},
    }
    return from_values(values, DistillSettings)


def random_backbone(settings: DistillSettings) -> RandomPrompts:
    """Returns the base with random weights, made in bfloat16 from the start: 24 GB must do."""
    architecture = read_architecture(settings.base)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with quiet_loading():
        transformer = SD3Transformer2DModel.from_config(architecture.networks["transformer"].config)
        transformer.to(torch.bfloat16).requires_grad_(False).eval()
    torch.set_default_dtype(torch.float32)
    absent = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = dict.fromkeys((*absent, "tokenizer", "tokenizer_2", "tokenizer_3"))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(architecture.scheduler)
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **parts)
    backbone = RandomPrompts(pipe, max_sequence_length=settings.base.max_sequence_length)
    backbone.tokens = text_tokens(architecture, settings.base)
    side = (settings.base.resolution or 0) // pipe.vae_scale_factor
    backbone.latent_shape = (transformer.config.in_channels, side, side)
    if settings.compute.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return backbone


def random_bank(backbone: RandomPrompts) -> AdapterBank:
    """Returns student, teacher and anchor, each of which changes the velocity."""
    bank, draw = AdapterBank(backbone), torch.Generator().manual_seed(1)
    for name in ("student", "teacher", "anchor"):
        bank.add(name, LoraSettings(), seed=1)
        for key, parameter in bank.parameters(name).items():
            if "lora_B" in key:
                with torch.no_grad():
                    parameter.normal_(0, 0.01, generator=draw)
    bank.train("student")
    return bank


def build_trainer(settings: DistillSettings, folder: Path) -> Trainer:
    """Returns the training, as the stage assembles it, with fields that say what they do."""
    backbone = random_backbone(settings)
    count = sum(one.numel() for one in (*backbone.transformer.parameters(), *backbone.transformer.buffers()))
    say(f"base with {count / 1e9:.3f} billion numbers")
    bank = random_bank(backbone)
    say(f"adapters on {len(bank.parameters('student')) // 2} modules")
    cast = cast_of(settings, backbone, bank)
    assert cast.anchor is not None
    assert isinstance(cast.student, Policy)
    told = type(cast)(
        backbone,
        Told(cast.student, "student, with graph"),
        Told(cast.teachers, "teacher"),
        Told(cast.anchor, "anchor"),
        cast.anchor_weight,
    )
    groups = PromptGroups([Prompt("noise", "any")], 0, settings.prompts_per_round)
    size = settings.micro_batch_size
    walks = build_walks(backbone, groups, settings.sampling, seed=0, micro_batch_size=size)
    source, objective = algorithm_of(settings, told, walks)
    return Trainer(
        parameters=bank.parameters("student"),
        source=source,
        objective=objective,
        settings=LoopSettings(rounds=1, optimizer=settings.optimizer, ema=settings.ema),
        folder=folder,
        identity="full size",
    )


def main() -> None:
    """Plans the update, takes it, and prints both."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        settings = settings_of(arguments, write_configs(Path(name) / "base", arguments.layers))
        plan: Plan = plan_training(settings, PlanSettings())
        say("planned")
        trainer = build_trainer(settings, Path(name) / "run")
        before = {key: value.detach().clone() for key, value in trainer.parameters.items()}
        Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
        begun = time.monotonic()
        trainer.run()
        seconds = time.monotonic() - begun
    moved = sum(not torch.equal(value, before[key]) for key, value in trainer.parameters.items())
    say(f"the update changed {moved} of {len(before)} factors")
    flops = sum(plan.flops.values())
    total = plan.memory[settings.compute.gradient_checkpointing].total / GIB
    print(f"seconds of the update: {seconds:.1f}, at {flops / seconds / 1e9:.1f} GFLOP/s")
    print(f"TFLOP of the update by the plan: {flops / 1e12:.3f}")
    print(f"peak memory of the process: {memory('VmHWM'):.2f} GiB; tensors by the plan: {total:.2f} GiB")


if __name__ == "__main__":
    main()
