"""run_accumulation with values that nobody knows. The oracle, exact fractions, is not handed out either."""

import math
import random
from fractions import Fraction

import torch
from graded_support.accumulation import Case, check_sum

FORMATS = {
    torch.float64: (53, -1022, 1023),
    torch.float32: (24, -126, 127),
    torch.float16: (11, -14, 15),
    torch.bfloat16: (8, -126, 127),
}
"""Bits of the significand (the hidden one included), exponents of the smallest and largest normal number."""


def round_to(number, dtype):
    """The number of the format nearest to `number`, of two the even one; infinity where it is too large."""
    if not number or math.isinf(number):
        return number
    bits, smallest, largest = FORMATS[dtype]
    size = abs(Fraction(number))
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1  # now 2^exponent <= size < 2^(exponent + 1)
    step = Fraction(2) ** (max(exponent, smallest) - bits + 1)
    rounded = round(Fraction(number) / step) * step  # round() of a Fraction goes to the even neighbour
    return math.copysign(math.inf, number) if abs(rounded) >= Fraction(2) ** (largest + 1) else rounded


def add_up(terms, dtype, start=Fraction(0)):
    """Add terms one after the other, each sum rounded to the format; infinity, once reached, stays."""
    total = start
    for term in terms:
        total = total if math.isinf(total) else round_to(total + term, dtype)
    return total


def find_sums(value, num_terms, sum_dtype, term_dtype):
    """The case with its right sum and those of all mistakes that show."""
    exact = Fraction(value)
    term = round_to(exact, term_dtype)
    terms = [term] * num_terms
    total = float(add_up(terms, sum_dtype))
    wrong = {
        "unrounded": add_up([round_to(exact, sum_dtype)] * num_terms, sum_dtype),
        "late": add_up(terms, sum_dtype, start=term),
        "missing": add_up(terms[1:], sum_dtype),
        "product": round_to(term * num_terms, sum_dtype),
        "python product": value * num_terms,
        "once": round_to(add_up(terms, torch.float32), sum_dtype),
        "fp32": add_up(terms, torch.float32),
        "fp64": add_up(terms, torch.float64),
        "term type": add_up(terms, term_dtype),
    }
    shown = {name: float(other) for name, other in wrong.items() if float(other) != total}
    return Case(value, num_terms, sum_dtype, term_dtype, total, shown)


def test_values_and_numbers_of_terms_that_nobody_knows(adapters, secret_seed):
    draw = random.Random(secret_seed)
    narrow = (torch.float16, torch.bfloat16)
    for sum_dtype in (*narrow, torch.float32):
        for _ in range(3):
            term_dtype = sum_dtype if sum_dtype in narrow else draw.choice(narrow)
            value = draw.choice((-1, 1)) * draw.uniform(0.001, 1.0)
            check_sum(adapters, find_sums(value, draw.randint(2, 500), sum_dtype, term_dtype))
