"""Merges of adapters by their settings, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.merge_methods import MergeOptions
from flow_opd.adapters.merge_report import MergeReport
from flow_opd.adapters.merging import merge
from flow_opd.config.merge import CutMergeSettings, DAREMergeSettings, MergeMethodSpec, TIESMergeSettings


def merge_by(
    method: MergeMethodSpec, loras: Sequence[LoraWeights], weights: Sequence[float] | None, *, seed: int
) -> tuple[LoraWeights, MergeReport]:
    """Returns the merge that a specification describes, and its report."""
    options = MergeOptions(
        density=method.density if isinstance(method, TIESMergeSettings) else MergeOptions.density,
        drop=method.drop if isinstance(method, DAREMergeSettings) else MergeOptions.drop,
        seed=seed,
    )
    if isinstance(method, CutMergeSettings):
        return merge(loras, weights, method.name, rank=method.rank, alpha=method.alpha, options=options)
    return merge(loras, weights, method.name, options=options)


def print_report(report: MergeReport, names: Sequence[str]) -> None:
    """Prints what was kept of each adapter, and in which layers the cut to the rank lost most and least."""
    console = Console(stderr=True)
    console.print(
        f"merge [bold]{report.method}[/bold]: rank {report.rank}, alpha {report.alpha:g}, "
        f"{100 * report.lost_energy:.2f} % of the energy lost"
    )
    table = Table(
        "adapter", "cosine with the merge", "norm of the merge / its norm", box=None, header_style="dim"
    )
    for name, teacher in zip(names, report.teachers, strict=True):
        values = (teacher.cosine, teacher.norm_ratio)
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    if report.lost_energy > 1e-4:
        kept = sorted((layer.kept_energy, name) for name, layer in report.layers.items())
        (least, worst), (most, best) = kept[0], kept[-1]
        console.print(
            f"energy kept by layer: from {100 * least:.1f} % ({worst}) to {100 * most:.1f} % ({best})"
        )
    for name, teacher in zip(names, report.teachers, strict=True):
        if teacher.missing:
            console.print(
                f"note: {name} does not change {len(teacher.missing)} of {len(report.modules)} modules, such "
                f"as {teacher.missing[0]}; they count as zero"
            )
    for note in report.notes:
        console.print(f"note: {note}")
