"""A typed table from names to builders; a typo is answered with the known names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from flow_opd.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind ("reward", "merge method") and what builds each of them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that enters its object under `name`."""

        def enter(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name!r} registered twice"
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """Returns the entry called `name`.

        Raises:
            ConfigError: if there is none; the message lists the names and the nearest one.
        """
        if name not in self._entries:
            raise ConfigError(
                f"unknown {self.kind}",
                value=name,
                allowed=", ".join(sorted(self._entries)),
                fix=f"use one of these names.{nearest(name, self._entries)}",
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """Returns the known names, sorted."""
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
