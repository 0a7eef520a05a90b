"""Sums of equal terms, right to the last bit, and what people get in their place: a table of numbers.

They were computed with exact fractions, each sum rounded to the nearest number of its format, of two the even
one. A test of the project computes all of them again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import bfloat16, float16, float32, float64

from graded_support.compare import fail
from graded_support.numbers import check_number

MISTAKES = {
    "unrounded": "the terms are not rounded to their own type before they are added",
    "late": "the sum starts at the value and not at 0",
    "missing": "one term is missing",
    "product": "the number of terms is multiplied in; add them one after the other",
    "python product": "the value is multiplied by the number of terms, in Python",
    "once": "the terms are added in fp32 and the sum is rounded once, as torch.sum does",
    "fp32": "the sum is kept in fp32 and never rounded to its type",
    "fp64": "the sum is a Python number, which is fp64",
    "term type": "the sum has the type of the terms",
}
"""What people do, in words."""


@dataclass(frozen=True)
class Case:
    """Arguments of `run_accumulation`, the right sum, and the sums that mistakes give."""

    value: float
    num_terms: int
    sum_dtype: torch.dtype
    term_dtype: torch.dtype
    total: float
    wrong: Mapping[str, float] = field(default_factory=dict)
    """By name of the mistake, where it shows."""


ONE_TYPE = (
    Case(0.01, 1000, float16, float16, 9.953125,
         {"late": 9.9609375, "missing": 9.9453125, "product": 10.0, "python product": 10.0, "once": 10.0,
          "fp32": 10.00213623046875, "fp64": 10.00213623046875}),
    Case(0.01, 1000, bfloat16, bfloat16, 4.0,
         {"product": 10.0, "python product": 10.0, "once": 10.0, "fp32": 10.009765625, "fp64": 10.009765625}),
    Case(0.01, 1000, float32, float32, 10.000133514404297,
         {"late": 10.010133743286133, "missing": 9.990133285522461, "product": 10.0, "python product": 10.0,
          "fp64": 9.999999776482582}),
    Case(0.01, 1000, float64, float64, 9.999999999999831,
         {"late": 10.009999999999831, "missing": 9.989999999999831, "product": 10.0, "python product": 10.0,
          "once": 10.000133514404297, "fp32": 10.000133514404297}),
)  # fmt: skip
WIDE_SUM = (
    Case(0.01, 1000, float32, float16, 10.00213623046875,
         {"unrounded": 10.000133514404297, "late": 10.012138366699219, "missing": 9.992134094238281,
          "python product": 10.0, "term type": 9.953125}),
    Case(0.01, 1000, float32, bfloat16, 10.009765625,
         {"unrounded": 10.000133514404297, "late": 10.019775390625, "missing": 9.999755859375,
          "python product": 10.0, "term type": 4.0}),
    Case(0.1, 300, float64, float32, 30.000000447034836,
         {"unrounded": 30.000000000000156, "late": 30.100000448524952, "missing": 29.90000044554472,
          "python product": 30.0, "once": 30.000078201293945, "fp32": 30.000078201293945,
          "term type": 30.000078201293945}),
)  # fmt: skip
STOPS_GROWING = (
    # From 256 on bfloat16 has the even numbers: 257 is a tie, and 256 is the even one of the two.
    Case(1.0, 300, bfloat16, bfloat16, 256.0,
         {"product": 300.0, "python product": 300.0, "once": 300.0, "fp32": 300.0, "fp64": 300.0}),
    # From 32 on numbers of float16 are 1/32 apart, and a term is half of that.
    Case(1 / 64, 2100, float16, float16, 32.0,
         {"product": 32.8125, "python product": 32.8125, "once": 32.8125, "fp32": 32.8125, "fp64": 32.8125}),
)  # fmt: skip
TOO_LARGE = (
    # The largest number of float16 is 65504.
    Case(-1000.0, 80, float16, float16, -math.inf,
         {"python product": -80000.0, "fp32": -80000.0, "fp64": -80000.0}),
    Case(-1000.0, 80, float32, float16, -80000.0,
         {"late": -81000.0, "missing": -79000.0, "term type": -math.inf}),
)  # fmt: skip


def check_sum(adapters: Any, case: Case) -> None:
    """Fail unless the sum of the student is the right one to the bit."""
    what = f"run_accumulation({case.value:g}, {case.num_terms}, {case.sum_dtype}, {case.term_dtype})"
    actual = adapters.run_accumulation(case.value, case.num_terms, case.sum_dtype, case.term_dtype)
    if isinstance(actual, torch.Tensor):
        fail(f"{what} returned a tensor; expected a number: take .item() at the end")
    check_number(
        actual,
        case.total,
        what=what,
        allowed=0.0,
        mistakes=_in_words(case.wrong),
        hint="Start with a zero of sum_dtype, and add the term, of term_dtype, once for each of num_terms.",
    )


def _in_words(wrong: Mapping[str, float]) -> dict[str, float]:
    """Mistakes in words, those that give the same sum together."""
    words: dict[float, str] = {}
    for name, total in wrong.items():
        words[total] = f"{words[total]}, or when {MISTAKES[name]}" if total in words else MISTAKES[name]
    return {text: total for total, text in words.items()}
