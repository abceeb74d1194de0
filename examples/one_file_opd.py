"""Multi-teacher on-policy distillation in one file, to be read from top to bottom.

It needs torch, diffusers, peft and the miniature's files (a tiny Stable Diffusion 3, four teachers and
prompts, all shipped with flow-opd), and runs in about two minutes on two CPU cores:

    python examples/one_file_opd.py --rounds 30 --out runs/one_file

Nothing here imports flow-opd's own code: the package does the same with more care (exact resume,
guidance, teachers, policy gradients, evaluation). Where they differ, the package is right.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

ASSETS = Path(__file__).parents[1] / "src/flow_opd/miniature/assets"
TASKS = ("composition", "text", "preference", "quality")
ANCHOR = "quality"  # the task-agnostic expert that MAR listens to on every prompt
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


# 1. One frozen base, five named LoRAs: four teachers and a student.


def load_base() -> StableDiffusion3Pipeline:
    """The pipeline; the miniature has no T5 encoder."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        ASSETS / "base", text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False)
    return pipe


def add_teachers(transformer: SD3Transformer2DModel):
    """Wraps the transformer and loads each teacher's LoRA under its task's name."""
    model = None
    for task in TASKS:
        folder = ASSETS / "teachers" / task
        config = LoraConfig.from_pretrained(folder)
        if model is None:
            model = get_peft_model(transformer, config, adapter_name=task)
        else:
            model.add_adapter(task, config)
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"), adapter_name=task)
    return model


# 2. Cold start: the exact mean of the teachers' weight changes.


def add_student(model, rank: int) -> list[torch.nn.Parameter]:
    """Adds the student: delta = mean_k s_k B_k A_k of every layer, cut to `rank` by an SVD.

    Averaging the factors A and B apart would not do: mean(B) mean(A) is not mean(B A).
    """
    suffixes = [f"attn.{name}" for name in PROJECTIONS]
    model.add_adapter("student", LoraConfig(r=rank, lora_alpha=rank, target_modules=suffixes))
    kept = lost = 0.0
    with torch.no_grad():
        for layer in model.modules():
            if "student" not in getattr(layer, "lora_A", {}):
                continue
            delta = sum(layer.get_delta_weight(task) for task in TASKS) / len(TASKS)
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            layer.lora_A["student"].weight.copy_(s[:rank, None].sqrt() * vh[:rank])
            layer.lora_B["student"].weight.copy_(u[:, :rank] * s[:rank].sqrt())
            kept, lost = kept + float(s[:rank].square().sum()), lost + float(s[rank:].square().sum())
    print(f"cold start: mean of {len(TASKS)} teachers at rank {rank}, {lost / (kept + lost):.2%} energy lost")
    model.set_adapter("student")
    return [parameter for name, parameter in model.named_parameters() if ".student." in name]


# 3. Velocity fields. sigma is the noise level: 1 = noise, 0 = data; v = noise - x0 = dx / dsigma.


