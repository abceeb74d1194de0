"""An adapter folder after a kill at any rename: wholly old or wholly new, never weights by another config."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flow_opd.adapters.files import write_files
from flow_opd.errors import AdapterError

OLD = {"weights": b"old", "config": b"old"}
NEW = {"weights": b"new", "config": b"new"}
CARD = {"README.md": b"card", "samples/one.png": b"picture"}
RENAMES = 2  # of a folder that is there: the old one away, the new one to its place


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def killed_write(folder: Path, at: int, *, after: bool) -> bool:
    """Writes in a process that dies before or after a rename; returns whether it came so far."""
    child = os.fork()
    if child == 0:
        rename, calls = os.replace, iter(range(1, 100))

        def dying(source: Path, target: Path) -> None:
            last = next(calls) == at
            if not last or after:
                rename(source, target)
            if last:
                os._exit(9)

        os.replace = dying
        try:
            write_files(folder, NEW)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adapter and its card."""
    folder = tmp_path / "adapter"
    (folder / "samples").mkdir(parents=True)
    for name, text in (OLD | CARD).items():
        (folder / name).write_bytes(text)
    return folder


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, RENAMES + 1))
def test_a_kill_leaves_the_old_folder_or_the_new_one(folder: Path, at: int, after: bool) -> None:
    assert killed_write(folder, at, after=after)
    retired = [each for each in folder.parent.glob(".tmp-*/old") if content(each) == OLD | CARD]
    if folder.exists():
        assert content(folder) == (NEW if (at, after) == (RENAMES, True) else OLD) | CARD
    else:
        assert len(retired) == 1  # between the two renames
    others = [each.name for each in folder.parent.iterdir() if each != folder]
    assert others
    assert all(name.startswith(".tmp-") and str(os.getpid()) not in name for name in others)
    write_files(folder, NEW)  # what a kill has left is in nobody's way
    assert content(folder) == NEW | (CARD if (at == 1 and not after) or (at == RENAMES and after) else {})


def test_there_is_no_further_rename(folder: Path) -> None:
    assert not killed_write(folder, RENAMES + 1, after=False)
    assert content(folder) == NEW | CARD
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("after", [False, True])
def test_a_new_folder_appears_by_one_rename(tmp_path: Path, after: bool) -> None:
    folder = tmp_path / "adapter"
    assert killed_write(folder, 1, after=after)
    assert folder.exists() == after
    assert content(folder) == (NEW if after else {})


@pytest.mark.parametrize("at", range(1, RENAMES + 1))
def test_a_rename_that_fails_changes_nothing(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = os.replace, iter(range(1, 100))

    def failing(source: Path, target: Path) -> None:
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(AdapterError, match="No space"):
        write_files(folder, NEW)
    assert content(folder) == OLD | CARD
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
