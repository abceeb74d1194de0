"""Writes the model card of a run's adapter."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from flow_opd.adapters.formats.reading import adapter_files, adapter_folder, read_adapter
from flow_opd.backbones.encoders import T5_PARTS
from flow_opd.config.common import BaseModelSettings
from flow_opd.config.demo import DemoSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import to_yaml
from flow_opd.config.locations import hub_id, locate_model
from flow_opd.config.options import CardSettings
from flow_opd.config.recorded import recorded
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings
from flow_opd.errors import AdapterError, ConfigError
from flow_opd.evaluation.results import Results, load_results
from flow_opd.files import sha256, write_bytes, write_text
from flow_opd.layout import ADAPTER, CARD, CONFIG, GRID, MANIFEST, PICTURES, RESULTS, TRAINING
from flow_opd.reports.card import BaseFacts, CardFacts, Drawing, TeacherFacts, render_card
from flow_opd.reports.grid import load_pictures
from flow_opd.reports.recipe import Cost, Training, method, recipe
from flow_opd.runs.prompts import prompts_of

STEPS = 40  # of the example picture, where no evaluation says it


def run(settings: CardSettings) -> Path:
    """Writes README.md, and the picture grid where there is one, beside the adapter; returns the card.

    Raises:
        ConfigError: if the folder is no run that has trained an adapter, or evaluated one that has a run.
    """
    home = _home(settings.folder)
    adapter = home / ADAPTER
    text = render_card(_facts(settings, home))
    if (settings.folder / GRID).is_file():
        write_bytes(adapter / GRID, (settings.folder / GRID).read_bytes())
    write_text(adapter / CARD, text)
    return adapter / CARD


def _home(folder: Path) -> Path:
    """Returns the run folder that trained the adapter: the given one, or that of an evaluation's student."""
    settings = recorded(folder)
    if not isinstance(settings, EvaluateSettings):
        return folder
    student = settings.roles_of_rows().student
    name = None if student is None else settings.rows[student].adapter
    if name is not None and Path(name).name == ADAPTER and (Path(name).parent / CONFIG).is_file():
        return Path(name).parent
    raise ConfigError(
        f"the student of {folder} has no run folder here",
        value=name,
        allowed="an evaluation whose student row is the folder 'adapter' of a run",
        fix="name the run that trained it, or evaluate that run's own adapter",
    )


def _facts(settings: CardSettings, home: Path) -> CardFacts:
    trained = _trained(home)
    lora = read_adapter(home / ADAPTER)
    file = settings.folder / RESULTS
    results = load_results(file) if file.is_file() else None
    return CardFacts(
        title=settings.repo.split("/")[1] if settings.repo else home.resolve().name,
        adapter=settings.repo or str(home / ADAPTER),
        sha256=sha256(adapter_files(home / ADAPTER)[0]),
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.target_modules,
        method=method(trained),
        base=_base(trained.base),
        recipe=recipe(trained),
        teachers=[] if isinstance(trained, TeacherSettings) else _teachers(trained),
        cost=_cost("this adapter", home / TRAINING),
        cold_start=_cold_start(trained),
        drawing=_drawing(settings.folder, trained, results),
        config=to_yaml(trained).rstrip(),
        version=version("flow-opd"),
        results=results,
        picture=GRID if (settings.folder / GRID).is_file() else None,
        license=settings.license,
    )


def _trained(home: Path) -> Training:
    settings = recorded(home)
    if isinstance(settings, DemoSettings):
        return settings.distill
    if isinstance(settings, DistillSettings | SFTSettings | TeacherSettings):
        return settings
    raise ConfigError(
        "a run that has trained no adapter",
        value=str(home),
        allowed="a run of demo, distill, sft, teacher, or an evaluation of one of these",
        fix="name the folder of such a run",
    )


def _base(base: BaseModelSettings) -> BaseFacts:
    index = Path(locate_model(base.path, key="base.path")) / "model_index.json"
    parts = json.loads(index.read_text()) if index.is_file() else {}
    absent = [part for part in T5_PARTS if part in parts and (not base.t5 or parts[part] == [None, None])]
    if not index.is_file() and not base.t5:
        absent = list(T5_PARTS)
    return BaseFacts(
        path=base.path,
        on_hub=hub_id(base.path) is not None,
        dtype=base.dtype,
        revision=base.revision,
        variant=base.variant,
        absent_parts=tuple(absent),
    )


def _drawing(folder: Path, trained: Training, results: Results | None) -> Drawing:
    """Returns how the evaluation drew its first picture, or else a first prompt of the training."""
    pictures = load_pictures(folder / PICTURES)
    # An SFT student has its teachers' guidance in it.
    guidance = 1.0 if isinstance(trained, SFTSettings) else trained.sampling.guidance_scale
    if results is not None and results.roles.student is not None:
        guidance = results.protocol.guidance.get(results.roles.student, guidance)
    return Drawing(
        prompt=pictures.rows[0].prompt
        if pictures is not None and pictures.rows
        else prompts_of([trained.prompts[0].model_copy(update={"limit": 1})])[0].text,
        steps=STEPS if results is None else results.protocol.steps,
        guidance=guidance,
        text_tokens=trained.base.max_sequence_length,
        resolution=trained.base.resolution,
    )


def _teachers(settings: DistillSettings | SFTSettings) -> list[TeacherFacts]:
    """Returns the teachers, and the anchor where it is none of them."""
    rows = [(each.name, each.adapter, each.tasks, each.guidance_scale) for each in settings.teachers]
    if (
        isinstance(settings, DistillSettings)
        and settings.anchor is not None
        and settings.anchor.adapter is not None
    ):
        rows.append(("anchor", settings.anchor.adapter, ("all prompts",), settings.anchor.guidance_scale))
    facts = []
    for name, adapter, tasks, guidance in rows:
        files = _local_files(adapter)
        cost = Cost(name) if files is None else _teacher_cost(name, files[0].parent)
        digest = None if files is None else sha256(files[0])
        facts.append(TeacherFacts(name, adapter, ", ".join(tasks), guidance, digest, cost))
    return facts


def _cold_start(settings: Training) -> Cost | None:
    """Returns what the adapter that a student started from has cost; a merge costs nothing worth telling."""
    start = None if isinstance(settings, SFTSettings) else settings.cold_start
    if start is None or start.adapter is None:
        return None
    files = _local_files(start.adapter)
    return Cost("cold start") if files is None else _teacher_cost("cold start", files[0].parent)


def _local_files(adapter: str) -> list[Path] | None:
    """Returns the files of an adapter as far as they are on this machine; the hub is not contacted."""
    try:
        return adapter_files(adapter_folder(adapter, key="teachers.adapter", offline=True))
    except (AdapterError, ConfigError):
        return None


def _teacher_cost(name: str, folder: Path) -> Cost:
    """Returns what the run of a teacher, or the manifest of the package's own, says of its cost."""
    manifest = folder.parent.parent / MANIFEST
    if folder.name == ADAPTER or not manifest.is_file():
        return _cost(name, folder.parent / TRAINING)
    entry = json.loads(manifest.read_text()).get("teachers", {}).get(folder.name, {})
    return Cost(name, entry.get("seconds"), entry.get("steps"))


def _cost(name: str, training: Path) -> Cost:
    """Returns what a training.json says, or unknowns."""
    found = json.loads(training.read_text()) if training.is_file() else {}
    return Cost(name, found.get("seconds"), found.get("steps"), found.get("processes", 1))
