"""Adapters by the names that a configuration gives them: read, checked against the base, and said."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from flow_opd.adapters.hub import adapter_folder
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.reading import adapter_files, read_adapter
from flow_opd.assembly.training import ADAPTER
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import ASSET, hub_id
from flow_opd.config.recorded import CONFIG, base_of, recorded
from flow_opd.errors import ConfigError, explain
from flow_opd.processes import is_first_launched


def load_lora(name: str, base: BaseModelSettings, *, key: str, alpha: float | None = None) -> LoraWeights:
    """Returns the LoRA that a name means, and prints what was changed or does not agree.

    Args:
        name: a path, "asset:NAME", "owner/name" or "owner/name@revision".
        base: the base that it will sit on; says also whether the hub may be asked.
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


def files_of(name: str, base: BaseModelSettings, *, key: str) -> list[Path]:
    """Returns the files that decide what an adapter does, for a hash of them.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if it cannot be had from the hub, or is no adapter.
    """
    return adapter_files(adapter_folder(name, key=key, offline=base.offline))


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
            explain(
                "an adapter that does not name its base",
                value=source,
                allowed="a run folder, or an adapter with base_model_name_or_path",
                fix="say it with --base",
            )
        )
    tokens = 0 if named.startswith(ASSET) else 128  # of no matter: who asks for it reads no prompt
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
