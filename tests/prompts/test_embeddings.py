"""The embedding cache gives what the encoders give, fills what is missing only, and notices damage."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from errors import refused
from flow_opd import shards as shards_module
from flow_opd.errors import DataError
from flow_opd.processes import Processes
from flow_opd.prompts.embeddings import EmbeddingCache
from flow_opd.types import Conditioning, Prompt
from tiny import PROMPTS, Tiny

TEXTS = [prompt.text for prompt in PROMPTS]


class Counting:
    """The tiny base's encoders, which count what they are asked."""

    def __init__(self) -> None:
        self.backbone = Tiny().backbone
        self.asked: list[str] = []
        self.lock = threading.Lock()  # where threads stand for processes, they share one tokenizer

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        with self.lock:
            self.asked += [prompt.text for prompt in prompts]
            return self.backbone.encode_prompts(prompts)


@pytest.fixture
def encoder() -> Counting:
    return Counting()


def filled(folder: Path, encoder: Counting, texts: Sequence[str] = TEXTS) -> EmbeddingCache:
    cache = EmbeddingCache(folder, "tiny", shard_size=2)
    cache.fill(texts, encoder, batch_size=2)
    return cache


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "tiny").iterdir())


def test_a_lookup_is_what_the_encoders_give(tmp_path: Path, encoder: Counting) -> None:
    cache = filled(tmp_path, encoder)
    asked = [PROMPTS[3], PROMPTS[0], PROMPTS[3]]
    found, expected = cache.encode_prompts(asked), encoder.backbone.encode_prompts(asked)
    torch.testing.assert_close(found.embeds, expected.embeds)
    torch.testing.assert_close(found.pooled, expected.pooled)
    assert found.tasks == expected.tasks
    assert len(shards(tmp_path)) == 2


def test_only_what_is_missing_is_encoded(tmp_path: Path, encoder: Counting) -> None:
    filled(tmp_path, encoder, [*TEXTS[:3], TEXTS[0]])
    assert encoder.asked == TEXTS[:3]
    again = filled(tmp_path, encoder)
    assert encoder.asked == TEXTS
    assert again.missing(TEXTS) == []


def test_other_encoders_share_nothing(tmp_path: Path, encoder: Counting) -> None:
    filled(tmp_path, encoder)
    assert EmbeddingCache(tmp_path, "other").missing(TEXTS) == TEXTS


def test_a_text_that_was_not_cached_is_refused(tmp_path: Path, encoder: Counting) -> None:
    with refused(DataError, value="a green circle"):
        filled(tmp_path, encoder).encode_prompts([Prompt("a green circle", "shapes")])


@pytest.mark.parametrize("damage", ["flipped bit", "cut off"])
def test_a_damaged_shard_alone_is_made_again(tmp_path: Path, encoder: Counting, damage: str) -> None:
    filled(tmp_path, encoder)
    before = {file: file.stat().st_mtime_ns for file in shards(tmp_path)}
    broken, whole = shards(tmp_path)
    content = bytearray(broken.read_bytes())
    content[-3] ^= 1
    broken.write_bytes(content if damage == "flipped bit" else content[:100])
    cache = filled(tmp_path, encoder)
    assert len(encoder.asked) == 6  # four at first, two again
    assert set(shards(tmp_path)) == set(before)
    assert whole.stat().st_mtime_ns == before[whole]
    assert cache.missing(TEXTS) == []


@dataclass(frozen=True)
class Threads(Processes):
    """Processes that are threads of this one; they meet where the real ones do."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def wait(self) -> None:
        self.barrier.wait(60)


@pytest.mark.slow
def test_a_process_that_lists_the_shards_late_still_knows_its_share(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = threading.Barrier(2)
    caches = [EmbeddingCache(tmp_path, "tiny", shard_size=1) for _ in range(2)]
    scan = caches[1]._scan

    def late() -> None:
        time.sleep(0.5)  # a slow file system
        scan()

    monkeypatch.setattr(caches[1], "_scan", late)

    def fill(index: int) -> None:
        caches[index].fill(TEXTS, encoder, processes=Threads(index, 2, barrier=barrier))

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(2)))
    assert sorted(encoder.asked) == sorted(TEXTS)
    assert [cache.missing(TEXTS) for cache in caches] == [[], []]


def test_only_old_leftovers_are_swept_up(tmp_path: Path, encoder: Counting) -> None:
    """Another run may be writing into the same cache."""
    old, fresh = tmp_path / "tiny" / ".tmp-old", tmp_path / "tiny" / ".tmp-fresh"
    old.parent.mkdir()
    for file in (old, fresh):
        file.write_text("half a shard")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    filled(tmp_path, encoder)
    assert not old.exists()
    assert fresh.exists()


def test_a_full_disk_says_which_file_had_no_room(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        filled(tmp_path, encoder)
    assert str(told.value.filename).startswith(str(tmp_path / "tiny"))
    assert shards(tmp_path) == []


def test_a_full_disk_loses_nothing_that_was_finished(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(target: Path, content: bytes) -> None:
        if shards_written := list((tmp_path / "tiny").glob("*")):
            raise OSError(errno.ENOSPC, "No space left on device", str(shards_written[0]))
        original(target, content)

    original = shards_module.write_bytes
    monkeypatch.setattr(shards_module, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        filled(tmp_path, encoder)
    monkeypatch.undo()
    assert len(shards(tmp_path)) == 1
    filled(tmp_path, encoder)
    assert encoder.asked == [*TEXTS, *TEXTS[2:]]
