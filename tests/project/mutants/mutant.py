"""One wrong implementation, and what the graded tests must say of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Adapters of which some are wrong; the others are those of the reference."""

    problem: str
    """Problem whose tests must notice."""
    name: str
    """The mistake in a few words, joined by hyphens."""
    adapters: Mapping[str, Callable]
    """Functions that take the place of the reference's, by name."""
    says: str
    """Pattern that the message of a failing test must match."""
