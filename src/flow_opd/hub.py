"""What can go wrong between this machine and the Hugging Face hub, as a message that says what to do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flow_opd.errors import ConfigError, FlowOPDError, explain

DOWNLOADED = ("*.safetensors", "*.json", "*.txt")  # never a file that could run code
_SILENCE = (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    HTTPError,  # of the HTTP library, where the connection itself fails
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)


class _Told(NamedTuple):
    what: str
    allowed: str
    fix: str
    value: object = None  # None: the name that the user wrote


def is_offline(setting: bool) -> bool:
    """Says whether the hub may not be contacted: by base.offline, or by HF_HUB_OFFLINE in the environment."""
    return setting or constants.HF_HUB_OFFLINE


@contextmanager
def hub_errors(
    name: str,
    *,
    what: str,
    revision: str | None = None,
    offline: bool = False,
    hint: str = "",
    error: type[FlowOPDError] = ConfigError,
) -> Iterator[None]:
    """Turns what the hub's client, the network or a full disk raise into one message that says what to do.

    Args:
        name: the repository as the user wrote it.
        what: what it was meant to be and where it is named, such as "the adapter in 'teachers.adapter'".
        revision: of the repository, if it is not a part of the name.
        offline: whether base.offline forbids the network.
        hint: a further thing to try, such as a path that looks alike; a sentence or nothing.
        error: class of what is raised instead; all else passes as it is.
    """
    try:
        yield
    except FlowOPDError:
        raise
    except Exception as fault:  # libraries hide the cause below errors of their own
        full_name = f"{name}@{revision}" if revision else name
        told = _diagnosis(fault, full_name, what, offline)
        if told is None:
            raise
        message = explain(
            told.what,
            value=full_name if told.value is None else told.value,
            allowed=told.allowed,
            fix=f"{hint} {told.fix}".strip(),
        )
        raise error(message) from fault


def model_folder(name: str, *, what: str, error: type[FlowOPDError] = ConfigError) -> Path:
    """Returns the local folder of a model: a path as it is, or a repository of the hub, downloaded once.

    Only safetensors, JSON and vocabularies are downloaded, nothing that could run code.

    Args:
        name: a path or hub id.
        what: what it was meant to be, for messages.
        error: class of what is raised if it cannot be had.
    """
    if Path(name).exists():
        return Path(name)
    with hub_errors(name, what=what, error=error):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(DOWNLOADED)))


def _diagnosis(fault: Exception, name: str, what: str, offline: bool) -> _Told | None:
    """Returns what is said of a fault: the most telling of it and its causes decides."""
    causes = list(_with_causes(fault))
    if any(_is_full_disk(each) for each in causes):
        return _Told(
            f"the disk is full: {what} could not be downloaded whole ({name})",
            "room for all its files",
            "make room, or set HF_HOME to a folder on a larger disk; start again: finished files are kept",
            value=constants.HF_HUB_CACHE,
        )
    if any(isinstance(each, HFValidationError) for each in causes):
        return _Told(
            f"{what} is no local path, and cannot be a hub id",
            "an existing path, or a hub id 'owner/name'",
            "correct the name",
        )
    answer = next((each for each in causes if isinstance(each, HfHubHTTPError)), None)
    if answer is not None and not isinstance(answer, LocalEntryNotFoundError):
        return _answered(answer, name, what)
    return _unanswered(what, offline) if any(isinstance(each, _SILENCE) for each in causes) else None


def _answered(answer: HfHubHTTPError, name: str, what: str) -> _Told:
    """Returns what is said where the hub has answered, but not with the repository."""
    if isinstance(answer, GatedRepoError):
        return _Told(
            f"{what} is gated: accept its licence first",
            "a hub account that has accepted it, and its token on this machine",
            f"accept it at {constants.ENDPOINT}/{name.partition('@')[0]}, then {_sign_in()}",
        )
    if isinstance(answer, RepositoryNotFoundError):
        return _Told(
            f"{what} is neither a local path nor a repository that the hub shows to you",
            "an existing path, or a hub id 'owner/name'",
            f"correct the name; if it is private, {_sign_in()}",
        )
    if isinstance(answer, RevisionNotFoundError):
        return _Told(
            f"{what} has no such revision",
            "a branch, tag or commit of this repository",
            "correct the revision, or leave it out for the newest; the page of the repository lists them",
        )
    if isinstance(answer, EntryNotFoundError):
        return _Told(
            f"the repository of {what} lacks a file ({_gist(answer)})",
            "a repository with all files, in safetensors",
            "correct the name or the revision (or base.variant, if it is set)",
        )
    return _Told(
        f"the hub answered with an error when it was asked for {what} ({_gist(answer)})",
        "a hub that gives out its files",
        f"try again later; if access is refused, {_sign_in()}",
    )


def _unanswered(what: str, offline: bool) -> _Told:
    """Returns the message where the hub was not contacted, or has not answered."""
    if is_offline(offline):
        forbids = "base.offline" if offline else "HF_HUB_OFFLINE"
        return _Told(
            f"{what} is not on this machine, and {forbids} forbids contacting the hub",
            "an existing path, or a repository that has been downloaded before, in this revision",
            "download it where there is a network with `hf download`, or set base.offline: false and unset "
            "HF_HUB_OFFLINE",
        )
    return _Told(
        f"the hub at {constants.ENDPOINT} cannot be reached for {what}",
        "a connection to the hub; only what has been downloaded before, and local paths, need none",
        "check the network, its proxy (HTTPS_PROXY) and HF_ENDPOINT, and start again",
    )


def _with_causes(fault: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = fault
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


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
