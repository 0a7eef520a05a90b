"""Reads a number with its unit as people write it: 12.3 ms, 1.5GiB, 128,625,408, 50 %, 3.4 billion, 2.05x.

A mistake of units is the commonest wrong answer, so it has an error of its own: no unit, one of another kind,
or bits where bytes are meant. No message repeats the number that was typed: it may be the right one.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_CHARACTERS = 80

_DECIMAL = {"": 1e0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_COUNTS = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "x": 1.0, "%": 0.01}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_LONG_SECONDS = {"sec": 1.0, "second": 1.0, "seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}


def _with_prefixes(prefixes: Mapping[str, float], *names: str) -> dict[str, float]:
    return {prefix + name: factor for name in names for prefix, factor in prefixes.items()}


_BYTES = _with_prefixes(_DECIMAL | {"K": 1e3} | _BINARY, "B") | {"byte": 1.0, "bytes": 1.0}

UNITS: Mapping[str, Mapping[str, float]] = {
    "s": _SECONDS | _LONG_SECONDS,
    "B": {unit: factor for unit, factor in _BYTES.items() if unit},
    "FLOP": _with_prefixes(_DECIMAL, "FLOP", "FLOPs"),
    "FLOP/s": _with_prefixes(_DECIMAL, "FLOP/s", "FLOPs/s", "FLOPS"),
    "B/s": {unit + "/s": factor for unit, factor in _BYTES.items()},
    "tokens/s": _with_prefixes(_DECIMAL, "tokens/s", "token/s", "tok/s", " tokens/s", "tokens per second"),
    "": _COUNTS,
}
"""Known units by kind, a kind being called after its base unit; each with its size in that unit."""

_EXAMPLES = {"s": "ms", "B": "MiB", "FLOP": "GFLOP", "FLOP/s": "TFLOP/s", "B/s": "GB/s"}
_LARGEST = 1e100  # and a prefix is still far from overflow
_SHOWN_CHARACTERS = 20
_TYPED = str.maketrans({"\N{MICRO SIGN}": "u", "\N{GREEK SMALL LETTER MU}": "u", "\N{MINUS SIGN}": "-"})
_BITS = re.compile(r"[kKmMgGtT]?i?b(/s)?|([kKMGT]i?)?bits?(/s)?")
_POWER = re.compile(r"(\d{1,2}) ?(?:\^|\*\*) ?(\d{1,3})")
"""A power on its own, 2^64."""
_TEXT = re.compile(
    r"""
    (?P<number> [+-]? (?: (?: \d{1,3} (?:[,_ ]\d{3})+ (?!\d) | \d+ ) (?:\.\d*)? | \.\d+ ) )
    (?: e (?P<exponent> [+-]?\d{1,3} )
      | \s? (?: [*x] | \N{MULTIPLICATION SIGN} | \N{MIDDLE DOT} )
        \s? 10 \s? (?: \^ | \*\* ) \s? (?P<power> [+-]?\d{1,3} )
    )?
    \s? (?: (?P<word> thousand | million | billion | trillion ) \b )?
    \s? (?P<unit> [^\d]* )
    """,
    re.IGNORECASE | re.ASCII | re.VERBOSE,
)


class UnreadableError(ValueError):
    """The text is no number with a unit."""


class UnitError(ValueError):
    """The number can be read, but it has no unit where one is needed, or one of another kind."""


@dataclass(frozen=True)
class Quantity:
    """A number in the unit that was asked for."""

    value: float
    half_digit: float
    """Half of one in the last digit typed: what rounding may have moved the number by."""
    num_digits: int
    """Significant digits typed, zeros at the end included."""
    others: Mapping[str, float]
    """What the value would be, had the same number been typed with each of the units of its kind."""
    unit: str
    """Unit that was typed; empty for a pure number."""


def read_quantity(given: str | float, unit: str) -> Quantity:
    """Read what a student typed, as a number of `unit` (a unit listed in `UNITS`, or "" for a pure number).

    Raises:
        UnreadableError: when it is no number with a unit; the message says how to write one.
        UnitError: when the unit is missing, unknown, of another kind, or counts bits.
    """
    if isinstance(given, int) and abs(given) > _LARGEST:
        raise UnreadableError("this number is too large")
    text = given if isinstance(given, str) else repr(given)
    text = " ".join(text.translate(_TYPED).split()).removesuffix(".")
    if power := _POWER.fullmatch(text):
        text = str(int(power[1]) ** int(power[2]))
    found = _TEXT.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if not found or re.match(r"[,.+-]", found["unit"]):
        raise UnreadableError(_advice(text))
    number, typed = re.sub(r"[,_ ]", "", found["number"]), found["unit"].strip()
    exponent = int(found["exponent"] or found["power"] or 0)
    word = _WORDS[found["word"].lower()] if found["word"] else 1.0
    amount = float(f"{number}e{exponent}") * word
    if abs(amount) > _LARGEST:
        raise UnreadableError("this number is too large")
    kind = _kind_of(unit)
    factors = UNITS[kind]
    if not typed and amount and (kind or unit == "%"):
        raise UnitError(
            f"a unit is missing; write it behind the number, for example {_EXAMPLES.get(kind, unit)}"
        )
    if typed and typed not in factors:
        raise UnitError(_about_unit(typed, kind))
    size = (factors[typed] if typed else 1.0) / factors[unit]
    num_decimals = len(number.partition(".")[2])
    return Quantity(
        value=amount * size,
        half_digit=float(f"0.5e{exponent - num_decimals}") * word * size,
        num_digits=max(1, len(number.lstrip("+-").replace(".", "").lstrip("0"))),
        others={name: amount * factor / factors[unit] for name, factor in factors.items()},
        unit=typed,
    )


def _kind_of(unit: str) -> str:
    return next(kind for kind, units in UNITS.items() if unit in units)


def _advice(text: str) -> str:
    if re.search(r"\d,\d", text):
        return "write a decimal point, not a comma (a comma separates groups of three digits, as in millions)"
    if re.search(r"[~<>\N{ALMOST EQUAL TO}\N{PLUS-MINUS SIGN}]|\d\s?(-|\N{EN DASH}|to\b)\s?\d", text):
        return "write one number and its unit, without a range, a tolerance or a sign like ~"
    return "write one number in digits and its unit behind it"


def _about_unit(typed: str, kind: str) -> str:
    example = _EXAMPLES.get(kind, kind)
    asked = f"in {kind} or a multiple of it, for example {example}" if kind else "without a unit"
    shown = typed[:_SHOWN_CHARACTERS]
    if kind in ("B", "B/s") and _BITS.fullmatch(typed):
        return f"{shown!r} counts bits, eight to a byte; a capital B is for bytes, for example {example}"
    other = next((name for name, units in UNITS.items() if typed in units), None)
    if other is not None:
        what = f"a unit of {other}" if other else "no unit"
        also = " (FLOPS with a capital S at its end is per second)" if typed.endswith("FLOPS") else ""
        return f"{shown!r} is {what}{also}; this is asked {asked}"
    known = {name.lower(): name for units in UNITS.values() for name in units if name}
    near = difflib.get_close_matches(shown.lower(), known, n=1)
    return f"{shown!r} is no unit known here; " + (
        f"did you mean {known[near[0]]}?" if near else f"answer {asked}"
    )
