"""What the choices of a distillation are worth: the miniature's student under each, at equal compute.

    python benchmarks/choices.py run [--only velocity lambda-1.6] [--seeds 0 1 2] [--out runs/choices]
    python benchmarks/choices.py table [--out runs/choices]

Every choice gets the forward-equivalents of the 120 rounds of the first one (a forward is 1, a forward and
backward 3, each per state and row). GRPO-Mix gets the rounds of the four teachers together, and 76, which
cost what the student costs. A finished run is kept, a killed one goes on, so several processes may work side
by side on different choices.

benchmarks/results/choices has the scores of the runs that were made: copied to --out they are not made again.

`table` prints, for each choice: average and metrics on 500 held-out prompts a domain, the share of each
teacher's gain that is kept, the paired difference to the first choice (prompts and training seeds resampled),
and the share of the base's gap to the teachers that is left at each noise level, on states that they visit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flow_opd.config.locations import locate

DOMAINS = {"composition": "geneval_strict", "text": "ocr", "quality": "deqa", "preference": "pickscore"}
DIVISORS = {"composition": 1.0, "text": 1.0, "quality": 5.0, "preference": 26.0}
ROUNDS, STEPS = 120, 8  # of the reference, and of every walk
DRAWS = 4000  # of the bootstrap


@dataclass(frozen=True)
class Choice:
    """Settings that differ from those of a configuration, and what a round of a distillation costs."""

    settings: Sequence[str] = ()
    states: int = STEPS  # that have a weight
    extrapolated: bool = False
    anchor_share: float = 1.0
    rounds: int | None = None  # None: the compute of the reference
    stage: str = "distill"
    config: str = "asset:configs/distill.yaml"

    def cost(self) -> float:
        """Returns the forward-equivalents of a row of a round; for a quarter the anchor is the teacher."""
        targets = 1 + self.extrapolated + 0.75 * self.anchor_share
        return self.states * (3 + targets) + (STEPS - self.states)

    def all_rounds(self) -> int:
        """Returns the rounds that cost what the reference costs."""
        return self.rounds or round(ROUNDS * Choice().cost() / self.cost())


def extrapolated(by: float) -> list[str]:
    """Returns the settings that give every teacher a lambda."""
    return [f"teachers.{index}.extrapolation={by}" for index in range(4)]


CHOICES: Mapping[str, Choice] = {
    "transition": Choice(["state_weights=transition"]),
    "velocity": Choice(["state_weights=velocity"]),
    "lambda-1.6": Choice(["state_weights=velocity", *extrapolated(1.6)], extrapolated=True),
    "sde": Choice(["state_weights=sde"]),
    "x0": Choice(["state_weights=x0"]),
    "noisy-states": Choice(["state_weights={name: custom, values: [1, 1, 1, 1, 1, 0, 0, 0]}"], states=5),
    "lambda-1.25": Choice(["state_weights=velocity", *extrapolated(1.25)], extrapolated=True),
    "lambda-2.2": Choice(["state_weights=velocity", *extrapolated(2.2)], extrapolated=True),
    "anchor-quarter": Choice(
        ["state_weights=velocity", "anchor.share=0.25"], anchor_share=0.25, rounds=ROUNDS
    ),
    "anchor-eighth": Choice(
        ["state_weights=velocity", "anchor.share=0.125"], anchor_share=0.125, rounds=ROUNDS
    ),
    "grpo-mix": Choice(rounds=343, stage="teacher", config="asset:configs/grpo-mix.yaml"),
    "grpo-mix-76": Choice(rounds=76, stage="teacher", config="asset:configs/grpo-mix.yaml"),
}


@dataclass(frozen=True)
class Study:
    """A folder of runs: `<choice>/<seed>/`, each with its scores and its gaps."""

    out: Path
    threads: int = 1
    command: Sequence[str] = field(default=(sys.executable, "-m", "flow_opd"))

    def run(self, name: str, seed: int) -> None:
        """Trains and judges one student, as far as that is not done yet."""
        folder, choice = self.out / name / str(seed), CHOICES[name]
        if not (folder / "training.json").exists() and not (folder / "scores.json").exists():
            settings = [*choice.settings, f"run.seed={seed}", f"run.rounds={choice.all_rounds()}"]
            self._stage(choice.stage, choice.config, folder, settings)
        self.judge(folder, adapter=str(folder / "adapter"))

    def judge(self, folder: Path, *, adapter: str | None, domain: str | None = None) -> None:
        """Draws 500 held-out prompts of a domain or of all, and measures the gap to the teachers.

        Args:
            folder: for the results.
            adapter: None = the base.
            domain: the only one that is judged; its teacher has no gap worth measuring.
        """
        if not (folder / "scores.json").exists():
            row = {"adapter": adapter, "guidance_scale": 1.0, "domains": domain and [domain]}
            config = folder / "judged.yaml"
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(
                f"extends: {locate('asset:configs/domains.yaml')}\n"
                f"run: {{out: {folder / 'judged'}, seed: 0}}\n"
                "base: {path: asset:base, max_sequence_length: 0}\n"
                f"rows: {{student: {json.dumps(row)}}}\nnum_steps: 20\nbatch_size: 100\ngrid_prompts: 0\n"
            )
            self._stage("evaluate", str(config), folder / "judged", [])
            (folder / "scores.json").write_text(json.dumps(own_scores(folder / "judged")) + "\n")
        if adapter is not None and domain is None and not (folder / "gaps.json").exists():
            from gap_by_level import gaps  # what follows imports torch

            (folder / "gaps.json").write_text(json.dumps(gaps(adapter)) + "\n")

    def _stage(self, stage: str, config: str, out: Path, settings: Sequence[str]) -> None:
        overrides = [word for each in (*settings, f"run.threads={self.threads}") for word in ("--set", each)]
        subprocess.run([*self.command, stage, config, "--out", str(out), *overrides], check=True)

    def scores(self, folder: Path) -> dict[str, NDArray[np.float64]]:
        """Returns domain -> score of each held-out prompt, on the domain's own metric."""
        found = json.loads((folder / "scores.json").read_text())
        return {domain: np.array(values, dtype=float) for domain, values in found.items()}


