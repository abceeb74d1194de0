"""The column "ours" of docs/hyperparameters.md against the configurations that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import read
from flow_opd.config.sft import SFTSettings
from flow_opd.config.teacher import TeacherSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "hyperparameters.md").read_text()


def configuration(name: str, model: type[Any]) -> Any:
    return read(ROOT / "configs" / f"{name}.yaml", model)


TEXT, COMPOSITION, PREFERENCE, MIX = (
    configuration(name, TeacherSettings)
    for name in (
        "sd35m-teacher-text",
        "sd35m-teacher-composition",
        "sd35m-teacher-preference",
        "sd35m-grpo-mix",
    )
)
OPD = configuration("sd35m-opd", DistillSettings)
SFT = configuration("sd35m-sft", SFTSettings)
EVALUATION = configuration("sd35m-evaluate", EvaluateSettings)
FLUX = configuration("flux1dev-opd", DistillSettings)
FLUX_TEXT = configuration("flux1dev-teacher-text", TeacherSettings)

TAGS = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
MIXTURE = "position 7 : counting 5 : attributes 3 : colours 1 : two objects 1"


def number(value: float) -> str:
    """Returns a number as the page writes it: 1e-4, .0062, 4.5, 1620."""
    if 0 < abs(value) < 1e-3 and f"{value:.0e}" == f"{value:.1e}".replace(".0", ""):
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}".removeprefix("0") or "0"


def tags(settings: Any) -> str:
    """Returns the mixture of composition's tags, if it is the published one."""
    shares = settings.task_shares
    return MIXTURE if {tag: shares[f"composition-{tag}"] for tag in TAGS} == TAGS else "another mixture"


def by_task(settings: Any, order: tuple[str, ...]) -> str:
    """Returns the shares of whole tasks, composition being the sum of its tags, in units of text's."""
    shares = settings.task_shares
    whole = {task: shares[task] for task in order if task != "composition"}
    whole["composition"] = sum(value for task, value in shares.items() if task.startswith("composition-"))
    return " : ".join(f"{task} {round(whole[task] / whole['text'], 1):g}" for task in order)


def steps(settings: Any, trained: int) -> str:
    sampling = settings.sampling
    window = sampling.stochastic_steps
    first, stop = sampling.stochastic_range()
    assert stop - first == trained
    return f"`{window if isinstance(window, str) else list(window)}`"


def adam(settings: Any) -> list[str]:
    used = settings.optimizer
    return [
        number(used.weight_decay),
        f"{number(used.betas[0])} / {number(used.betas[1])}",
        f"{used.max_grad_norm:.1f}",
    ]


def lora(rank: int, alpha: float) -> list[str]:
    return [f"rank {rank}", f"alpha {alpha:g}"]


def size_and_text(settings: Any) -> list[str]:
    return [f"{settings.base.resolution} pixels", f"{settings.base.max_sequence_length} tokens"]


Expected = Callable[[], list[str]]
PROSE: Expected = list  # what no setting says

