"""What a function that derives a truth is given, and what the closed forms of several subjects share."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import NotMeasuredError, Truth
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import ALIASES, PRESETS, find_preset

GIB = 2**30


@dataclass(frozen=True)
class Question:
    """One item of one part, with the whole block it stands in."""

    part: str
    key: str
    values: Mapping[str, Any]
    """The answer block: which model, context length ... the item is about."""
    evidence: Evidence

    def chosen(self, key: str) -> Any:
        """What the block says under `key`, or None where that line is not answered."""
        value = self.values.get(key)
        if isinstance(value, str):
            value = value.strip()
        return None if value == "" else value

    def model(self) -> ModelConfig:
        """The preset that the block names.

        Raises:
            NotMeasuredError: when it names none, or one that is not known.
        """
        name = self.chosen("model")
        if name is None:
            raise NotMeasuredError(f"{self.key} depends on the model: answer model first")
        if misspelt := misspelt_model(name):
            raise NotMeasuredError(misspelt)
        return find_preset(str(name)).config

    def count(self, key: str) -> int:
        """A whole number that the block gives, such as its context length.

        Raises:
            NotMeasuredError: when it gives none.
        """
        number = whole_number(self.chosen(key))
        if number is None:
            raise NotMeasuredError(f"{self.key} depends on {key}: answer {key} first, with a whole number")
        return number


Finder = Callable[[Question], Truth]
"""Derives one truth. Raises NotMeasuredError when there is nothing to derive it from."""
Finders = Mapping[str, Finder]
"""Finders by part and key: benchmarking_script.b forward_median."""


def whole_number(value: Any) -> int | None:
    """1024 from 1024, 1024.0, "1024" or "1,024"; None from anything else."""
    text = str(value).strip().removesuffix(".0")
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text, re.ASCII):
        text = text.replace(",", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def misspelt_model(name: Any) -> str | None:
    """One line for a name that no preset has; None for a preset."""
    known = [*PRESETS, *ALIASES]
    if name in known:
        return None
    near = difflib.get_close_matches(str(name).lower(), [each.lower() for each in known], n=1, cutoff=0.5)
    found = next((each for each in known if near and each.lower() == near[0]), None)
    advice = f"did you mean {found}?" if found else "python benchmark.py --list-models lists them"
    return f"{str(name)[:40]!r} is the name of no preset; {advice}"


def under(part: str, finders: Mapping[str, Finder]) -> dict[str, Finder]:
    """The finders of one part, under the names by which `find_truth` looks them up."""
    return {f"{part} {key}": finder for key, finder in finders.items()}
