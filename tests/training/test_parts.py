"""Average, learning rate, seeds, the log and the saved batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from flow_opd.config.common import EMASettings, OptimizerSettings
from flow_opd.seeding import derived_seed, generator
from flow_opd.training.checkpoint import save_batch
from flow_opd.training.optimizer import EMA, build_optimizer, learning_rate
from flow_opd.training.progress import MetricsLog
from flow_opd.types import Conditioning, TransitionBatch


def test_the_average_by_hand() -> None:
    weight = Parameter(torch.tensor([0.0]))
    average = EMA({"w": weight}, EMASettings(decay=0.5, every=2))
    seen = []
    for step in range(1, 7):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update(step)
        seen.append(average.average["w"].item())
    # steps 2, 4, 6 blend with decay min(.5, 2/11, 3/12, 4/13): 0 -> 2 * 9/11 -> .25 old + .75 * 4 -> ...
    second = 2 * 9 / 11
    fourth = 0.25 * second + 0.75 * 4
    sixth = 4 / 13 * fourth + 9 / 13 * 6
    assert seen == pytest.approx([0.0, second, second, fourth, fourth, sixth])
    late = EMA({"w": weight}, EMASettings(decay=0.5, every=1))
    with torch.no_grad():
        weight.fill_(10.0)
    late.update(1000)
    assert late.average["w"].item() == pytest.approx(8.0)  # .5 * 6 + .5 * 10


def test_the_last_step_counts_whatever_its_number() -> None:
    weight = Parameter(torch.tensor([0.0]))
    average = EMA({"w": weight}, EMASettings(decay=0.9, every=8))
    with torch.no_grad():
        weight.fill_(11.0)
    average.update(1)
    assert average.average["w"].item() == 0.0
    average.update(2, last=True)  # decay min(.9, 2/11)
    assert average.average["w"].item() == pytest.approx(9.0)


def test_the_average_is_lent_and_given_back() -> None:
    weight = Parameter(torch.tensor([1.0]))
    average = EMA({"w": weight}, EMASettings())
    with torch.no_grad():
        weight.fill_(5.0)
    with average.applied():
        assert weight.item() == 1.0
    assert weight.item() == 5.0
    with pytest.raises(ZeroDivisionError), average.applied():
        1 / 0  # noqa: B018
    assert weight.item() == 5.0


def test_learning_rates_by_hand() -> None:
    def rates(decay: str, total: int = 6) -> list[float]:
        settings = OptimizerSettings(learning_rate=1.0, warmup_steps=2, decay=decay)  # type: ignore[arg-type]
        return [learning_rate(settings, step, total) for step in range(total + 2)]

    assert rates("constant") == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1])
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    half = 0.5**0.5 / 2
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half, 0, 0])
    no_warmup = OptimizerSettings(learning_rate=2.0)
    assert learning_rate(no_warmup, 0, 10) == 2.0


def test_the_optimizer_has_its_settings() -> None:
    settings = OptimizerSettings(learning_rate=0.3, betas=(0.8, 0.9), weight_decay=0.7)
    (group,) = build_optimizer([Parameter(torch.zeros(1))], settings).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.3, (0.8, 0.9), 0.7)


def test_seeds_are_pinned() -> None:
    """These numbers are a promise: with others, no earlier run can be repeated."""
    assert derived_seed(0) == 3456079177858693020
    assert derived_seed(0, "walk", 3, "noise") == 7837394548342385001
    drawn = torch.randn(3, generator=generator(0, "walk", 3, "noise")).tolist()
    assert drawn == pytest.approx([1.5185629, -0.7299373, 0.4652092], abs=1e-6)


def test_streams_are_independent() -> None:
    paths = [(seed, name, index) for seed in (0, 1) for name in ("walk", "images") for index in range(50)]
    seeds = [derived_seed(seed, *path) for seed, *path in paths]
    assert len(set(seeds)) == len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = torch.stack([torch.randn(200, generator=generator(seed, *path)) for seed, *path in paths])
    correlation = torch.corrcoef(draws) - torch.eye(len(paths))
    assert correlation.abs().max() < 0.4  # 4950 pairs of 200 draws: five and a half standard errors
    again = generator(0, "walk", 1)
    assert torch.equal(torch.randn(5, generator=again), torch.randn(5, generator=generator(0, "walk", 1)))


def write_log(path: Path, steps: range, resume_step: int, every: int = 1) -> None:
    log = MetricsLog(path, resume_step=resume_step, every=every)
    for step in steps:
        log.on_update(step, {"loss": step / 10})
    log.on_end()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_log_has_no_gaps_and_no_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_log(path, range(1, 6), resume_step=0)
    with path.open("a") as stream:
        stream.write('{"step": 6, "ti')  # the kill
    write_log(path, range(4, 8), resume_step=3)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6, 7]
    times = [json.loads(line)["time"] for line in path.read_text().splitlines()]
    assert times == sorted(times)
    write_log(path, range(1, 3), resume_step=0)  # a fresh start forgets the old run
    assert steps_in(path) == [1, 2]


def test_the_log_may_write_each_nth_step(tmp_path: Path) -> None:
    write_log(tmp_path / "metrics.jsonl", range(1, 8), resume_step=0, every=3)
    assert steps_in(tmp_path / "metrics.jsonl") == [3, 6]


def test_a_batch_is_saved_with_all_its_tensors(tmp_path: Path) -> None:
    sigma = torch.tensor([0.5, float("nan")])
    batch = TransitionBatch(
        latents=torch.randn(2, 1, 2, 2),
        sigma=sigma,
        sigma_next=sigma.expand(2),
        noise_level=sigma,
        conditioning=Conditioning(torch.zeros(2, 3, 4), torch.zeros(2, 4), ("a", "b")),
        velocity=torch.randn(2, 1, 2, 2, requires_grad=True),
    )
    saved = load_file(save_batch(batch, tmp_path / "deep" / "batch.safetensors"))
    assert set(saved) == {
        "latents",
        "sigma",
        "sigma_next",
        "noise_level",
        "velocity",
        "conditioning.embeds",
        "conditioning.pooled",
    }
    assert torch.equal(saved["latents"], batch.latents)
    assert saved["sigma"].isnan().tolist() == [False, True]