TEACHERS: Mapping[str, Expected] = {
    "images a round": lambda: [f"{TEXT.groups_per_round} prompts x {TEXT.group_size} images"],
    "composition prompts": lambda: [] if tags(COMPOSITION) == MIXTURE else ["another mixture"],
    "updates a round": lambda: [f"{TEXT.updates_per_round}"],
    "rounds": lambda: [f"{each.run.rounds}, all" for each in (TEXT, COMPOSITION, PREFERENCE)],
    "advantages": lambda: [f"advantage_spread: {TEXT.advantage_spread}"],
    "advantage clip": lambda: [number(TEXT.advantage_clip)],
    "groups of equal rewards": PROSE,
    "beta": lambda: [f"{number(TEXT.kl_weight)}; {number(PREFERENCE.kl_weight)}"],
    "clip range": lambda: [number(TEXT.clip_range)],
    "steps": lambda: [f"{TEXT.sampling.num_steps}, of which 8", steps(TEXT, 8)],
    "a": lambda: [number(TEXT.sampling.noise_level)],
    "guidance in training": lambda: [number(TEXT.sampling.guidance_scale)],
    "GenEval reward": lambda: [f"training_score: {COMPOSITION.rewards[0].training_score}"],
    "images that GenEval judges": PROSE,
    "OCR reward": lambda: [f"{TEXT.rewards[0].reader} reader"],
    "optimizer": lambda: [number(TEXT.optimizer.learning_rate), *adam(TEXT)],
    "EMA": lambda: [f"{number(TEXT.ema.decay)} every {TEXT.ema.every}"],
    "LoRA": lambda: [*lora(TEXT.lora.rank, TEXT.lora.alpha), "eight attention projections"],
    "size, text": lambda: size_and_text(TEXT),
    "precision": lambda: [TEXT.base.dtype],
}
DISTILLATION: Mapping[str, Expected] = {
    "objective": lambda: [OPD.objective.name.replace("-kl", " KL")],
    "divisor of the KL": PROSE,
    "weight of a state": lambda: [f"`state_weights: {OPD.state_weights.name}`"],
    "anchor is evaluated": lambda: {0.125: ["an eighth", "weight 8"]}[OPD.anchor_share(OPD.anchor)],
    "targets": lambda: (
        ["the teachers"] if {each.extrapolation for each in OPD.teachers} == {1.0} else ["beyond"]
    ),
    "trajectories an update": lambda: [f"{OPD.prompts_per_round} prompts"],
    "tasks": lambda: [by_task(OPD, ("text", "composition", "preference", "quality"))],
    "learning rate": lambda: [number(OPD.optimizer.learning_rate)],
    "lambda, anchor": lambda: [number(OPD.anchor.weight), f"the {OPD.anchor.teacher} teacher"],
    "steps, a": lambda: [f"{OPD.sampling.num_steps}", steps(OPD, 8), number(OPD.sampling.noise_level)],
    "guidance": lambda: [
        f"{number(scale)} for all"
        for scale in {
            OPD.sampling.guidance_scale,
            OPD.anchor.guidance_scale,
            *(t.guidance_scale for t in OPD.teachers),
        }
    ],
    "cold start": lambda: [
        f"{len(OPD.teachers)} adapters",
        f"SVD to rank {OPD.cold_start.merge.rank}, alpha {OPD.cold_start.merge.alpha:g}",
    ],
    "composition prompts": lambda: ["these shares"] if tags(OPD) == MIXTURE else ["another mixture"],
    "text prompts": lambda: (
        ["20,000"] if "ocr --n 20000 " in (ROOT / "configs/sd35m-opd.yaml").read_text() else ["?"]
    ),
    "EMA": lambda: [f"{number(OPD.ema.decay)} every {OPD.ema.every}"],
    "decay, betas, norm": lambda: adam(OPD),
    "warm-up": lambda: [f"{OPD.optimizer.warmup_steps} updates"],
    "LoRA": lambda: lora(OPD.cold_start.merge.rank, OPD.cold_start.merge.alpha),
    "size, text": lambda: size_and_text(OPD),
    "precision": lambda: ["as for teachers"] if OPD.base.dtype == TEXT.base.dtype else ["another"],
    "evaluation": lambda: [
        f"{EVALUATION.num_steps} steps",
        f"{len(EVALUATION.domains['composition'].seeds)} pictures a prompt",
    ],
}
MIXED: Mapping[str, Expected] = {
    "what it is": PROSE,
    "rounds": lambda: [f"{MIX.run.rounds}", "three teachers together"],
    "tasks": lambda: [by_task(MIX, ("text", "composition", "preference"))],
    "learning rate": lambda: [number(MIX.optimizer.learning_rate)],
    "several rewards": lambda: [f"`reward_normalization: {MIX.reward_normalization}`"],
    "beta": lambda: [number(MIX.kl_weight)],
    "the rest": lambda: (
        ["as for teachers"]
        if all(
            getattr(MIX, key) == getattr(TEXT, key)
            for key in TeacherSettings.model_fields
            if key not in {"run", "task_shares", "prompts", "rewards", "reward_normalization", "optimizer"}
        )
        else ["otherwise"]
    ),
}
TUNING: Mapping[str, Expected] = {
    "pictures a task": lambda: [str(limit) for limit in {each.limit for each in SFT.prompts}],
    "steps and guidance of the pictures": lambda: [
        f"{SFT.num_steps} steps, {number(scale)}" for scale in {each.guidance_scale for each in SFT.teachers}
    ],
    "learning rate": lambda: [
        f"{number(SFT.optimizer.learning_rate)}, {SFT.optimizer.warmup_steps} updates of warm-up"
    ],
    "pictures an update": lambda: [f"{SFT.batch_size}"],
    "updates": lambda: [f"{SFT.run.rounds}"],
    "levels of noise": lambda: [SFT.sigmas.name.split("-")[0]],
    "LoRA": lambda: lora(SFT.lora.rank, SFT.lora.alpha),
}
OF_FLUX: Mapping[str, Expected] = {
    "steps": lambda: [f"{FLUX.sampling.num_steps}, of which 9", steps(FLUX, 9), steps(FLUX_TEXT, 9)],
    "beta": lambda: [number(FLUX_TEXT.kl_weight)],
    "guidance": lambda: [
        f"{number(FLUX.base.embedded_guidance)} as an input of the network, {number(scale)} beside it"
        for scale in {FLUX.sampling.guidance_scale, FLUX_TEXT.sampling.guidance_scale}
    ],
    "text": lambda: [f"{FLUX.base.max_sequence_length}"],
    "precision": lambda: [FLUX.base.dtype],
    "tasks of the distillation": lambda: [by_task(FLUX, ("text", "composition"))],
    "anchor": lambda: ["none" if FLUX.anchor is None else "some"],
    "trajectories a pass": lambda: [f"{FLUX.micro_batch_size}; teachers {FLUX_TEXT.micro_batch_size}"],
}
SECTIONS = {
    "Teachers (Flow-GRPO)": TEACHERS,
    "Distillation": DISTILLATION,
    "GRPO-Mix": MIXED,
    "Supervised fine-tuning": TUNING,
    "FLUX.1-dev": OF_FLUX,
}


def rows(section: str) -> dict[str, tuple[str, str]]:
    """Returns the rows of a section's table: name -> (theirs, ours)."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0].replace("\\|", "!")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: (theirs, ours) for name, theirs, ours in cells if name}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_says_what_the_configurations_have(section: str) -> None:
    found = rows(section)
    assert list(found) == list(SECTIONS[section])
    for name, expected in SECTIONS[section].items():
        theirs, ours = found[name]
        said = f"{theirs} {ours}" if ours.startswith("the same") else ours
        for words in expected():
            assert words in said, (name, words, said)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (0.0062, ".0062"), (4.5, "4.5"), (5.0, "5"), (3e-4, "3e-4"), (0.9, ".9")],
)
def test_numbers_are_written_as_on_the_page(value: float, text: str) -> None:
    assert number(value) == text