def own_scores(folder: Path) -> dict[str, list[float]]:
    """Returns domain -> score of each held-out prompt on its own metric, from a finished evaluation."""
    files = {domain: folder / "scores" / f"student.{domain}.json" for domain in DOMAINS}
    return {
        domain: [round(value, 5) for value in json.loads(file.read_text())["scores"][DOMAINS[domain]]]
        for domain, file in files.items()
        if file.exists()
    }


def averages(
    scores: Sequence[Mapping[str, NDArray[np.float64]]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns the average score under resampled seeds and prompts, [DRAWS]; equal `rng`, equal draws."""
    seeds = rng.integers(len(scores), size=(DRAWS, len(scores)))
    total = np.zeros(DRAWS)
    for domain, divisor in DIVISORS.items():
        values = np.stack([each[domain] for each in scores])  # [seeds, prompts]
        prompts = rng.integers(values.shape[1], size=(DRAWS, values.shape[1]))
        means = np.stack([values[:, rows].mean(1) for rows in prompts])  # [DRAWS, seeds]
        total += np.take_along_axis(means, seeds, 1).mean(1) / divisor / len(DIVISORS)
    return total


def table(study: Study) -> None:
    """Prints what is there."""
    base = study.scores(study.out / "base")
    teachers = {domain: study.scores(study.out / "teachers" / domain)[domain].mean() for domain in DOMAINS}
    gains = {domain: teachers[domain] - base[domain].mean() for domain in DOMAINS}
    reference: NDArray[np.float64] | None = None
    for name, choice in CHOICES.items():
        runs = sorted(path.parent for path in (study.out / name).glob("*/scores.json"))
        if not runs:
            continue
        scores = [study.scores(run) for run in runs]
        means = {domain: float(np.mean([each[domain].mean() for each in scores])) for domain in DOMAINS}
        drawn = averages(scores, np.random.default_rng(0))
        reference = drawn if reference is None else reference
        low, high = np.quantile(drawn - reference, [0.025, 0.975])
        average = sum(means[domain] / DIVISORS[domain] for domain in DOMAINS) / len(DOMAINS)
        kept = {domain: (means[domain] - base[domain].mean()) / gains[domain] for domain in DOMAINS}
        print(f"{name} ({choice.all_rounds()} rounds, {len(runs)} seeds): average {average:.4f}", end="")
        print(f", to the first {(drawn - reference).mean():+.4f} ({low:+.4f} to {high:+.4f})")
        print("   ", "  ".join(f"{d} {means[d]:.3f} kept {100 * kept[d]:.0f} %" for d in DOMAINS))
        left = [
            json.loads((run / "gaps.json").read_text())["left"]
            for run in runs
            if (run / "gaps.json").exists()
        ]
        if left:
            print("    gap left by level", " ".join(f"{value:.3f}" for value in np.mean(left, axis=0)))


def main() -> None:
    """Runs or prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--only", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/choices"))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    study = Study(asked.out, asked.threads)
    if asked.action == "table":
        return table(study)
    study.judge(asked.out / "base", adapter=None)
    for domain in DOMAINS:
        study.judge(asked.out / "teachers" / domain, adapter=f"asset:teachers/{domain}", domain=domain)
    for seed in asked.seeds:
        for name in asked.only:
            study.run(name, seed)
    return None


if __name__ == "__main__":
    main()