def velocity(
    model, x: torch.Tensor, sigma: float, condition: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """v(x, sigma, c) under the active adapter, [B, C, H, W]."""
    embeds, pooled = condition
    timestep = torch.full((len(x),), 1000.0 * sigma)
    return model(
        hidden_states=x,
        timestep=timestep,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


@torch.no_grad()
def teacher_velocity(model, name: str, x, sigma, condition) -> torch.Tensor:
    """The same under a teacher; the student is active again afterwards, as backward needs it to be."""
    model.set_adapter(name, inference_mode=True)
    v = velocity(model, x, sigma, condition)
    model.set_adapter("student")
    return v


@torch.no_grad()
def routed_velocity(model, tasks: list[str], x, sigma, condition) -> torch.Tensor:
    """Each prompt's own teacher, each teacher called once, on its rows only."""
    target = torch.empty_like(x)
    for task in set(tasks):
        rows = [i for i, each in enumerate(tasks) if each == task]
        part = (condition[0][rows], condition[1][rows])
        target[rows] = teacher_velocity(model, task, x[rows], sigma, part)
    return target


# 4. The SDE step of Flow-GRPO and its transition KL.


def step_coefficients(sigma: float, sigma_next: float, noise_level: float) -> tuple[float, float, float]:
    """mean = kx x + kv v, and std, of one reverse step.

    g = a sqrt(sigma / (1 - sigma)), with sigma = 1 replaced by the next grid value; dsigma < 0;
    mean = x (1 + g^2 / (2 sigma) dsigma) + v (1 + g^2 (1 - sigma) / (2 sigma)) dsigma; std = g sqrt(-dsigma).
    """
    dsigma = sigma_next - sigma
    inside = sigma if sigma < 1 else sigma_next
    g = noise_level * math.sqrt(inside / (1 - inside))
    drift = g * g / (2 * sigma)
    return 1 + drift * dsigma, (1 + drift * (1 - sigma)) * dsigma, g * math.sqrt(-dsigma)


def transition_kl(v: torch.Tensor, target: torch.Tensor, kv: float, std: float) -> torch.Tensor:
    """|mean - mean_target|^2 / (2 std^2) per latent dimension; for the ODE (std = 0) |...|^2 / 2."""
    return (kv * (v - target)).square().mean() / (2 * std * std if std > 0 else 2.0)


# 5. The fused on-policy walk: the gradient is taken while the student walks.


def walk(model, condition, tasks: list[str], sigmas: list[float], args, generator) -> tuple[float, float]:
    """One on-policy trajectory per prompt; accumulates the student's gradient and returns both KLs."""
    shape = (len(tasks), *args.latent_shape)
    x = torch.randn(shape, generator=generator)
    steps = len(sigmas) - 1
    teacher_sum = anchor_sum = 0.0
    for t in range(steps):
        # Late noise would stay in the picture: the grid ends in .34, .009, 0.
        noise_level = args.noise_level if t < args.stochastic_steps else 0.0
        kx, kv, std = step_coefficients(sigmas[t], sigmas[t + 1], noise_level)
        v = velocity(model, x, sigmas[t], condition)
        teacher = transition_kl(v, routed_velocity(model, tasks, x, sigmas[t], condition), kv, std)
        anchor = transition_kl(v, teacher_velocity(model, ANCHOR, x, sigmas[t], condition), kv, std)
        ((teacher + args.anchor_weight * anchor) / steps).backward()
        # The state is detached: each step is judged where the student stands, not for how it got there.
        x = kx * x + kv * v.detach() + std * torch.randn(shape, generator=generator)
        teacher_sum, anchor_sum = teacher_sum + teacher.item(), anchor_sum + anchor.item()
    return teacher_sum / steps, anchor_sum / steps


def main() -> None:
    """Merges, distils and saves the student as a PEFT adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prompts-per-round", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stochastic-steps", type=int, default=5)
    parser.add_argument("--noise-level", type=float, default=0.7)
    parser.add_argument("--anchor-weight", type=float, default=0.02)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/one_file"))
    args = parser.parse_args()

    pipe = load_base()
    config = pipe.transformer.config
    args.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
    model = add_teachers(pipe.transformer)
    parameters = add_student(model, args.rank)
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=1e-4)
    average = [parameter.detach().clone() for parameter in parameters]

    pipe.scheduler.set_timesteps(args.steps)
    sigmas = pipe.scheduler.sigmas.tolist()
    prompts = {
        task: [json.loads(line)["prompt"] for line in (ASSETS / f"prompts/train/{task}.jsonl").open()]
        for task in TASKS
    }
    generator = torch.Generator().manual_seed(args.seed)
    for round_index in range(args.rounds):
        tasks = [TASKS[i % len(TASKS)] for i in range(args.prompts_per_round)]
        texts = [
            prompts[task][int(torch.randint(len(prompts[task]), (), generator=generator))] for task in tasks
        ]
        with torch.no_grad():
            embeds, _, pooled, _ = pipe.encode_prompt(
                texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
            )
        teacher, anchor = walk(model, (embeds, pooled), tasks, sigmas, args, generator)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"round {round_index}: the gradient is not finite; nothing was updated")
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, 0.1)
        print(
            f"round {round_index + 1:3d}  teacher KL {teacher:.2e}  anchor KL {anchor:.2e}  grad {norm:.1e}"
        )

    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)
    model.save_pretrained(args.out, selected_adapters=["student"], safe_serialization=True)
    count = sum(
        tensor.numel() for tensor in get_peft_model_state_dict(model, adapter_name="student").values()
    )
    print(f"saved {count:,} numbers to {args.out / 'student'}")
    print(f'look: flow-opd generate "two red circles in the sky" --adapter {args.out / "student"}')


if __name__ == "__main__":
    main()
