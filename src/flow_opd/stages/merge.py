"""Merges adapters into one, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.merge_methods import MergeOptions
from flow_opd.adapters.merging import MergeReport, merge
from flow_opd.config.merge import (
    DAREMergeSettings,
    MergeMethodSpec,
    MergeSettings,
    SVDMergeSettings,
    TIESMergeSettings,
)
from flow_opd.files import write_json
from flow_opd.stages.adapters import load_lora
from flow_opd.stages.training import ADAPTER, open_run, record


def run(settings: MergeSettings, *, resume: bool) -> Path:
    """Writes the merged adapter and merge.json (what was kept of each) and returns the run folder."""
    folder = open_run(settings.run)
    loras = [load_lora(each.adapter, settings.base, key="adapters.adapter") for each in settings.adapters]
    merged, report = merge_by(settings.method, loras, settings.weights(), seed=settings.run.seed)
    record(settings, folder)
    merged.write(folder / ADAPTER, settings.base.path)
    write_json(folder / "merge.json", asdict(report))
    print_report(report, [each.name for each in settings.adapters])
    return folder


def merge_by(
    method: MergeMethodSpec, loras: Sequence[LoraWeights], weights: Sequence[float] | None, *, seed: int
) -> tuple[LoraWeights, MergeReport]:
    """Returns the merge that a specification describes, and its report."""
    options = MergeOptions(
        density=method.density if isinstance(method, TIESMergeSettings) else MergeOptions.density,
        drop=method.drop if isinstance(method, DAREMergeSettings) else MergeOptions.drop,
        seed=seed,
    )
    rank = (
        method.rank if isinstance(method, SVDMergeSettings | TIESMergeSettings | DAREMergeSettings) else None
    )
    return merge(loras, weights, method.name, rank=rank, options=options)


def print_report(report: MergeReport, names: Sequence[str]) -> None:
    """Prints what was kept of each adapter."""
    console = Console(stderr=True)
    console.print(
        f"merge [bold]{report.method}[/bold]: rank {report.rank}, "
        f"{100 * report.lost_energy:.2f} % of the energy lost"
    )
    for name, teacher in zip(names, report.teachers, strict=True):
        if teacher.cosine is not None and teacher.norm_ratio is not None:
            console.print(f"  {name}: cosine {teacher.cosine:.3f}, norm ratio {teacher.norm_ratio:.3f}")
    for note in report.notes:
        console.print(f"  note: {note}")
