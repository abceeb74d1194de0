"""How far the first step of Adam moves a merged student, by its alpha: python benchmarks/merge_step.py.

The step is the learning rate times a sign in every entry of both factors; the signs are random here.
"""

from __future__ import annotations

import argparse

import torch

import flow_opd

TASKS = ("composition", "text", "preference", "quality")
RATE = 1e-4


def movement(lora: flow_opd.LoraWeights) -> float:
    """Returns |delta' - delta| over all modules after one step of RATE."""
    generator = torch.Generator().manual_seed(0)
    moved = 0.0
    for module, (down, up) in lora.factors.items():
        step_down, step_up = (torch.randn(f.shape, generator=generator).sign() * RATE for f in (down, up))
        after = lora.scale * (up + step_up) @ (down + step_down)
        moved += float((after - lora.delta(module)).square().sum())
    return float(moved**0.5)


def main() -> None:
    """Prints a line for each way to merge the miniature's teachers."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    teachers = [flow_opd.load_adapter(f"asset:teachers/{task}") for task in TASKS]
    mean = flow_opd.merge(teachers)
    norm = sum(float(mean.delta(module).square().sum()) for module in mean.factors) ** 0.5
    students = {
        f"svd, rank 32, alpha {alpha}": flow_opd.merge(teachers, method="svd", rank=32, alpha=float(alpha))
        for alpha in (16, 32, 64, 128)
    }
    students["factor-average, rank 16, alpha 32"] = flow_opd.merge(teachers, method="factor-average")
    for name, lora in students.items():
        print(f"{name}: {100 * movement(lora) / norm:.2f} % of the norm of the mean delta")


if __name__ == "__main__":
    main()
