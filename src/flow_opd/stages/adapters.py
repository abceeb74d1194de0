"""Adapters by the names that a configuration gives them: read, checked against the base, and said."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from flow_opd.adapters.hub import adapter_folder
from flow_opd.adapters.lora import LoraWeights
from flow_opd.adapters.reading import adapter_files, read_adapter
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import hub_id


def load_lora(name: str, base: BaseModelSettings, *, key: str) -> LoraWeights:
    """Returns the LoRA that a name means, and prints what was changed or does not agree.

    Args:
        name: a path, "asset:NAME", "owner/name" or "owner/name@revision".
        base: the base that it will sit on; says also whether the hub may be asked.
        key: the configuration key that holds the name, for messages.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if it cannot be had from the hub, or is no LoRA that can be taken exactly.
    """
    lora = read_adapter(adapter_folder(name, key=key, offline=base.offline))
    for note in (*lora.notes, *_other_base(lora, base)):
        Console(stderr=True).print(f"note: adapter {name}: {note}", highlight=False, markup=False)
    return lora


def files_of(name: str, base: BaseModelSettings, *, key: str) -> list[Path]:
    """Returns the files that decide what an adapter does, for a hash of them.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if it cannot be had from the hub, or is no adapter.
    """
    return adapter_files(adapter_folder(name, key=key, offline=base.offline))


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
