"""What can go wrong between a base's name and its weights, told with what to do about it."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flow_opd.config.common import BaseModelSettings
from flow_opd.errors import ConfigError, explain

INDEX = "model_index.json"
LOCAL = "or name a downloaded folder in base.path"


class _Told(NamedTuple):
    what: str
    value: object
    allowed: str
    fix: str


def pipeline_index(source: str, base: BaseModelSettings) -> dict[str, Any]:
    """Returns the model_index.json of a base: its pipeline class, and which parts it was saved with.

    Args:
        source: a folder or hub id.
        base: says which revision, and whether the hub may be asked.

    Raises:
        ConfigError: if there is none, or it cannot be had.
    """
    folder = Path(source)
    if folder.exists():
        file = folder / INDEX
        if not file.is_file():
            raise ConfigError(
                explain(
                    "the base is not a diffusers folder",
                    value=source,
                    allowed=f"a folder with a {INDEX}, or a hub id",
                    fix="point base.path at the folder that save_pretrained wrote",
                )
            )
    else:
        file = Path(
            huggingface_hub.hf_hub_download(
                source, INDEX, revision=base.revision, local_files_only=is_offline(base)
            )
        )
    index: dict[str, Any] = json.loads(file.read_text())
    return index


def is_offline(base: BaseModelSettings) -> bool:
    """Says whether the hub may not be asked: by this setting, or by HF_HUB_OFFLINE in the environment."""
    return base.offline or constants.HF_HUB_OFFLINE


@contextmanager
def told_as_config_error(source: str, base: BaseModelSettings) -> Iterator[None]:
    """Turns what the libraries raise over a base that cannot be had into one message that says what to do.

    Args:
        source: a folder or hub id.
        base: where the name came from.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as fault:  # hub, network, safetensors, JSON, torch: whatever loading may raise
        what, value, allowed, fix = _diagnosis(fault, source, base)
        raise ConfigError(explain(what, value=value, allowed=allowed, fix=fix)) from fault


def _diagnosis(fault: Exception, source: str, base: BaseModelSettings) -> _Told:
    """Returns what is said of a fault: the most telling of it and its causes decides."""
    causes: list[BaseException] = []
    cause: BaseException | None = fault
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(_is_full_disk(each) for each in causes):
        return _Told(
            f"the disk is full: {source} could not be downloaded or read whole",
            constants.HF_HUB_CACHE,
            "room for all its weights",
            "make room, or set HF_HOME to a folder on a larger disk; start again: finished files are kept",
        )
    answer = next((each for each in causes if isinstance(each, HfHubHTTPError)), None)
    if answer is not None:
        return _answered(answer, source, base)
    silence = (LocalEntryNotFoundError, ConnectionError, TimeoutError, socket.gaierror)
    if any(isinstance(each, silence) for each in causes):
        return _unanswered(source, base)
    return _Told(
        f"the base cannot be loaded ({type(fault).__name__}: {str(fault).strip()[:300]})",
        source,
        "a complete diffusers folder in safetensors, or a hub id that can be reached",
        "correct base.path (and base.variant, if it is set), or copy or download the base again",
    )


def _answered(answer: HfHubHTTPError, source: str, base: BaseModelSettings) -> _Told:
    """Returns what is said where the hub has answered, but not with the base."""
    if isinstance(answer, GatedRepoError):
        return _Told(
            "the owners of the base ask everybody to accept its licence first",
            source,
            "a hub account that has accepted it, and its token on this machine",
            f"accept it at {constants.ENDPOINT}/{source}, then {_sign_in()}; {LOCAL}",
        )
    if isinstance(answer, RepositoryNotFoundError):
        return _Told(
            "the hub knows no such base, or does not show it to you",
            source,
            "an existing hub id 'owner/name', or a folder",
            f"correct base.path; if it is private, {_sign_in()}; {LOCAL}",
        )
    if isinstance(answer, RevisionNotFoundError):
        return _Told(
            f"the hub has no such revision of {source}",
            base.revision,
            "a branch, tag or commit of the repository",
            "correct base.revision, or leave it out for the newest",
        )
    if isinstance(answer, EntryNotFoundError):
        return _Told(
            f"the hub's repository lacks a file ({_gist(answer)})",
            source,
            f"a repository with a {INDEX} and the safetensors of every part",
            "correct base.path, base.revision or base.variant",
        )
    return _Told(
        f"the hub answered with an error ({_gist(answer)})",
        source,
        "a hub that gives out the base's files",
        f"try again later; if access is refused, {_sign_in()}; {LOCAL}",
    )


def _unanswered(source: str, base: BaseModelSettings) -> _Told:
    """Returns what is said where the hub was not asked, or has not answered."""
    if is_offline(base):
        return _Told(
            f"the base is not on this machine, and {'base.offline' if base.offline else 'HF_HUB_OFFLINE'} "
            "forbids to ask the hub",
            source,
            "a base that has been downloaded before, in this revision and with every part",
            f"run `hf download {source}` once, or set base.offline: false and unset HF_HUB_OFFLINE; {LOCAL}",
        )
    return _Told(
        f"the hub at {constants.ENDPOINT} cannot be reached, and the base is not on this machine",
        source,
        "a connection to the hub, or a base that has been downloaded before",
        f"check the network, its proxy (HTTPS_PROXY) and HF_ENDPOINT, and start again; {LOCAL}",
    )


def _is_full_disk(fault: BaseException) -> bool:
    """Says whether there was no room: by its number, or, through the hub's Rust client, in words alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    known = isinstance(fault, OSError) and fault.errno in numbers
    return known or any(os.strerror(number) in str(fault) for number in numbers)


def _sign_in() -> str:
    if huggingface_hub.get_token() is None:
        return "run `hf auth login` or set HF_TOKEN (there is no token on this machine)"
    return "run `hf auth login` or set HF_TOKEN with an account that may read it (the present token may not)"


def _gist(answer: HfHubHTTPError) -> str:
    return " ".join(str(answer).split())[:300]
