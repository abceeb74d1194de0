"""Finds an adapter, here or on the hub, and reads it as it was published, whatever tool wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from flow_opd.adapters.files import (
    COMFYUI,
    DIFFUSERS,
    KOHYA,
    METADATA_KEY,
    ONE_TRAINER,
    Pair,
    parse_keys,
    read_safetensors,
)
from flow_opd.adapters.formats.mmdit import dotted_diffusers, dotted_original, to_diffusers
from flow_opd.adapters.lora import CONFIG_FILE, WEIGHTS_FILE, Factors, LoraWeights
from flow_opd.adapters.peft_config import PeftConfig
from flow_opd.config.locations import alike, hub_id, locate
from flow_opd.errors import AdapterError
from flow_opd.hub import hub_errors

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
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


def read_adapter(path: Path | str, *, alpha: float | None = None) -> LoraWeights:
    """Returns the LoRA of a PEFT folder, a diffusers folder, or a LoRA file of diffusers, kohya or ComfyUI.

    Its `notes` say what was changed: lower ranks padded, other alpha / rank taken into B. Modules come under
    the names of diffusers.

    Args:
        path: the folder or file.
        alpha: for files that do not say it; must not contradict a file that does.

    Raises:
        AdapterError: if there is no LoRA of a known kind, it is damaged or of a kind that cannot be taken
            exactly, or its alpha is unknown or contradicted.
    """
    file = weights_file(path)
    if file.name != WEIGHTS_FILE:
        return _read_file(file, alpha)
    lora = LoraWeights.read(file.parent)
    if alpha not in (None, lora.alpha):
        raise _contradiction(alpha, lora.alpha, str(file.parent / CONFIG_FILE))
    return lora


def weights_file(path: Path | str) -> Path:
    """Returns the file with the weights of an adapter: a safetensors file, or the one of a folder.

    A PEFT folder may also be one level below, which is where PEFT saves adapters with a name.

    Raises:
        AdapterError: if there is none, or more than one.
    """
    path = Path(path)
    if path.is_file():
        return path
    if (path / CONFIG_FILE).exists() or (path / WEIGHTS_FILE).exists():
        _refuse_pickle(path)
        return path / WEIGHTS_FILE
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob(f"*/{WEIGHTS_FILE}"))
    if len(files) == 1:
        return files[0]
    _refuse_pickle(path)
    raise AdapterError(
        "not an adapter" if not files else "more than one adapter in a folder",
        value=str(path),
        allowed=f"a PEFT folder ({CONFIG_FILE}, {WEIGHTS_FILE}), or one LoRA file in safetensors",
        fix="name one of " + ", ".join(str(file) for file in files)
        if files
        else "give the folder or file that holds the LoRA",
    )


def adapter_files(path: Path | str) -> list[Path]:
    """Returns the files that decide what an adapter does: its weights, and its config where it has one.

    Raises:
        AdapterError: if there is no adapter.
    """
    weights = weights_file(path)
    config = weights.parent / CONFIG_FILE
    return [weights, config] if weights.name == WEIGHTS_FILE and config.exists() else [weights]


def _read_file(file: Path, alpha: float | None) -> LoraWeights:
    """Returns the LoRA of a file that stands alone; alpha comes from its header, its keys or the caller."""
    tensors, header = read_safetensors(file)
    prefix, pairs = parse_keys(tensors, str(file))
    pairs = _with_dots(prefix, pairs, str(file))
    if prefix == DIFFUSERS and METADATA_KEY in header:
        config = PeftConfig.of(_transformer_config(header[METADATA_KEY]), str(file))
        given = {
            pair.alpha for name, pair in pairs.items() if pair.alpha not in (None, config.alpha_of(name))
        }
        if given or alpha not in (None, config.alpha):
            raise _contradiction(alpha or given, config.alpha, str(file))
        return LoraWeights.of({name: (pair.down, pair.up) for name, pair in pairs.items()}, config)
    parts = _scaled(pairs, alpha, str(file))
    return LoraWeights.uniform(to_diffusers(parts) if prefix in (COMFYUI, KOHYA) else parts)


def _with_dots(prefix: str, pairs: Mapping[str, Pair], source: str) -> dict[str, Pair]:
    """Returns the pairs by names with dots, original or diffusers' as the prefix has it."""
    if prefix in (COMFYUI, KOHYA):
        names = {name: dotted_original(name) for name in pairs}
    elif prefix == ONE_TRAINER:
        names = {name: dotted_diffusers(name) for name in pairs}
    else:
        names = {name: name for name in pairs}
    unknown = [name for name, dotted in names.items() if dotted is None]
    if unknown:
        raise AdapterError(
            f"modules that Stable Diffusion 3 does not have: {source}",
            value=unknown[:5],
            allowed=f"modules of SD3's transformer after the prefix {prefix}",
            fix="use an adapter of Stable Diffusion 3, or convert it to diffusers' format first",
        )
    return {str(names[name]): pair for name, pair in pairs.items()}


def _scaled(pairs: Mapping[str, Pair], alpha: float | None, source: str) -> dict[str, Factors]:
    """Returns the pairs with the alpha that the file has for each, or that the caller has for all."""
    silent = [name for name, pair in pairs.items() if pair.alpha is None]
    if silent and (alpha is None or len(silent) < len(pairs)):
        raise AdapterError(
            "LoRA file without metadata, so its alpha is unknown",
            value=source,
            allowed="lora_adapter_metadata in its header, a key .alpha by module, or an alpha of yours",
            fix="convert it once with the alpha that it was trained with (guessing would rescale it): "
            "flow-opd export FILE --format peft --alpha ALPHA --base BASE --out FOLDER",
        )
    given = {pair.alpha for pair in pairs.values()}
    if alpha is not None and given not in ({None}, {alpha}):
        raise _contradiction(alpha, sorted(each for each in given if each is not None), source)
    parts = {}
    for name, pair in pairs.items():
        own = alpha if pair.alpha is None else pair.alpha
        assert own is not None
        parts[name] = Factors(pair.down, pair.up, own)
    return parts


def _contradiction(alpha: object, own: object, source: str) -> AdapterError:
    return AdapterError(
        f"alpha contradicts that of {source}",
        value=alpha,
        allowed=f"{own}, or none",
        fix="leave alpha out",
    )


def _refuse_pickle(folder: Path) -> None:
    pickled = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLED)
    if pickled and not list(folder.glob("*.safetensors")):
        raise AdapterError(
            "an adapter in a file that could run code",
            value=str(folder / pickled[0]),
            allowed="safetensors",
            fix="load it once with PEFT, where you trust it, and save it with save_pretrained",
        )


def _transformer_config(metadata: str) -> dict[str, Any] | None:
    """Returns the transformer's part of the header's metadata, or None if that is not a JSON object."""
    try:
        config = json.loads(metadata)
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    return {key.removeprefix(DIFFUSERS): value for key, value in config.items() if key.startswith(DIFFUSERS)}
