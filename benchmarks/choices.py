"""What the choices of a distillation are worth: the miniature's student under each, at equal compute.

    python benchmarks/choices.py run [--only velocity lambda-1.6] [--seeds 0 1 2] [--out runs/choices]
    python benchmarks/choices.py table [--out runs/choices]

Every choice gets the forward-equivalents of the 120 rounds of the first one (a forward is 1, a forward and
backward 3, each per state and row). GRPO-Mix gets the rounds of the four teachers together, and 76, which
cost what the student costs. A finished run is kept, a killed one goes on, so several processes may work side
by side on different choices.

benchmarks/results/choices has the scores of the runs that were made: copied to --out they are not made again.

`table` prints, for each choice: average and metrics on 500 held-out prompts a domain, the share of each
teacher's gain that is kept, the paired difference to the first choice, and the share of the base's gap to
the teachers that is left at each noise level, on states that they visit. Intervals resample training seeds,
and prompts as those of an evaluation do: lines that ask for the same are one, within the tags of GenEval.
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
from flow_opd.evaluation.intervals import Bootstrap, Scores
from flow_opd.evaluation.metrics import METRICS
from flow_opd.prompts.jsonl import read_lines
from flow_opd.prompts.overlap import identity

DOMAINS = {"composition": "geneval_strict", "text": "ocr", "quality": "deqa", "preference": "pickscore"}
DIVISORS = {"composition": 1.0, "text": 1.0, "quality": 5.0, "preference": 26.0}
ROUNDS, STEPS = 120, 8  # of the reference, and of every walk


@dataclass(frozen=True)
class Choice:
    """Settings of a distillation, and what a round of it costs."""

    weights: str = "velocity"
    states: int = STEPS  # that have a weight
    extrapolation: float = 1.0
    anchor_share: float = 1.0
    rounds: int | None = None  # None: the compute of the reference
    stage = "distill"
    config = "asset:configs/distill.yaml"

    @property
    def settings(self) -> list[str]:
        """The settings on the command line, whatever the configuration has."""
        return [
            f"state_weights={self.weights}",
            f"anchor.share={self.anchor_share}",
            *extrapolated(self.extrapolation),
        ]

    def cost(self) -> float:
        """Returns the forward-equivalents of a row of a round; for a quarter the anchor is the teacher."""
        targets = 1 + (self.extrapolation > 1) + 0.75 * self.anchor_share
        return self.states * (3 + targets) + (STEPS - self.states)

    def all_rounds(self) -> int:
        """Returns the rounds that cost what the reference costs."""
        return self.rounds or round(ROUNDS * Choice().cost() / self.cost())


@dataclass(frozen=True)
class Mixed:
    """GRPO-Mix for some rounds."""

    rounds: int
    stage = "teacher"
    config = "asset:configs/grpo-mix.yaml"
    settings = ()

    def all_rounds(self) -> int:
        """Returns the rounds."""
        return self.rounds


def extrapolated(by: float) -> list[str]:
    """Returns the settings that give every teacher of the miniature a lambda."""
    return [f"teachers.{index}.extrapolation={by}" for index in range(len(DOMAINS))]


CHOICES: Mapping[str, Choice | Mixed] = {
    "transition": Choice("transition"),
    "velocity": Choice(),
    "lambda-1.6": Choice(extrapolation=1.6),
    "sde": Choice("sde"),
    "x0": Choice("x0"),
    "noisy-states": Choice("{name: custom, values: [1, 1, 1, 1, 1, 0, 0, 0]}", states=5),
    "lambda-1.25": Choice(extrapolation=1.25),
    "lambda-2.2": Choice(extrapolation=2.2),
    "anchor-quarter": Choice(anchor_share=0.25, rounds=ROUNDS),
    "anchor-eighth": Choice(anchor_share=0.125, rounds=ROUNDS),
    "lambda-1.6-eighth": Choice(extrapolation=1.6, anchor_share=0.125),
    "grpo-mix": Mixed(343),
    "grpo-mix-76": Mixed(76),
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

    def scores(self, folder: Path) -> dict[str, Scores]:
        """Returns domain -> score of each held-out prompt, on the domain's own metric."""
        found = json.loads((folder / "scores.json").read_text())
        return {domain: asked_for(domain, values) for domain, values in found.items()}


