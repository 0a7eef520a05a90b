"""Floating-point numbers rounded by exact fractions: an oracle for sums that are right to the last bit."""

import math
from collections.abc import Iterable
from fractions import Fraction

# Name of the torch.dtype: bits of the significand (the hidden one included), exponents of the smallest and of
# the largest normal number.
FORMATS = {
    "float64": (53, -1022, 1023),
    "float32": (24, -126, 127),
    "float16": (11, -14, 15),
    "bfloat16": (8, -126, 127),
}


def round_to(number: Fraction, dtype: str) -> Fraction | float:
    """The number of the format nearest to `number`, of two the even one; infinity where it is too large."""
    bits, smallest, largest = FORMATS[dtype]
    if not number:
        return number
    size = abs(number)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1  # now 2^exponent <= size < 2^(exponent + 1)
    step = Fraction(2) ** (max(exponent, smallest) - bits + 1)
    rounded = round(number / step) * step  # round() of a Fraction goes to the even neighbour
    if abs(rounded) >= Fraction(2) ** (largest + 1):
        return math.copysign(math.inf, number)
    return rounded


def add_up(terms: Iterable[Fraction | float], dtype: str, start: Fraction | float = 0) -> Fraction | float:
    """Add terms one after the other, each sum rounded to the format; infinity, once reached, stays."""
    total: Fraction | float = Fraction(start)
    for term in terms:
        if math.isinf(term) or math.isinf(total):
            return math.inf if (term if math.isinf(term) else total) > 0 else -math.inf
        total = round_to(Fraction(total) + Fraction(term), dtype)
    return total
