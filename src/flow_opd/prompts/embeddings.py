"""Prompts encoded once, kept on disk, and looked up from then on: the text encoders may leave memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flow_opd.errors import DataError, explain
from flow_opd.files import sha256, write_bytes
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import PromptEncoder
from flow_opd.types import Conditioning, Prompt

SUFFIX = ".safetensors"


class EmbeddingCache:
    """Encoded prompts in shards below one folder, for one identity of the encoders.

    A shard holds `embeds` [N, L, D] and `pooled` [N, P], in its header the keys of the N texts, and is named
    by the hash of its bytes: a damaged shard does not have its name's hash, and is made again. Shards are
    written whole or not at all, so filling goes on where it was killed.
    """

    def __init__(self, folder: Path, identity: str, *, shard_size: int = 256) -> None:
        """Reads the headers of the shards that are there.

        Args:
            folder: of all caches; this one has a sub-folder of its own.
            identity: of the encoders and the text length: other encoders share nothing with this cache.
            shard_size: prompts of one file; 256 prompts of Stable Diffusion 3.5 at 128 T5 tokens are .4 GB.
        """
        self.folder = folder / identity
        self.shard_size = shard_size
        self._open: dict[Path, Any] = {}
        self._places: dict[str, tuple[Path, int]] = {}  # key of a text -> shard and row
        self._scan()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Returns the texts that are not in the cache, each once, in order."""
        return [text for text in dict.fromkeys(texts) if _key(text) not in self._places]

    def fill(
        self,
        texts: Sequence[str],
        encoder: PromptEncoder,
        *,
        batch_size: int = 16,
        processes: Processes = ALONE,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Checks what is there, throws away what is damaged, and encodes what is missing.

        Args:
            texts: that will be asked for.
            encoder: whose identity the cache has.
            batch_size: texts that are encoded at once.
            processes: who shares the work; all see the same folder.
            on_batch: called with the number of texts after each batch.
        """
        self._scan()
        shards = sorted({place[0] for place in self._places.values()})
        processes.wait()  # all have the same list before anybody removes something
        for number in processes.rows(len(shards)):
            if sha256(shards[number]) != shards[number].stem:
                shards[number].unlink()
        processes.wait()
        self._scan()
        wanted = self.missing(texts)
        own = [wanted[row] for row in processes.rows(len(wanted))]
        for start in range(0, len(own), self.shard_size):
            self._write(own[start : start + self.shard_size], encoder, batch_size, on_batch)
        processes.wait()
        self._scan()

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Returns the conditioning of prompts, in the number format of the encoders.

        Raises:
            DataError: if a text was not put into the cache.
        """
        absent = self.missing([prompt.text for prompt in prompts])
        if absent:
            raise DataError(
                explain(
                    "prompt that is not in the embedding cache",
                    value=absent[0],
                    allowed=f"the {len(self._places)} texts in {self.folder}",
                    fix="name the file with this prompt in the configuration, so that it is encoded first",
                )
            )
        rows = [self._row(prompt.text) for prompt in prompts]
        return Conditioning(
            torch.stack([row["embeds"] for row in rows]),
            torch.stack([row["pooled"] for row in rows]),
            tuple(prompt.task for prompt in prompts),
        )

    def _row(self, text: str) -> Mapping[str, torch.Tensor]:
        shard, row = self._places[_key(text)]
        if shard not in self._open:
            self._open[shard] = safe_open(shard, framework="pt")
        return {name: self._open[shard].get_slice(name)[row] for name in ("embeds", "pooled")}

    def _scan(self) -> None:
        """Finds out which text lies where; a file that cannot be read counts as absent and is removed."""
        self._places, self._open = {}, {}
        for shard in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                with safe_open(shard, framework="pt") as reader:
                    keys = json.loads(reader.metadata()["texts"])
            except (OSError, SafetensorError, TypeError, KeyError, ValueError):
                shard.unlink(missing_ok=True)
                continue
            self._places |= {key: (shard, row) for row, key in enumerate(keys)}

    def _write(
        self, texts: list[str], encoder: PromptEncoder, batch_size: int, on_batch: Callable[[int], None]
    ) -> None:
        parts = []
        for batch in _batches(texts, batch_size):
            with torch.no_grad():
                parts.append(encoder.encode_prompts([Prompt(text, "") for text in batch]))
            on_batch(len(batch))
        whole = Conditioning.cat(parts)
        tensors = {"embeds": whole.embeds.cpu().contiguous(), "pooled": whole.pooled.cpu().contiguous()}
        content = save(tensors, metadata={"texts": json.dumps([_key(text) for text in texts])})
        write_bytes(self.folder / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}", content)


def _batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
