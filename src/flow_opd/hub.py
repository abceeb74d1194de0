"""What can go wrong between this machine and the Hugging Face hub, as a message that says what to do."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flow_opd.errors import explain

HUB_ERRORS: tuple[type[Exception], ...] = (
    HTTPError,  # of the HTTP library, where the connection itself fails
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
"""What the hub's client raises when a repository cannot be had."""


def hub_trouble(error: Exception, name: str, *, what: str, offline: bool = False, hint: str = "") -> str:
    """Returns the message in four parts for an error of `HUB_ERRORS`.

    Args:
        error: what the hub's client raised.
        name: the repository as the user wrote it, with its revision if there is one.
        what: what it was meant to be and where it is named, such as "the adapter in 'teachers.adapter'".
        offline: whether the caller forbade the network.
        hint: a further thing to try, such as a path that looks alike; a sentence or nothing.
    """
    problem, allowed, fix = _diagnosis(error, offline or constants.HF_HUB_OFFLINE)
    return explain(f"{what} {problem}", value=name, allowed=allowed, fix=f"{hint} {fix}".strip())


def _diagnosis(error: Exception, offline: bool) -> tuple[str, str, str]:
    """Returns what is wrong, what is allowed and what to do."""
    if isinstance(error, GatedRepoError):
        return (
            "is gated, and this machine has no token that may read it",
            "a repository whose terms you have accepted",
            "accept the terms on its page on the hub, then run `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            "has no such revision",
            "a branch, tag or commit of this repository",
            "correct the revision; the page of the repository lists them under 'Files'",
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "is neither a local path nor a repository of the hub that this machine may read",
            "an existing path, or a hub id 'owner/name' or 'owner/name@revision'",
            "correct the name; for a private repository run `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, HFValidationError):
        return (
            "is no local path, and cannot be a hub id",
            "an existing path, or a hub id 'owner/name' or 'owner/name@revision'",
            "correct the name",
        )
    if offline:
        return (
            "is no local path, has not been downloaded, and the hub may not be asked (offline)",
            "an existing path, or a repository that is in the cache of this machine",
            "download it where there is a network with `hf download`, or allow the hub: base.offline=false, "
            "without HF_HUB_OFFLINE",
        )
    status = f", status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else ""
    return (
        f"is no local path, and the hub cannot be reached ({type(error).__name__}{status})",
        "an existing path, a network connection, or a repository that was downloaded before",
        "check the connection and try again, or copy the repository here and name its folder",
    )
