"""Card and publication of what distillation and evaluation leave, on the shipped miniature."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from errors import refused
from flow_opd.adapters.formats.reading import read_adapter
from flow_opd.config.distill import DistillSettings
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.file.reader import read
from flow_opd.config.locations import asset_folder
from flow_opd.config.options import CardSettings, ExportSettings, PublishSettings
from flow_opd.config.sft import SFTSettings
from flow_opd.errors import AdapterError, ConfigError, DataError
from flow_opd.files import sha256
from flow_opd.stages import card, distill, evaluate, export, publish, sft

pytestmark = pytest.mark.slow

CONFIGS = asset_folder() / "configs"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs `student`, a distillation, and `table`, its evaluation, made from inside it."""
    folder = tmp_path_factory.mktemp("world")
    before = Path.cwd()
    os.chdir(folder)
    walk = ["sampling.num_steps=2", "sampling.stochastic_steps=[0, 0]"]
    short = ["run.out=runs/student", "run.rounds=1", "prompts_per_round=4", *walk]
    distill.run(read(CONFIGS / "distill.yaml", DistillSettings, short), resume=True)
    rows = "rows={base: {guidance_scale: 1.0}, student: {adapter: runs/student/adapter, guidance_scale: 1.0}}"
    domain = "{quality: {path: asset:prompts/test/quality.jsonl, limit: 2}}"
    table = ["run.out=runs/table", "num_steps=1", "grid_prompts=1", rows, f"domains={domain}"]
    table += ["roles={base: base, student: student}", "rewards=[{name: deqa, path: asset:rewards/deqa}]"]
    evaluate.run(read(CONFIGS / "evaluate.yaml", EvaluateSettings, table), resume=True)
    os.chdir(before)
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, as the current directory."""
    shutil.copytree(world / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_card(run: str, **options: Any) -> Path:
    return card.run(CardSettings(folder=Path(run), **options))


def test_the_card_of_a_distillation(here: Path) -> None:
    path = write_card("runs/student")
    assert path == Path("runs/student/adapter/README.md")
    text = path.read_text()
    assert "Not evaluated yet." in text
    for name in ("composition", "text", "preference", "quality"):
        digest = sha256(asset_folder() / "teachers" / name / "adapter_model.safetensors")
        assert f"| {name} | `asset:teachers/{name}` | {name} | 1 | `{digest}` |" in text
    assert re.search(r"Together .* of which the teachers took \d+", text)
    assert "14 min 28 s | 147" in text  # the composition teacher's, from the manifest of the package
    assert not Path("runs/student/adapter/grid.png").exists()


def test_the_card_of_an_evaluation_stands_beside_the_students_adapter(here: Path) -> None:
    path = write_card("runs/table", repo="owner/tiny-student", license="mit")
    assert path == Path("runs/student/adapter/README.md")
    data = ModelCard.load(path).data
    assert (data.model_name, data.license) == ("tiny-student", "mit")
    assert [each.metric_type for each in data.eval_results] == ["deqa"]
    assert "PeftModel.from_pretrained(pipe.transformer, 'owner/tiny-student')" in path.read_text()
    grid = Path("runs/student/adapter/grid.png")
    assert grid.read_bytes() == Path("runs/table/grid.png").read_bytes()


def test_the_lines_of_the_card_run(here: Path) -> None:
    """The block is taken out of the card and run as it stands; the adapter must have an effect."""
    text = write_card("runs/table").read_text()
    (lines,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert len(lines.splitlines()) == 7  # five that load, one that finds the package's base, one that draws
    draw = lines.splitlines()[-1]
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(lines.replace(draw, ""), names)
        torch.manual_seed(0)
        exec(draw, names)
        with_adapter = np.asarray(names["image"], dtype=float)
        torch.manual_seed(0)
        with names["pipe"].transformer.disable_adapter():
            exec(draw, names)
    assert with_adapter.shape == (32, 32, 3)
    assert np.abs(with_adapter - np.asarray(names["image"], dtype=float)).max() > 3, "no effect"


def test_teachers_that_are_not_here_are_unknown(here: Path) -> None:
    config = Path("runs/student/config.yaml")
    config.write_text(config.read_text().replace("asset:teachers/text", "owner/never-downloaded"))
    text = write_card("runs/student").read_text()
    assert "| text | `owner/never-downloaded` | text | 1 | unknown |" in text
    assert "The cost of text is unknown here" in text


def test_a_teacher_that_was_trained_here_brings_its_cost(here: Path) -> None:
    config = Path("runs/student/config.yaml")
    config.write_text(config.read_text().replace("asset:teachers/text", "runs/mine/adapter"))
    shutil.copytree(asset_folder() / "teachers" / "text", "runs/mine/adapter")
    Path("runs/mine/training.json").write_text('{"seconds": 7200.0, "steps": 12}')
    assert "| text | 2 h 0 min | 12 |" in write_card("runs/student").read_text()


def test_an_sft_run_has_a_card_and_an_export(here: Path) -> None:
    short = ["run.out=runs/first", "run.rounds=1", "num_steps=1", "batch_size=4", "micro_batch_size=4"]
    prompts = "prompts=[" + ", ".join(
        f"{{path: asset:prompts/train/{name}.jsonl, limit: 1}}"
        for name in ("composition", "text", "preference", "quality")
    )
    sft.run(read(CONFIGS / "sft.yaml", SFTSettings, [*short, prompts + "]"]), resume=True)
    text = write_card("runs/first").read_text()
    assert "Supervised fine-tuning (SFT) on images that 4 teachers drew." in text
    assert "| updates | 1 of 4 images |" in text
    assert "| quality | `asset:teachers/quality` | quality | 1 |" in text
    config = Path("runs/student/config.yaml")
    config.write_text(
        re.sub(
            r"(?s)cold_start:\n.*?(?=\n\w)", "cold_start: {adapter: runs/first/adapter}", config.read_text()
        )
    )
    assert re.search(r"\| cold start \| .* \| 1 \|", write_card("runs/student").read_text())
    settings = ExportSettings(source="runs/first", format="diffusers", out=Path("exported"))
    assert (export.run(settings) / "pytorch_lora_weights.safetensors").is_file()


def test_runs_without_a_card(here: Path) -> None:
    table = Path("runs/table/config.yaml")
    table.write_text(table.read_text().replace("runs/student/adapter", "asset:teachers/quality"))
    with refused(ConfigError, value="asset:teachers/quality"):
        write_card("runs/table")
    shutil.rmtree("runs/student/adapter")
    with refused(AdapterError, value="runs/student/adapter"):
        write_card("runs/student")
    Path("runs/student/config.yaml").write_text("stage: card\nfolder: x\n")
    with refused(ConfigError, value="card"):
        write_card("runs/student")


def test_a_card_beside_a_teacher_does_not_make_it_another_teacher(here: Path) -> None:
    """A resume is refused where a teacher has changed; a card is no change."""
    before = read_adapter("runs/student/adapter").digest()
    write_card("runs/student")
    assert read_adapter("runs/student/adapter").digest() == before


def test_the_dry_run_lists_what_would_go(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "HfApi", None)  # nobody may be asked
    write_card("runs/table", repo="owner/student")
    Path("runs/student/adapter/.cache").mkdir()
    Path("runs/student/adapter/.cache/token").write_text("secret")
    settings = PublishSettings(folder=Path("runs/student"), repo="owner/student", dry_run=True)
    assert publish.run(settings) == Path("runs/student/adapter")
    printed = capsys.readouterr().out
    listed = [line.split()[0] for line in printed.split("metadata")[0].splitlines()[2:] if line.strip()]
    assert listed == ["README.md", "adapter_config.json", "adapter_model.safetensors", "grid.png", "together"]
    assert "library_name: peft" in printed


def test_what_is_not_published(here: Path) -> None:
    settings = PublishSettings(folder=Path("runs/student"), repo="owner/student", dry_run=True)
    with refused(DataError, value="runs/student/adapter/README.md", names=["--repo", "owner/student"]):
        publish.run(settings)
    write_card("runs/student", repo="owner/another")
    with refused(DataError, value="runs/student/adapter/README.md"):
        publish.run(settings)
    write_card("runs/student", repo="owner/student")
    publish.run(settings)
    Path("runs/student/adapter/optimizer.pt").write_bytes(b"")
    with refused(DataError, value=["runs/student/adapter/optimizer.pt"]):
        publish.run(settings)


def test_uploading_names_the_listed_files_and_tells_of_trouble(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub is asked; what its client would be told is looked at."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, repo: str, **options: Any) -> None:
            calls.append((repo, options))

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(publish, "HfApi", Api)
    write_card("runs/student", repo="owner/student")
    settings = PublishSettings(folder=Path("runs/student"), repo="owner/student", private=True)
    publish.run(settings)
    assert calls[0] == ("owner/student", {"private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "owner/student"
    assert calls[1][1]["allow_patterns"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]

    http = sys.modules[HTTPError.__module__.split(".")[0]]
    reply = http.Response(401, request=http.Request("POST", "https://huggingface.co/api/repos/create"))

    def refuse(self: Any, repo: str, **options: Any) -> None:
        raise HfHubHTTPError("refused", response=reply)

    monkeypatch.setattr(Api, "create_repo", refuse)
    with refused(ConfigError, value="owner/student", names=["'--repo'", "hf auth login"]):
        publish.run(settings)
