"""run_accumulation: a sum of equal terms, rounded to its type after each addition. Exact to the bit."""

from fractions import Fraction

import torch
from graded_support.accumulation import check_accumulation


def test_terms_and_sum_of_one_type(adapters):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_accumulation(adapters, 0.01, 1000, dtype, dtype)


def test_a_wide_sum_does_not_make_its_terms_more_exact(adapters):
    for term_dtype in (torch.float16, torch.bfloat16):
        check_accumulation(adapters, 0.01, 1000, torch.float32, term_dtype)
    check_accumulation(adapters, 0.1, 300, torch.float64, torch.float32)


def test_a_narrow_sum_stops_growing(adapters):
    """Where half the distance to the next number is a term, each addition is rounded away."""
    check_accumulation(adapters, 1.0, 300, torch.bfloat16, torch.bfloat16)
    check_accumulation(adapters, float(Fraction(1, 64)), 2100, torch.float16, torch.float16)


def test_a_sum_that_is_too_large_is_infinite(adapters):
    check_accumulation(adapters, -1000.0, 80, torch.float16, torch.float16)
    check_accumulation(adapters, -1000.0, 80, torch.float32, torch.float16)
