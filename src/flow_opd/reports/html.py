"""From a run folder to one report.html that opens from disk: no scripts, no network, everything inside."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flow_opd.errors import DataError
from flow_opd.evaluation.metrics import find_metric
from flow_opd.evaluation.results import Difference, Estimate, Results, load_results
from flow_opd.files import write_text
from flow_opd.layout import CONFIG, MANIFEST, METRICS, PICTURES, REPORT, RESULTS
from flow_opd.reports import plots, tables
from flow_opd.reports.grid import Pictures, load_pictures, png_bytes

TILE_WIDTH = 96  # pixels on the page


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
    config = folder / CONFIG
    return Run(
        name=folder.resolve().name,
        results=load_results(folder / RESULTS),
        curves=load_curves(folder / METRICS),
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        pictures=load_pictures(folder / PICTURES),
        manifest=_load_manifest(folder / MANIFEST),
    )


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


def write_report(folder: Path) -> Path:
    """Writes report.html into a run folder, atomically, and returns its path.

    Args:
        folder: holds results.json; metrics.jsonl, config.yaml, images/ and manifest.json are shown if there.

    Raises:
        DataError: if results.json is missing, a file is malformed, or the folder cannot be written.
    """
    page = render_report(load_run(folder))
    target = folder / REPORT
    try:
        write_text(target, page)
    except OSError as error:
        raise DataError(
            "a report that cannot be written",
            value=str(target),
            allowed="a folder that this user may write, on a disk with room",
            fix=f"choose another run folder ({error.strerror})",
        ) from error
    return target


def render_report(run: Run) -> str:
    """Returns the page as HTML."""
    environment = Environment(
        loader=PackageLoader("flow_opd.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        num=tables.number,
        signed=tables.signed,
        interval=tables.interval,
        percent=tables.percent,
        duration=tables.duration,
        seeds_by_domain=tables.seeds_by_domain,
        images_per_prompt=tables.images_per_prompt,
    )
    results = run.results
    return environment.get_template("report.html.j2").render(
        run=run,
        results=results,
        protocol=results.protocol,
        headline=tables.headline(results),
        columns=_score_columns(results),
        tagged=[table for one in results.columns if (table := tables.tag_table(results, one))],
        forest=_forest(results),
        kept=_kept(results),
        panels=[(panel, Markup(panel.svg)) for panel in plots.curve_panels(run.curves)],
        pictures=_tiles(run.pictures),
        tile_width=TILE_WIDTH,
        facts=_facts(run.manifest),
    )


def _score_columns(results: Results) -> list[dict[str, Any]]:
    """The columns of the main table, each entry with its interval's place on the column's own scale."""
    best = tables.best_rows(results)
    columns = [(one.name, one.label, one.domain, one.decimals) for one in results.columns]
    columns.append(("average", "Average", "all", tables.AVERAGE_DECIMALS))
    described = []
    for metric, label, domain, decimals in columns:
        estimates = {row.name: tables.estimate_of(row, metric) for row in results.rows}
        measured = [one for one in estimates.values() if one is not None]
        low, high = (
            min((one.low for one in measured), default=0),
            max((one.high for one in measured), default=1),
        )
        described.append(
            {
                "label": label,
                "domain": domain,
                "decimals": decimals,
                "best": best.get(metric),
                "entries": {name: one and _placed(one, low, high) for name, one in estimates.items()},
            }
        )
    return described


def _placed(one: Estimate, low: float, high: float) -> dict[str, Any]:
    """A table entry with the ends and the middle of its interval in percent of a track from low to high."""
    left, middle, right = (plots.span_percent(value, low, high) for value in (one.low, one.mean, one.high))
    return {"estimate": one, "left": left, "middle": middle, "width": right - left}


def _forest(results: Results) -> Markup | None:
    """The paired differences, one panel per metric on its own prompts, the average first."""
    pairs = list(dict.fromkeys(one.pair for one in results.differences))
    titles = {"average": "average", **{one.name: one.label for one in results.columns}}
    panels: dict[str, list[Difference | None]] = {}
    for metric, title in titles.items():
        found = [results.difference(pair, metric) for pair in pairs]
        if any(found):
            panels[title] = found
    if not panels:
        return None
    return Markup(plots.forest(panels, [f"{first} − {second}" for first, second in pairs]))


def _kept(results: Results) -> dict[str, Any]:
    """The retained gains on one track from 0 to a little above the highest, with 100 % marked."""
    shares = {domain: one.share for domain, one in results.retention.items()}
    known = [share for share in shares.values() if share is not None]
    low, high = min([0.0, *(one.low for one in known)]), max([1.2, *(one.high for one in known)])
    rows = [
        {
            "domain": domain,
            "retention": one,
            "metric": find_metric(one.metric, results.protocol.metrics),
            "track": None if (share := shares[domain]) is None else _placed(share, low, high),
        }
        for domain, one in results.retention.items()
    ]
    return {"rows": rows, "all": plots.span_percent(1.0, low, high)}


def _tiles(pictures: Pictures | None) -> dict[str, Any] | None:
    """The picture grid with every tile as a data URI."""
    if pictures is None or not pictures.rows:
        return None
    rows = [
        {
            "row": row,
            "tiles": [
                "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode() for image in row.images
            ],
        }
        for row in pictures.rows
    ]
    return {
        "columns": pictures.columns,
        "rows": rows,
        "pixelated": pictures.rows[0].images.shape[2] <= TILE_WIDTH,
    }


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The plain values of the manifest; nested ones stay in the file."""
    return {key: value for key, value in manifest.items() if isinstance(value, str | int | float)}
