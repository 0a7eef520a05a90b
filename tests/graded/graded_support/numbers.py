"""Compare a plain number with the truth, and say what probably went wrong: the part that needs no torch.

Tests of problems in plain Python import this instead of `compare`, and start at once.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import pytest

_fail = pytest.fail
"""Whoever replaces `pytest.fail` later does not change this; this name itself is only watched (`fence`)."""


def fail(message: str) -> NoReturn:
    """Fail the test with a message for the student and no traceback of the grader."""
    _fail(message, pytrace=False)


def check_number(
    actual: Any,
    expected: float,
    *,
    what: str,
    allowed: float,
    mistakes: Mapping[str, Any | Callable[[], Any]] | None = None,
    hint: str = "",
) -> None:
    """Fail unless `actual` is a number within `allowed` of `expected`.

    The arguments are those of `compare.check_tensor`.
    """
    if isinstance(actual, bool) or not isinstance(actual, int | float):
        fail(f"{what} returned {kind(actual)}; expected a number")
    found = float(actual)
    if _is_close(found, expected, allowed):
        return
    explained = _explain(found, expected, allowed, mistakes or {}, hint)
    if allowed:
        fail(f"{what} gave {found:.8g}; expected {expected:.8g}, give or take {allowed:.2g}.{explained}")
    fail(f"{what} gave {found!r}; expected exactly {expected!r}.{explained}")


def _is_close(found: float, expected: float, allowed: float) -> bool:
    """Whether two numbers are close; nan is close to nothing, infinity only to itself."""
    return abs(found - expected) <= allowed or found == expected


def _explain(
    found: float, expected: float, allowed: float, mistakes: Mapping[str, Any | Callable[[], Any]], hint: str
) -> str:
    """The first known mistake that would give what was found, in words."""
    for words, value in mistakes.items():
        given: Any = value() if callable(value) else value
        wrong = float(given)
        # A mistake that cannot be told from the truth here explains nothing.
        if _is_close(found, wrong, allowed) and not _is_close(wrong, expected, allowed):
            return f" This is what comes out when {words}."
    return f" {hint}" if hint else ""


def describe_any(mistakes: Iterable[str]) -> str:
    """A hint that lists what is often wrong, for results that no known mistake explains."""
    return "Often wrong here: " + "; ".join(mistakes) + "."


def kind(value: Any) -> str:
    """What a value is, for a message: "a list", "None"."""
    return "None" if value is None else f"a {type(value).__name__}"