def asked_for(domain: str, values: Sequence[float]) -> Scores:
    """Returns the scores of a domain's held-out prompts with what they ask for, as an evaluation has them."""
    file = locate(f"asset:prompts/test/{domain}.jsonl")
    prompts = [prompt for _, prompt in read_lines(file, task=domain)]
    by_tag = next(metric.by_tag for metric in METRICS if metric.domain == domain)
    lines = [f"{index}:{prompt.text}" for index, prompt in enumerate(prompts)]
    alike = [identity(prompt) for prompt in prompts]
    tags = [str(prompt.metadata["tag"]) for prompt in prompts] if by_tag else None
    return Scores.of(lines, [0] * len(lines), values, prompts=alike, tags=tags)


def own_scores(folder: Path) -> dict[str, list[float]]:
    """Returns domain -> score of each held-out prompt on its own metric, from a finished evaluation."""
    files = {domain: folder / "scores" / f"student.{domain}.json" for domain in DOMAINS}
    return {
        domain: [round(value, 5) for value in json.loads(file.read_text())["scores"][DOMAINS[domain]]]
        for domain, file in files.items()
        if file.exists()
    }


def averages(runs: Sequence[Mapping[str, Scores]], bootstrap: Bootstrap) -> NDArray[np.float64]:
    """Returns the average score under resampled training seeds and prompts, [resamples].

    Runs of the same seeds meet the same resamples, so that differences are paired. Of S seeds S - 1 are
    drawn, as `Bootstrap` does with prompts.
    """
    drawn = np.stack(
        [
            sum(bootstrap.draws(run[domain], domain) / divisor for domain, divisor in DIVISORS.items())
            for run in runs
        ],
        axis=1,
    )  # [resamples, S]
    rng = np.random.default_rng(bootstrap.seed)
    seeds = rng.integers(len(runs), size=(len(drawn), max(1, len(runs) - 1)))
    means: NDArray[np.float64] = np.take_along_axis(drawn, seeds, 1).mean(1) / len(DIVISORS)
    return means


def table(study: Study) -> None:
    """Prints what is there."""
    base = {domain: scores.mean for domain, scores in study.scores(study.out / "base").items()}
    teachers = {
        domain: study.scores(study.out / "teachers" / domain)[domain].mean - base[domain]
        for domain in DOMAINS
    }
    bootstrap = Bootstrap()
    reference: dict[str, dict[str, Scores]] = {}
    for name, choice in CHOICES.items():
        folders = sorted(path.parent for path in (study.out / name).glob("*/scores.json"))
        if not folders:
            continue
        runs = {folder.name: study.scores(folder) for folder in folders}
        reference = reference or runs
        means = {domain: float(np.mean([run[domain].mean for run in runs.values()])) for domain in DOMAINS}
        average = sum(means[domain] / DIVISORS[domain] for domain in DOMAINS) / len(DOMAINS)
        print(f"{name} ({choice.all_rounds()} rounds, {len(runs)} seeds): average {average:.4f}", end="")
        if seeds := sorted(set(runs) & set(reference)):
            own, first = (averages([each[seed] for seed in seeds], bootstrap) for each in (runs, reference))
            low, high = np.quantile(own - first, bootstrap.tails)
            print(f", to the first {(own - first).mean():+.4f} ({low:+.4f} to {high:+.4f})", end="")
        print()
        kept = {domain: 100 * (means[domain] - base[domain]) / teachers[domain] for domain in DOMAINS}
        print(
            "   ", "  ".join(f"{domain} {means[domain]:.3f} kept {kept[domain]:.0f} %" for domain in DOMAINS)
        )
        files = [folder / "gaps.json" for folder in folders if (folder / "gaps.json").exists()]
        if files:
            left = np.mean([json.loads(file.read_text())["left"] for file in files], axis=0)
            print("    gap left by level", " ".join(f"{value:.3f}" for value in left))


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
