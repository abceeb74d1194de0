"""`import flow_opd`: light, quiet, and its objects keep their word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import flow_opd
from errors import refused
from flow_opd.config.common import CheckpointSettings, TrainingComputeSettings
from flow_opd.runs import base as runs_base
from flow_opd.runs.base import Base
from flow_opd.runs.identity import part_identity
from forks import fork, wait_until

SAMPLING = flow_opd.SamplingSettings(num_steps=2, guidance_scale=1.0)
CONFIG = flow_opd.DistillConfig(prompts_per_round=2, sampling=SAMPLING)
PROMPTS = [flow_opd.Prompt("a red circle", "quality"), flow_opd.Prompt("a blue square", "quality")]


@pytest.fixture(scope="module")
def base() -> Base:
    return flow_opd.load_base("asset:base", compute=None)


@pytest.fixture(scope="module")
def quality() -> flow_opd.LoraWeights:
    return flow_opd.load_adapter("asset:teachers/quality")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_door_opens_at_once_and_without_torch() -> None:
    best = min(
        float(
            run(
                "import time; t = time.perf_counter(); import flow_opd, sys\n"
                "assert not {'torch', 'pydantic', 'peft'} & set(sys.modules)\n"
                "print(time.perf_counter() - t)"
            ).stdout
        )
        for _ in range(3)
    )
    assert best < 0.3


@pytest.mark.slow
def test_every_public_name_is_there_and_nothing_is_said() -> None:
    found = run("import flow_opd; [getattr(flow_opd, name) for name in flow_opd.__all__]")
    assert (found.stdout, found.stderr) == ("", "")
    assert set(flow_opd.__all__) <= set(dir(flow_opd))
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        flow_opd.destill  # noqa: B018


@pytest.mark.slow
def test_two_trainings_on_one_base_do_not_disturb_each_other(
    base: Base, quality: flow_opd.LoraWeights
) -> None:
    """Taken in turns, round by round, they end where each ends alone."""

    def begun(seed: int) -> flow_opd.Training:
        return flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=3, seed=seed)

    alone = [begun(seed).train().adapter.digest() for seed in (0, 1)]
    first, second = begun(0), begun(1)
    for _ in zip(first, second, strict=True):
        pass
    assert [first.adapter.digest(), second.adapter.digest()] == alone
    assert alone[0] != alone[1]


def test_a_teacher_is_on_the_base_once(base: Base, quality: flow_opd.LoraWeights) -> None:
    """However often a notebook's cell is run."""
    for _ in range(3):
        flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=1)
    held = [name for name in base.bank.names if base.bank.weights(name).digest() == quality.digest()]
    assert len(held) == 1


def test_a_picture_leaves_no_adapter_behind(base: Base, quality: flow_opd.LoraWeights) -> None:
    before = base.bank.names
    (drawn,) = flow_opd.generate(base, ["a red circle"], quality, num_steps=2)
    (again,) = flow_opd.generate(base, ["a red circle"], quality, num_steps=2)
    (bare,) = flow_opd.generate(base, ["a red circle"], num_steps=2)
    assert base.bank.names == before
    assert drawn.tobytes() == again.tobytes() != bare.tobytes()


def test_a_damaged_objective_is_refused_by_a_policy_gradient(
    base: Base, quality: flow_opd.LoraWeights
) -> None:
    sampled = flow_opd.DistillConfig(objective="sampled-log-ratio").objective
    config = CONFIG.model_copy(update={"objective": sampled})
    with refused(flow_opd.FlowOPDError, value="<lambda>"):
        flow_opd.distill(
            base,
            {"quality": quality},
            PROMPTS,
            config,
            rounds=1,
            objective=lambda student, target, batch: (student - target).abs().flatten(1).mean(1),
        )


def test_a_reward_that_gives_too_few_numbers_is_refused(base: Base) -> None:
    config = flow_opd.GRPOConfig(group_size=2, groups_per_round=1, sampling=SAMPLING)
    training = flow_opd.grpo(base, [lambda images, prompts: [1.0]], ["a"], config, rounds=1)
    with refused(flow_opd.FlowOPDError, value=[1.0]):
        training.train()


