"""Images of the teachers: what they are, that they survive kills and damage, and what is learnt from them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from errors import refused
from flow_opd.config.common import OptimizerSettings
from flow_opd.errors import NonFiniteError
from flow_opd.flow.dynamics import ode_step
from flow_opd.flow.path import shifted_uniform_sigmas
from flow_opd.method.objectives import VelocityMatching
from flow_opd.method.rollouts import WalkNoise, rollout
from flow_opd.method.sft import ImageBatches, ImageSampling, SFTBatching, TeacherImages, sft_cold_start
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import VelocityField
from flow_opd.seeding import generator
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import Conditioning, ImageBatch, Prompt
from forks import fork
from oracles import ode_schedule
from tiny import PROMPTS, SHAPE, SIGN, GaussianFlow, PlainPrompts, Recorder, SmallNet, Tiny, unconditional


def samples_in(folder: Path) -> TeacherImages:
    """Twelve images in shards of 5, 5 and 2."""
    return TeacherImages(folder, "tiny", PROMPTS, images_per_prompt=3, shard_size=5)


def filled(folder: Path, tiny: Tiny, *, batch_size: int = 3) -> TeacherImages:
    samples = samples_in(folder)
    samples.fill(tiny.drawing(batch_size=batch_size))
    return samples


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "tiny").iterdir())


def test_an_image_is_what_its_own_teacher_walks_to(tmp_path: Path, tiny: Tiny) -> None:
    samples = filled(tmp_path, tiny)
    assert len(samples) == 12
    own = {SHAPE: tiny.policy("teacher-shapes"), SIGN: tiny.policy("teacher-signs", 2.0)}
    for row in (0, 4, 8, 11):
        prompt = PROMPTS[row // 3]
        assert samples.prompt(row) is prompt
        drawn = rollout(
            own[prompt.task],
            tiny.backbone.encode_prompts([prompt]),
            [prompt],
            schedule=(schedule := ode_schedule(tiny.backbone.sigmas(3))),
            dynamics=ode_step,
            noise=WalkNoise(
                tiny.backbone.latent_shape,
                schedule,
                [generator(0, "sample", row // 3, row % 3)],
                tiny.backbone.device,
            ),
        )
        torch.testing.assert_close(samples.x0([row]), drawn.x0, rtol=0, atol=1e-5)
    apart = samples.x0([0, 1, 2]).flatten(1)
    assert (apart[0] - apart[1]).abs().max() > 0.1, "images of a prompt start from different noise"
    together = samples.x0([7, 0, 7])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1:2], samples.x0([0]))


def test_batches_change_memory_and_not_images(tmp_path: Path, tiny: Tiny) -> None:
    one, other = filled(tmp_path / "one", tiny), filled(tmp_path / "other", tiny, batch_size=64)
    torch.testing.assert_close(one.x0(range(12)), other.x0(range(12)), rtol=0, atol=1e-5)


def test_a_shard_holds_latents_and_is_named_by_its_hash(tmp_path: Path, tiny: Tiny) -> None:
    filled(tmp_path, tiny)
    counts = []
    for shard in shards(tmp_path):
        with safe_open(shard, framework="pt") as reader:
            assert list(reader.keys()) == ["x0"]
            assert reader.get_tensor("x0").dtype == torch.float32
            counts.append(reader.get_tensor("x0").shape[0])
    assert sorted(counts) == [2, 5, 5]


def test_images_that_are_there_are_not_drawn_again(tmp_path: Path, tiny: Tiny) -> None:
    filled(tmp_path, tiny)
    before = {file: file.stat().st_mtime_ns for file in shards(tmp_path)}
    told: list[int] = []
    samples = samples_in(tmp_path)
    samples.fill(replace(tiny.drawing(), field=Broken()), on_images=told.append)
    assert told == [12]
    assert {file: file.stat().st_mtime_ns for file in shards(tmp_path)} == before


@pytest.mark.parametrize("damage", ["flipped bit", "cut off"])
def test_a_damaged_shard_alone_is_made_again(tmp_path: Path, tiny: Tiny, damage: str) -> None:
    expected = filled(tmp_path, tiny).x0(range(12))
    before = {file: file.stat().st_mtime_ns for file in shards(tmp_path)}
    broken = shards(tmp_path)[1]
    content = bytearray(broken.read_bytes())
    content[-3] ^= 1
    broken.write_bytes(content if damage == "flipped bit" else content[:100])
    assert torch.equal(filled(tmp_path, tiny).x0(range(12)), expected)
    after = {file: file.stat().st_mtime_ns for file in shards(tmp_path)}
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} == {broken}


def killed_while_drawing(folder: Path) -> None:
    told: list[int] = []

    def on_images(count: int) -> None:
        told.append(count)
        if told == [0, 3, 5, 8, 10]:  # the second shard has been drawn, and not yet written
            os.kill(os.getpid(), signal.SIGKILL)

    samples_in(folder).fill(Tiny().drawing(), on_images=on_images)


@pytest.mark.slow
def test_a_kill_while_drawing_loses_the_unfinished_shard_alone(tmp_path: Path, tiny: Tiny) -> None:
    life = fork(killed_while_drawing, tmp_path / "killed", told=tmp_path / "told")
    assert life.ended() == -signal.SIGKILL, life.err
    (first,) = shards(tmp_path / "killed")
    written = first.stat().st_mtime_ns
    leftover = tmp_path / "killed/tiny/.tmp-cut"
    leftover.write_bytes(b"what a kill in the middle of a write leaves")
    os.utime(leftover, (0, 0))  # a fresh one might be another run's
    told: list[int] = []
    samples_in(tmp_path / "killed").fill(tiny.drawing(), on_images=told.append)
    assert told[0] == 5
    assert first.stat().st_mtime_ns == written
    filled(tmp_path / "whole", tiny)
    names = [[file.name for file in shards(tmp_path / which)] for which in ("whole", "killed")]
    assert names[0] == names[1], "the same bytes as those of a run that was never killed"


def test_every_shard_has_one_maker(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of two processes makes, seen in a folder of its own."""
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    filled(tmp_path / "whole", tiny)
    made = []
    for index in (0, 1):
        samples_in(tmp_path / str(index)).fill(tiny.drawing(), processes=Processes(index, 2))
        made += [shard.name for shard in shards(tmp_path / str(index))]
        assert len(made) == (2, 3)[index]
    assert sorted(made) == [shard.name for shard in shards(tmp_path / "whole")]


