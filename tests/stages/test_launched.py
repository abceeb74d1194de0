"""A launcher's processes share a whole run by its command, and leave what one process leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calls import succeeds
from errors import assert_refused
from flow_opd.cli import main
from forks import fork_several

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
DEMO = [
    *("demo", "--set", "distill.run.rounds=2", "--set", "distill.prompts_per_round=6"),
    *("--set", "distill.micro_batch_size=2", "--set", "distill.sampling.num_steps=3"),
    *("--set", "distill.sampling.stochastic_steps=[0, 1]", "--set", "distill.compute.device=cpu"),
    *(
        "--set",
        "evaluate.compute.device=cpu",
        "--set",
        "evaluate.num_steps=2",
        "--set",
        "evaluate.batch_size=2",
    ),
    *("--set", "evaluate.grid_prompts=1"),
    *(
        word
        for domain in ("composition", "text", "preference", "quality")
        for word in ("--set", f"evaluate.domains.{domain}.limit=5")
    ),
]


def words(folder: Path) -> list[str]:
    """Returns the command of the short demo, in which both halves look up prompts encoded beforehand."""
    cache = folder.with_name(f"{folder.name}-embeddings")
    embeddings = [
        word
        for part in ("distill", "evaluate")
        for word in ("--set", f"{part}.embeddings={{folder: '{cache}', batch_size: 8, shard_size: 64}}")
    ]
    return [*DEMO, *embeddings, "--out", str(folder)]


def command(*words: str) -> None:
    """Runs `flow-opd WORDS`, to its exit code."""
    sys.argv = ["flow-opd", *words]
    main()


def test_two_launched_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    """By the launcher itself, and from the first line of each process on."""
    succeeds(*words(tmp_path / "one"))
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "flow_opd", *words(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report:") == done.stdout.count("done ") == 1, "only the main process speaks"
    one, two = ({path.relative_to(f) for path in f.rglob("*")} for f in (tmp_path / "one", tmp_path / "two"))
    assert one == two
    adapters = [
        load_file(f / "adapter/adapter_model.safetensors") for f in (tmp_path / "one", tmp_path / "two")
    ]
    for key, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][key], value, rtol=0, atol=1e-5)
    results = [json.loads((f / "results.json").read_text()) for f in (tmp_path / "one", tmp_path / "two")]
    for row, same in zip(results[0]["rows"], results[1]["rows"], strict=True):
        for metric, cell in row["metrics"].items():
            assert same["metrics"][metric]["mean"] == pytest.approx(cell["mean"], abs=2e-3), (
                row["name"],
                metric,
            )
            assert same["metrics"][metric]["n"] == cell["n"]
    shares = [len(list((tmp_path / f"{name}-embeddings").glob("*/*"))) for name in ("one", "two")]
    assert shares[1] >= shares[0] > 1, "every process wrote shards of its own"
    assert json.loads((tmp_path / "two/training.json").read_text())["processes"] == 2


def test_more_processes_than_trajectories_are_refused(tmp_path: Path) -> None:
    words = ("distill", "asset:configs/distill.yaml", "--set", "compute.device=cpu")
    shard = ("--set", "prompts_per_round=5", "--set", "compute.shard_base=true", "--out", str(tmp_path / "x"))
    for process in fork_several(2, command, *words, *shard, told=tmp_path / "told"):
        assert process.ended() == 2, process.err
        assert_refused(process.err, names=["prompts_per_round", "compute.shard_base"])
    assert not (tmp_path / "x").exists()
