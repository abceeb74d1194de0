"""Evaluates policies on held-out prompts and writes results, pictures and the report."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.base import Settings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.locations import locate
from flow_opd.evaluation.images import Album, EvaluationSet, ImageSampler, Shot
from flow_opd.evaluation.intervals import Scores
from flow_opd.evaluation.metrics import METRICS, READINGS, Metric, metrics_of
from flow_opd.evaluation.protocol import PromptFile, ProtocolCard
from flow_opd.evaluation.table import Results, Roles, build_results
from flow_opd.files import write_bytes, write_json, write_text
from flow_opd.layout import GRID, PICTURES, RESULTS, RESULTS_TABLE, SCORES
from flow_opd.method.policy import Policy
from flow_opd.processes import Processes
from flow_opd.prompts.overlap import identity
from flow_opd.protocols import Reward
from flow_opd.reports.grid import PictureRow, Pictures, compose_grid, png_bytes, save_pictures
from flow_opd.reports.html import write_report
from flow_opd.reports.run import load_results
from flow_opd.reports.tables import results_markdown, results_view
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base, device_of, encode_beforehand
from flow_opd.runs.cells import Cells, ScoreTable
from flow_opd.runs.launch import join_processes
from flow_opd.runs.prompts import prompts_of
from flow_opd.runs.training import open_run, record
from flow_opd.seeding import generator
from flow_opd.training.progress import ProgressBar


def run(settings: EvaluateSettings, *, resume: bool) -> Path:
    """Scores every row on every domain and returns the run folder with results.json and report.html.

    Finished entries of the table (a row on a domain) are kept in `scores/`: a killed evaluation goes on from
    there.
    """
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    return evaluate(settings, folder, config=settings, resume=resume, processes=processes)


def evaluate(
    settings: EvaluateSettings,
    folder: Path,
    *,
    config: Settings,
    resume: bool,
    processes: Processes,
    spent: float = 0.0,
) -> Path:
    """Evaluates into `folder` and returns it.

    Args:
        settings: of the evaluation.
        folder: the run folder.
        config: what is written as the run's config.yaml, once nothing has been refused.
        resume: keeps the entries of the table that are finished already.
        processes: who shares the images; the main one writes.
        spent: seconds that the run has taken before.
    """
    begun = time.monotonic()
    sets = {
        name: EvaluationSet(name, tuple(prompts_of([file])), settings.seeds_of(name))
        for name, file in settings.domains.items()
    }
    device = device_of(settings.compute, processes)
    rewards = [each.build(device) for each in settings.rewards]
    base = Base.load(settings.base, settings.compute, processes)
    backbone = base.backbone
    asked = [prompt for domain_set in sets.values() for prompt in domain_set.prompts]
    encoder = encode_beforehand(settings.embeddings, base, asked, folder)
    loras: dict[str, LoraWeights | None] = {}
    for name, row in settings.rows.items():
        key = f"rows.{name}.adapter"
        loras[name] = None if row.adapter is None else load_lora(row.adapter, settings.base, key=key)
    policies = {
        name: base.policy(
            None if lora is None else base.put("row", lora),
            settings.rows[name].guidance_scale,
            encoder=encoder,
        )
        for name, lora in loras.items()
    }
    record(config, folder, processes)
    sampler = ImageSampler(
        backbone,
        encoder=encoder,
        sigmas=backbone.sigmas(settings.num_steps),
        batch_size=settings.batch_size,
        seeder=lambda domain, index, seed: generator(settings.run.seed, "image", domain, index, seed),
        processes=processes,
    )
    digests = {name: None if lora is None else lora.digest() for name, lora in loras.items()}
    cells = Cells(folder / SCORES, settings, digests, resume=resume, processes=processes)
    album = Album(sampler, settings.grid_prompts)
    scores = _score_rows(settings, cells, album, policies, sets, rewards)
    if not processes.is_main:
        return folder
    pictures = _pictures(album, policies, sets)
    save_pictures(pictures, folder / PICTURES)
    if pictures.rows:
        write_bytes(folder / GRID, png_bytes(np.asarray(compose_grid(pictures))))
    results = build_results(
        scores,
        roles=_roles(settings),
        protocol=_protocol(settings, sets, backbone.image_size, rewards),
        wall_seconds=round(spent + cells.seconds_kept + time.monotonic() - begun, 1),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
    finish(folder, results)
    return folder


def _protocol(
    settings: EvaluateSettings, sets: Mapping[str, EvaluationSet], side: int, rewards: Sequence[Reward]
) -> ProtocolCard:
    return ProtocolCard(
        steps=settings.num_steps,
        dynamics="ode",
        guidance={name: row.guidance_scale for name, row in settings.rows.items()},
        resolution=(side, side),
        prompts={
            name: PromptFile.of(locate(file.path), len(sets[name].prompts))
            for name, file in settings.domains.items()
        },
        seeds={name: domain_set.seeds for name, domain_set in sets.items()},
        judges={reward.name: each.judge for reward, each in zip(rewards, settings.rewards, strict=True)},
        metrics=metrics_of(rewards, next(iter(sets))),
    )


def finish(folder: Path, results: Results) -> None:
    """Writes results.json, results.md and report.html, and prints the table."""
    write_json(folder / RESULTS, results.to_json())
    read = load_results(folder / RESULTS)
    write_text(folder / RESULTS_TABLE, results_markdown(read))
    report = write_report(folder)
    console = Console()
    console.print(results_view(read))
    console.print(f"report: {report}", highlight=False)


def _roles(settings: EvaluateSettings) -> Roles:
    names = list(settings.rows)
    if settings.roles is None:
        return Roles(base=names[0], student=names[-1])
    roles = settings.roles
    return Roles(
        base=roles.base,
        student=roles.student,
        merge=roles.merge,
        teachers=roles.teachers,
        baselines=roles.baselines,
    )


def _score_rows(
    settings: EvaluateSettings,
    cells: Cells,
    album: Album,
    policies: Mapping[str, Policy],
    sets: Mapping[str, EvaluationSet],
    rewards: Sequence[Reward],
) -> dict[str, dict[str, dict[str, Scores]]]:
    """Returns row -> domain -> metric -> scores; the album keeps the images that it wants."""
    total = sum(len(sets[domain].shots()) for row in settings.rows for domain in settings.domains_of(row))
    bar = ProgressBar("evaluation", total_steps=total, show=(), shown=cells.processes.is_main)
    metrics = metrics_of(rewards, next(iter(sets)))
    done = 0
    scores: dict[str, dict[str, dict[str, Scores]]] = {}

    def advance(images: int) -> None:
        nonlocal done
        done += images
        bar.on_update(done, {})

    def seen(row: str, domain_set: EvaluationSet, shots: Sequence[Shot], images: Tensor) -> None:
        album.keep(row, domain_set, shots, images)
        advance(len(shots))

    for name in settings.rows:
        for domain in settings.domains_of(name):
            bar.rename(f"{name} on {domain}")
            domain_set, begun = sets[domain], done
            drawn = partial(seen, name, domain_set)
            work = partial(album.sampler.score, policies[name], domain_set, rewards, on_batch=drawn)
            table = cells.scores(name, domain, work)
            advance(begun + len(domain_set.shots()) - done)
            scores.setdefault(name, {})[domain] = as_scores(table, domain_set, metrics)
    bar.on_end()
    return scores


def as_scores(
    table: ScoreTable, domain_set: EvaluationSet, metrics: Sequence[Metric] = METRICS
) -> dict[str, Scores]:
    """Returns metric -> scores; lines that ask for the same are one prompt, and GenEval has its tags."""
    shots = domain_set.shots()
    asked = [domain_set.prompts[index] for index, _ in shots]
    prompts = [identity(prompt) for prompt in asked]
    tags = [str(prompt.metadata.get("tag", "")) for prompt in asked]
    return {
        metric.name: Scores.of(
            [f"{index}:{prompt.text}" for (index, _), prompt in zip(shots, asked, strict=True)],
            [seed for _, seed in shots],
            [float("nan") if value is None else value for value in table[reading]],
            [value is not None for value in table[reading]],
            prompts=prompts,
            tags=tags if metric.by_tag else None,
        )
        for metric in metrics
        if (reading := READINGS.get(metric.name, metric.name)) in table
    }


def _pictures(album: Album, policies: Mapping[str, Policy], sets: Mapping[str, EvaluationSet]) -> Pictures:
    """Returns the first prompts of each domain under all rows, from the first seed."""
    rows = []
    for domain, domain_set in sets.items():
        shots = domain_set.first_shots(album.prompts)
        if not shots:
            continue
        drawn = torch.stack(
            [album.images(name, policy, domain_set) for name, policy in policies.items()], dim=1
        )
        pixels = (drawn * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        rows += [
            PictureRow(domain_set.prompts[index].text, domain, seed, np.ascontiguousarray(pixels[place]))
            for place, (index, seed) in enumerate(shots)
        ]
    return Pictures(tuple(policies), tuple(rows))
