"""One whole distillation update of a transformer in the true size of Stable Diffusion 3.5 Medium, on a CPU.

Random weights in bfloat16, random text embeddings; the student, one teacher and an anchor of rank 32,
gradient checkpointing, AdamW: the project's own bank, walk, objective and loop. It says how long each
pass takes and how much memory the process has needed:

    python benchmarks/full_size_update.py [--layers 24] [--resolution 256] [--prompts 1] [--steps 2]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.form import LoraForm
from flow_opd.algorithms.opd import OPDPolicies, direct_opd
from flow_opd.backbones.sd3 import SD3Backbone
from flow_opd.config.common import BaseModelSettings, OptimizerSettings
from flow_opd.flow.dynamics import DYNAMICS
from flow_opd.flow.schedule import make_schedule
from flow_opd.planning.architectures import Network, read_architecture
from flow_opd.planning.shapes import build_network
from flow_opd.policies.policy import Policy
from flow_opd.protocols import VelocityField
from flow_opd.rollout.walk_batches import Walks
from flow_opd.training.seeding import generator
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning, Prompt

BASE = BaseModelSettings(
    path="stabilityai/stable-diffusion-3.5-medium", dtype="bfloat16", max_sequence_length=128
)
TEXT_TOKENS = 77 + BASE.max_sequence_length


def random_transformer(layers: int) -> torch.nn.Module:
    """Returns the true transformer, or its first layers, with small random weights."""
    network = read_architecture(BASE).networks["transformer"]
    config = {**network.config, "num_layers": layers}
    config["dual_attention_layers"] = [each for each in config["dual_attention_layers"] if each < layers]
    transformer = build_network(Network(network.class_name, config), torch.bfloat16).to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for tensor in [*transformer.parameters(), *transformer.buffers()]:
        with torch.no_grad():
            tensor.normal_(0, 0.02, generator=draw)
    return transformer


class RandomTexts:
    """Embeddings of the true widths; a text gives the same ones always."""

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns random conditioning, B rows."""
        draws = [torch.Generator().manual_seed(len(prompt.text)) for prompt in prompts]
        embeds = torch.stack([torch.randn(TEXT_TOKENS, 4096, generator=draw) for draw in draws])
        pooled = torch.stack([torch.randn(2048, generator=draw) for draw in draws])
        return Conditioning(embeds.bfloat16(), pooled.bfloat16(), tuple(prompt.task for prompt in prompts))


class Timed:
    """A policy that says how long its velocities take."""

    def __init__(self, name: str, field: VelocityField) -> None:
        """Names the policy."""
        self.name, self.field = name, field

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the field's velocity, [M, C, H, W]."""
        start = time.perf_counter()
        velocity = self.field.velocity(latents, sigma, conditioning)
        seconds = time.perf_counter() - start
        print(f"  {self.name} forward at sigma {float(sigma[0]):.3f}: {seconds:.1f} s", flush=True)
        return velocity


def peak_gib() -> float:
    """Returns the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Builds, takes one update, and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    start = time.perf_counter()
    transformer = random_transformer(asked.layers)
    transformer.enable_gradient_checkpointing()
    count = sum(each.numel() for each in transformer.parameters())
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=1, latent_channels=16),
        **dict.fromkeys(parts),
    )
    backbone = SD3Backbone(pipe, max_sequence_length=BASE.max_sequence_length)
    side = asked.resolution // 8
    backbone.latent_shape = (16, side, side)
    bank = AdapterBank(backbone)
    for seed, name in enumerate(("student", "teacher", "anchor")):
        bank.add(name, LoraForm(rank=32, alpha=64.0), seed)
        if name != "student":
            draw = torch.Generator().manual_seed(seed)
            state = bank.state(name)
            bank.load_state(name, {k: 0.01 * torch.randn(v.shape, generator=draw) for k, v in state.items()})
    bank.train("student")
    print(
        f"{count / 1e9:.3f} billion parameters, built in {time.perf_counter() - start:.0f} s, "
        f"{peak_gib():.1f} GiB"
    )
    fields = {
        name: Timed(name, Policy(backbone, adapters=bank, adapter=name))
        for name in ("student", "teacher", "anchor")
    }
    walks = Walks(
        prompts_of_round=lambda index: [Prompt("x" * row, "task") for row in range(asked.prompts)],
        encoder=RandomTexts(),
        seeder=lambda index, row: generator(0, "walk", index, row),
        schedule=make_schedule(
            backbone.sigmas(asked.steps), noise_level=0.7, stochastic_steps=(0, asked.steps - 1)
        ),
        dynamics=DYNAMICS.get("sde"),
        micro_batch_size=asked.prompts,
    )
    cast = OPDPolicies(backbone, fields["student"], fields["teacher"], fields["anchor"], anchor_weight=0.02)
    source, objective = direct_opd(cast, walks)
    before = bank.state("student")
    lines: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            parameters=bank.parameters("student"),
            source=source,
            objective=objective,
            settings=LoopSettings(rounds=1, optimizer=OptimizerSettings(learning_rate=1e-4)),
            folder=Path(folder),
            identity="full-size",
            callbacks=[Recorder(lines)],
        )
        start = time.perf_counter()
        trainer.run()
    seconds = time.perf_counter() - start
    moved = sum(float((value - before[name]).square().sum()) for name, value in bank.state("student").items())
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in lines[0].items())
    print(
        f"update in {seconds:.0f} s, peak {peak_gib():.1f} GiB, student moved by {moved**0.5:.3g}  {numbers}"
    )


class Recorder:
    """Keeps the metrics of the update."""

    def __init__(self, lines: list[dict[str, float]]) -> None:
        """Takes the list to write to."""
        self.lines = lines

    def on_update(self, step: int, metrics: dict[str, float]) -> None:
        """Keeps the metrics."""
        self.lines.append(dict(metrics))

    def on_end(self) -> None:
        """Has nothing to do."""


if __name__ == "__main__":
    main()
