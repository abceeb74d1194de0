"""Merges adapters into one, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flow_opd.adapters.merge_report import MergeReport
from flow_opd.adapters.merging import merge
from flow_opd.config.merge import MergeSettings
from flow_opd.files import write_json
from flow_opd.layout import ADAPTER, MERGE
from flow_opd.runs.adapters import load_lora, print_report
from flow_opd.runs.training import open_run, record


def run(settings: MergeSettings) -> Path:
    """Writes the merged adapter and merge.json (what was kept of each) and returns the run folder."""
    folder = open_run(settings.run)
    loras = [load_lora(each.adapter, settings.base, key="adapters.adapter") for each in settings.adapters]
    merged, report = merge(loras, settings.method.build(), settings.weights(), seed=settings.run.seed)
    record(settings, folder)
    merged.write(folder / ADAPTER, settings.base.path)
    names = [each.name for each in settings.adapters]
    write_json(folder / MERGE, report_json(report, names))
    print_report(report, names)
    return folder


def report_json(report: MergeReport, names: Sequence[str]) -> dict[str, Any]:
    """Returns the report as it stands in merge.json: adapters by name, energy by layer and by module."""
    values = asdict(report)
    values["teachers"] = dict(zip(names, values["teachers"], strict=True))
    modules = values.pop("modules")
    return {
        **values,
        "layers": {name: asdict(each) for name, each in report.layers.items()},
        "modules": modules,
    }
