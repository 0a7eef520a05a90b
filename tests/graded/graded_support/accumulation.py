"""The check of `run_accumulation`: the exact sum, and what people get instead."""

import math
from fractions import Fraction
from typing import Any

import torch

from graded_support.compare import fail
from graded_support.number_formats import add_up, round_to
from graded_support.numbers import check_number


def check_accumulation(
    adapters: Any, value: float, num_terms: int, sum_dtype: torch.dtype, term_dtype: torch.dtype
) -> None:
    """Fail unless the sum of the student is the right one to the bit."""
    sum_name, term_name = (str(dtype).removeprefix("torch.") for dtype in (sum_dtype, term_dtype))
    exact = Fraction(value)
    term = round_to(exact, term_name)
    terms = [term] * num_terms
    what = f"run_accumulation({value:g}, {num_terms}, {sum_dtype}, {term_dtype})"
    actual = adapters.run_accumulation(value, num_terms, sum_dtype, term_dtype)
    if isinstance(actual, torch.Tensor):
        fail(f"{what} returned a tensor; expected a number: take .item() at the end")
    check_number(
        actual,
        float(add_up(terms, sum_name)),
        what=what,
        allowed=0.0,
        mistakes={
            "the terms are not rounded to their own type before they are added": lambda: add_up(
                [round_to(exact, sum_name)] * num_terms, sum_name
            ),
            "the value stays a Python number, so that only the sum is rounded": lambda: add_up(
                [exact] * num_terms, sum_name
            ),
            "the sum starts at the value and not at 0": lambda: add_up(terms, sum_name, start=term),
            "one term is missing": lambda: add_up(terms[1:], sum_name),
            "the number of terms is multiplied in; add them one after the other": lambda: _round(
                term * num_terms, sum_name
            ),
            "the value is multiplied by the number of terms, in Python": value * num_terms,
            "the terms are added in fp32 and the sum is rounded once, as torch.sum does": lambda: _round(
                add_up(terms, "float32"), sum_name
            ),
            "the sum is kept in fp32 and never rounded to its type": lambda: add_up(terms, "float32"),
            "the sum is a Python number, which is fp64": lambda: add_up(terms, "float64"),
            "the sum has the type of the terms": lambda: add_up(terms, term_name),
        },
        hint="Start with a zero of sum_dtype, and add the term, of term_dtype, once for each of num_terms.",
    )


def _round(number: Fraction | float, name: str) -> Fraction | float:
    return number if math.isinf(number) else round_to(Fraction(number), name)
