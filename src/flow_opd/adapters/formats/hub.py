"""Where an adapter is: a folder or file here, an asset of the package, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from flow_opd.adapters.formats.reading import weights_file
from flow_opd.config.locations import alike, hub_id, locate
from flow_opd.errors import AdapterError
from flow_opd.hub import hub_errors

DOWNLOADED = ("*.safetensors", "*.json")  # never a file that could run code
NOT_DOWNLOADED = tuple(f"{part}*/*" for part in ("transformer", "unet", "text_encoder", "tokenizer", "vae"))
"""Parts of a whole pipeline, which somebody may name by mistake: gigabytes, and no adapter."""


def adapter_folder(name: str, *, key: str, offline: bool = False) -> Path:
    """Returns the folder or file that an adapter's name means; a hub repository is downloaded once.

    Args:
        name: a path, "asset:NAME", "owner/name" or "owner/name@revision".
        key: the configuration key that holds the name, for messages.
        offline: takes a hub repository from the cache of this machine, without contacting the hub.

    Raises:
        ConfigError: if a path or asset does not exist.
        AdapterError: if the repository cannot be had, or holds no adapter in safetensors.
    """
    repository = hub_id(name)
    if repository is None:
        return locate(name, key=key)
    what, hint = f"the adapter in '{key}'", alike(Path(name))
    with hub_errors(name, what=what, offline=offline, hint=hint, error=AdapterError):
        folder = snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=list(DOWNLOADED),
            ignore_patterns=list(NOT_DOWNLOADED),
            local_files_only=offline,
        )
    try:
        weights_file(folder)
    except AdapterError as error:
        raise AdapterError(
            f"the repository in '{key}' cannot be used as an adapter ({error})",
            value=name,
            allowed="a repository with one LoRA in safetensors",
            fix="name another repository or revision, or download it and name the file",
        ) from error
    return Path(folder)