def test_a_data_frame_or_plain_rows(base: Base) -> None:
    def brightness(images: torch.Tensor, prompts: list[flow_opd.Prompt]) -> torch.Tensor:
        return images.flatten(1).mean(1)

    table = flow_opd.evaluate(base, {"base": None}, ["a", "b"], [brightness], num_steps=2)
    (row,) = table
    assert (row.name, row.reward, row.images) == ("base", "brightness", 2)
    assert row.low <= row.mean <= row.high
    assert "base  brightness" in str(table)


def trained_until_interrupted(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    base = flow_opd.load_base("asset:base")
    config = CONFIG.model_copy(update={"checkpoint": CheckpointSettings(every_minutes=1000.0)})
    teachers = {"quality": flow_opd.load_adapter("asset:teachers/quality")}
    training = flow_opd.distill(base, teachers, PROMPTS, config, rounds=100_000, folder=folder)
    try:
        for _ in training:
            print("round", training.round, flush=True)
    except KeyboardInterrupt:
        print("stopped", training.round, training.adapter.rank, flush=True)


@pytest.mark.slow
def test_who_breaks_off_can_go_on_elsewhere(
    base: Base, quality: flow_opd.LoraWeights, tmp_path: Path
) -> None:
    """The same training made again goes on where the first was left, to the same end."""
    whole = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=3).train()
    for _ in flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=3, folder=tmp_path):
        break
    again = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=3, folder=tmp_path)
    assert again.round == 1
    assert again.train().adapter.digest() == whole.adapter.digest()
    assert flow_opd.load_adapter(tmp_path).digest() == whole.adapter.digest()


def test_a_torn_round_is_not_gone_on_with(base: Base, quality: flow_opd.LoraWeights) -> None:
    """Something breaks in the middle of an optimizer step, and there is no folder to go back to."""
    training = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=3)
    step = training.trainer.optimizer.step

    def breaks() -> None:
        step()
        raise KeyboardInterrupt

    training.trainer.optimizer.step = breaks  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        training.train()
    with refused(flow_opd.FlowOPDError, value="round 1, step 0"):
        training.train()


@pytest.mark.parametrize(
    "objective",
    [
        lambda student, target, batch: (student - target).square().mean(),
        lambda student, target, batch: (student - target).square().flatten(1).mean(1, keepdim=True),
        lambda student, target, batch: (student.detach() - target).square().flatten(1).mean(1),
    ],
)
def test_an_objective_that_would_broadcast_is_refused(
    base: Base, quality: flow_opd.LoraWeights, objective: Any
) -> None:
    training = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, objective=objective)
    with refused(flow_opd.FlowOPDError, names=["shape"]):
        training.train()


def test_rewards_of_one_name_are_refused(base: Base) -> None:
    rewards = [lambda images, prompts: [0.0] * len(prompts), lambda images, prompts: [1.0] * len(prompts)]
    with refused(flow_opd.FlowOPDError, value=["<lambda>"]):
        flow_opd.evaluate(base, {"base": None}, ["a"], rewards, num_steps=1)
    with refused(flow_opd.FlowOPDError, names=["<lambda>"]):
        flow_opd.evaluate(
            base, {"base": None}, ["a", "b"], [lambda images, prompts: images.mean()], num_steps=1
        )


