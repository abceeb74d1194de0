"""Settings of what leaves the machine: export, card, publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from flow_opd.config.base import Name, PositiveFloat, Problem, Settings, refuse
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.locations import HUB_NAME


class ExportSettings(Settings):
    """Writes an adapter for another tool, and checks it by loading it as that tool does."""

    source: Name
    """Run folder with an adapter, or an adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'."""
    format: Literal["peft", "diffusers", "comfyui"] = "diffusers"
    """Whose loader it is written for."""
    out: Path
    """New folder for the files; it is there after the check has passed, or not at all."""
    base: BaseModelSettings | None = None
    """Base to check on; null takes the one that the run or the adapter names."""
    alpha: PositiveFloat | None = None
    """Alpha of a LoRA file that does not say its own."""
    fused: bool = False
    """Writes also the transformer with the adapter fused into its weights."""


def _hub_name(value: str) -> str:
    if not HUB_NAME.fullmatch(value):
        fix = "give both, such as me/my-student"
        refuse([Problem((), "no name of a repository of the hub", value, "'owner/name'", fix)])
    return value


HubName = Annotated[str, AfterValidator(_hub_name)]


class CardSettings(Settings):
    """Writes the model card of a run's adapter."""

    folder: Path
    """Run folder of a distillation, a demonstration, a teacher, or an evaluation of one of these."""
    repo: HubName | None = None
    """Repository 'owner/name' that will hold the adapter; null: the card loads it from its folder."""
    license: Name | None = None
    """Licence identifier of the hub; null takes that of the base, where it is known."""


class PublishSettings(Settings):
    """Uploads the adapter of a run with its card."""

    folder: Path
    """Run folder with an adapter, or an adapter folder."""
    repo: HubName
    """Repository 'owner/name', made if absent."""
    dry_run: bool = False
    """Lists what would be uploaded, without contacting the hub."""
    private: bool = False
    """Makes a new repository private."""
