"""run_accumulation: a sum of equal terms, rounded to its type after each addition. Exact to the bit."""

from graded_support.accumulation import ONE_TYPE, STOPS_GROWING, TOO_LARGE, WIDE_SUM, check_sum


def test_terms_and_sum_of_one_type(adapters):
    for case in ONE_TYPE:
        check_sum(adapters, case)


def test_a_wide_sum_does_not_make_its_terms_more_exact(adapters):
    for case in WIDE_SUM:
        check_sum(adapters, case)


def test_a_narrow_sum_stops_growing(adapters):
    """Where half the distance to the next number is a term, each addition is rounded away."""
    for case in STOPS_GROWING:
        check_sum(adapters, case)


def test_a_sum_that_is_too_large_is_infinite(adapters):
    for case in TOO_LARGE:
        check_sum(adapters, case)
