"""One update of this project, one by the official Flow-OPD schedule, and the limit, side by side.

    python benchmarks/official_schedule.py [--repeats 9] [--clock cpu] [--set KEY=VALUE ...]
    python benchmarks/official_schedule.py --to-retention 30

The miniature, its four teachers and anchor, 32 prompts and 8 steps (asset:configs/distill.yaml); the same
prompts, noise and states, and the teachers themselves as targets, without extrapolation. The updates take
turns in one process, so that a busy machine weighs on all alike. The official schedule (official_update.py)
draws the student's walk, decodes and scores the pictures, and then goes through all states again with a
network for each teacher; the limit (bare_update.py) is the same network's forwards and backwards, with the
arithmetic of its LoRAs and nothing else. Prints medians and, repeat by repeat, the ratios official / ours and
ours / limit with their spread, and the weights in memory.

With --to-retention N, the official schedule takes N updates with its own weights (1 / g^2, lambda .04, noise
at every step but the last, which is not trained); ours, as shipped, then trains until its mean gap to the
teachers on frozen states of theirs is as small. Both begin at the same merge, with the shipped optimizer.
Prints the time that both took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

import torch
from bare_update import bare_update
from frozen_states import FrozenStates
from official_update import OfficialSchedule, official_distillation, official_networks, over_diffusion
from our_update import Distillation, counted_rows, loaded_parts, our_distillation
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.common import PromptsSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import locate
from flow_opd.protocols import Reward
from flow_opd.runs.prompts import prompts_of
from flow_opd.types import Prompt

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
REWARD_OF_TASK = {"composition": "geneval", "text": "ocr", "quality": "deqa", "preference": "pickscore"}
OFFICIAL_LAMBDA = 0.04
THEMSELVES = [f"teachers.{index}.extrapolation=1" for index in range(len(REWARD_OF_TASK))]
HELD_OUT = 12  # prompts of each task, whose teachers' walks are frozen


class TaskRewards:
    """The miniature's reward models; each picture is scored by the one of its prompt's task."""

    def __init__(self) -> None:
        """Loads them."""
        specs = read(locate("asset:configs/demo.yaml"), DemoSettings).evaluate.rewards
        rewards: dict[str, Reward] = {spec.name: spec.build() for spec in specs}
        self.rewards = {task: rewards[name] for task, name in REWARD_OF_TASK.items()}

    def __call__(self, pictures: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Returns a score for each of the pictures, [B, 3, height, width] in [0, 1]."""
        scores = torch.zeros(len(prompts))
        for task, reward in self.rewards.items():
            rows = [row for row, prompt in enumerate(prompts) if prompt.task == task]
            if rows:
                scores[rows] = reward.score(pictures[rows], [prompts[row] for row in rows]).values
        return scores


def seconds_of(update: Callable[[], None], clock: Callable[[], float]) -> float:
    """Returns how long an update takes."""
    started = clock()
    update()
    return clock() - started


