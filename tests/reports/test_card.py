"""The model card: metadata that the hub reads, and lines that load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from flow_opd.config.common import BaseModelSettings, CheckpointSettings, PromptsSettings, TrainingRunSettings
from flow_opd.config.distill import DistillSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import asset_folder
from flow_opd.config.teacher import TeacherSettings
from flow_opd.config.teachers import RoutedTeacherSettings
from flow_opd.evaluation.results import load_results
from flow_opd.reports.card import (
    BaseFacts,
    CardFacts,
    Drawing,
    TeacherFacts,
    loading_lines,
    render_card,
)
from flow_opd.reports.recipe import Cost, ledger, method, recipe
from tiny import Tiny, new_tiny_pipeline

SETTINGS = DistillSettings(
    run=TrainingRunSettings(out=Path("runs/x"), rounds=200),
    base=BaseModelSettings(path="stabilityai/stable-diffusion-3.5-medium", max_sequence_length=128),
    teachers=(RoutedTeacherSettings(name="text", tasks=("text",), adapter="owner/text", guidance_scale=4.5),),
    prompts=(PromptsSettings(path="prompts.txt", task="text"),),
    checkpoint=CheckpointSettings(),
)


@pytest.fixture
def facts(run_folder: Path) -> CardFacts:
    return CardFacts(
        title="student",
        adapter="owner/student",
        sha256="ab" * 32,
        rank=32,
        alpha=64.0,
        targets=("attn.to_q", "attn.to_k"),
        method=method(SETTINGS),
        base=BaseFacts(
            path="stabilityai/stable-diffusion-3.5-medium", on_hub=True, dtype="bfloat16", revision="abc"
        ),
        recipe=recipe(SETTINGS),
        teachers=[
            TeacherFacts("text", "owner/text", "text", 4.5, "cd" * 32, Cost("text", 3000.0, 90)),
            TeacherFacts("quality", "owner/quality", "quality", 1.0, None, Cost("quality", 6000.0, 40)),
        ],
        cost=Cost("this adapter", 1000.0, 200),
        drawing=Drawing('a cat\'s "sign"', 40, 4.5, 128, 512),
        config="run: {}",
        version="0.1.0",
        results=load_results(run_folder / "results.json"),
        picture="grid.png",
    )


def test_the_hub_reads_the_metadata(facts: CardFacts) -> None:
    data = ModelCard(render_card(facts)).data
    assert data.base_model == "stabilityai/stable-diffusion-3.5-medium"
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-to-image")
    assert (data.license, data.license_name) == ("other", "stabilityai-ai-community")
    assert {"flow-opd", "lora"} <= set(data.tags)
    assert data.model_name == "student"
    assert facts.results is not None
    student = facts.results.row("student")
    assert student is not None
    assert [each.metric_type for each in data.eval_results] == ["geneval", "ocr", "deqa", "pickscore"]
    for each in data.eval_results:
        cell = student.metrics[each.metric_type]
        assert each.metric_value == pytest.approx(cell.mean, abs=1e-4)
        assert each.metric_args["interval"] == pytest.approx([cell.low, cell.high], abs=1e-4)
        assert each.metric_args["protocol"] == facts.results.protocol.hash
        assert each.dataset_type in facts.results.protocol.prompts


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ("black-forest-labs/FLUX.1-dev", None, "other"),
        ("asset:base", None, "apache-2.0"),
        ("owner/base", None, "unknown"),
        ("asset:base", "mit", "mit"),
    ],
)
def test_licence(base: str, given: str | None, expected: str, facts: CardFacts) -> None:
    chosen = replace(
        facts, license=given, base=BaseFacts(path=base, on_hub="asset" not in base, dtype="float32")
    )
    data = ModelCard(render_card(chosen)).data
    assert data.license == expected
    assert data.base_model == (None if base == "asset:base" else base)


def test_what_the_card_says(facts: CardFacts) -> None:
    text = render_card(facts)
    assert "![The same prompts and seeds under every policy](grid.png)" in text
    assert "| text | `owner/text` | text | 4.5 | `" + "cd" * 32 + "` |" in text
    assert "| quality | `owner/quality` | quality | 1 | unknown |" in text
    assert "| this adapter | 16 min 40 s | 200 |" in text
    assert "the teachers took 90\N{NO-BREAK SPACE}%" in text
    assert "| policy | GenEval | OCR | DeQA | PickScore | average |" in text
    assert "| objective | direct-kl |" in text
    bare = render_card(replace(facts, results=None, picture=None, teachers=[]))
    assert "Not evaluated yet." in bare
    assert "grid.png" not in bare
    assert "## Teachers" not in bare
    assert "model-index" not in bare
    assert yaml.safe_load(bare.split("---")[1])["library_name"] == "peft"


def test_unknown_costs_stay_unknown() -> None:
    lines, sentence = ledger(Cost("own", 10.0, 1), [Cost("a", 5.0, 2), Cost("b")])
    assert [line.time for line in lines] == ["10 s", "5 s", "unknown"]
    assert sentence.startswith("The cost of b is unknown here")
    assert "%" not in sentence
    assert ledger(Cost("own", 10.0), [])[1] == "The training took 10 s."


def test_a_ledger_counts_devices_and_the_cold_start() -> None:
    own, start = Cost("own", 3600.0, 1), Cost("cold start", 3600.0, 5)
    lines, sentence = ledger(own, [Cost("a", 3600.0, 2, processes=8)], start)
    assert [line.name for line in lines] == ["own", "cold start", "a"]
    assert lines[2].time == "1 h 0 min on 8 devices"
    assert "Together 10 h 0 min of a device, of which the teachers took 80\N{NO-BREAK SPACE}%" in sentence


def test_the_lines_of_a_published_card(facts: CardFacts) -> None:
    assert loading_lines(facts).splitlines() == [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "from peft import PeftModel",
        "pipe = DiffusionPipeline.from_pretrained('stabilityai/stable-diffusion-3.5-medium', "
        "torch_dtype=torch.bfloat16, revision='abc')",
        "pipe.transformer = PeftModel.from_pretrained(pipe.transformer, 'owner/student')",
        "image = pipe('a cat\\'s \"sign\"', num_inference_steps=40, guidance_scale=4.5, "
        "max_sequence_length=128, height=512, width=512).images[0]",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_lines_load_the_adapter_on_a_tiny_base(dtype: str, facts: CardFacts, tmp_path: Path) -> None:
    new_tiny_pipeline().save_pretrained(tmp_path / "base")
    Tiny().bank.weights("student").write(tmp_path / "adapter")
    absent = ("text_encoder_3", "tokenizer_3")
    lines = loading_lines(
        replace(
            facts,
            adapter=str(tmp_path / "adapter"),
            base=BaseFacts(path=str(tmp_path / "base"), on_hub=False, dtype=dtype, absent_parts=absent),
            drawing=Drawing("a red circle", 2, 1.5, 0, 8),
        )
    )
    space: dict[str, Any] = {}
    exec(lines, space)
    assert space["image"].size == (8, 8)
    adapted = space["pipe"].transformer
    assert adapted.dtype == getattr(torch, dtype)
    inputs = {
        "hidden_states": torch.ones(1, 4, 4, 4, dtype=adapted.dtype),
        "encoder_hidden_states": torch.ones(1, 3, 16, dtype=adapted.dtype),
        "pooled_projections": torch.ones(1, 16, dtype=adapted.dtype),
        "timestep": torch.tensor([500.0]),
    }
    with torch.no_grad():
        with_adapter = adapted(**inputs).sample
        with adapted.disable_adapter():
            assert (adapted(**inputs).sample - with_adapter).abs().max() > 0.01


def test_a_mix_says_what_judges_what_and_where_it_started() -> None:
    settings = read(asset_folder() / "configs/grpo-mix-from-merge.yaml", TeacherSettings)
    assert method(settings) == "GRPO-Mix: Flow-GRPO on the rewards geneval, ocr, pickscore, deqa."
    said = dict(recipe(settings))
    assert said["rewards"].startswith("geneval on composition (weight 1), ocr on text (weight 1), ")
    assert said["advantages"] == "normalization each, spread of the group"
    assert said["cold start"].startswith("merge of asset:teachers/composition, ")
    alone = read(asset_folder() / "configs/teachers/text.yaml", TeacherSettings)
    assert method(alone) == "Flow-GRPO on the reward ocr."
    assert dict(recipe(alone))["cold start"] == "fresh adapter"
