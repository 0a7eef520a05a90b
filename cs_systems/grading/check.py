"""Compares an answer with the truth, and says what is wrong without saying what is right.

Every message names the line of the block. Why an answer is wrong comes from `Truth.why`, written by people
for answers that people give, else from `Truth.hint`; this module adds what it can see in the answer itself:
another unit, too few digits, a name that is missing. It never quotes a number, which may be the right one.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from cs_systems.grading.items import (
    Choice,
    Dtype,
    Item,
    NotMeasuredError,
    Number,
    Order,
    OwnNumber,
    Part,
    Status,
    Symbolic,
    Text,
    Truth,
    Verdict,
)
from cs_systems.grading.sentences import count_sentences
from cs_systems.grading.symbolic import Comparison, compare
from cs_systems.grading.units import Quantity, UnitError, read_quantity

MIN_DIGITS = 2
"""Significant digits from which on a number counts as rounded, not as a guess."""

_OWN_REL_TOL = 0.01  # of a measured number whose truth has no interval
_EXACT_REL_TOL = 1e-12  # what converting a unit may cost
_DTYPES = {
    "fp64": ("float64", "double"),
    "fp32": ("float32", "single", "torch.float"),
    "tf32": ("tensorfloat32",),
    "fp16": ("float16", "half"),
    "bf16": ("bfloat16",),
    "fp8": ("float8",),
    "int8": (),
    "int32": ("int",),
    "int64": ("long",),
    "bool": (),
}
_DTYPE_OF = {alias: name for name, aliases in _DTYPES.items() for alias in (name, *aliases)}

_PLACEHOLDER = re.compile(r"n/?a|none|your (answer|text)( here)?\.?|[^\w]*", re.IGNORECASE)
# Brackets keep these words from looking like unfinished work of ours.
_TO_DO = re.compile(r"\b(TO[D]O|TBD|FIX[M]E|XX[X])\b|\b[Ll]orem ipsum\b|\b[Yy]our (answer|text) here\b")

Outcome = tuple[Status, str]
"""Status, and what stands behind the key in the message."""


def check_item(
    part_id: str, item: Item, given: str | float | list[str] | None, truth: Truth | NotMeasuredError
) -> Verdict:
    """Compare the answer `given` to one line of a block (None when the line is not there) with the truth.

    The message never holds the truth, whatever the answer was; `why` and `hint` are taken as they are.
    """
    if given is None or given == [] or (isinstance(given, str) and not given.strip()):
        return Verdict(part_id, item.key, "missing", f"{item.key} is not answered: {item.what}")
    if isinstance(truth, NotMeasuredError):
        return Verdict(part_id, item.key, "not measured", f"{item.key} cannot be checked: {truth}")
    try:
        status, what = _outcome(item, given, truth)
    except UnitError as error:
        status, what = "wrong unit", f"has the wrong unit: {error}"
    except ValueError as error:
        status, what = "unreadable", f"cannot be read: {error}"
    return Verdict(part_id, item.key, status, f"{item.key} {what}" if what else "")


def _outcome(item: Item, given: str | float | list[str], truth: Truth) -> Outcome:
    match item:
        case Number():
            return _check_number(item, _one(given), truth)
        case OwnNumber():
            return _check_own_number(item, _one(given), truth)
        case Dtype():
            return _check_word(_read_dtype(given), truth, _read_dtype)
        case Choice():
            return _check_word(
                _read_choice(given, item.choices), truth, lambda t: _read_choice(t, item.choices)
            )
        case Order():
            return _check_word(
                _read_order(given, item.choices), truth, lambda t: _read_order(t, item.choices)
            )
        case Text():
            return _check_word(_plain(given), truth, _plain)
        case Symbolic():
            return _check_formula(str(_one(given)), truth, item.names)
    raise AssertionError(f"{type(item).__name__} has no check")


def _known_reason(truth: Truth, is_it: Callable[[str], bool]) -> str:
    """Why one would give this wrong answer, if `why` has it; `is_it` tells whether a key is the answer."""
    for answer, why in truth.why.items():
        with contextlib.suppress(ValueError):  # a key that is no answer of this kind is nobody's answer
            if is_it(answer):
                return why
    return ""


def _wrong(reason: str, what: str = "is wrong") -> Outcome:
    return "wrong", f"{what}: {reason}" if reason else what


def _one(given: str | float | list[str]) -> str | float:
    if isinstance(given, list):
        raise ValueError("one value is asked, not a list")
    return given


def _plain(given: Any) -> str:
    """A word as it is compared: letter case, quotes, and the number of spaces do not matter."""
    return " ".join(str(_one(given)).strip("`'\" \n").casefold().split())


def _check_word(answer: Any, truth: Truth, read: Callable[[Any], Any]) -> Outcome:
    value = list(truth.value) if isinstance(truth.value, tuple) else truth.value
    if any(answer == read(each) for each in (value, *truth.also)):
        return "right", ""
    return _wrong(_known_reason(truth, lambda key: read(key) == answer) or truth.hint)


def _read_dtype(given: Any) -> str:
    word = re.sub(r"[ -]", "", _plain(given))
    if word == "float":
        raise ValueError("float means one type in Python and another in PyTorch; write its width, as in bf16")
    name = _DTYPE_OF.get(word) or _DTYPE_OF.get(word.removeprefix("torch."))
    if name is None:
        raise ValueError(f"{_shown(given)} is no type known here{_did_you_mean(word, list(_DTYPE_OF))}")
    return name


def _read_choice(given: Any, choices: Sequence[str]) -> str:
    def key(text: str) -> str:
        return re.sub(r"[\s_-]+", " ", _plain(text))

    found = [choice for choice in choices if key(choice) == key(given)]
    if not found:
        near = _did_you_mean(key(given), [key(choice) for choice in choices], choices)
        raise ValueError(f"{_shown(given)} is not one of {', '.join(choices)}{near}")
    return found[0]


def _read_order(given: Any, choices: Sequence[str]) -> list[str]:
    words = given if isinstance(given, list) else re.split(r"[>,]", str(given))
    if not isinstance(given, list) and "<" in str(given):
        raise ValueError("write the greatest first, with > between the words")
    order = [_read_choice(word.strip(), choices) for word in words if word.strip()]
    twice = [choice for choice in choices if order.count(choice) > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} stands in it more than once")
    absent = [choice for choice in choices if choice not in order]
    if absent:
        raise ValueError(f"{', '.join(absent)} is missing in the order")
    return order


def _shown(given: object) -> str:
    return repr(str(given)[:40])


def _did_you_mean(word: str, keys: Sequence[str], names: Sequence[str] | None = None) -> str:
    near = difflib.get_close_matches(word, keys, n=1)
    return f"; did you mean {(names or keys)[keys.index(near[0])]}?" if near else ""


def _check_formula(given: str, truth: Truth, names: Sequence[str]) -> Outcome:
    compared = compare(given, str(truth.value), names)
    if compared.same:
        return "right", ""
    reason = _known_reason(truth, lambda key: compare(given, key, names).same) or truth.hint
    return _wrong(reason, f"is wrong{_difference(compared)}")


def _difference(compared: Comparison) -> str:
    if compared.constant_factor is not None:
        return ", off by a constant factor"
    if compared.missing_names:
        return f", it does not depend on {', '.join(compared.missing_names)}"
    if compared.extra_names:
        return f", it should not depend on {', '.join(compared.extra_names)}"
    return ""


def _check_number(item: Number, given: str | float, truth: Truth) -> Outcome:
    quantity, value = read_quantity(given, item.unit), _number(truth.value)
    tolerance = max(item.rel_tol, _EXACT_REL_TOL) * abs(value)
    return _judge(quantity, truth, item.unit, value - tolerance, value + tolerance, item.rel_tol)


def _check_own_number(item: OwnNumber, given: str | float, truth: Truth) -> Outcome:
    quantity, value = read_quantity(given, item.unit), _number(truth.value)
    low = value * (1 - _OWN_REL_TOL) if truth.low is None else truth.low
    high = value * (1 + _OWN_REL_TOL) if truth.high is None else truth.high
    outcome = _judge(quantity, truth, item.unit, low, high, _OWN_REL_TOL)
    if outcome[0] == "right":
        return outcome
    for old_low, old_high, date in truth.older:
        if _is_within(quantity, old_low, old_high):
            return "stale", f"is what your records said on {date}: a later run replaced it, read it off again"
    return outcome


def _number(value: object) -> float:
    assert isinstance(value, int | float), f"the truth {value!r} is no number"
    return float(value)


def _is_within(quantity: Quantity, low: float, high: float, value: float | None = None) -> bool:
    """Whether the number, or what was rounded to it, can lie between `low` and `high`."""
    number = quantity.value if value is None else value
    rounding = abs(quantity.half_digit * number / quantity.value) if quantity.value else 0.0
    slack = rounding * (1 + 1e-9) if quantity.num_digits >= MIN_DIGITS else 0.0
    return low - slack <= number <= high + slack


def _judge(quantity: Quantity, truth: Truth, unit: str, low: float, high: float, rel_tol: float) -> Outcome:
    number = quantity.value
    if low <= number <= high or (rel_tol > 0 and _is_within(quantity, low, high)):
        return "right", ""
    known = _known_reason(truth, lambda key: _is_number(key, quantity, unit, rel_tol))
    if known:
        return _wrong(known)
    if low - quantity.half_digit <= number <= high + quantity.half_digit:
        return "wrong", "is rounded too far; give more digits"
    for other, in_other in quantity.others.items():
        if _is_within(quantity, low, high, in_other):
            return "wrong unit", f"has the wrong unit: {_about_units(quantity.unit, other)}"
    return _wrong(truth.hint)


def _is_number(key: str, quantity: Quantity, unit: str, rel_tol: float) -> bool:
    """Whether the answer is this key of `why`, which without a unit of its own is in the unit of the item."""
    with_unit = f"{key} {unit}" if re.fullmatch(r"[\d.,e+-]+", key) else key
    known = read_quantity(with_unit, unit).value
    tolerance = max(rel_tol, _EXACT_REL_TOL) * abs(known)
    return _is_within(quantity, known - tolerance, known + tolerance)


def _about_units(typed: str, other: str) -> str:
    """What to say of a number that fits with another unit."""
    if typed.replace("i", "").lower() == other.replace("i", "").lower():
        return f"the number fits {other} (with an i, prefixes are powers of two; without, of ten)"
    return f"the number fits {other}" if other else "the number fits without it"


def check_prose(part: Part, prose: str) -> Verdict:
    """Whether the text behind a block is there, is no placeholder, and has as many sentences as asked."""
    if part.prose is None:
        return Verdict(part.id, "prose", "right")
    low, high = part.prose.min_sentences, part.prose.max_sentences
    asked = f"{low} to {high} sentences" if low < high else f"{low} sentence{'s' if low > 1 else ''}"
    num = count_sentences(prose)
    if not num or _PLACEHOLDER.fullmatch(prose.strip()):
        return Verdict(part.id, "prose", "missing", f"the text behind the block is missing: write {asked}")
    left = _TO_DO.search(prose)
    if left:
        return Verdict(part.id, "prose", "missing", f"the text still holds {left[0]!r}: write {asked}")
    if num > high:
        return Verdict(
            part.id, "prose", "wrong", f"the text has {num} sentences: say what matters in {asked}"
        )
    if num < low:
        return Verdict(part.id, "prose", "wrong", f"the text has only {num} of {asked}")
    return Verdict(part.id, "prose", "right")
