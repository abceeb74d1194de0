"""What two sets of settings do not have in common, key by key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flow_opd.config.base import Settings
from flow_opd.config.document import load_document
from flow_opd.errors import ConfigError

SHOWN = 5


def differences(recorded: Path, settings: Settings) -> list[str]:
    """Returns "key: value, now value" for the first keys that are not as in a config.yaml, if any."""
    try:
        before = load_document(recorded).data
    except (ConfigError, OSError):
        return []
    found = list(_compared("", before, settings.model_dump(mode="json")))
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *more]


def _compared(key: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from _compared(f"{key}.{name}" if key else str(name), before.get(name), now.get(name))
    elif before != now:
        yield f"{key}: {before}, now {now}"
