"""Moments of eight bits train, resume exactly, and are refused where their package is absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from errors import refused
from flow_opd.config.common import CheckpointSettings, OptimizerSettings
from flow_opd.errors import ConfigError
from flow_opd.training.optimizer import build_optimizer
from flow_opd.training.trainer import LoopSettings, Trainer
from flow_opd.types import LossOutput
from tiny import GivenBatches

SHAPE = (64, 128)  # smaller tensors keep 32 bits


def trainer(folder: Path, *, rounds: int, bits: int) -> Trainer:
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(SHAPE, generator=draw))
    other = torch.nn.Parameter(torch.randn(SHAPE, generator=draw))  # both share the table of values
    target = torch.randn(SHAPE, generator=draw)

    def objective(batch: torch.Tensor) -> LossOutput:
        loss = (weight - target - batch).square().sum() + (other - target).square().sum()
        return LossOutput(loss, 1, {"loss": loss.detach()})

    return Trainer(
        parameters={"weight": weight, "other": other},
        source=GivenBatches([torch.tensor(0.1)]),
        objective=objective,
        settings=LoopSettings(
            rounds=rounds,
            optimizer=OptimizerSettings(learning_rate=1e-2, state_bits=bits),
            checkpoint=CheckpointSettings(every_minutes=1e-9),
        ),
        folder=folder,
        identity="eight",
    )


def test_eight_bits_train_nearly_what_32_bits_train_and_resume_exactly(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", rounds=20, bits=8)
    whole.run()
    states = whole.optimizer.state[whole.parameters["weight"]]
    assert {value.dtype for value in states.values() if torch.is_tensor(value)} == {
        torch.uint8,
        torch.float32,
    }
    exact = trainer(tmp_path / "exact", rounds=20, bits=32)
    start = exact.parameters["weight"].detach().clone()
    exact.run()
    moved = (exact.parameters["weight"] - start).norm()
    apart = (exact.parameters["weight"] - whole.parameters["weight"]).norm()
    assert 0 < apart < 0.1 * moved
    trainer(tmp_path / "cut", rounds=7, bits=8).run()
    again = trainer(tmp_path / "cut", rounds=20, bits=8)
    assert again.resume()
    again.run()
    assert torch.equal(again.parameters["weight"], whole.parameters["weight"])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with refused(ConfigError, value=8):
        build_optimizer([torch.nn.Parameter(torch.zeros(2))], OptimizerSettings(state_bits=8))
