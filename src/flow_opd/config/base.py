"""What every settings model has in common: no unknown keys, no changes after reading, located refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from flow_opd.errors import explain

CROSS_FIELD = "flow_opd_cross_field"  # the error type under which `refuse` reaches the reader

Key = str | int
KeyPath = tuple[Key, ...]

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all settings; the docstring below a field is its help text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )


class StageSettings(Settings):
    """Base of the settings of a stage; a file says by its key `stage` whose it is (config/stages.py)."""

    stage: str
    """Stage that the file is for."""


class Problem(NamedTuple):
    """One thing that is wrong with the fields of a model taken together."""

    at: KeyPath  # where, below the model that refuses: ("teachers", 1, "tasks")
    what: str
    value: object
    allowed: str
    fix: str


def named(value: Any) -> Any:
    """Returns a word as the section {name: word}: the short form of a choice that needs no settings.

    Lists become tuples. Once a function has seen a value, pydantic takes it for one of Python's, where
    strictness does not let a list be a tuple, though it comes from JSON.
    """
    return {"name": value} if isinstance(value, str) else _with_tuples(value)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def refuse(problems: list[Problem]) -> None:
    """Raises the error that carries `problems` to the reader; does nothing if there are none."""
    if not problems:
        return
    message = "; ".join(
        explain(each.what, value=each.value, allowed=each.allowed, fix=each.fix) for each in problems
    )
    raise PydanticCustomError(CROSS_FIELD, "{message}", {"message": message, "problems": problems})
