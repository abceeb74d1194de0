"""What results.json holds: the classes that an evaluation fills and reports read. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from flow_opd.config.evaluate import RolesSettings
from flow_opd.errors import DataError
from flow_opd.files import sha256


class Part(BaseModel):
    """Base of everything in results.json; keys that a reader does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Estimate(Part):
    """A mean with its interval and how many images stand behind it."""

    mean: float
    low: float
    high: float
    n: int  # images judged
    missing: int = 0  # images that could not be judged


class Row(Part):
    """One policy: every metric on every domain where it was measured, and the average score."""

    name: str
    metrics: Mapping[str, Estimate]  # metric -> estimate on the metric's own prompts
    average: Estimate | None = None  # None = some metric of the average was not measured on its own prompts
    cells: Mapping[str, Mapping[str, Estimate]] = Field(default_factory=dict)
    """Domain -> metric -> estimate on the prompts of the domain."""
    tags: Mapping[str, Mapping[str, Estimate]] = Field(default_factory=dict)
    """Metric that is a mean over tags -> tag -> estimate on the prompts of the tag."""


class Compared(Part):
    """Which rows a difference compares, and in what."""

    pair: tuple[str, str]
    metric: str  # or "average"
    domain: str | None = None  # None for the average


class Difference(Estimate, Compared):
    """The first row of the pair minus the second, over the same prompts and seeds."""


class Retention(Part):
    """The kept share of a teacher's gain; without numbers where the teacher has no clear gain to keep."""

    metric: str
    teacher: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    teacher_gain: Estimate
    student_gain: Estimate

    @property
    def share(self) -> Estimate | None:
        """The kept share with its interval, 1 = all of the gain; None where it has no numbers."""
        if self.mean is None or self.low is None or self.high is None:
            return None
        return Estimate(mean=self.mean, low=self.low, high=self.high, n=self.n)


class Metric(Part):
    """One number per image, with everything a reader needs to compare it with other people's."""

    name: str
    label: str
    domain: str  # the prompts on which it counts
    scale: tuple[float | None, float | None]  # lowest and highest value; PickScore has no sharp ends
    divisor: float | None  # its weight in the average is 1 / (4 divisor); None = not part of it
    decimals: int
    definition: str
    by_tag: bool = False  # the score is the mean over the tags of its prompts of a tag's mean


class PromptFile(Part):
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
        return PromptFile(name=path.name, sha256=sha256(path), count=count)


RESAMPLED = (
    "prompts, each with all its seeds (lines of the same GenEval metadata, or else of the same text, are one "
    "prompt), P - 1 of P, within each tag where a score is a mean over tags"
)


class ProtocolCard(Part):
    """How the images were made and judged: what has to be equal before two results may be compared."""

    steps: int  # sampling steps
    dynamics: str  # "ode", "sde", ...
    guidance: Mapping[str, float]  # row name -> guidance scale
    resolution: tuple[int, int]  # height, width in pixels
    prompts: Mapping[str, PromptFile]  # domain -> file
    seeds: Mapping[str, tuple[int, ...]]  # domain -> seeds drawn per prompt
    judges: Mapping[str, str] = Field(default_factory=dict)  # reward -> the model or rule that judged
    metrics: tuple[Metric, ...]
    resampled: str = RESAMPLED
    bootstrap_seed: int = 0
    bootstrap_resamples: int = 4000
    level: float = 0.95
    hash: str = ""  # first 12 hex digits of the SHA-256 of all of the above; left out, it is computed

    @model_validator(mode="after")
    def _hashed(self) -> ProtocolCard:
        if not self.hash:
            content = canonical_json(self.model_dump(mode="json", exclude={"hash"}))
            # Around `frozen`, which is for everybody else.
            self.__dict__["hash"] = hashlib.sha256(content.encode()).hexdigest()[:12]
        return self

    @model_serializer(mode="wrap")
    def _sorted(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The card as it is hashed, with sorted keys, and its hash at the end."""
        content: dict[str, Any] = dump(self)
        last = {key: content.pop(key) for key in ("hash",) if key in content}
        return json.loads(canonical_json(content)) | last


def canonical_json(data: Mapping[str, Any]) -> str:
    """Returns `data` as JSON with sorted keys and no spaces: equal data, equal text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Results(Part):
    """Everything that an evaluation has found out: results.json."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    retention: Mapping[str, Retention] = Field(default_factory=dict)  # domain -> retained gain
    roles: RolesSettings
    protocol: ProtocolCard
    wall_seconds: float | None = None
    peak_rss_mb: float | None = None

    @property
    def averaged(self) -> list[Metric]:
        """The metrics of the average score, in the order of the protocol."""
        return [metric for metric in self.protocol.metrics if metric.divisor is not None]

    @property
    def columns(self) -> list[Metric]:
        """The metrics of the main table: those of the average score, then other people's rewards."""
        own = [metric for metric in self.protocol.metrics if metric.divisor is None]
        return [*self.averaged, *(metric for metric in own if metric.name in self.protocol.judges)]

    def row(self, name: str) -> Row | None:
        """Returns the row called `name`, if there is one."""
        return next((row for row in self.rows if row.name == name), None)

    def difference(self, pair: tuple[str, str], metric: str) -> Difference | None:
        """Returns the difference of `pair` in the average or in a metric on its own prompts, if measured."""
        domains = {one.name: one.domain for one in self.protocol.metrics}
        for one in self.differences:
            if one.pair == pair and one.metric == metric and one.domain == domains.get(metric):
                return one
        return None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON data in the layout of results.json, where the averages stand once more alone."""
        data = self.model_dump(mode="json")
        found = {key: data.pop(key) for key in ("rows", "differences", "retention")}
        averages = {row["name"]: row["average"] for row in found["rows"] if row["average"] is not None}
        return {**found, "average": averages, **data}


def load_results(file: Path) -> Results:
    """Returns results.json.

    Raises:
        DataError: if the file is missing or malformed.
    """
    if not file.is_file():
        raise DataError(
            "a run without results",
            value=str(file),
            allowed="a folder in which an evaluation has ended",
            fix="evaluate the run first, then report on it",
        )
    try:
        return Results.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{file.name}: {where}: {first['msg']}",
            value=str(file),
            allowed="what the evaluation writes",
            fix="evaluate the run again",
        ) from error
