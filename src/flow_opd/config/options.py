"""Settings of commands that take options, no file: generate, report, export, card, publish, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from flow_opd.config.base import Name, PositiveFloat, PositiveInt, Problem, Settings, StageSettings, refuse
from flow_opd.config.common import BaseModelSettings, ComputeSettings, RunSettings
from flow_opd.config.locations import HUB_NAME


class GenerateSettings(StageSettings):
    """Draws images of prompts, with or without an adapter, by the ODE."""

    stage: Literal["generate"] = "generate"
    """Stage that the file is for."""
    run: RunSettings
    """Folder of the images, and the seed of the first image of each prompt."""
    base: BaseModelSettings
    """The pipeline."""
    compute: ComputeSettings = ComputeSettings()
    """Device, memory and speed."""
    adapter: Name | None = None
    """Adapter: a path, 'asset:NAME' or a hub id 'owner/name[@revision]'; null draws from the base."""
    prompts: Annotated[tuple[Name, ...], Field(min_length=1)]
    """What to draw."""
    images_per_prompt: PositiveInt = 1
    """Images of each prompt, from seeds that count up."""
    num_steps: PositiveInt = 40
    """Sampling steps."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.5
    """Classifier-free guidance; 1 switches it off."""


class ReportSettings(StageSettings):
    """Turns a finished run folder into a page that opens from disk."""

    stage: Literal["report"] = "report"
    """Stage that the file is for."""
    folder: Path
    """Run folder with results.json and metrics.jsonl."""
    out: Path | None = None
    """The page; null writes report.html into the run folder."""


class ExportSettings(StageSettings):
    """Writes an adapter for another tool, and checks it by loading it as that tool does."""

    stage: Literal["export"] = "export"
    """Stage that the file is for."""
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


class CardSettings(StageSettings):
    """Writes the model card of a run's adapter."""

    stage: Literal["card"] = "card"
    """Stage that the file is for."""
    folder: Path
    """Run folder of a distillation, a demonstration, a teacher, or an evaluation of one of these."""
    repo: HubName | None = None
    """Repository 'owner/name' that will hold the adapter; null: the card loads it from its folder."""
    license: Name | None = None
    """Licence identifier of the hub; null takes that of the base, where it is known."""


class PublishSettings(StageSettings):
    """Uploads the adapter of a run with its card."""

    stage: Literal["publish"] = "publish"
    """Stage that the file is for."""
    folder: Path
    """Run folder with an adapter, or an adapter folder."""
    repo: HubName
    """Repository 'owner/name', made if absent."""
    dry_run: bool = False
    """Lists what would be uploaded, without contacting the hub."""
    private: bool = False
    """Makes a new repository private."""


class PlanSettings(Settings):
    """Assumptions of a plan that no training configuration holds."""

    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of a card's peak rate that the whole run reaches, recomputation counted as work."""
    processes: PositiveInt = 1
    """Processes, one to a card, that share the rows of an update."""
