"""A made-up but realistic evaluated run: eight policies, four domains, curves and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flow_opd.config.evaluate import RolesSettings
from flow_opd.evaluation.intervals import Scores
from flow_opd.evaluation.metrics import METRICS
from flow_opd.evaluation.results import PromptFile, ProtocolCard
from flow_opd.evaluation.table import build_results
from flow_opd.files import write_json
from flow_opd.reports.grid import PictureRow, Pictures, save_pictures

DOMAINS = ("composition", "text", "preference", "quality")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TEACHERS = {domain: f"teacher-{domain}" for domain in DOMAINS}
MEANS = {  # geneval, ocr, pickscore, deqa
    "base": (0.52, 0.48, 21.2, 3.10),
    "teacher-composition": (0.84, 0.50, 21.0, 3.02),
    "teacher-text": (0.51, 0.86, 21.2, 3.08),
    "teacher-preference": (0.45, 0.52, 22.9, 3.45),
    "teacher-quality": (0.53, 0.50, 21.9, 4.05),
    "merge": (0.69, 0.66, 21.9, 3.62),
    "student": (0.82, 0.85, 22.6, 3.95),
    "student-no-anchor": (0.82, 0.85, 22.5, 3.70),
}
PROMPTS = {
    "composition": ("two red circles and a blue square", "a green triangle left of a yellow circle"),
    "text": ("a sign that says CAT", "a sign that says <SUN>"),
    "preference": ("a calm beach at dawn with a single boat",),
    "quality": ("a sharp photo of a purple square at night",),
}


def write_run(folder: Path, *, prompts: int = 500, updates: int = 300) -> Path:
    """Writes a whole run folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    hard = {domain: generator.normal(size=prompts) for domain in DOMAINS}
    ids = [f"{index}" for index in range(prompts)]

    def binary(mean: float, domain: str) -> NDArray[np.float64]:
        ease = hard[domain] + generator.normal(0, 0.7, prompts)
        return (ease < np.quantile(ease, mean)).astype(np.float64)

    rows: dict[str, dict[str, dict[str, Scores]]] = {}
    for name, (geneval, ocr, pickscore, deqa) in MEANS.items():
        rows[name] = {
            domain: {"deqa": _scores(ids, deqa + 0.4 * hard[domain] + generator.normal(0, 0.3, prompts))}
            for domain in DOMAINS
        }
        strict = binary(geneval, "composition")
        rows[name]["composition"]["geneval"] = _scores(ids, strict, TAGS)
        rows[name]["composition"]["geneval_continuous"] = _scores(
            ids, 0.6 * strict + 0.4 * binary(0.7, "text"), TAGS
        )
        rows[name]["text"]["ocr"] = _scores(ids, 1 - (1 - binary(ocr, "text")) / 1.5 * 1.4)
        picks = pickscore + hard["preference"] + generator.normal(0, 0.4, prompts)
        rows[name]["preference"]["pickscore"] = _scores(ids, picks)
    card = ProtocolCard(
        steps=20,
        dynamics="ode",
        guidance=dict.fromkeys(MEANS, 1.0),
        resolution=(32, 32),
        prompts={
            domain: PromptFile(name=f"{domain}-test.jsonl", sha256=f"{index}a" * 32, count=prompts)
            for index, domain in enumerate(DOMAINS)
        },
        seeds={domain: (0, 1, 2, 3) if domain == "composition" else (0,) for domain in DOMAINS},
        metrics=METRICS,
    )
    results = build_results(
        rows,
        roles=RolesSettings(base="base", student="student", merge="merge", teachers=TEACHERS),
        protocol=card,
        wall_seconds=512.3,
        peak_rss_mb=1843.0,
    )
    write_json(folder / "results.json", results.to_json())
    _write_curves(folder / "metrics.jsonl", updates, generator)
    (folder / "config.yaml").write_text("seed: 0\nobjective: direct_kl\nanchor_weight: 0.02  # <lambda>\n")
    write_json(folder / "manifest.json", {"package": "flow-opd 0.1.0", "seed": 0, "hashes": {"base": "ab"}})
    save_pictures(pictures(generator), folder / "images")
    return folder


def pictures(generator: np.random.Generator) -> Pictures:
    """Noisy discs on plain grounds; the noise shrinks from column to column."""
    columns = ("base", *TEACHERS.values(), "merge", "student")
    grid = np.mgrid[:32, :32]
    rows = []
    for domain, texts in PROMPTS.items():
        for seed, text in enumerate(texts):
            ground, disc = generator.integers(0, 255, (2, 3))
            centre = generator.integers(10, 22, 2)
            inside = ((grid - centre[:, None, None]) ** 2).sum(0) < 60
            clean = np.where(inside[..., None], disc, ground)
            noise = (
                generator.normal(0, 1, (len(columns), 32, 32, 3))
                * np.linspace(60, 8, len(columns))[:, None, None, None]
            )
            rows.append(PictureRow(text, domain, seed, (clean + noise).clip(0, 255).astype(np.uint8)))
    return Pictures(columns, tuple(rows))


def _scores(ids: list[str], values: NDArray[np.float64], tags: tuple[str, ...] = ("",)) -> Scores:
    own = [tags[index % len(tags)] for index in range(len(ids))]
    return Scores.of(ids, [0] * len(ids), values, tags=own)


def _write_curves(file: Path, updates: int, generator: np.random.Generator) -> None:
    lines = []
    for step in range(1, updates + 1):
        decay = np.exp(-step / 60)
        values = {
            f"kl/{domain}": (0.02 + 0.5 * decay) * (1 + 0.2 * place) for place, domain in enumerate(DOMAINS)
        }
        values |= {
            "loss": 0.1 + decay,
            "kl/anchor": 0.3 - 0.1 * decay,
            "grad_norm": 0.3 + 4 * decay,
            "lr": 1e-3,
        }
        noisy = {key: float(value * generator.lognormal(0, 0.15)) for key, value in values.items()}
        lines.append(json.dumps({"step": step, "time": 1.4 * step, **noisy}))
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder; tests that change it copy it first."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo", prompts=60, updates=60)
