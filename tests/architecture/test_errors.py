"""What a user can cause is said in four parts, and belongs to a family of the standard library."""

from __future__ import annotations

import pytest

from errors import ANY, assert_refused
from flow_opd import errors

FAMILIES = {
    errors.ConfigError: ValueError,
    errors.DataError: ValueError,
    errors.AdapterError: ValueError,
    errors.CheckpointError: RuntimeError,
    errors.RewardError: RuntimeError,
    errors.ProcessError: RuntimeError,
    errors.NonFiniteError: ArithmeticError,
}


@pytest.mark.parametrize(("kind", "family"), FAMILIES.items())
def test_an_error_says_four_parts(kind: type[errors.FlowOPDError], family: type[Exception]) -> None:
    with pytest.raises(family, match=r"^rank: 0\. Allowed: 1 and above\. To fix: raise it\.$"):
        raise kind("rank", value=0, allowed="1 and above", fix="raise it")


def test_nothing_given_is_a_value_too() -> None:
    error = errors.ConfigError("no adapter", value=None, allowed="a path", fix="name one")
    assert str(error) == "no adapter: None. Allowed: a path. To fix: name one."


def test_a_message_that_is_made_already_stays() -> None:
    assert str(errors.DataError("two lines\nof it")) == "two lines\nof it"


def test_all_kinds_are_tried() -> None:
    assert set(FAMILIES) == set(errors.FlowOPDError.__subclasses__())


@pytest.mark.parametrize(
    ("message", "value", "names"),
    [
        ("rank: 0. Allowed: 1 and above", 0, []),
        ("rank. Allowed: 1 and above. To fix: raise it.", ANY, []),
        ("rank: 0. Allowed: . To fix: raise it.", ANY, []),
        ("rank: 0. Allowed: 1 and above. To fix: raise it.", 1, []),
        ("rank: 0. Allowed: 1 and above. To fix: raise it.", 0, ["lora.rank"]),
    ],
)
def test_what_the_tests_of_messages_would_not_let_pass(message: str, value: object, names: list[str]) -> None:
    with pytest.raises(AssertionError):
        assert_refused(message, value=value, names=names)


def test_each_line_of_several_mistakes_has_four_parts() -> None:
    line = errors.explain("rank", value=0, allowed="1 and above", fix="raise it")
    assert_refused(f"2 problems:\n{line}\n{line.replace('0', '7')}", value=7, names=["raise it"])
