"""Which networks a base is made of, read from its config files alone: no weights are touched.

The package holds the config files of the bases that people train (`bases/`), so that their hub ids need
no network. Of any other hub id the config files are downloaded, a few kilobytes of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import locate_model
from flow_opd.errors import ConfigError
from flow_opd.hub import hub_errors

BASES = Path(__file__).parent / "bases"  # owner/name/, laid out as in the repository, config files only
REWARD_MODELS = Path(__file__).parent / "reward_models"  # the same
CONFIG = "config.json"
INDEX = "model_index.json"
NETWORKS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
SCHEDULER = "scheduler"


@dataclass(frozen=True)
class Network:
    """One part of a pipeline: the class that it is built by, and its config.json."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A pipeline without weights."""

    pipeline: str  # class of the pipeline, such as StableDiffusion3Pipeline
    networks: Mapping[str, Network]  # name in the pipeline -> network; a part that is absent is left out
    scheduler: Mapping[str, Any]  # config of the flow-matching scheduler
    source: str  # where the config files come from

    @property
    def encoders(self) -> dict[str, Network]:
        """The text encoders, by their names in the pipeline."""
        return {name: net for name, net in self.networks.items() if name.startswith("text_encoder")}


Reader = Callable[[str], Mapping[str, Any]]  # path inside the repository -> JSON content


def read_architecture(base: BaseModelSettings) -> Architecture:
    """Returns the networks of a base; a T5 encoder that `base.t5` leaves out is not among them.

    Raises:
        ConfigError: if config files are missing, unreadable or out of reach.
    """
    where = locate_model(base.path, key="base.path")
    read, source = _reader(where, base)
    index = read(INDEX)
    networks = {}
    for name in NETWORKS:
        entry = index.get(name)
        if entry in (None, [None, None]):
            continue
        class_name = str(entry[1])
        if base.t5 or class_name != "T5EncoderModel":
            networks[name] = Network(class_name, read(f"{name}/{CONFIG}"))
    scheduler = read(f"{SCHEDULER}/scheduler_config.json")
    return Architecture(str(index.get("_class_name")), networks, scheduler, source)


def bundled() -> list[str]:
    """Returns the hub ids of bases whose config files this package holds."""
    return sorted(str(file.parent.relative_to(BASES)) for file in BASES.glob(f"*/*/{INDEX}"))


def read_reward_config(path: str, *, key: str, name: str = CONFIG) -> Mapping[str, Any]:
    """Returns a config file of a reward model: of its folder, of this package, or of the hub.

    Args:
        path: folder, 'asset:NAME' or hub id.
        key: setting that names it, for messages.
        name: of the file.

    Raises:
        ConfigError: if it is missing, unreadable or out of reach.
    """
    where = locate_model(path, key=key)
    folder = Path(where).expanduser()
    if not folder.exists() and (REWARD_MODELS / where / CONFIG).exists():
        folder = REWARD_MODELS / where
    if folder.exists():
        return _from_folder(folder, name)
    with hub_errors(where, what=f"the reward model in '{key}', whose {name} this package does not hold,"):
        file = hf_hub_download(where, name)
    return _parsed(Path(file))


def _reader(where: str, base: BaseModelSettings) -> tuple[Reader, str]:
    folder = Path(where).expanduser()
    if folder.exists():
        return partial(_from_folder, folder), str(where)
    if where in bundled():
        return partial(_from_folder, BASES / where), f"{where}, config files of this package"
    return partial(_from_hub, base), f"{where}, config files of the hub"


def _from_folder(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        return _parsed(folder / name)
    except FileNotFoundError:
        raise ConfigError(
            "a model lacks a config file",
            value=str(folder / name),
            allowed="a folder as save_pretrained writes it, with the config file of each part",
            fix="correct the path of the base or reward model, or save it again",
        ) from None


def _from_hub(base: BaseModelSettings, name: str) -> Mapping[str, Any]:
    what = f"the base, whose {name} this package does not hold,"
    hint = f"Known without the hub: {', '.join(bundled())}; a folder is read as it is."
    with hub_errors(base.path, what=what, revision=base.revision, offline=base.offline, hint=hint):
        file = hf_hub_download(base.path, name, revision=base.revision, local_files_only=base.offline)
    return _parsed(Path(file))


def _parsed(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"a config file is not JSON ({error})",
            value=str(file),
            allowed="the JSON object that diffusers or transformers wrote",
            fix="copy or download the file again",
        ) from error
    assert isinstance(content, dict), file
    return content
