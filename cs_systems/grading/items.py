"""What a question can ask for, what is true, and what the checker says: plain data, nothing is computed here.

An answer has a core that a program can check and prose that people read. Each part of the core is an item of
one of the kinds below. The truth of an item is derived when it is checked (by running something, from a
closed form, from the student's own records), so that nothing here gives an answer away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["right", "wrong", "wrong unit", "stale", "unreadable", "missing", "not measured"]
"""Outcome of an item; `missing` was not answered, `not measured` has no record to check it against."""


@dataclass(frozen=True)
class Item:
    """One line `key = value` of an answer block."""

    key: str
    """Name of the line in the block."""
    what: str
    """What is asked, in a few words; it stands behind the blank line as a comment."""


@dataclass(frozen=True)
class Dtype(Item):
    """A type: fp32, float32, torch.float32 ..."""


@dataclass(frozen=True)
class Number(Item):
    """A number with a closed form, such as a count of parameters or bytes."""

    unit: str = ""
    """Unit of the truth: B, FLOP, s ... or empty for a pure number; answers may use any multiple of it."""
    rel_tol: float = 0.01
    """Relative difference that is still right."""


@dataclass(frozen=True)
class OwnNumber(Item):
    """A number that the student measured; true is what their records say."""

    unit: str = "s"
    """Unit of the truth; answers may use any multiple of it."""


@dataclass(frozen=True)
class Choice(Item):
    """One of a few words."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order(Item):
    """The given words in an order, written `a > b > c`."""

    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Symbolic(Item):
    """A formula in the given names, such as `4*B*S*d`."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text(Item):
    """A word or a name that the student's records hold, such as that of a kernel; letter case is ignored."""


@dataclass(frozen=True)
class Prose:
    """The text behind the block."""

    min_sentences: int = 1
    max_sentences: int = 3


@dataclass(frozen=True)
class Part:
    """One lettered part of a problem: an answer block and the prose behind it."""

    id: str
    """Problem and letter: benchmarking_script.b."""
    items: tuple[Item, ...] = ()
    prose: Prose | None = None


@dataclass(frozen=True)
class Problem:
    """One problem of the course."""

    id: str
    title: str
    points: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Truth:
    """What is true of one item, and what to say to those who answered something else."""

    value: str | float | tuple[str, ...]
    """A dtype (fp32), a number in the item's unit, a choice, an order, a formula, a name."""
    low: float | None = None
    """Least measured value that is still right (OwnNumber)."""
    high: float | None = None
    """Greatest measured value that is still right (OwnNumber)."""
    older: tuple[tuple[float, float, str], ...] = ()
    """Intervals of measurements that a later one replaced, each with its date: such an answer is stale."""
    why: Mapping[str, str] = field(default_factory=dict)
    """For wrong answers that people give: why one would think so. The key is the answer in its plain form."""
    hint: str = ""
    """What to look at when the answer is wrong in any other way; never the value."""
    also: tuple[str, ...] = ()
    """Words that are right as well, because a measurement cannot tell them apart (Choice)."""


class NotMeasuredError(ValueError):
    """No record can tell; the message names the command that measures it."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one item, or of the prose of a part."""

    part: str
    """benchmarking_script.b."""
    key: str
    """Key of the item, or `prose`."""
    status: Status
    message: str = ""
    """One line for the student; empty when right."""
