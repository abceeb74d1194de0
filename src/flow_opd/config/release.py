"""Settings of what is written about an adapter, and of its way to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from flow_opd.config.base import Name, Problem, Settings, refuse
from flow_opd.config.locations import HUB_NAME


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
    """Lists what would be uploaded and asks nobody."""
    private: bool = False
    """Makes a new repository private."""
