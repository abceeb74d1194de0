"""Adapters by the names that a configuration gives them, and their merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flow_opd.adapters.formats.reading import adapter_folder, read_adapter
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.merge_methods import Combine, MergeMethod
from flow_opd.adapters.merge_report import MergeReport
from flow_opd.adapters.merging import merge
from flow_opd.config.base import Settings
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.file.reader import from_values
from flow_opd.config.locations import ASSET, hub_id
from flow_opd.config.merge import MergeMethodSettings
from flow_opd.config.recorded import base_of, recorded
from flow_opd.errors import ConfigError
from flow_opd.layout import ADAPTER, CONFIG
from flow_opd.processes import is_first_launched


def load_lora(name: str, base: BaseModelSettings, *, key: str, alpha: float | None = None) -> LoraWeights:
    """Returns the LoRA that a name means, and prints what was changed or does not agree.

    Args:
        name: a path, "asset:NAME", "owner/name" or "owner/name@revision".
        base: the base that it will sit on; says also whether the hub may be contacted.
        key: the configuration key that holds the name, for messages.
        alpha: of a file that does not say its own.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if it cannot be had from the hub, or is no LoRA that can be taken exactly.
    """
    lora = read_adapter(adapter_folder(name, key=key, offline=base.offline), alpha=alpha)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not is_first_launched())
    for note in (*lora.notes, *_other_base(lora, base)):
        console.print(f"note: adapter {name}: {note}", markup=False)
    return lora


def load_adapter(source: str | Path, *, alpha: float | None = None, offline: bool = False) -> LoraWeights:
    """Returns an adapter that needs no model, float32 on the CPU.

    Args:
        source: PEFT folder or LoRA file of any known kind, 'asset:teachers/NAME', run folder, or hub id
            'owner/name[@revision]'.
        alpha: of a file that does not say its own.
        offline: takes a hub repository from the cache of this machine.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if it cannot be had from the hub, or is no LoRA that can be taken exactly.
    """
    folder = adapter_folder(adapter_of(str(source)), key="source", offline=offline)
    return read_adapter(folder, alpha=alpha)


class _MethodAlone(Settings):
    """One merge method."""

    method: MergeMethodSettings
    """How to merge."""


def merge_adapters(
    adapters: Sequence[LoraWeights],
    weights: Sequence[float] | None = None,
    method: str | MergeMethodSettings | Combine = "mean",
    *,
    rank: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> LoraWeights:
    """Returns one adapter made of several, by their weight changes; its notes say what was kept.

    Args:
        adapters: of one base.
        weights: of each, used as they are; None: 1 / K. Method 'mean' takes none, 'weighted' needs them.
        method: 'mean', 'weighted', 'svd', 'ties', 'dare', that of an installed package or
            'package.module:Name'; its settings; or a function, as `adapters.merge_methods.Combine` says.
        rank: of the result, for methods that cut ('svd', 'ties', 'dare').
        alpha: of the result, whose training depends on it and whose effect does not; None: 2 x rank.
        seed: of methods that draw.

    Raises:
        ConfigError: if there is no such method, or rank or alpha do not fit it.
        AdapterError: if the adapters do not fit each other, or the weights do not fit the method.
    """
    if isinstance(method, str):
        named = {"name": method, **({} if rank is None else {"rank": rank})}
        chosen = from_values({"method": named}, _MethodAlone, source="merge").method.build()
        chosen = chosen if alpha is None else replace(chosen, alpha=alpha)
    elif isinstance(method, MergeMethodSettings):
        chosen = method.build()
    else:
        chosen = MergeMethod(getattr(method, "__name__", "function"), method, rank=rank, alpha=alpha)
    merged, report = merge(adapters, chosen, weights, seed=seed)
    lost = f"merge {report.method}: {100 * report.lost_energy:.2f} % of the energy lost"
    return replace(merged, notes=(*merged.notes, lost, *report.notes))


def adapter_of(source: str) -> str:
    """Returns the name of the adapter in a run folder, or `source` itself if it is none."""
    inside = Path(source) / ADAPTER
    return str(inside) if inside.is_dir() else source


def base_for(source: str, *, alpha: float | None = None) -> BaseModelSettings:
    """Returns the base of a run folder or adapter: what the run recorded, or what the adapter names.

    Raises:
        ConfigError: if neither says it.
    """
    for folder in (Path(source), Path(source).parent):
        if (folder / CONFIG).is_file():
            return base_of(recorded(folder))
    named = read_adapter(adapter_folder(source, key="RUN"), alpha=alpha).base_model
    if named is None:
        raise ConfigError(
            "an adapter that does not name its base",
            value=source,
            allowed="a run folder, or an adapter with base_model_name_or_path",
            fix="say it with --base",
        )
    tokens = 0 if named.startswith(ASSET) else 128  # any value: callers read no prompt
    return BaseModelSettings(path=named, max_sequence_length=tokens)


def _other_base(lora: LoraWeights, base: BaseModelSettings) -> list[str]:
    """Returns a warning where two hub ids differ; models of one size share shapes."""
    if lora.base_model is None or lora.base_model == base.path:
        return []
    if hub_id(lora.base_model) is None or hub_id(base.path) is None:
        return []
    return [
        f"it says that it belongs to {lora.base_model}, but the base is {base.path}; "
        "the shapes fit or will be refused, the content may not"
    ]


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
