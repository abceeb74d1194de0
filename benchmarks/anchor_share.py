"""What an anchor that is asked at a share of the states does to an update of the miniature's distillation.

    python benchmarks/anchor_share.py [--rounds 6] [--student ADAPTER]

For each share, over rounds at the cold start, or at a student that was trained: the cosine of the gradient
with that of an anchor that is asked everywhere, the ratio of their norms, and the cosine of the mean gradient
of all rounds. Beside them the cosine of two rounds with each other, which says how much an update varies
anyway.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from our_update import loaded_parts, source_and_objective
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import locate
from flow_opd.runs.training import STUDENT

SHARES = (1.0, 0.5, 0.25, 0.125)


def gradients(settings: DistillSettings, rounds: int) -> Tensor:
    """Returns the gradient of each round's update, [rounds, parameters]; the student stays as it is."""
    parts = loaded_parts(settings)
    source, objective, _ = source_and_objective(settings, parts)
    parameters = list(parts.base.bank.parameters(STUDENT).values())
    found = []
    for index in range(rounds):
        for parameter in parameters:
            parameter.grad = None
        for update in source.round(index):
            for batch in update:
                objective(batch).total.backward()
        found.append(torch.cat([one.grad.double().flatten() for one in parameters if one.grad is not None]))
    return torch.stack(found)


def main() -> None:
    """Compares the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--student", metavar="ADAPTER", help="where the gradients are taken")
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        words = [f"run.out={Path(name)}"]
        if asked.student is not None:
            words.append(f"cold_start={json.dumps({'adapter': asked.student})}")
        whole: Tensor | None = None
        for share in SHARES:
            settings = read(
                locate("asset:configs/distill.yaml"), DistillSettings, [*words, f"anchor.share={share}"]
            )
            found = gradients(settings, asked.rounds)
            if whole is None:
                whole = found
                print(f"two rounds with each other: {cosine_similarity(found[1:], found[:-1]).mean():.4f}")
            cosine, mean = cosine_similarity(found, whole), cosine_similarity(found.mean(0), whole.mean(0), 0)
            ratio = (found.norm(dim=1) / whole.norm(dim=1)).mean()
            print(
                f"share {share}: cosine {cosine.mean():.6f} (least {cosine.min():.6f}), "
                f"norms {ratio:.4f}, of the mean {mean:.6f}"
            )


if __name__ == "__main__":
    main()