def side_by_side(
    updates: Mapping[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Returns the seconds of each update, [repeats], taken in turns; each has run once before."""
    names = list(updates)
    found: dict[str, list[float]] = {name: [] for name in names}
    for update in updates.values():
        update()
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(seconds_of(updates[name], clock))
    return found


def told(values: Sequence[float]) -> str:
    """Returns the median of a few numbers, the quarters around it, and their ends."""
    low, _, high = quantiles(values, n=4)
    spread = f"quarters {low:.3f} to {high:.3f}, all {min(values):.3f} to {max(values):.3f}"
    return f"{median(values):.3f}  ({spread})"


def compare(settings: DistillSettings, repeats: int, clock: Callable[[], float], folder: Path) -> None:
    """Times the three updates and prints what they cost."""
    assert settings.anchor is not None
    parts = loaded_parts(settings)
    ours, adapters = our_distillation(settings, parts, folder), parts.adapters()
    schedule = OfficialSchedule(
        settings,
        official_networks(settings, adapters),
        anchor_weight=settings.anchor.weight,
        judge=TaskRewards(),
        clock=clock,
    )
    official = official_distillation(schedule)
    with counted_rows(ours.networks[0]) as asked:
        ours.update()
    updates = {
        "ours": ours.update,
        "official": official.update,
        "limit": bare_update(settings, adapters, asked)[0],
    }
    seconds = side_by_side(updates, repeats, clock)
    phases = {phase: values[-repeats:] for phase, values in schedule.seconds.items()}
    blind = [sum(pair) for pair in zip(phases["rollout"], phases["training"], strict=True)]
    print(
        f"{settings.prompts_per_round} prompts, {settings.sampling.num_steps} steps, {repeats} repeats, "
        f"{torch.get_num_threads()} threads; our network sees {asked.with_gradient} rows with gradients "
        f"and {asked.without_gradient} without in an update"
    )
    for name, values in [*seconds.items(), ("official without decoding and rewards", blind)]:
        print(f"seconds, {name}: {told(values)}")
    print("  official by phase:", "  ".join(f"{name} {median(each):.3f}" for name, each in phases.items()))
    for label, above, below in [
        ("official / ours", seconds["official"], seconds["ours"]),
        ("official without decoding and rewards / ours", blind, seconds["ours"]),
        ("ours / limit", seconds["ours"], seconds["limit"]),
    ]:
        print(f"{label}: {told([a / b for a, b in zip(above, below, strict=True)])}")
    print(f"weights in memory: ours {ours.mebibytes():.1f} MiB, official {official.mebibytes():.1f} MiB")


def held_out(settings: DistillSettings) -> list[Prompt]:
    """Returns a few held-out prompts of each task."""
    return prompts_of(
        [
            PromptsSettings(path=f"asset:prompts/test/{task}.jsonl", limit=HELD_OUT)
            for task in settings.teacher_of_task()
        ]
    )


def trained_to(
    training: Distillation, states: FrozenStates, clock: Callable[[], float], *, updates: int, target: float
) -> tuple[int, float, Tensor]:
    """Trains for `updates`, or until the mean gap that is left is at most `target`.

    Returns:
        The updates taken, their seconds, and the share of the base's gap that is left at each level.
    """
    seconds = 0.0
    left = states.left(training.student)
    for taken in range(1, updates + 1):
        seconds += seconds_of(training.update, clock)
        left = states.left(training.student)
        if float(left.mean()) <= target:
            return taken, seconds, left
    return updates, seconds, left


def to_retention(
    settings: DistillSettings, updates: int, clock: Callable[[], float], folder: Path
) -> tuple[float, float]:
    """Prints, and returns, the seconds that the official schedule and ours take to the same gap."""
    parts = loaded_parts(settings)
    ours = our_distillation(settings, parts, folder)
    schedule = official_to_compare(settings, parts.adapters(), clock)
    states = FrozenStates(schedule, held_out(settings))
    start = states.left(ours.student)
    official = official_distillation(schedule)
    taken, official_seconds, left = trained_to(official, states, clock, updates=updates, target=0.0)
    print("noise levels                ", *(f"{float(sigma):6.3f}" for sigma in states.sigmas), "  mean")
    print_left("the merge", start)
    print_left(f"official, {taken} updates", left)
    aim = float(left.mean())
    taken, our_seconds, left = trained_to(ours, states, clock, updates=4 * updates, target=aim)
    print_left(f"ours, {taken} updates", left)
    note = "" if float(left.mean()) <= aim else ": not reached, so the ratio is an upper bound"
    seconds = f"official {official_seconds:.1f}, ours {our_seconds:.1f}{note}"
    print(f"seconds to a mean gap of {aim:.3f}: {seconds}")
    print(f"official / ours in time to the same gap: {official_seconds / our_seconds:.2f}")
    return official_seconds, our_seconds


def official_to_compare(
    settings: DistillSettings, adapters: Mapping[str, LoraWeights], clock: Callable[[], float]
) -> OfficialSchedule:
    """Returns the official schedule with its own weights and window."""
    last = settings.sampling.num_steps - 1
    return OfficialSchedule(
        settings,
        official_networks(settings, adapters),
        weight=over_diffusion,
        anchor_weight=OFFICIAL_LAMBDA,
        noisy_steps=(0, last),
        trained_steps=last,
        judge=TaskRewards(),
        clock=clock,
    )


def print_left(name: str, left: Tensor) -> None:
    """Prints the share of the base's gap that is left at each level, and its mean."""
    print(f"gap left: {name:18}", *(f"{float(share):6.3f}" for share in left), f"{float(left.mean()):6.3f}")


def main() -> None:
    """Reads the words and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine with other work")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--to-retention", type=int, metavar="N", help="official updates that set the aim")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    settings = read(locate("asset:configs/distill.yaml"), DistillSettings, [*THEMSELVES, *asked.set])
    with tempfile.TemporaryDirectory() as name:
        if asked.to_retention:
            to_retention(settings, asked.to_retention, CLOCKS[asked.clock], Path(name))
        else:
            compare(settings, asked.repeats, CLOCKS[asked.clock], Path(name))


if __name__ == "__main__":
    main()