def test_words_in_place_of_objects_are_refused(base: Base, quality: flow_opd.LoraWeights) -> None:
    for wrong in (
        lambda: flow_opd.generate(base, "ab"),  # type: ignore[arg-type]
        lambda: flow_opd.generate(base, ["a", "b"], seeds=[1], num_steps=1),
        lambda: flow_opd.generate(base, ["a"], num_steps=0),
        lambda: flow_opd.distill(base, {"quality": "asset:teachers/quality"}, PROMPTS, CONFIG, rounds=1),
        lambda: flow_opd.distill(
            base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, anchor=flow_opd.Anchor("nobody")
        ),
        lambda: flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=0),
        lambda: flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=True),
        lambda: flow_opd.distill(base, [quality], PROMPTS, CONFIG, rounds=1),  # type: ignore[arg-type]
        lambda: flow_opd.distill(base, {"quality": 3}, PROMPTS, CONFIG, rounds=1),  # type: ignore[dict-item]
        lambda: flow_opd.distill(base, {"quality": quality}, [3], CONFIG, rounds=1),  # type: ignore[list-item]
        lambda: flow_opd.distill(base, {"quality": quality}, PROMPTS, flow_opd.GRPOConfig(), rounds=1),
        lambda: flow_opd.distill(
            base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, student="asset:teachers/text"
        ),
        lambda: flow_opd.distill(base, {"quality": quality}, PROMPTS, {"prompt_per_round": 2}, rounds=1),
        lambda: flow_opd.load_base("asset:base", dtype="float23"),  # type: ignore[arg-type]
        lambda: flow_opd.load_prompts("asset:prompts/test/text.jsonl", limit=0),
        lambda: flow_opd.Teacher(quality, extrapolation=0.5),
        lambda: flow_opd.Anchor(quality, share=2.0),
    ):
        with refused(flow_opd.FlowOPDError):
            wrong()


def test_settings_may_be_a_dict(base: Base, quality: flow_opd.LoraWeights) -> None:
    values = {"prompts_per_round": 2, "sampling": {"num_steps": 2, "guidance_scale": 1.0}}
    one, other = (
        flow_opd.distill(base, {"quality": quality}, PROMPTS, config, rounds=1).trainer.identity
        for config in (values, CONFIG)
    )
    assert one == other


def test_a_refused_training_leaves_the_base_as_it_was(quality: flow_opd.LoraWeights, tmp_path: Path) -> None:
    """And one that is closed takes its student along."""
    base = flow_opd.load_base("asset:base")
    first = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, folder=tmp_path).train()
    before = base.bank.names
    text = flow_opd.load_adapter("asset:teachers/text")
    for teachers, prompts in (({"quality": text}, PROMPTS), ({"text": text}, PROMPTS)):
        with pytest.raises(flow_opd.FlowOPDError):  # another training's folder; prompts without a teacher
            flow_opd.distill(base, teachers, prompts, CONFIG, rounds=1, folder=tmp_path)
        assert base.bank.names == before
        assert base.bank.student == first.student
    first.close()
    assert base.bank.names == ("quality",)


def test_a_refused_resume_says_what_differs(
    base: Base, quality: flow_opd.LoraWeights, tmp_path: Path
) -> None:
    for _ in flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=2, folder=tmp_path):
        break
    for change, told in (
        ({"rounds": 3}, "Differs: rounds: 2, now 3."),
        (
            {"teachers": {"quality": flow_opd.Teacher(quality, extrapolation=1.5)}},
            "quality.extrapolation: 1.0",
        ),
        ({"prompts": PROMPTS[::-1]}, "Differs: prompts: other content."),
        ({"objective": lambda student, target, batch: student}, "Differs: distance"),
    ):
        given = {
            "teachers": {"quality": quality},
            "prompts": PROMPTS,
            "rounds": 2,
            "objective": None,
            **change,
        }
        with pytest.raises(flow_opd.FlowOPDError) as refusal:
            flow_opd.distill(
                base, given.pop("teachers"), given.pop("prompts"), CONFIG, folder=tmp_path, **given
            )
        assert told in str(refusal.value), str(refusal.value)


def test_a_log_goes_back_with_its_training(base: Base, quality: flow_opd.LoraWeights, tmp_path: Path) -> None:
    """A break in the middle of the second of two updates: the round is done again, and told once."""
    sampled = {"name": "sampled-log-ratio", "updates_per_round": 2}
    config = {
        "prompts_per_round": 2,
        "objective": sampled,
        "sampling": {"num_steps": 3, "guidance_scale": 1.0},
    }
    training = flow_opd.distill(base, {"quality": quality}, PROMPTS, config, rounds=3, folder=tmp_path)
    rounds = iter(training)
    next(rounds)
    training.trainer.save()
    step, steps = training.trainer.optimizer.step, iter(range(10))

    def breaks() -> None:
        step()
        if next(steps) == 1:
            raise OSError("a disk")

    training.trainer.optimizer.step = breaks  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="a disk"):
        next(rounds)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    training.train()
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]
    assert [each["round"] for each in training.history] == [1, 2, 3]


