"""A run folder as typed data: results.json, metrics.jsonl, config.yaml, images/, manifest.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flow_opd.errors import DataError
from flow_opd.reports.grid import Pictures, load_pictures


class Part(BaseModel):
    """Base of what is read from results.json; further keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Cell(Part):
    """A mean with its 95 % interval and the number of images behind it."""

    mean: float
    low: float
    high: float
    n: int
    missing: int = 0


class Row(Part):
    """One policy."""

    name: str
    metrics: dict[str, Cell]  # metric -> cell on the metric's own prompts
    average: Cell | None = None
    cells: dict[str, dict[str, Cell]] = Field(default_factory=dict)  # domain -> metric -> cell
    tags: dict[str, dict[str, Cell]] = Field(
        default_factory=dict
    )  # metric that is a mean of tags -> tag -> cell


class Difference(Cell):
    """First minus second of `pair`, over the same prompts and seeds."""

    pair: tuple[str, str]
    metric: str
    domain: str | None = None


class Retention(Part):
    """The share of a teacher's gain that the student keeps."""

    metric: str
    teacher: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    teacher_gain: Cell
    student_gain: Cell


class Roles(Part):
    """Which row is what."""

    base: str
    student: str | None = None
    merge: str | None = None
    teachers: dict[str, str] = Field(default_factory=dict)
    baselines: tuple[str, ...] = ()


class Metric(Part):
    """How a metric is called, read and printed."""

    name: str
    label: str
    domain: str
    divisor: float | None
    decimals: int
    definition: str


class PromptFile(Part):
    """A file of held-out prompts."""

    name: str
    sha256: str
    count: int


class Protocol(Part):
    """How the images were made and judged."""

    steps: int
    dynamics: str
    guidance: dict[str, float]
    resolution: tuple[int, int]
    prompts: dict[str, PromptFile]
    seeds: dict[str, tuple[int, ...]]  # by domain
    judges: dict[str, str] = Field(default_factory=dict)
    metrics: tuple[Metric, ...]
    resampled: str
    bootstrap_resamples: int
    level: float
    hash: str


class Results(Part):
    """results.json."""

    rows: tuple[Row, ...]
    roles: Roles
    protocol: Protocol
    differences: tuple[Difference, ...] = ()
    retention: dict[str, Retention] = Field(default_factory=dict)
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


@dataclass(frozen=True)
class Run:
    """Everything in a run folder that a report shows; all but the results may be missing."""

    name: str
    results: Results
    curves: dict[str, list[tuple[float, float]]]  # key -> (step, value) in the order of the file
    config: str | None
    pictures: Pictures | None
    manifest: dict[str, Any]


def load_run(folder: Path) -> Run:
    """Returns the content of a run folder.

    Raises:
        DataError: if results.json is missing, or any file is there and malformed.
    """
    config = folder / "config.yaml"
    return Run(
        name=folder.resolve().name,
        results=load_results(folder / "results.json"),
        curves=load_curves(folder / "metrics.jsonl"),
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        pictures=load_pictures(folder / "images"),
        manifest=_load_manifest(folder / "manifest.json"),
    )


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


def load_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns key -> (step, value) from a metrics.jsonl; no curves where there is no file.

    Raises:
        DataError: with the line number, if a line is no object of numbers with a step.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    if not file.is_file():
        return curves
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = float(entry.pop("step"))
            entry.pop("time", None)
            for key, value in entry.items():
                curves.setdefault(key, []).append((step, float(value)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{file.name}:{number} is not a line of metrics",
                value=line[:80],
                allowed='an object such as {"step": 1, "time": 0.5, "loss": 0.1}, numbers only',
                fix="remove the line, or train again",
            ) from error
    return curves


def _load_manifest(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            "a damaged manifest", value=str(file), allowed="JSON", fix="write it again or remove it"
        ) from error
    if not isinstance(manifest, dict):
        raise DataError(
            "a manifest that is no object", value=str(file), allowed="a JSON object", fix="remove it"
        )
    return manifest
