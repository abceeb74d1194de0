"""Prompts encoded once, kept on disk, and looked up from then on: the text encoders may leave memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flow_opd.errors import DataError
from flow_opd.processes import ALONE, Processes
from flow_opd.protocols import PromptEncoder
from flow_opd.shards import ShardFolder
from flow_opd.types import Conditioning, Prompt


class EmbeddingCache:
    """Encoded prompts in shards below one folder, for one identity of the encoders.

    A shard holds `embeds` [N, L, D] and `pooled` [N, P], and in its header the keys of the N texts. A damaged
    shard is made again, and filling goes on where it was killed.
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
        self._shards = ShardFolder(self.folder)
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
        self._shards.remove_damaged(processes)
        self._scan()
        wanted = self.missing(texts)
        processes.wait()  # until all have seen the same shards; the first new one would change the shares
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
                "prompt that is not in the embedding cache",
                value=absent[0],
                allowed=f"the {len(self._places)} texts in {self.folder}",
                fix="name the file with this prompt in the configuration, so that it is encoded first",
            )
        return Conditioning(
            self._rows("embeds", prompts),
            self._rows("pooled", prompts),
            tuple(prompt.task for prompt in prompts),
        )

    def _rows(self, name: str, prompts: Sequence[Prompt]) -> Tensor:
        places = [self._places[_key(prompt.text)] for prompt in prompts]
        return torch.stack([self._shards.row(shard, name, at) for shard, at in places])

    def _scan(self) -> None:
        """Finds out which text lies where."""
        self._places = {}
        for shard, header in self._shards.headers():
            try:
                keys = json.loads(header["texts"])
            except (KeyError, ValueError):  # damaged; `fill` removes it
                continue
            self._places |= {key: (shard, at) for at, key in enumerate(keys)}

    def _write(
        self, texts: list[str], encoder: PromptEncoder, batch_size: int, on_batch: Callable[[int], None]
    ) -> None:
        parts = []
        for batch in _batches(texts, batch_size):
            with torch.no_grad():
                parts.append(encoder.encode_prompts([Prompt(text, "") for text in batch]))
            on_batch(len(batch))
        whole = Conditioning.cat(parts)
        keys = json.dumps([_key(text) for text in texts])
        self._shards.write({"embeds": whole.embeds, "pooled": whole.pooled}, {"texts": keys})


def _batches(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
