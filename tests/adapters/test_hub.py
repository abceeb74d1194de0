"""Adapters of the hub: a real cache without a network, and what the hub's own client raises."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from errors import refused
from flow_opd.adapters.bank import AdapterBank
from flow_opd.adapters.formats import reading as hub
from flow_opd.adapters.formats.reading import adapter_folder
from flow_opd.adapters.lora import WEIGHTS_FILE
from flow_opd.errors import AdapterError, ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(bank: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of owner/teacher in a cache as the hub's client lays it out; its main branch is COMMIT."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--owner--teacher"
    snapshot = repository / "snapshots" / COMMIT
    bank.weights("student").write(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    return snapshot


@pytest.mark.parametrize("name", ["owner/teacher", "owner/teacher@main", f"owner/teacher@{COMMIT}"])
def test_a_downloaded_repository_needs_no_network(cache: Path, name: str) -> None:
    assert adapter_folder(name, key="adapter", offline=True) == cache


def test_the_environment_may_forbid_the_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapter_folder("owner/teacher", key="adapter") == cache
    with refused(AdapterError, value="owner/unknown", names=["HF_HUB_OFFLINE"]):
        adapter_folder("owner/unknown", key="adapter")


@pytest.mark.parametrize("name", ["owner/unknown", "owner/teacher@other"])
def test_not_downloaded_and_offline(cache: Path, name: str) -> None:
    with refused(AdapterError, value=name, names=["'rows.a'", "base.offline", "hf download"]):
        adapter_folder(name, key="rows.a", offline=True)


def test_paths_come_first(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "owner" / "teacher").mkdir(parents=True)
    assert adapter_folder("owner/teacher", key="adapter", offline=True) == Path("owner/teacher")
    with refused(ConfigError, value="runs/demo/adapter"):
        adapter_folder("runs/demo/adapter", key="adapter", offline=True)


def test_a_repository_without_safetensors(cache: Path) -> None:
    (cache / WEIGHTS_FILE).unlink()
    (cache / "adapter_config.json").unlink()
    with refused(AdapterError, names=["owner/teacher"]):
        adapter_folder("owner/teacher", key="adapter", offline=True)


def test_only_safetensors_and_json_of_no_pipeline_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patterns, by the hub's own filter, on what repositories hold."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["adapter_config.json", WEIGHTS_FILE, "lora/adapter_model.safetensors", "my_lora.safetensors"]
    others = [
        "adapter_model.bin",
        "README.md",
        "optimizer.pt",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors",
        "vae/config.json",
    ]
    kept = filter_repo_objects(
        [*wanted, *others], allow_patterns=list(hub.DOWNLOADED), ignore_patterns=list(hub.NOT_DOWNLOADED)
    )
    assert list(kept) == wanted


def answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """The error that the client makes of a reply of the hub; its reply class is that of its HTTP library."""
    import sys

    http = sys.modules[HTTPError.__module__.split(".")[0]]
    reply = http.Response(
        status, request=http.Request("GET", "https://huggingface.co/api/models/owner/teacher")
    )
    return kind("refused", response=reply)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (answer(GatedRepoError, 403), ["is gated", "accept it at https://huggingface.co/runs/teachr"]),
        (answer(RepositoryNotFoundError, 404), ["neither a local path nor a repository", "hf auth login"]),
        (answer(RevisionNotFoundError, 404), ["no such revision", "branch, tag or commit"]),
        (answer(HfHubHTTPError, 503), ["answered with an error", "(refused)", "try again"]),
        (LocalEntryNotFoundError("no route"), ["cannot be reached", "start again"]),
        (HTTPError("connection refused"), ["cannot be reached"]),
        (HFValidationError("bad"), ["cannot be a hub id"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_said(
    error: Exception, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(AdapterError) as caught:
        adapter_folder("runs/teachr", key="teachers.adapter")
    for part in [
        "'teachers.adapter'",
        "'runs/teachr'",
        "Allowed:",
        "To fix:",
        "Did you mean 'teacher'?",
        *parts,
    ]:
        assert part in str(caught.value)
