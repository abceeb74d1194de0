"""Every stage by its command, on the shipped miniature, with budgets of seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calls import refused, succeeds
from errors import ANY
from flow_opd.config.locations import asset_folder
from flow_opd.rewards.deqa import QualityNet

pytestmark = pytest.mark.slow
FILES = [
    f"{{path: asset:prompts/train/{domain}.jsonl, limit: 4}}"
    for domain in ("composition", "text", "preference", "quality")
]
SHORT_WALK = ["--set", "sampling.num_steps=3", "--set", "sampling.stochastic_steps=[0, 1]"]


def test_teacher_trains_and_resumes(tmp_path: Path) -> None:
    command = [
        "teacher",
        "asset:configs/teachers/composition.yaml",
        *("--out", "teacher", "--set", "group_size=2", "--set", "groups_per_round=2"),
        *("--set", "run.rounds=2", "--set", "steps_per_round=1", *SHORT_WALK),
    ]
    succeeds(*command, cwd=tmp_path)
    folder = tmp_path / "teacher"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"reward", "policy_gradient", "ratio", "grad_norm"} <= set(lines[0])
    assert lines[0]["ratio"] == 1.0  # the first update of a round is exactly on-policy
    before = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    succeeds(*command, cwd=tmp_path)  # finished: nothing left to train
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == before


MIX = [
    *("teacher", "asset:configs/grpo-mix.yaml", "--set", "group_size=2", "--set", "groups_per_round=4"),
    *("--set", "run.rounds=1", "--set", "steps_per_round=1", *SHORT_WALK),
]


def test_grpo_mix_judges_every_task_by_its_own_reward_and_starts_from_a_merge(tmp_path: Path) -> None:
    adapters = "[asset:teachers/text, asset:teachers/quality]"
    start = [
        "--set",
        "lora=null",
        "--set",
        f"cold_start={{merge: {{name: svd, rank: 4}}, adapters: {adapters}}}",
    ]
    told = succeeds(*MIX, *start, "--out", "mix", cwd=tmp_path).stderr
    assert "asset:teachers/quality" in told, "what the merge has kept"
    (line,) = [json.loads(line) for line in (tmp_path / "mix/metrics.jsonl").read_text().splitlines()]
    means = {name: line[f"reward/{name}"] for name in ("geneval", "ocr", "pickscore", "deqa")}
    assert line["reward"] == pytest.approx(sum(means.values()) / 4, rel=1e-5), "two images of each task"
    assert means["pickscore"] > 10 > 5 >= means["deqa"] >= 1 >= means["geneval"]
    begun = load_file(tmp_path / "mix/cold_start/adapter_model.safetensors")
    succeeds(
        *("merge", "asset:configs/merge.yaml", "--out", "merged", "--set", "method={name: svd, rank: 4}"),
        *(
            "--set",
            "adapters=[{name: a, adapter: asset:teachers/text}, {name: b, adapter: asset:teachers/quality}]",
        ),
        cwd=tmp_path,
    )
    merged = load_file(tmp_path / "merged/adapter/adapter_model.safetensors")
    assert begun.keys() == merged.keys()
    assert all(value.equal(merged[name]) for name, value in begun.items())
    ended = load_file(tmp_path / "mix/adapter/adapter_model.safetensors")
    assert any(not value.equal(ended[name]) for name, value in begun.items())
    other = [*start[:3], "cold_start={adapter: asset:teachers/text}"]
    refused(*MIX, *other, "--out", "mix", cwd=tmp_path, names=["mix", "first_weights"])


def test_a_swapped_start_is_noticed_at_a_resume(tmp_path: Path) -> None:
    shutil.copytree(asset_folder() / "teachers/text", tmp_path / "start")
    start = ["--out", "mix", "--set", "lora=null", "--set", "cold_start={adapter: start}"]
    succeeds(*MIX, *start, cwd=tmp_path)
    shutil.copytree(asset_folder() / "teachers/quality", tmp_path / "start", dirs_exist_ok=True)
    refused(*MIX, *start, cwd=tmp_path, names=["mix"])


@pytest.mark.parametrize(
    ("settings", "value", "names"),
    [
        (["rewards.1.tasks=[signs]"], "text", []),
        (["rewards.1.tasks=[text, signs]", "groups_per_round=5"], "signs", ["'ocr'"]),
        (["rewards.1.tasks=[text, quality]", "rewards.3.tasks=[quality]"], ANY, ["'ocr'", "'quality'"]),
        (["task_shares={text: 1}"], ANY, ["text", "composition", "preference", "quality"]),
    ],
)
def test_prompts_and_rewards_that_do_not_fit(
    tmp_path: Path, settings: list[str], value: object, names: list[str]
) -> None:
    words = [word for each in settings for word in ("--set", each)]
    refused(*MIX, "--out", "mix", *words, cwd=tmp_path, value=value, names=names)
    assert not (tmp_path / "mix/metrics.jsonl").exists() or not (tmp_path / "mix/metrics.jsonl").read_text()


def test_a_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    command = [
        "distill",
        "asset:configs/distill.yaml",
        *("--out", "student", "--set", "run.rounds=1", "--set", "prompts_per_round=4", *SHORT_WALK),
    ]
    succeeds(*command, cwd=tmp_path)
    files = [path for path in sorted((tmp_path / "student").rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert tmp_path / "student" / "config.yaml" in before
    refused(*command, "--set", "anchor.weight=0.5", cwd=tmp_path, names=["student", "anchor.weight"])
    assert {path: path.read_bytes() for path in files} == before
    succeeds("generate", "a red circle", "--out", "student", "--set", "num_steps=1", cwd=tmp_path)
    assert {path: path.read_bytes() for path in files} == before, "pictures may go into a run folder"


def test_swapped_teacher_files_are_noticed_at_a_resume(tmp_path: Path) -> None:
    for name in ("text", "quality"):
        shutil.copytree(asset_folder() / "teachers" / name, tmp_path / name)
    command = [
        "distill",
        "asset:configs/distill.yaml",
        *("--out", "student", "--set", "run.rounds=1", "--set", "prompts_per_round=4", *SHORT_WALK),
        *("--set", "teachers.1.adapter=text", "--set", "teachers.3.adapter=quality"),
    ]
    succeeds(*command, cwd=tmp_path)
    (tmp_path / "text").rename(tmp_path / "kept")
    (tmp_path / "quality").rename(tmp_path / "text")
    (tmp_path / "kept").rename(tmp_path / "quality")
    before = (tmp_path / "student/adapter/adapter_model.safetensors").read_bytes()
    refused(*command, cwd=tmp_path, names=["student"])
    assert (tmp_path / "student/adapter/adapter_model.safetensors").read_bytes() == before


def test_teachers_are_evaluated_and_what_changed_is_scored_again(tmp_path: Path) -> None:
    judge = tmp_path / "deqa"
    shutil.copytree(asset_folder() / "rewards" / "deqa", judge)
    command = [
        "evaluate",
        "asset:configs/evaluate.yaml",
        *("--out", "table", "--set", "num_steps=1", "--set", "grid_prompts=0"),
        *("--set", f"rewards=[{{name: deqa, path: {judge}}}]", "--set", "domains.quality.limit=2"),
        *("--set", "domains={quality: {path: asset:prompts/test/quality.jsonl, limit: 2}}"),
        *("--set", "roles={base: base, teachers: {quality: quality teacher}}"),
    ]
    succeeds(*command, cwd=tmp_path)
    kept = tmp_path / "table" / "scores" / "base.quality.json"
    first = json.loads(kept.read_text())
    differences = json.loads((tmp_path / "table" / "results.json").read_text())["differences"]
    assert {tuple(one["pair"]) for one in differences} == {("quality teacher", "base")}
    kept.write_text(json.dumps({**first, "seconds": 1000.0}))
    succeeds(*command, cwd=tmp_path)
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    assert results["wall_seconds"] > 1000, "what was kept has taken its time once"
    QualityNet().save(judge)
    succeeds(*command, cwd=tmp_path)
    assert json.loads(kept.read_text())["scores"] != first["scores"], "another judge, other scores"


def test_merge_reports_what_was_kept(tmp_path: Path) -> None:
    command = ["merge", "asset:configs/merge.yaml", "--out", "merged", "--set", "method={name: svd, rank: 4}"]
    result = succeeds(*command, cwd=tmp_path)
    assert "energy lost" in result.stderr
    report = json.loads((tmp_path / "merged/merge.json").read_text())
    assert 0.5 < report["kept_energy"] <= 1.0
    assert set(report["teachers"]) == {"composition", "text", "preference", "quality"}
    assert all(0 < each["cosine"] < 1 for each in report["teachers"].values())
    assert all(f"{each['cosine']:.3f}" in result.stderr for each in report["teachers"].values())
    layers = [int(name.removeprefix("transformer_blocks.")) for name in report["layers"]]
    assert layers == list(range(len(layers)))
    assert "energy kept by layer: from" in result.stderr


@pytest.mark.parametrize("objective", ["direct-kl", "sampled-log-ratio"])
def test_distill_moves_the_student(tmp_path: Path, objective: str) -> None:
    succeeds(
        "distill",
        "asset:configs/distill.yaml",
        *("--out", "student", "--set", "run.rounds=2", "--set", "prompts_per_round=4", *SHORT_WALK),
        *("--set", f"objective={objective}"),
        cwd=tmp_path,
    )
    folder = tmp_path / "student"
    start = load_file(folder / "cold_start" / "adapter_model.safetensors")
    end = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert start.keys() == end.keys()
    assert any(not start[name].equal(end[name]) for name in start)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "anchor_gap" in lines[-1]


def test_embeddings_made_beforehand_change_nothing(tmp_path: Path) -> None:
    """The same student, and the second run encodes nothing: it finds all texts."""
    command = [
        "distill",
        "asset:configs/distill.yaml",
        *(
            "--set",
            "run.rounds=2",
            "--set",
            "prompts_per_round=4",
            "--set",
            "prompts=[" + ", ".join(FILES) + "]",
        ),
        *("--set", "sampling.guidance_scale=2.0", *SHORT_WALK),
    ]
    cache = ["--set", "embeddings={folder: cache, batch_size: 4, shard_size: 8}"]
    succeeds(*command, "--out", "live", cwd=tmp_path)
    succeeds(*command, "--out", "cached", *cache, cwd=tmp_path)
    file = "adapter/adapter_model.safetensors"
    live, cached = (load_file(tmp_path / name / file) for name in ("live", "cached"))
    assert live.keys() == cached.keys()
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, rtol=0, atol=1e-5)
    (identity,) = (tmp_path / "cache").iterdir()
    shards = {shard: shard.stat().st_mtime_ns for shard in identity.iterdir()}
    assert len(shards) >= 2
    succeeds(*command, "--out", "again", *cache, cwd=tmp_path)
    assert {shard: shard.stat().st_mtime_ns for shard in identity.iterdir()} == shards


def test_a_student_starts_from_its_teachers_images(tmp_path: Path) -> None:
    command = [
        "sft",
        "asset:configs/sft.yaml",
        *("--out", "sft", "--set", "run.rounds=3", "--set", "num_steps=2", "--set", "batch_size=4"),
        *(word for file in range(4) for word in ("--set", f"prompts.{file}.limit=2")),
    ]
    told = succeeds(*command, cwd=tmp_path).stderr
    assert "teachers' images: step 8/8" in told
    folder = tmp_path / "sft"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines] == [4, 4, 4]
    assert lines[0]["velocity_matching"] == lines[0]["loss"] > 0
    (shard,) = folder.glob("samples/*/*.safetensors")
    assert load_file(shard)["x0"].shape == (8, 8, 16, 16)
    assert json.loads((folder / "training.json").read_text())["steps"] == 3
    drawn, trained = shard.stat().st_mtime_ns, (folder / "adapter/adapter_model.safetensors").read_bytes()
    succeeds(*command, "--fresh", "--set", "optimizer.learning_rate=1e-4", cwd=tmp_path)
    assert [file.stat().st_mtime_ns for file in folder.glob("samples/*/*.safetensors")] == [drawn]
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() != trained
    succeeds(
        "distill",
        "asset:configs/distill.yaml",
        *("--out", "student", "--set", "run.rounds=1", "--set", "prompts_per_round=4", *SHORT_WALK),
        *("--set", "cold_start={adapter: sft/adapter}"),
        cwd=tmp_path,
    )
    start = load_file(tmp_path / "student/cold_start/adapter_model.safetensors")
    for name, value in load_file(folder / "adapter/adapter_model.safetensors").items():
        assert value.equal(start[name])
    shutil.rmtree(folder / "samples")
    succeeds(*command, "--set", "optimizer.learning_rate=1e-4", cwd=tmp_path)
    assert not (folder / "samples").exists(), "a finished training needs no images"


def test_demo_leaves_everything_behind(tmp_path: Path) -> None:
    domains = [
        f"evaluate.domains.{name}.limit=2" for name in ("composition", "text", "preference", "quality")
    ]
    settings = [
        *domains,
        "evaluate.num_steps=2",
        "evaluate.grid_prompts=1",
        "distill.run.rounds=1",
        "distill.prompts_per_round=4",
        "distill.sampling.num_steps=2",
        "distill.sampling.stochastic_steps=[0, 0]",
    ]
    command = ["demo", "--out", "demo", *(word for each in settings for word in ("--set", each))]
    result = succeeds(*command, cwd=tmp_path)
    folder = tmp_path / "demo"
    results = json.loads((folder / "results.json").read_text())
    assert {"rows", "differences", "retention", "average", "protocol", "wall_seconds", "peak_rss_mb"} <= set(
        results
    )
    assert results["rows"][0]["name"] == "base"
    assert results["rows"][-1]["name"] == "student"
    page = (folder / "report.html").read_text()
    assert "student" in page
    assert 'src="http' not in page
    for name in (
        "metrics.jsonl",
        "config.yaml",
        "adapter/adapter_model.safetensors",
        "results.md",
        "grid.png",
    ):
        assert (folder / name).exists()
    assert "report.html" in result.stdout


def test_generate_draws_the_same_picture_for_the_same_seed(tmp_path: Path) -> None:
    words = ["generate", "a red circle in the sky", "--seed", "3", "--set", "num_steps=2"]
    succeeds(*words, "--out", "one", cwd=tmp_path)
    succeeds(*words, "--out", "two", "--adapter", "asset:teachers/quality", cwd=tmp_path)
    succeeds(*words, "--out", "three", cwd=tmp_path)
    pictures = [next((tmp_path / name).glob("*.png")).read_bytes() for name in ("one", "two", "three")]
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]


def test_nothing_asks_the_network(tmp_path: Path) -> None:
    """A whole process, imports included, with sockets that raise; the control shows that they do."""
    words = ["generate", "a red circle", "--adapter", "asset:teachers/text", "--set", "num_steps=1"]
    code = (
        "import socket, sys, urllib.request\n"
        "def refuse(*_): raise SystemExit('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "try:\n"
        "    urllib.request.urlopen('http://localhost:9')\n"
        "except SystemExit:\n"
        "    print('sockets raise')\n"
        f"sys.argv = ['flow-opd', *{words!r}]\nfrom flow_opd.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sockets raise" in done.stdout


def test_build_goes_through_every_part(tmp_path: Path) -> None:
    parts = ["vae", "base", "refine"]
    settings = [
        "pictures=96",
        "parts=[vae, base, refine]",
        *(f"{part}.{key}" for part in parts for key in ("steps=20", "batch_size=4")),
    ]
    command = [
        "miniature",
        "build",
        "--out",
        "build",
        *(word for each in settings for word in ("--set", each)),
    ]
    succeeds(*command, cwd=tmp_path)
    manifest = json.loads((tmp_path / "build/assets/manifest.json").read_text())
    assert manifest["parts"]["base"]["steps"] == 20
    assert manifest["parts"]["base"]["samples"] == 80
    assert [step for step, _ in manifest["parts"]["base"]["curves"]["loss"]] == [10, 20]
    assert any(name.startswith("base/transformer") for name in manifest["sha256"])
    assert (tmp_path / "build/assets/base/model_index.json").exists()
    before = (tmp_path / "build/assets/manifest.json").read_bytes()
    for part in ("base", "vae"):
        refused(*command, "--set", f"{part}.steps=21", cwd=tmp_path, names=[f"'{part}'"])
    succeeds(*command, cwd=tmp_path)  # finished: nothing is built again
    assert (tmp_path / "build/assets/manifest.json").read_bytes() == before


# What users get wrong.


def test_typo_in_a_key(tmp_path: Path) -> None:
    wrong = "distill.optimizer.lerning_rate=1e-4"
    refused("demo", "--set", wrong, cwd=tmp_path, names=["lerning_rate", "learning_rate"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["run.seed", "distill.run.threads"])
def test_the_demo_swallows_no_setting(tmp_path: Path, key: str) -> None:
    refused("demo", "--set", f"{key}=1", cwd=tmp_path, names=[key.rsplit(".", 1)[1]])


def test_a_refused_resume_says_what_differs(tmp_path: Path) -> None:
    short = ["--set", "run.rounds=1", "--set", "prompts_per_round=4", "--set", "sampling.num_steps=2"]
    command = ["distill", "asset:configs/distill.yaml", "--out", "run", *short]
    command += ["--set", "sampling.stochastic_steps=[0, 0]"]
    succeeds(*command, cwd=tmp_path)
    change = ["--set", "anchor.weight=0.5", "--set", "micro_batch_size=2"]
    message = refused(*command, *change, cwd=tmp_path, names=["anchor.weight: 0.02, now 0.5"])
    assert "micro_batch_size" not in message, "it changes memory and no numbers"


def test_pictures_of_prompts_that_look_alike_have_names_of_their_own(tmp_path: Path) -> None:
    succeeds("generate", "a b", "a-b", "c", "--set", "num_steps=1", "--out", "pictures", cwd=tmp_path)
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == [
        "a-b-prompt1-0.png",
        "a-b-prompt2-0.png",
        "c-0.png",
    ]


def test_the_miniature_has_no_t5(tmp_path: Path) -> None:
    refused("generate", "a red circle", "--text-tokens", "77", cwd=tmp_path, value=77, names=["T5"])


def test_the_demo_has_one_base(tmp_path: Path) -> None:
    refused("demo", "--set", "distill.base.dtype=bfloat16", cwd=tmp_path, names=["evaluate.base.dtype"])


def test_what_only_a_training_can_do_is_refused_elsewhere(tmp_path: Path) -> None:
    words = ["evaluate", "asset:configs/evaluate.yaml", "--set", "compute.shard_base=true"]
    refused(*words, cwd=tmp_path, names=["shard_base"])


def test_a_teacher_without_prompts_and_prompts_without_a_teacher(tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "a photo of a circle", "task": "composition"}\n')
    prompts = ["--set", f"prompts=[{{path: {one}}}]"]
    refused("distill", "asset:configs/distill.yaml", *prompts, cwd=tmp_path, names=["'text'"])
    one.write_text('{"prompt": "a photo of a circle", "task": "juggling"}\n')
    for stage in ("distill", "sft"):
        refused(stage, f"asset:configs/{stage}.yaml", *prompts, cwd=tmp_path, names=["'juggling'"])


@pytest.mark.parametrize(
    ("content", "name"),
    [("", "bad.jsonl"), ('{"prompt": "a", "task": "text"}\n{"prompt": \n', "bad.jsonl:2")],
    ids=["empty", "malformed"],
)
def test_bad_prompt_files(tmp_path: Path, content: str, name: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    words = ["teacher", "asset:configs/teachers/text.yaml", "--set", f"prompts=[{{path: {bad}}}]"]
    refused(*words, cwd=tmp_path, names=[name])


def test_a_truncated_adapter(tmp_path: Path) -> None:
    from flow_opd.config.locations import locate

    source = locate("asset:teachers/text")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    weights = (source / "adapter_model.safetensors").read_bytes()
    (broken / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    words = ["generate", "a red circle", "--adapter", str(broken), "--out", "pictures"]
    refused(*words, cwd=tmp_path, names=["adapter_model.safetensors"])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused("merge", "asset:configs/merge.yaml", "--out", "file/run", cwd=tmp_path, names=["file/run"])


def test_a_base_that_is_none(tmp_path: Path) -> None:
    words = ["generate", "a red circle", "--base", "asset:prompts"]
    refused(*words, cwd=tmp_path, names=["model_index.json"])
