"""The protocol card: what has to be equal before two results may be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flow_opd.errors import DataError
from flow_opd.evaluation.intervals import Bootstrap
from flow_opd.evaluation.metrics import METRICS, Metric
from flow_opd.files import sha256


@dataclass(frozen=True)
class PromptFile:
    """A file of held-out prompts, known by its content."""

    name: str
    sha256: str
    count: int  # prompts that were evaluated, from the start of the file

    @staticmethod
    def of(path: Path, count: int) -> PromptFile:
        """Returns the card entry of the file at `path`.

        Raises:
            DataError: if there is no such file.
        """
        if not path.is_file():
            raise DataError(
                "a prompts file that is not there",
                value=str(path),
                allowed="a text or jsonl file",
                fix="check the path",
            )
        return PromptFile(path.name, sha256(path), count)


RESAMPLED = (
    "prompts, each with all its seeds (lines of the same GenEval metadata, or else of the same text, are one "
    "prompt), P - 1 of P, within each tag where a score is a mean over tags"
)


@dataclass(frozen=True)
class ProtocolCard:
    """How the images were made and judged."""

    steps: int  # sampling steps
    dynamics: str  # "ode", "sde", ...
    guidance: Mapping[str, float]  # row name -> guidance scale
    resolution: tuple[int, int]  # height, width in pixels
    prompts: Mapping[str, PromptFile]  # domain -> file
    seeds: Mapping[str, tuple[int, ...]]  # domain -> seeds drawn per prompt
    judges: Mapping[str, str] = field(default_factory=dict)  # reward -> the model or rule that judged
    metrics: tuple[Metric, ...] = METRICS
    resampled: str = RESAMPLED
    bootstrap_seed: int = 0
    bootstrap_resamples: int = 4000
    level: float = 0.95

    def bootstrap(self) -> Bootstrap:
        """Returns the bootstrap that this card promises."""
        return Bootstrap(self.bootstrap_seed, self.bootstrap_resamples, self.level)

    def to_json(self) -> dict[str, Any]:
        """Returns the card as plain JSON data, with its own short hash under "hash"."""
        card: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        return card | {"hash": self.short_hash()}

    def short_hash(self) -> str:
        """Returns the first 12 hex digits of the SHA-256 of the card's canonical JSON."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:12]


def canonical_json(data: Mapping[str, Any]) -> str:
    """Returns `data` as JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
