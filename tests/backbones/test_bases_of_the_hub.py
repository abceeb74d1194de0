"""Bases of the hub: a real download from a hub of our own, and what is said when there is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from fake_hub import serve_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from errors import assert_refused
from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.errors import ConfigError
from tiny_pipelines import tiny_sd3

SCRIPT = Path(__file__).with_name("load_from_hub.py")


@dataclass(frozen=True)
class Session:
    """What came of each case, the files that the hub gave out, and what came of two once it was gone."""

    told: dict[str, Any]
    given: list[str]
    address: str
    told_without_a_hub: list[Any]


@contextmanager
def loading_elsewhere(address: str, home: Path) -> Iterator[Callable[[list[dict[str, Any]]], list[Any]]]:
    """Gives what loads bases in a process whose hub is at `address`, and returns what came of each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        env={**kept, "HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, said = process.stdin, process.stdout

        def load(cases: list[dict[str, Any]]) -> list[Any]:
            print(json.dumps([{"max_sequence_length": 6, **case} for case in cases]), file=asked, flush=True)
            told: list[Any] = json.loads(said.readline())
            return told

        yield load


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    root = tmp_path_factory.mktemp("hub")
    tiny_sd3(t5=True).save_pretrained(root / "base")
    shutil.copytree(root / "base", root / "half")
    (root / "half" / "model_index.json").unlink()
    cases: dict[str, dict[str, Any]] = {
        "without T5": {"path": "owner/base", "t5": False},
        "again, offline": {"path": "owner/base", "t5": False, "offline": True},
        "T5 offline": {"path": "owner/base", "offline": True},
        "with T5": {"path": "owner/base"},
        "with T5, offline": {"path": "owner/base", "offline": True, "resolution": 12},
        "never downloaded": {"path": "owner/other", "offline": True},
        "unknown": {"path": "owner/none"},
        "gated": {"path": "owner/gated"},
        "wrong revision": {"path": "owner/base", "revision": "v9"},
        "no index": {"path": "owner/half"},
        "broken": {"path": "owner/broken"},
    }
    refused = {"owner/gated": (401, "GatedRepo"), "owner/broken": (500, "")}
    repositories = {"owner/base": root / "base", "owner/half": root / "half"}
    with ExitStack() as stack:
        with serve_hub(repositories, refused) as (address, given):
            load = stack.enter_context(loading_elsewhere(address, root / "home"))
            told = load(list(cases.values()))
        afterwards = load([{"path": "owner/new"}, {"path": "owner/base"}])
    return Session(dict(zip(cases, told, strict=True)), given, address, afterwards)


@pytest.mark.slow
def test_a_hub_id_is_downloaded_once_and_without_t5_where_nobody_wants_it(session: Session) -> None:
    told, given = session.told, session.given
    assert told["without T5"] == told["again, offline"] == told["with T5"] == [8]
    assert told["with T5, offline"] == [12]
    assert "base.offline forbids contacting the hub" in told["T5 offline"]  # it had not come along
    assert len(set(given)) == len(given)
    assert {"text_encoder_3/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"} <= set(
        given
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("never downloaded", ["base.offline", "'owner/other'", "`hf download`"]),
        (
            "unknown",
            ["'owner/none'", "`hf auth login`", "HF_TOKEN"],
        ),
        (
            "gated",
            ["'owner/gated'", "/owner/gated", "`hf auth login`", "HF_TOKEN"],
        ),
        ("wrong revision", ["'owner/base@v9'"]),
        ("no index", ["404", "'owner/half'", "base.variant"]),
        ("broken", ["500", "'owner/broken'"]),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do(session: Session, case: str, parts: list[str]) -> None:
    message = session.told[case]
    assert isinstance(message, str), message
    assert_refused(message, names=parts)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(session: Session) -> None:
    told, cached = session.told_without_a_hub
    assert_refused(
        told, value="owner/new", names=[session.address, "'base.path'", "HTTPS_PROXY", "HF_ENDPOINT"]
    )
    assert cached == [8]  # what was downloaded before needs no hub


def full_disk() -> Exception:
    return OSError(errno.ENOSPC, "No space left on device")


def full_disk_inside() -> Exception:
    error = RuntimeError("Data processing error: CAS service error")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


def full_disk_in_words() -> Exception:
    return RuntimeError("IO Error: No space left on device (os error 28)")


def offline_mode() -> Exception:
    return OfflineModeIsEnabled("Cannot reach https://huggingface.co: offline mode is enabled.")


def not_cached() -> Exception:
    return LocalEntryNotFoundError("Cannot find the requested files in the disk cache")


@pytest.mark.parametrize(
    ("raised", "parts"),
    [
        (full_disk, ["owner/base", repr(constants.HF_HUB_CACHE), "HF_HOME"]),
        (
            full_disk_inside,
            ["owner/base", "HF_HOME"],
        ),
        (full_disk_in_words, ["owner/base", "HF_HOME"]),
        (offline_mode, ["'owner/base'", "unset HF_HUB_OFFLINE"]),
        (not_cached, ["'owner/base'", "HF_HUB_OFFLINE"]),
    ],
)
def test_what_no_hub_of_ours_can_do_is_told_too(
    monkeypatch: pytest.MonkeyPatch, raised: Callable[[], Exception], parts: list[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise raised()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as refusal:
        load_backbone(
            BaseModelSettings(path="owner/base", max_sequence_length=6), ComputeSettings(device="cpu")
        )
    assert_refused(refusal.value, names=parts)