def test_images_without_a_folder_go_with_their_training(base: Base, quality: flow_opd.LoraWeights) -> None:
    config = {"num_steps": 1, "batch_size": 2, "micro_batch_size": 2}
    training = flow_opd.sft(base, {"quality": quality}, PROMPTS, config, rounds=1)
    folder = Path(training.keeps.name)  # type: ignore[attr-defined]
    training.train()
    assert folder.is_dir()
    training.close()
    assert not folder.exists()


def test_a_base_is_split_once_all_adapters_are_on_it(
    quality: flow_opd.LoraWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None may come later, that of an anchor included; an anchor may be given as its adapter alone."""
    base = flow_opd.load_base("asset:base", compute=TrainingComputeSettings(shard_base=True))
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(runs_base, "shard_base", lambda transformer, processes: seen.append(base.bank.names))
    text = flow_opd.load_adapter("asset:teachers/text")
    flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, anchor=text)
    assert seen == [base.bank.names]
    assert set(base.bank.names) == {"quality", "student", "anchor"}


def test_a_policy_gradient_asks_its_anchor_everywhere(base: Base, quality: flow_opd.LoraWeights) -> None:
    sampled = flow_opd.DistillConfig(objective="sampled-log-ratio").objective
    config = CONFIG.model_copy(update={"objective": sampled})
    anchor = flow_opd.Anchor("quality", share=0.5)
    with refused(flow_opd.FlowOPDError, value=0.5):
        flow_opd.distill(base, {"quality": quality}, PROMPTS, config, rounds=1, anchor=anchor)


def test_an_identity_knows_what_a_part_holds(base: Base, quality: flow_opd.LoraWeights) -> None:
    def to_the(power: int) -> Any:
        return lambda student, target, batch: (student - target).abs().pow(power).flatten(1).mean(1)

    class Held:
        def __init__(self, value: object) -> None:
            self.value = value

    assert part_identity(to_the(2)) == part_identity(to_the(2)) != part_identity(to_the(3))
    assert part_identity(partial(max, 1)) != part_identity(partial(max, 2))
    assert part_identity(Held(torch.ones(2))) != part_identity(Held(torch.zeros(2)))
    one, other = (base.policy(base.put("held", quality), scale) for scale in (1.0, 2.0))
    assert (
        part_identity(Held(one)) != part_identity(Held(other)) != part_identity(Held(base.policy(None, 2.0)))
    )
    json.dumps(part_identity(Held(one)))


def test_an_interrupt_in_the_last_round_leaves_the_adapter(
    base: Base, quality: flow_opd.LoraWeights, tmp_path: Path
) -> None:
    training = flow_opd.distill(base, {"quality": quality}, PROMPTS, CONFIG, rounds=1, folder=tmp_path)
    step = training.trainer.optimizer.step

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores

    def pressed() -> None:
        step()
        os.kill(os.getpid(), signal.SIGINT)

    training.trainer.optimizer.step = pressed  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        list(training)
    assert training.round == 1
    assert list(training) == []
    assert flow_opd.load_adapter(tmp_path).digest() == training.adapter.digest()


@pytest.mark.slow
def test_an_interrupt_leaves_a_checkpoint_and_usable_objects(tmp_path: Path) -> None:
    """No checkpoint is due for hours, and yet there is one of the round at which it was stopped."""
    life = fork(trained_until_interrupted, tmp_path / "run", told=tmp_path / "told")
    wait_until(lambda: "round 2" in life.out)
    assert life.process.pid is not None
    os.kill(life.process.pid, signal.SIGINT)
    assert life.ended() == 0, life.err
    rest = life.out.splitlines()
    assert rest[-1].startswith("stopped ")
    done = int(rest[-1].split()[1])
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == [f"round-{done:07d}"]
    assert not (tmp_path / "run" / "adapter").exists()
