"""The loop: sums divided once, weights that move between updates only, and a stop before a bad step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from errors import refused
from flow_opd.config.common import OptimizerSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import locate
from flow_opd.errors import NonFiniteError
from flow_opd.method.objectives import VelocityMatching, WeightedTerms
from flow_opd.runs.base import Base
from flow_opd.runs.training import loop_settings
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import ImageBatch, LossOutput
from tiny import ALGORITHMS, GivenBatches, Recorder, SmallNet, Tiny, tiny_trainer, unconditional


def image_batch(rows: int, seed: int = 0) -> ImageBatch:
    draw = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(rows, 2, 2, 2, generator=draw) for _ in range(2))
    return ImageBatch(x0, noise, torch.rand(rows, generator=draw), unconditional(rows))


def rows_of(batch: ImageBatch, rows: list[int]) -> ImageBatch:
    return ImageBatch(batch.x0[rows], batch.noise[rows], batch.sigma[rows], batch.conditioning.rows(rows))


def small(folder: Path, batches: list[ImageBatch], *, rounds: int = 1, **optimizer: Any) -> Trainer:
    net = SmallNet(0)
    return Trainer(
        parameters=dict(net.named_parameters()),
        source=GivenBatches(batches),
        objective=WeightedTerms(net, [(1.0, VelocityMatching())]),
        settings=LoopSettings(rounds=rounds, optimizer=OptimizerSettings(**optimizer)),
        folder=folder,
        identity="small",
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.parameters.items()}


@pytest.mark.parametrize("parts", [[1] * 8, [3, 5], [7, 1]])
def test_micro_batches_do_not_change_the_weights(tmp_path: Path, parts: list[int]) -> None:
    whole = image_batch(8)
    split = [rows_of(whole, list(range(8))[sum(parts[:i]) : sum(parts[: i + 1])]) for i in range(len(parts))]
    trained = []
    for name, batches in (("whole", [whole]), ("split", split)):
        recorder = Recorder()
        trainer = small(tmp_path / name, batches, rounds=5, learning_rate=1e-2)
        trainer.callbacks.append(recorder)
        trainer.run()
        trained.append((weights(trainer), recorder.lines))
    for key, value in trained[0][0].items():
        torch.testing.assert_close(trained[1][0][key], value, rtol=0, atol=1e-6)
    for one, other in zip(trained[0][1], trained[1][1], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
        assert other["rows"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 5])
def test_every_algorithm_is_blind_to_the_micro_batch(tmp_path: Path, algorithm: str, size: int) -> None:
    """1 x 8 == 8 x 1, and ragged 5 + 3, for the real tiny student."""
    trained = []
    for micro_batch_size in (8, size):
        tiny = Tiny()
        trainer = tiny_trainer(
            tiny,
            algorithm,
            tmp_path / str(micro_batch_size),
            rounds=2,
            micro_batch_size=micro_batch_size,
        )
        before = weights(trainer)
        trainer.run()
        trained.append(weights(trainer))
    assert max((trained[0][key] - before[key]).abs().max() for key in before) > 1e-4
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, rtol=0, atol=1e-6)


def test_one_step_by_hand(tmp_path: Path) -> None:
    """Sums are divided once by all rows: three rows of one micro-batch do not weigh as one of another."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))

    def objective(batch: Tensor) -> LossOutput:
        total = (weight * batch).sum()
        return LossOutput(total, len(batch), {"loss": total.detach()})

    recorder = Recorder()
    trainer = Trainer(
        parameters={"w": weight},
        source=GivenBatches([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-2.0])], {"reward": 0.5}),
        objective=objective,
        settings=LoopSettings(rounds=1, optimizer=OptimizerSettings(learning_rate=0.1, weight_decay=0.5)),
        folder=tmp_path,
        identity="hand",
        callbacks=[recorder],
    )
    trainer.run()
    # gradient (1 + 2 + 3 - 2) / 4 = 1, norm 1; AdamW: w (1 - .1 * .5) - .1 * 1 = .85
    assert weight.item() == pytest.approx(0.85, abs=1e-6)
    assert recorder.lines == [
        {
            "step": 1,
            "loss": pytest.approx(1.0),
            "reward": 0.5,
            "grad_norm": pytest.approx(1.0),
            "learning_rate": 0.1,
            "rows": 4,
        }
    ]
    assert recorder.ended == 1


