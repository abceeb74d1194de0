"""Scores policies on prompts: as a table in Python, or into a run folder with results, pictures, report."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from flow_opd.adapters.lora import LoraWeights
from flow_opd.config.base import Settings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.locations import locate
from flow_opd.evaluation.images import (
    Album,
    EvaluationSet,
    ImageKey,
    ImageSampler,
    ImageScores,
    score_policies,
)
from flow_opd.evaluation.intervals import Bootstrap
from flow_opd.evaluation.metrics import metrics_of
from flow_opd.evaluation.results import PromptFile, ProtocolCard, Results
from flow_opd.evaluation.table import ScoreRow, ScoreTable, build_results
from flow_opd.files import write_bytes, write_json, write_text
from flow_opd.layout import GRID, PICTURES, RESULTS, RESULTS_TABLE, SCORES
from flow_opd.method.policy import Policy
from flow_opd.processes import Processes
from flow_opd.protocols import PromptEncoder, Reward
from flow_opd.reports.grid import PictureRow, Pictures, compose_grid, png_bytes, save_pictures
from flow_opd.reports.html import write_report
from flow_opd.reports.tables import results_markdown, results_view
from flow_opd.rewards.table import TrainingReward, as_rewards
from flow_opd.runs.adapters import load_lora
from flow_opd.runs.base import Base, device_of, encode_beforehand
from flow_opd.runs.launch import join_processes
from flow_opd.runs.prompts import as_prompts, prompts_of
from flow_opd.runs.score_cache import ScoreCache
from flow_opd.runs.training import open_run, record
from flow_opd.seeding import generator
from flow_opd.training.progress import ProgressBar
from flow_opd.types import Prompt


def run(settings: EvaluateSettings, *, resume: bool) -> Path:
    """Scores every row on every domain and returns the run folder with results.json and report.html.

    Finished scores (of a row on a domain) are kept in `scores/`: a killed evaluation goes on from there.
    """
    folder = open_run(settings.run)
    processes = join_processes(settings.compute)
    return evaluate_into(folder, settings, config=settings, resume=resume, processes=processes)


def evaluate(
    base: Base,
    adapters: Mapping[str, LoraWeights | None],
    prompts: Sequence[Prompt | str],
    rewards: Sequence[TrainingReward | Reward | Callable[..., Any]],
    *,
    image_seeds: Sequence[int] = (0,),
    num_steps: int = 40,
    guidance_scale: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
) -> ScoreTable:
    """Returns the scores of adapters on the same prompts, from the same noise, with 95 % intervals.

    Args:
        base: that draws.
        adapters: name -> adapter; None is the base alone.
        prompts: what is drawn; each once from each seed.
        rewards: that judge; a plain function may be one: (images [B, 3, height, width] in [0, 1], B prompts)
            -> [B]. A reward that has further values gives a row to each.
        image_seeds: of the pictures of a prompt.
        num_steps: of the ODE, >= 1.
        guidance_scale: classifier-free guidance, >= 1; 1 switches it off.
        batch_size: pictures drawn at once.
        seed: root of all noise.

    Raises:
        AdapterError: if an adapter does not fit the base.
        RewardError: if a reward fails.
    """
    asked = EvaluationSet("prompts", tuple(as_prompts(prompts)), tuple(image_seeds))
    found = score_policies(
        _sampler(base, base.backbone, num_steps=num_steps, batch_size=batch_size, seed=seed),
        {name: _with_adapter(base, lora, guidance_scale) for name, lora in adapters.items()},
        {name: [asked] for name in adapters},
        [one.reward for one in as_rewards(rewards)],
    )
    bootstrap, table = Bootstrap(), ScoreTable()
    for name, by_domain in found.items():
        for reported, values in by_domain[asked.domain].items():
            one = bootstrap.estimate(asked.scores(values))
            table.append(ScoreRow(name, reported, one.mean, one.low, one.high, one.n))
    return table


@contextmanager
def _with_adapter(base: Base, lora: LoraWeights | None, guidance_scale: float) -> Iterator[Policy]:
    with base.with_adapter(lora) as adapter:
        yield base.policy(adapter, guidance_scale)


def _sampler(
    base: Base, encoder: PromptEncoder, *, num_steps: int, batch_size: int, seed: int
) -> ImageSampler:
    return ImageSampler(
        base.backbone,
        encoder=encoder,
        sigmas=base.backbone.sigmas(num_steps),
        batch_size=batch_size,
        seeder=partial(generator, seed, "image"),
        processes=base.processes,
    )


def evaluate_into(
    folder: Path,
    settings: EvaluateSettings,
    *,
    config: Settings,
    resume: bool,
    processes: Processes,
    spent: float = 0.0,
) -> Path:
    """Evaluates what the settings name into a run folder, and returns it.

    Args:
        folder: the run folder.
        settings: of the evaluation.
        config: what is written as the run's config.yaml, once nothing has been refused.
        resume: keeps the scores that are finished already.
        processes: who shares the images; the main one writes.
        spent: seconds that the run has taken before.
    """
    begun = time.monotonic()
    sets = {
        name: EvaluationSet(name, tuple(prompts_of([file])), settings.seeds_of(name))
        for name, file in settings.domains.items()
    }
    rewards = [each.build(device_of(settings.compute, processes)) for each in settings.rewards]
    base = Base.load(settings.base, settings.compute, processes)
    asked = [prompt for domain_set in sets.values() for prompt in domain_set.prompts]
    encoder = encode_beforehand(settings.embeddings, base, asked, folder)
    loras = {name: _lora(settings, name) for name in settings.rows}
    policies = {
        name: base.policy(
            None if lora is None else base.put("row", lora),
            settings.rows[name].guidance_scale,
            encoder=encoder,
        )
        for name, lora in loras.items()
    }
    record(config, folder, processes)
    steps, seed = settings.num_steps, settings.run.seed
    album = Album(
        _sampler(base, encoder, num_steps=steps, batch_size=settings.batch_size, seed=seed),
        settings.grid_prompts,
    )
    digests = {name: None if lora is None else lora.digest() for name, lora in loras.items()}
    cache = ScoreCache(folder / SCORES, settings, digests, resume=resume, processes=processes)
    drawn = {name: [sets[domain] for domain in settings.domains_of(name)] for name in settings.rows}
    found = _score(policies, drawn, rewards, album, cache)
    if not processes.is_main:
        return folder
    _write_pictures(_pictures(album, policies, sets), folder)
    protocol = _protocol(settings, sets, base.backbone.image_size, rewards)
    results = build_results(
        {
            row: {
                domain: sets[domain].scores_by_metric(values, protocol.metrics)
                for domain, values in by.items()
            }
            for row, by in found.items()
        },
        roles=settings.roles_of_rows(),
        protocol=protocol,
        wall_seconds=round(spent + cache.seconds_kept + time.monotonic() - begun, 1),
        peak_rss_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
    _write_results(results, folder)
    return folder


def _lora(settings: EvaluateSettings, row: str) -> LoraWeights | None:
    adapter = settings.rows[row].adapter
    return None if adapter is None else load_lora(adapter, settings.base, key=f"rows.{row}.adapter")


def _score(
    policies: Mapping[str, Policy],
    drawn: Mapping[str, Sequence[EvaluationSet]],
    rewards: Sequence[Reward],
    album: Album,
    cache: ScoreCache,
) -> dict[str, dict[str, ImageScores]]:
    """Scores under a progress bar; the album keeps the images that it wants, the cache what is finished."""
    total = sum(len(one.image_keys()) for sets in drawn.values() for one in sets)
    bar = ProgressBar("evaluation", total_steps=total, show=(), shown=cache.processes.is_main)
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        bar.on_update(done, {})

    def seen(row: str, domain_set: EvaluationSet, keys: Sequence[ImageKey], images: Tensor) -> None:
        album.keep(row, domain_set, keys, images)
        advance(len(keys))

    def kept(row: str, domain_set: EvaluationSet, work: Callable[[], ImageScores]) -> ImageScores:
        bar.rename(f"{row} on {domain_set.domain}")
        end = done + len(domain_set.image_keys())
        scores = cache.scores(row, domain_set.domain, work)
        advance(end - done)  # what was kept, or drawn by others
        return scores

    contexts = {name: nullcontext(policy) for name, policy in policies.items()}
    found = score_policies(album.sampler, contexts, drawn, rewards, kept=kept, on_batch=seen)
    bar.on_end()
    return found


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


def _pictures(album: Album, policies: Mapping[str, Policy], sets: Mapping[str, EvaluationSet]) -> Pictures:
    """Returns the first prompts of each domain under all rows, from the first seed."""
    rows = []
    for domain, domain_set in sets.items():
        keys = domain_set.first_image_keys(album.prompts)
        if not keys:
            continue
        drawn = torch.stack(
            [album.images(name, policy, domain_set) for name, policy in policies.items()], dim=1
        )
        pixels = (drawn * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        rows += [
            PictureRow(
                domain_set.prompts[key.prompt].text, domain, key.seed, np.ascontiguousarray(pixels[place])
            )
            for place, key in enumerate(keys)
        ]
    return Pictures(tuple(policies), tuple(rows))


def _write_pictures(pictures: Pictures, folder: Path) -> None:
    save_pictures(pictures, folder / PICTURES)
    if pictures.rows:
        write_bytes(folder / GRID, png_bytes(np.asarray(compose_grid(pictures))))


def _write_results(results: Results, folder: Path) -> None:
    """Writes results.json, results.md and report.html, and prints the table."""
    write_json(folder / RESULTS, results.to_json())
    write_text(folder / RESULTS_TABLE, results_markdown(results))
    report = write_report(folder)
    console = Console()
    console.print(results_view(results))
    console.print(f"report: {report}", highlight=False)
