"""What a refusal must say, whatever its words: what is wrong, the value, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from flow_opd.errors import FlowOPDError

# The only place that knows how the parts are put together; a file with several mistakes gives several lines.
PARTS = re.compile(
    r"^(?P<what>.*\S): (?P<value>.+)\. Allowed: (?P<allowed>.+)\. To fix: (?P<fix>.+)[.?]$", re.M
)
ANY = object()


def assert_refused(told: BaseException | str, *, value: object = ANY, names: Iterable[str] = ()) -> None:
    """Passes if all four parts are there.

    Args:
        told: an error, or what the command line has printed.
        value: that was given, and is to be shown.
        names: keys, files or names of what is at hand that must be found in it.
    """
    message = str(told)
    found = list(PARTS.finditer(message))
    assert found, f"not in four parts: {message}"
    for each in found:
        assert all(part.strip() for part in each.groups()), message
    if value is not ANY:
        assert any(each[0].split(". Allowed: ")[0].endswith(f": {value!r}") for each in found), message
    for name in names:
        assert name in message, f"{name!r} is not in: {message}"


@contextmanager
def refused(
    kind: type[FlowOPDError] = FlowOPDError, *, value: object = ANY, names: Iterable[str] = ()
) -> Iterator[pytest.ExceptionInfo[FlowOPDError]]:
    """Passes if what stands inside is refused with an error of a kind, in four parts."""
    with pytest.raises(kind) as told:
        yield told
    assert_refused(told.value, value=value, names=names)
