"""Every number of docs/units.md against the other codes' formulas, written anew from their description."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from flow_opd.config.common import EMASettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.teacher import TeacherSettings
from flow_opd.flow.dynamics import cps_step, log_prob_mean, sde_step, transition_kl
from flow_opd.flow.path import make_schedule
from flow_opd.flow.weights import transition_weights
from flow_opd.training.optimizer import EMA
from flow_opd.types import StepDistribution

PAGE = (Path(__file__).parents[2] / "docs" / "units.md").read_text()
NOISE = 0.7
DIMENSIONS = (1, 16, 64, 64)


def table(head: str) -> list[list[str]]:
    """Returns the cells of the table whose first column is called `head`, without the head."""
    part = next(part for part in PAGE.split("\n\n") if part.startswith(f"| {head} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]]


def number(text: str) -> float:
    return float(text.split()[0])


def assert_shown(text: str, value: float) -> None:
    """Passes if `text` is `value`, rounded to the decimals that are shown."""
    shown = text.split()[0]
    decimals = len(shown.split(".")[1]) if "." in shown else 0
    assert abs(float(shown) - value) <= 0.5000001 * 10**-decimals, (text, value)


def grid() -> Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def theirs(x: Tensor, v: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Returns mean and g of their SDE step: at sigma = 1 the next level is put below the line only."""
    now, after = grid()[step], grid()[step + 1]
    g = NOISE * (now / (1 - (after if now == 1 else now))).sqrt()
    drift = g**2 / (2 * now)
    return x + (drift * x + v + drift * (1 - now) * v) * (after - now), g


def ours(x: Tensor, v: Tensor, step: int) -> StepDistribution:
    sigmas = grid()
    return sde_step(x, v, sigmas[step].view(1), sigmas[step + 1].view(1), torch.tensor([NOISE]))


@pytest.fixture(scope="module")
def kls() -> tuple[Tensor, Tensor]:
    """Their KL and ours, [9] each, per dimension, of the same two fields at every step but the last."""
    draw = torch.Generator().manual_seed(0)
    x, student, teacher = (torch.randn(DIMENSIONS, generator=draw) for _ in range(3))
    found = []
    for step in range(9):
        (mean, g), (target, _) = theirs(x, student, step), theirs(x, teacher, step)
        their = ((mean - target) ** 2).mean() / (2 * g**2)
        our = transition_kl(ours(x, student, step), ours(x, teacher, step)).squeeze() / x.numel()
        found.append((their.item(), our.item()))
    return tuple(torch.tensor(found).T)  # type: ignore[return-value]


def settings(name: str, skip: int = 0) -> list[str]:
    rows = table("setting")
    place = next(place for place, row in enumerate(rows) if row[0].startswith(name))
    return rows[place + skip]


def test_the_grid_and_the_kl_of_each_step(kls: tuple[Tensor, Tensor]) -> None:
    rows, sigmas = table("step"), grid()
    assert [int(row[0]) for row in rows] == list(range(9))
    for step, row in enumerate(rows):
        assert_shown(row[1], sigmas[step].item())
        assert_shown(row[2], sigmas[step + 1].item())
        assert_shown(row[3], (kls[1][step] / kls[0][step]).item())


def test_the_log_ratio_of_cps() -> None:
    """Theirs is -(x' - mean)^2, a mean over dimensions; the ratio is that to another policy's step."""
    draw = torch.Generator().manual_seed(1)
    x, behaviour, change, noise = (torch.randn(DIMENSIONS, generator=draw) for _ in range(4))
    sigmas, factors = grid(), {}
    for level in (0.7, 0.8):
        for step in range(9):
            at = sigmas[step].view(1), sigmas[step + 1].view(1), torch.tensor([level])
            old, new = (cps_step(x, v, *at) for v in (behaviour, behaviour + 5 * change))
            reached = old.mean + old.std * noise
            our = log_prob_mean(new, reached) - log_prob_mean(old, reached)
            their = ((reached - old.mean) ** 2 - (reached - new.mean) ** 2).mean()
            factors[level, step] = (our / their).item()
    for step, row in enumerate(table("step")):
        assert_shown(row[4], factors[0.8, step])
    larger = [factors[0.7, step] / factors[0.8, step] for step in range(9)]
    assert larger == pytest.approx([1.14] * 9, abs=0.005)
    assert "With a = .7 the column\n  is 1.14 times as large." in PAGE


def test_beta(kls: tuple[Tensor, Tensor]) -> None:
    their, our = kls
    for name, skip, stop in (("beta of a teacher", 0, 8), ("beta of a teacher", 1, 8), ("beta, steps", 0, 9)):
        row, share = settings(name, skip), (their[:stop].sum() / our[:stop].sum()).item()
        assert_shown(row[2], number(row[1]) * share)
        for said in re.findall(r"is (\.\d+) of ours", row[3]):
            assert_shown(said, share)
    assert_shown(".76", (their[8] / their.sum()).item())
    assert PAGE.count(".76 of theirs") == 1