def test_processes_in_step_ask_the_teachers_equally_often(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes, one shard each of 5, 5 and 2 images; and two, of whom one has a shard more."""
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    for count, calls in ((3, 2), (2, 4)):
        for index in range(count):
            counting = Counting(tiny.teachers())
            drawing = replace(tiny.drawing(num_steps=1), field=counting, collective=True)
            samples_in(tmp_path / f"{index} of {count}").fill(drawing, processes=Processes(index, count))
            assert counting.calls == calls


class Counting:
    """A field that counts how often it is asked."""

    def __init__(self, field: VelocityField) -> None:
        self.field, self.calls = field, 0

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls += 1
        return self.field.velocity(latents, sigma, conditioning)


class Broken:
    """A teacher whose numbers have overflowed."""

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return torch.full_like(latents, torch.nan)


def test_an_image_that_is_not_finite_is_refused_and_not_kept(tmp_path: Path, tiny: Tiny) -> None:
    with refused(NonFiniteError, value="a red circle", names=["shapes"]):
        samples_in(tmp_path).fill(replace(tiny.drawing(), field=Broken()))
    assert not (tmp_path / "tiny").exists()


# Batches of them.


def batching(
    *, rows: int = 7, total: int = 12, dropout: float = 0.0, micro: int = 64, processes: Processes = ALONE
) -> SFTBatching:
    """Round r trains on images 5 r, 5 r + 1, ... of so many."""
    return SFTBatching(
        images_of_round=lambda index: [(5 * index + row) % total for row in range(rows)],
        seeder=lambda index, row: generator(0, "sft", index, row),
        draw_sigmas=lambda count, draw: shifted_uniform_sigmas(count, shift=3.0, generator=draw),
        caption_dropout=dropout,
        micro_batch_size=micro,
        processes=processes,
    )


def rows_of(source: ImageBatches, index: int) -> list[ImageBatch]:
    (update,) = source.round(index)
    return list(update)


def test_rows_depend_on_the_round_and_their_number_alone(tmp_path: Path, tiny: Tiny) -> None:
    samples = filled(tmp_path, tiny)
    whole = ImageBatches(samples, tiny.backbone, batching())
    (everything,) = rows_of(whole, 1)
    assert len(everything) == 7
    assert torch.equal(everything.x0, samples.x0([5, 6, 7, 8, 9, 10, 11]))
    assert everything.conditioning.tasks[:2] == (PROMPTS[1].task, PROMPTS[2].task)
    assert len(set(everything.sigma.tolist())) == 7
    for index in (0, 1, 2):
        source = ImageBatches(samples, tiny.backbone, batching(micro=2, processes=Processes(index, 3)))
        batches = rows_of(source, 1)
        own = list(range(index, 7, 3))
        for name in ("x0", "noise", "sigma"):
            parts = torch.cat([getattr(batch, name) for batch in batches])
            assert torch.equal(parts, getattr(everything, name)[own])
    (other,) = rows_of(whole, 2)
    assert not torch.equal(other.noise, everything.noise)


def test_some_captions_are_dropped(tmp_path: Path, tiny: Tiny) -> None:
    samples = filled(tmp_path, tiny)
    source = ImageBatches(samples, tiny.backbone, batching(dropout=0.3))
    empty = tiny.backbone.encode_prompts([Prompt("", "")]).embeds[0]
    dropped = []
    for index in range(30):
        (batch,) = rows_of(source, index)
        dropped += [torch.allclose(row, empty, atol=1e-6) for row in batch.conditioning.embeds]
        assert set(batch.conditioning.tasks) <= {SHAPE, SIGN}
    assert 0.2 < sum(dropped) / len(dropped) < 0.4
    kept = ImageBatches(samples, tiny.backbone, batching())
    (batch,) = rows_of(kept, 0)
    assert not any(torch.allclose(row, empty, atol=1e-6) for row in batch.conditioning.embeds)


# What is learnt from them.


@pytest.mark.slow
def test_the_student_learns_the_velocity_of_its_teacher(tmp_path: Path) -> None:
    """The minimiser of velocity matching on images of an exact flow is that flow's velocity."""
    teacher, student = GaussianFlow(mean=0.8, std=0.4), SmallNet(0, width=32)
    samples = TeacherImages(tmp_path, "gauss", [Prompt("", "any")], images_per_prompt=512, shard_size=512)
    sigmas = torch.linspace(1, 0, 41)
    samples.fill(
        ImageSampling(teacher, PlainPrompts(), (2, 2, 2), sigmas, lambda p, n: generator(1, p, n), 512)
    )
    x0 = samples.x0(range(512))
    assert float(x0.mean()) == pytest.approx(0.8, abs=0.03)
    assert float(x0.std()) == pytest.approx(0.4, abs=0.03)
    chosen = batching(rows=64, total=512)
    source, objective = sft_cold_start(student, PlainPrompts(), samples, chosen)
    assert [(weight, type(term)) for weight, term in objective.terms] == [(1.0, VelocityMatching)]

    def distance() -> float:
        draw = generator(2)
        sigma = torch.rand(400, generator=draw)[:, None, None, None]
        data = 0.8 + 0.4 * torch.randn(400, 2, 2, 2, generator=draw)
        state = (1 - sigma) * data + sigma * torch.randn(data.shape, generator=draw)
        with torch.no_grad():
            found, true = (
                field.velocity(state, sigma.flatten(), unconditional(400)) for field in (student, teacher)
            )
        return float((found - true).pow(2).mean())

    before, recorder = distance(), Recorder()
    Trainer(
        parameters=dict(student.net.named_parameters()),
        source=source,
        objective=objective,
        settings=LoopSettings(rounds=300, optimizer=OptimizerSettings(learning_rate=1e-2, decay="cosine")),
        folder=tmp_path,
        identity="learns",
        callbacks=[recorder],
    ).run()
    losses = [line["velocity_matching"] for line in recorder.lines]
    after = distance()
    print("loss", sum(losses[:10]) / 10, sum(losses[-10:]) / 10, "distance", before, after)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert after < 0.1 * before
