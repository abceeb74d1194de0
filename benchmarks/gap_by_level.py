"""How far an adapter of the miniature is from its teachers, by noise level, on states that they visit.

    python benchmarks/gap_by_level.py ADAPTER

Prints the mean |v - v_teacher|^2 at each step of the training's grid, that of the base, and their ratio.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.config.common import PromptsSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import locate
from flow_opd.flow.path import make_schedule
from flow_opd.method.rollouts import WalkNoise, rollout, schedule_rows
from flow_opd.runs.base import Base
from flow_opd.runs.prompts import prompts_of
from flow_opd.runs.teachers import named_policies
from flow_opd.seeding import generator

PROMPTS = 48  # held-out prompts of each domain


def gaps(adapter: str) -> dict[str, Any]:
    """Returns sigmas, the gap of the adapter and of the base at each of them, and the share that is left.

    The gap is that to the teachers themselves, whatever lies beyond them in the training.
    """
    themselves = [f"teachers.{index}.extrapolation=1" for index in range(4)]
    settings = read(locate("asset:configs/distill.yaml"), DistillSettings, themselves)
    base = Base.load(settings.base, settings.compute)
    backbone, bank = base.backbone, base.bank
    for teacher in settings.teachers:
        bank.put(teacher.name, read_adapter(locate(teacher.adapter)))
    bank.put("student", read_adapter(locate(adapter)))
    teachers = named_policies(settings, base, backbone).teachers
    policies = {name: base.policy(name) for name in ("student", None)}
    sampling = settings.sampling
    schedule = make_schedule(
        backbone.sigmas(sampling.num_steps),
        noise_level=sampling.noise_level,
        stochastic_steps=sampling.stochastic_range(),
    )
    found = {name: torch.zeros(len(schedule)) for name in policies}
    for teacher in settings.teachers:
        task = teacher.tasks[0]
        files = [PromptsSettings(path=f"asset:prompts/test/{task}.jsonl", limit=PROMPTS)]
        prompts = prompts_of(files)
        conditioning = backbone.encode_prompts(prompts)
        seeds = [generator(0, "gap", task, row) for row in range(len(prompts))]
        noise = WalkNoise(backbone.latent_shape, schedule, seeds, backbone.device)
        dynamics = sampling.dynamics.build()
        drawn = rollout(teachers, conditioning, prompts, schedule=schedule, dynamics=dynamics, noise=noise)
        for step in range(len(schedule)):
            here = (drawn.latents[:, step], schedule_rows(schedule, step, len(prompts))[0], conditioning)
            with torch.no_grad():
                target = teachers.velocity(*here)
                for name, policy in policies.items():
                    found[name][step] += (policy.velocity(*here) - target).pow(2).mean() / 4
    return {
        "sigmas": schedule.sigmas[:-1].tolist(),
        "gap": found["student"].tolist(),
        "base": found[None].tolist(),
        "left": (found["student"] / found[None]).tolist(),
    }


def main() -> None:
    """Reads which adapter, and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="of the miniature")
    result = gaps(parser.parse_args().adapter)
    for sigma, gap, base, left in zip(*result.values(), strict=True):
        print(f"sigma {sigma:.3f}  gap {gap:.3e}  base {base:.3e}  left {left:.3f}")


if __name__ == "__main__":
    main()
