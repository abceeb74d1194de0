"""Checkpoint folders: whole or absent, verified, and clear about damage."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import refused
from flow_opd.config.common import OptimizerSettings
from flow_opd.errors import CheckpointError
from flow_opd.training.checkpoint import (
    CheckpointFolder,
    Progress,
    Snapshot,
    optimizer_tensors,
    restore_optimizer,
)
from flow_opd.training.optimizer import build_optimizer
from tiny import SmallNet

FILES = ("parameters.safetensors", "optimizer.safetensors", "average.safetensors", "state.json")


def snapshot(round_index: int) -> Snapshot:
    draw = torch.Generator().manual_seed(round_index)
    tensors = {"a.weight": torch.randn(3, 2, generator=draw), "b": torch.randn(4, generator=draw)}
    moments = {"b:exp_avg": torch.randn(4, generator=draw), "b:step": torch.tensor(7.0)}
    return Snapshot(Progress(round_index, 2 * round_index, 1.5), tensors, moments, {})


@pytest.fixture
def saved(tmp_path: Path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    for index in (1, 2, 3):
        folder.save(snapshot(index), identity="me")
    return folder


def test_the_newest_comes_back_whole_and_old_ones_go(saved: CheckpointFolder) -> None:
    found = saved.load(identity="me")
    assert found is not None
    assert found.progress == Progress(3, 6, 1.5)
    expected = snapshot(3)
    for kind in ("parameters", "optimizer", "average"):
        one, other = getattr(found, kind), getattr(expected, kind)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert all(one[key].shape == other[key].shape for key in one)
    assert sorted(path.name for path in saved.folder.iterdir()) == ["round-0000002", "round-0000003"]


def test_a_full_disk_keeps_the_last_checkpoint(
    saved: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        saved.save(snapshot(4), identity="me")
    assert str(told.value.filename).endswith("parameters.safetensors")
    monkeypatch.undo()
    found = saved.load(identity="me")
    assert found is not None
    assert found.progress.round == 3
    assert not list(saved.folder.glob(".tmp-*"))


def test_nothing_is_there_before_the_first(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none").load(identity="me") is None
    assert CheckpointFolder(tmp_path / "none").latest() is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "missing", "bit flip", "other text"])
def test_damage_is_refused_with_the_folder_and_a_way_out(
    saved: CheckpointFolder, file: str, damage: str
) -> None:
    newest = saved.latest()
    assert newest is not None
    content = (newest / file).read_bytes()
    if damage == "missing":
        (newest / file).unlink()
    elif damage == "truncated":
        (newest / file).write_bytes(content[: len(content) // 2])
    elif damage == "other text":
        (newest / file).write_text("[1, 2]")
    elif file == "state.json":
        (newest / file).write_text(content.decode().replace('"step": 6', '"step": 7'))
    else:
        (newest / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"damaged.*round-0000003.*To fix: delete this folder"):
        saved.load(identity="me")


def test_after_deleting_the_damaged_one_the_one_before_serves(saved: CheckpointFolder) -> None:
    newest = saved.latest()
    assert newest is not None
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    found = saved.load(identity="me")
    assert found is not None
    assert found.progress.round == 2


def test_other_settings_are_refused(saved: CheckpointFolder) -> None:
    with refused(CheckpointError, names=["round-0000003 of me"]):
        saved.load(identity="you")


def test_half_written_checkpoints_are_never_seen_and_swept_up(saved: CheckpointFolder) -> None:
    half = saved.folder / ".tmp-round"
    half.mkdir()
    (half / "state.json").write_text(json.dumps({"identity": "me"})[:9])
    found = saved.load(identity="me")
    assert found is not None
    assert found.progress.round == 3
    for whole in saved.folder.glob("round-*"):
        whole.rename(saved.folder.parent / whole.name)
    assert saved.load(identity="me") is None  # the half-written one is no checkpoint
    for whole in saved.folder.parent.glob("round-*"):
        whole.rename(saved.folder / whole.name)
    saved.save(snapshot(4), identity="me")
    assert sorted(path.name for path in saved.folder.iterdir()) == ["round-0000003", "round-0000004"]


def test_an_error_while_writing_leaves_nothing(saved: CheckpointFolder) -> None:
    broken: Any = {"one": torch.zeros(4), "two": "no tensor"}
    bad = Snapshot(Progress(9, 9), broken, {}, {})
    with pytest.raises(AttributeError, match="detach"):
        saved.save(bad, identity="me")
    assert sorted(path.name for path in saved.folder.iterdir()) == ["round-0000002", "round-0000003"]


def test_the_optimizer_goes_on_as_if_nothing_happened() -> None:
    runs = []
    for interrupted in (False, True):
        net = SmallNet(0)
        parameters = dict(net.named_parameters())
        optimizer = build_optimizer(parameters.values(), OptimizerSettings(learning_rate=1e-2))
        for step in range(6):
            if interrupted and step == 3:
                kept = {
                    name: value.clone() for name, value in optimizer_tensors(optimizer, parameters).items()
                }
                assert len(kept) == 3 * len(parameters)
                optimizer = build_optimizer(parameters.values(), OptimizerSettings(learning_rate=1e-2))
                restore_optimizer(optimizer, parameters, kept)
            optimizer.zero_grad()
            draw = torch.Generator().manual_seed(step)
            net.net(torch.randn(4, 9, generator=draw)).square().sum().backward()
            optimizer.step()
        runs.append(parameters)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