def test_gradients_are_clipped_to_their_norm(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = small(tmp_path, [image_batch(8)], max_grad_norm=1e-3)
    trainer.callbacks.append(recorder)
    trainer.run()
    norm = torch.cat([p.grad.flatten() for p in trainer.parameters.values() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert recorder.lines[0]["grad_norm"] > 0.1  # the log keeps the norm before the cut


@pytest.mark.parametrize("algorithm", ["opd", "grpo"])
def test_weights_are_still_during_an_update(tmp_path: Path, algorithm: str) -> None:
    tiny = Tiny()
    trainer = tiny_trainer(tiny, algorithm, tmp_path, rounds=2, micro_batch_size=4)
    inner, seen = trainer.objective, []

    def watching(batch: Any) -> LossOutput:
        seen.append(
            (trainer.progress.step, torch.cat([p.detach().flatten() for p in tiny.parameters.values()]))
        )
        return inner(batch)

    trainer.objective = watching
    trainer.run()
    steps = sorted({step for step, _ in seen})
    assert len(steps) == trainer.settings.total_steps
    for step in steps:
        states = [state for at, state in seen if at == step]
        assert len(states) > 1
        assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(seen[0][1], seen[-1][1])


def test_a_nan_stops_before_the_step_and_its_own_batch_is_kept(tmp_path: Path) -> None:
    good, bad = image_batch(4), image_batch(4, seed=1)
    bad.x0[2, 0, 1, 1] = float("nan")
    trainer = small(tmp_path, [good], rounds=3)
    trainer.run()
    before, state = weights(trainer), trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    trainer.source = GivenBatches([good, bad, good])
    trainer.settings = replace(trainer.settings, rounds=4)
    with refused(NonFiniteError, names=["nonfinite-step-4-process-0.safetensors"]) as error:
        trainer.run()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], state)
    assert trainer.progress.step == 3
    saved = load_file(tmp_path / "nonfinite-step-4-process-0.safetensors")
    assert torch.equal(saved["x0"].nan_to_num(7.0), bad.x0.nan_to_num(7.0))
    assert torch.equal(saved["sigma"], bad.sigma)
    assert saved["conditioning.embeds"].shape == (4, 1, 1)
    assert "Traceback" not in str(error.value)


def test_a_gradient_that_overflows_stops_before_the_step(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0]))

    def steep(batch: Tensor) -> LossOutput:
        return LossOutput(torch.sqrt(weight).sum(), 1)  # finite value, infinite slope

    trainer = Trainer(
        parameters={"w": weight},
        source=GivenBatches([image_batch(1)]),
        objective=steep,
        settings=LoopSettings(rounds=1),
        folder=tmp_path,
        identity="steep",
    )
    with refused(NonFiniteError, names=["nonfinite-step-1-process-0.safetensors"]):
        trainer.run()
    assert weight.item() == 0.0
    assert (tmp_path / "nonfinite-step-1-process-0.safetensors").exists()


def test_a_source_must_give_the_updates_that_the_schedule_counts_on(tmp_path: Path) -> None:
    trainer = small(tmp_path, [image_batch(2)])
    trainer.settings = replace(trainer.settings, updates_per_round=2)
    with pytest.raises(AssertionError, match="1 updates in a round"):
        trainer.run()


def test_the_scale_of_the_loss_moves_no_weight_and_no_reading(tmp_path: Path) -> None:
    trained = []
    for scale in (1.0, 4096.0):
        trainer = small(tmp_path / str(scale), [image_batch(8)], rounds=3, learning_rate=1e-2)
        trainer.settings = replace(trainer.settings, loss_scale=scale)
        recorder = Recorder()
        trainer.callbacks.append(recorder)
        trainer.run()
        trained.append((weights(trainer), recorder.lines))
    for key, value in trained[0][0].items():
        assert torch.equal(trained[1][0][key], value)  # a power of two changes no digit
    assert trained[0][1] == trained[1][1]


def test_a_base_in_float16_scales_the_loss_by_its_latent_dimensions(tiny: Tiny) -> None:
    settings = read(locate("asset:configs/distill.yaml"), DistillSettings, ["run.out=unused"])
    scales = {
        dtype: loop_settings(
            settings,
            Base(
                settings.base.model_copy(update={"dtype": dtype}), settings.compute, tiny.backbone, tiny.bank
            ),
            rounds=1,
        ).loss_scale
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert scales == {"float32": 1.0, "bfloat16": 1.0, "float16": 4.0 * 4 * 4}
