"""The model card of an adapter: metadata of the hub, recipe, teachers, results, cost, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from flow_opd.config.locations import ASSET
from flow_opd.evaluation.results import Results
from flow_opd.reports.recipe import Cost, ledger
from flow_opd.reports.tables import results_markdown, seeds_by_domain

TAGS = ("flow-opd", "lora", "on-policy-distillation", "flow-matching", "text-to-image")
# Licences that come with a base: identifier, name and address as the hub's metadata wants them.
_STABILITY = ("other", "stabilityai-ai-community", "https://stability.ai/community-license-agreement")
_LICENSES = {
    "stabilityai/stable-diffusion-3": _STABILITY,
    "black-forest-labs/flux.1-dev": (
        "other",
        "flux-1-dev-non-commercial-license",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    ASSET: ("apache-2.0", None, None),
}


@dataclass(frozen=True)
class BaseFacts:
    """The base and how a reader loads it."""

    path: str  # hub id, folder, or "asset:NAME"
    on_hub: bool
    dtype: str
    revision: str | None = None
    variant: str | None = None
    absent_parts: tuple[str, ...] = ()  # that from_pretrained has to be told of


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher and what it has cost."""

    name: str
    adapter: str
    role: str  # its tasks, or "anchor"
    guidance: float
    sha256: str | None  # of its weights; None where they are not at hand
    cost: Cost


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn with the adapter."""

    prompt: str
    steps: int
    guidance: float
    text_tokens: int
    resolution: int | None  # pixels; None = the base's own


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says."""

    title: str
    adapter: str  # what PeftModel.from_pretrained is given: a hub id or a folder
    sha256: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    method: str
    base: BaseFacts
    recipe: Sequence[tuple[str, str]]
    teachers: Sequence[TeacherFacts]
    cost: Cost
    drawing: Drawing
    config: str  # resolved settings as YAML
    version: str  # of this package
    results: Results | None = None
    picture: str | None = None  # file beside the card
    license: str | None = None
    cold_start: Cost | None = None  # of an adapter that the student started from


def render_card(facts: CardFacts) -> str:
    """Returns the card as Markdown with the hub's metadata in front."""
    environment = Environment(
        loader=PackageLoader("flow_opd.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["seeds_by_domain"] = seeds_by_domain
    costs, sentence = ledger(facts.cost, [teacher.cost for teacher in facts.teachers], facts.cold_start)
    body = environment.get_template("card.md.j2").render(
        facts=facts,
        loading=loading_lines(facts),
        results=None if facts.results is None else results_markdown(facts.results),
        costs=costs,
        cost_sentence=sentence,
    )
    return str(ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body}"))


def loading_lines(facts: CardFacts) -> str:
    """Returns the Python lines that load base and adapter, and one that draws a picture."""
    base, drawing = facts.base, facts.drawing
    imports = ["import torch", "from diffusers import DiffusionPipeline", "from peft import PeftModel"]
    path = repr(base.path)
    if base.path.startswith(ASSET):
        imports.append("from flow_opd.config.locations import locate")
        path = f"locate({path})"
    # Without a dtype, parts that are stored in half precision may be loaded so, and others not.
    options = [path, f"torch_dtype=torch.{base.dtype}"]
    named = {"revision": base.revision, "variant": base.variant}
    options += [f"{key}={value!r}" for key, value in named.items() if value is not None]
    options += [f"{part}=None" for part in base.absent_parts]
    settings = [repr(drawing.prompt), f"num_inference_steps={drawing.steps}"]
    settings += [f"guidance_scale={drawing.guidance:g}", f"max_sequence_length={drawing.text_tokens}"]
    if drawing.resolution is not None:
        settings += [f"height={drawing.resolution}", f"width={drawing.resolution}"]
    return "\n".join(
        [
            *imports,
            f"pipe = DiffusionPipeline.from_pretrained({', '.join(options)})",
            f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {facts.adapter!r})",
            f"image = pipe({', '.join(settings)}).images[0]",
        ]
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    identifier, name, address = _license(facts)
    return ModelCardData(
        base_model=facts.base.path if facts.base.on_hub else None,
        library_name="peft",
        pipeline_tag="text-to-image",
        license=identifier,
        license_name=name,
        license_link=address,
        tags=list(TAGS),
        model_name=facts.title,
        eval_results=_eval_results(facts.results) or None,
    )


def _license(facts: CardFacts) -> tuple[str, str | None, str | None]:
    if facts.license is not None:
        return facts.license, None, None
    path = facts.base.path.lower()
    return next(
        (found for start, found in _LICENSES.items() if path.startswith(start)), ("unknown", None, None)
    )


def _eval_results(results: Results | None) -> list[EvalResult]:
    """Returns the student's scores, each metric on its own prompts, with interval and protocol."""
    if results is None or results.roles.student is None:
        return []
    student, protocol = results.row(results.roles.student), results.protocol
    found = []
    for metric in results.columns:
        score = student.metrics.get(metric.name) if student else None
        file = protocol.prompts.get(metric.domain)
        if score is None or file is None:
            continue
        judge = protocol.judges.get(metric.name, "")
        own = judge.startswith(ASSET)  # the miniature's own model, whose scores are its own, too
        arguments: dict[str, Any] = {
            "interval": [round(score.low, 4), round(score.high, 4)],
            "level": protocol.level,
            "images": score.n,
            "sampling_steps": protocol.steps,
            "guidance": protocol.guidance.get(results.roles.student),
            "resolution": list(protocol.resolution),
            "protocol": protocol.hash,
            **({"judge": judge} if judge else {}),
        }
        found.append(
            EvalResult(
                task_type="text-to-image",
                task_name="Text-to-image generation",
                dataset_type=metric.domain,
                dataset_name=f"{file.name}, first {file.count} prompts",
                dataset_revision=file.sha256[:12],
                metric_type=metric.name,
                metric_name=f"{metric.label} by the miniature's own judge" if own else metric.label,
                metric_value=round(score.mean, 4),
                metric_args=arguments,
            )
        )
    return found
