"""The three updates that benchmarks/official_schedule.py compares, on a tiny base with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bare_update import bare_update
from frozen_states import FrozenStates
from official_schedule import side_by_side, trained_to
from official_update import (
    OfficialSchedule,
    official_distillation,
    official_networks,
    over_diffusion,
    over_variance,
)
from our_update import Distillation, Rows, counted_rows, loaded_parts, our_distillation
from random_base import write_adapter, write_base
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.distill import DistillSettings
from flow_opd.runs.prompts import prompts_of
from flow_opd.types import Prompt

pytestmark = pytest.mark.slow

PROMPTS, STEPS = 4, 3
TASKS = ("circles", "squares")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DistillSettings:
    folder = tmp_path_factory.mktemp("tiny")
    write_base(folder / "base", layers=2, heads=1, latent_side=4)
    for seed, name in enumerate((*TASKS, "anchor", "student")):
        write_adapter(folder / "base", folder / name, rank=2, seed=seed)
    prompts = [
        {"prompt": f"a {word} {task[:-1]}", "task": task} for task in TASKS for word in ("red", "blue")
    ]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(each) for each in prompts))
    teachers = [
        {"name": task, "tasks": [task], "adapter": str(folder / task), "guidance_scale": 1.0}
        for task in TASKS
    ]
    return DistillSettings.model_validate(
        {
            "run": {"out": str(folder / "run"), "rounds": 8},
            "base": {"path": str(folder / "base"), "max_sequence_length": 0},
            "compute": {"device": "cpu"},
            "teachers": teachers,
            "anchor": {
                "adapter": str(folder / "anchor"),
                "weight": 0.5,
                "share": 1.0,
                "guidance_scale": 1.0,
            },
            "cold_start": {"adapter": str(folder / "student")},
            "prompts": [{"path": str(folder / "prompts.jsonl")}],
            "prompts_per_round": PROMPTS,
            "state_weights": "transition",
            "sampling": {"num_steps": STEPS, "stochastic_steps": [0, 1], "guidance_scale": 1.0},
            "optimizer": {"learning_rate": 1e-3},
        }
    )


def started(settings: DistillSettings, folder: Path) -> tuple[Distillation, dict[str, LoraWeights]]:
    """Returns ours, and the adapters that it starts from."""
    parts = loaded_parts(settings)
    return our_distillation(settings, parts, folder), parts.adapters()


def updated(
    settings: DistillSettings, folder: Path, **choices: object
) -> tuple[Distillation, OfficialSchedule]:
    """Returns ours and the official schedule at the same start, each after an update."""
    ours, adapters = started(settings, folder)
    schedule = OfficialSchedule(
        settings,
        official_networks(settings, adapters),
        **{"anchor_weight": settings.anchor.weight, **choices},  # type: ignore[arg-type, union-attr]
    )
    ours.update()
    schedule.update()
    return ours, schedule


def cosine(ours: Distillation, official: OfficialSchedule) -> float:
    """Returns how far the gradients of the last update agree; both name their parameters alike."""
    assert ours.parameters.keys() == official.parameters.keys()
    pairs = [(ours.parameters[name].grad, official.parameters[name].grad) for name in ours.parameters]
    one, other = (torch.cat([grad.flatten() for grad in grads]) for grads in zip(*pairs, strict=True))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_with_the_same_weights_the_gradients_agree(settings: DistillSettings, tmp_path: Path) -> None:
    assert cosine(*updated(settings, tmp_path, weight=over_variance)) > 0.99999


@pytest.mark.parametrize("change", [{"weight": over_diffusion}, {"anchor_weight": 0.0}, {"trained_steps": 1}])
def test_other_choices_are_another_gradient(
    settings: DistillSettings, tmp_path: Path, change: dict[str, object]
) -> None:
    assert cosine(*updated(settings, tmp_path, **change)) < 0.9999


def test_the_official_weight_is_the_kl_times_the_length_of_the_step() -> None:
    std, length = torch.tensor([0.5, 0.0]), torch.tensor([0.1, 0.1])
    torch.testing.assert_close(over_variance(std, length), torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(over_diffusion(std, length), torch.tensor([0.2, 0.5]))


def test_every_network_is_asked_what_the_description_says(settings: DistillSettings, tmp_path: Path) -> None:
    _, schedule = updated(settings, tmp_path, trained_steps=STEPS - 1)
    networks = schedule.networks
    asked = {}
    for name, network in {
        "student": networks.student,
        "anchor": networks.anchor,
        **networks.teachers,
    }.items():
        with counted_rows(network) as asked[name]:
            schedule.update()
    trained = PROMPTS * (STEPS - 1)
    assert asked["student"] == Rows(with_gradient=trained, without_gradient=PROMPTS * STEPS)
    assert asked["anchor"] == Rows(without_gradient=trained)
    assert all(asked[task] == Rows(without_gradient=trained // 2) for task in TASKS)


def test_pictures_are_decoded_and_judged_once_an_update(settings: DistillSettings, tmp_path: Path) -> None:
    seen: list[tuple[torch.Size, list[str]]] = []

    def judge(pictures: Tensor, prompts: Sequence[Prompt]) -> None:
        seen.append((pictures.shape, [prompt.task for prompt in prompts]))

    _, schedule = updated(settings, tmp_path, judge=judge)
    assert seen == [(torch.Size([PROMPTS, 3, 8, 8]), sorted(TASKS * 2))]
    assert {phase: len(seconds) for phase, seconds in schedule.seconds.items()} == dict.fromkeys(
        ("rollout", "decoding", "rewards", "training"), 1
    )


def test_the_limit_asks_as_much_of_its_network_as_ours(settings: DistillSettings, tmp_path: Path) -> None:
    ours, adapters = started(settings, tmp_path)
    with counted_rows(ours.networks[0]) as asked:
        ours.update()
    assert asked.with_gradient == PROMPTS * STEPS
    assert asked.without_gradient >= PROMPTS * STEPS
    limit, network = bare_update(settings, adapters, asked)
    with counted_rows(network) as bare:
        limit()
    assert bare == asked
    reached = [
        sum(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
        for weights in (network.parameters(), ours.parameters.values())
    ]
    assert reached[0] == reached[1] > len(ours.parameters) / 2  # the last block's text queries have no effect


def test_the_limit_has_the_velocities_of_student_and_teachers(
    settings: DistillSettings, tmp_path: Path
) -> None:
    ours, adapters = started(settings, tmp_path)
    networks = official_networks(settings, adapters)
    _, network = bare_update(settings, adapters, Rows(PROMPTS, PROMPTS))
    texts = networks.backbone.encode_prompts(prompts_of(settings.prompts)).rows([0, 1, 2])
    draw = torch.Generator().manual_seed(0)
    state = torch.randn(3, *networks.backbone.latent_shape, generator=draw)
    here = (state, torch.tensor([0.2, 0.6, 0.9]), texts)
    bare = networks.field(network, 1.0)
    torch.testing.assert_close(bare.velocity(*here), ours.student.velocity(*here))
    named = {**networks.teachers, "anchor": networks.anchor}
    others = [networks.field(named[name], 1.0) for name in adapters if name != "student"]
    with torch.no_grad():
        alone = torch.stack([other.velocity(*here)[row] for row, other in enumerate(others)])
        torch.testing.assert_close(bare.velocity(*here), alone)


def test_no_weight_is_shared_by_the_official_networks(settings: DistillSettings, tmp_path: Path) -> None:
    ours, schedule = updated(settings, tmp_path)
    official = official_distillation(schedule)
    places = [weight.data_ptr() for network in official.networks for weight in network.parameters()]
    assert len(set(places)) == len(places)
    assert len(official.networks) == 2 + len(TASKS)
    assert official.mebibytes() > 3 * ours.mebibytes()


@pytest.mark.slow
def test_the_gap_that_is_left_shrinks_by_training(settings: DistillSettings, tmp_path: Path) -> None:
    ours, adapters = started(settings, tmp_path)
    schedule = OfficialSchedule(settings, official_networks(settings, adapters))
    states = FrozenStates(schedule, prompts_of(settings.prompts))
    torch.testing.assert_close(states.left(schedule.networks.backbone), torch.ones(STEPS))
    own = FrozenStates(schedule, [each for each in prompts_of(settings.prompts) if each.task == TASKS[0]])
    torch.testing.assert_close(own.left(schedule.teachers[TASKS[0]]), torch.zeros(STEPS))
    start = float(states.left(ours.student).mean())
    ticks = iter(range(1000))
    taken, seconds, left = trained_to(ours, states, lambda: next(ticks), updates=5, target=0.0)
    assert (taken, seconds) == (5, 5.0)
    assert float(left.mean()) < start
    assert trained_to(ours, states, lambda: next(ticks), updates=5, target=1e9)[0] == 1


def test_updates_take_turns() -> None:
    order: list[str] = []
    names = ("one", "two", "three")
    side_by_side({name: lambda name=name: order.append(name) for name in names}, 2, lambda: 0.0)  # type: ignore[misc]
    assert order == [*names, *names, "two", "three", "one"]