def test_the_configurations_have_the_numbers_of_this_page() -> None:
    folder = Path(__file__).parents[2] / "configs"
    for name, skip in (("text", 0), ("composition", 0), ("preference", 1)):
        teacher = read(folder / f"sd35m-teacher-{name}.yaml", TeacherSettings)
        assert teacher.kl_weight == number(settings("beta of a teacher", skip)[2])
        assert teacher.ema == EMASettings(decay=number(settings("EMA of the GRPO teachers")[2]), every=8)
    student = read(folder / "sd35m-opd.yaml", DistillSettings)
    assert student.ema == EMASettings(decay=number(settings("EMA of their OPD")[2]), every=8)


def test_beta_on_the_grid_of_flux() -> None:
    """Its ten steps at 512 pixels, shifted by exp(.63); all but the last are noisy."""
    linear = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    shift = math.exp(0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256))
    sigmas = torch.cat([shift / (shift + 1 / linear - 1), torch.zeros(1, dtype=torch.float64)])
    schedule = make_schedule(sigmas.float(), noise_level=0.7, stochastic_steps=(0, 9))
    ours = transition_weights(schedule, sde_step)[:9]
    theirs = ours * (schedule.sigmas[:9] - schedule.sigmas[1:10])
    beta = read(Path(__file__).parents[2] / "configs/flux1dev-teacher-text.yaml", TeacherSettings).kl_weight
    assert beta == pytest.approx(0.04 * (theirs.sum() / ours.sum()).item(), rel=0.01)


def test_lambda_and_the_clip_of_the_sde_carry_over(kls: tuple[Tensor, Tensor]) -> None:
    draw = torch.Generator().manual_seed(2)
    x, student, anchor, noise = (torch.randn(DIMENSIONS, generator=draw) for _ in range(4))
    for step in range(9):
        (mean, g), (target, _) = theirs(x, student, step), theirs(x, anchor, step)
        their = (((mean - target) ** 2).mean() / (2 * g**2) / kls[0][step]).item()
        our = transition_kl(ours(x, student, step), ours(x, anchor, step)).item() / x.numel()
        assert our / kls[1][step].item() == pytest.approx(their, rel=1e-4)
        # the log-ratio of two policies: theirs by their mean and std, ours by ours
        std = g * (grid()[step] - grid()[step + 1]).sqrt()
        reached = mean + std * noise
        their_ratio = (((reached - mean) ** 2 - (reached - target) ** 2) / (2 * std**2)).mean().item()
        pair = ours(x, student, step), ours(x, anchor, step)
        our_ratio = (log_prob_mean(pair[1], reached) - log_prob_mean(pair[0], reached)).item()
        assert our_ratio == pytest.approx(their_ratio, rel=0.06 if step == 0 else 1e-3)
    for name in ("lambda of the anchor", "clip of the SDE", "learning rate"):
        row = settings(name)
        assert row[1] == row[2]


def test_the_clip_of_the_norm_and_the_shares_of_the_steps(kls: tuple[Tensor, Tensor]) -> None:
    their, our = kls
    sigmas = grid()
    gap = (our[7] / sde_weight(7)).item()
    quiet = [gap * (sigmas[step + 1] - sigmas[step]).item() ** 2 / 2 for step in (8, 9)]
    window = torch.cat([our[:8], torch.tensor(quiet)])
    all_but_last = torch.cat([our, torch.tensor(quiet[1:])])
    rows = settings("clip of the norm"), settings("clip of the norm", 1)
    for row, weights in zip(rows, (window, all_but_last), strict=True):
        assert_shown(row[2], number(row[1]) * (weights.mean() / their.mean()).item())
    assert_shown(".52", (window[7] / window.sum()).item())
    assert ".76 of their loss is in step 8, .52 of ours in step 7" in PAGE


def sde_weight(step: int) -> Tensor:
    """Returns the KL of a squared velocity gap of 1 in one dimension."""
    point = torch.zeros(1, 1, 1, 1)
    return transition_kl(ours(point, point, step), ours(point, point + 1, step))


@pytest.mark.parametrize(("name", "batches"), [("EMA of the GRPO teachers", 2), ("EMA of their OPD", 4)])
def test_the_average_of_the_weights(name: str, batches: int) -> None:
    """Theirs is blended after every accumulated batch of the update before each eighth one."""
    row = settings(name)
    (decay, every), (_, also) = (map(float, row[place].split(" every ")) for place in (1, 2))
    assert every == also
    assert_shown(row[2], decay**batches)
    values = torch.randn(801, generator=torch.Generator().manual_seed(0)).cumsum(0)
    average, parameter = values[0].item(), torch.nn.Parameter(values[0].clone())
    mine = EMA({"w": parameter}, EMASettings(decay=decay**batches, every=int(every)))
    for update in range(1, len(values)):
        parameter.data.copy_(values[update])
        mine.update(update)
        for _ in range(batches):
            if update % every == 0:
                average += (1 - decay) * (values[update].item() - average)
    assert mine.average["w"].item() == pytest.approx(average, abs=1e-4)  # how both start is forgotten by then


def test_rewards_and_advantages() -> None:
    for name, divisor in (("weight of DeQA", 5), ("weight of PickScore", 26)):
        row = settings(name)
        assert_shown(row[2], number(row[1]) / divisor)
        assert f"divided by {divisor}" in row[3]
    row = settings("advantage made of")
    assert number(row[2]) == math.prod(DIMENSIONS)
