"""Statistics of samples, against numpy, the statistics module and enumeration of every labelling."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs_systems.timing.stats import (
    EXACT_UP_TO,
    Samples,
    mann_whitney_p,
    median_ratio_interval,
    quantile,
)

durations = st.lists(st.floats(1e-7, 1e4), min_size=1, max_size=40)
# Few distinct values, so that ties within and between the lists are common.
small_lists = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5)


@given(durations)
def test_samples_agree_with_numpy_and_statistics(values):
    samples = Samples.from_values(values)
    assert samples.num == len(values)
    assert (samples.min, samples.max) == (np.min(values), np.max(values))
    assert samples.mean == pytest.approx(np.mean(values))
    assert samples.median == statistics.median(values) == pytest.approx(np.median(values))
    quartiles = np.quantile(values, [0.25, 0.75])
    assert samples.iqr == pytest.approx(quartiles[1] - quartiles[0], abs=1e-12 * max(values))
    if len(values) > 1:
        assert samples.std == statistics.stdev(values)
        assert samples.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-9 * max(values))


def test_one_sample_has_no_standard_deviation():
    assert Samples.from_values([0.5]).std is None
    assert Samples.from_values([0.5]).iqr == 0


def test_samples_keep_the_order_measured():
    assert Samples.from_values(iter([3, 1, 2])).values == (3.0, 1.0, 2.0)


@pytest.mark.parametrize("values", [[], [-1e-9], [1.0, math.nan], [math.inf]])
def test_what_is_no_duration_is_refused(values):
    with pytest.raises(ValueError, match=r"no samples|no duration"):
        Samples.from_values(values)


@given(durations, st.floats(0, 1))
def test_quantile_agrees_with_numpy(values, fraction):
    assert quantile(values, fraction) == pytest.approx(np.quantile(values, fraction))


def brute_force_p(a, b):
    """Share of all ways to choose who belongs to `a` whose U is at least as far from its mean."""

    def distance(left, right):
        wins = sum((x > y) + 0.5 * (x == y) for x in left for y in right)
        return abs(wins - len(left) * len(right) / 2)

    pool = [*a, *b]
    seen = []
    for chosen in itertools.combinations(range(len(pool)), len(a)):
        left = [pool[i] for i in chosen]
        right = [value for i, value in enumerate(pool) if i not in chosen]
        seen.append(distance(left, right))
    return sum(one >= distance(a, b) for one in seen) / len(seen)


@given(small_lists, small_lists)
def test_exact_p_equals_the_enumeration_of_all_labellings(a, b):
    assert mann_whitney_p(a, b) == pytest.approx(brute_force_p(a, b), rel=1e-12)


@given(small_lists, small_lists, st.integers(-100, 100))
def test_p_is_symmetric_unmoved_by_a_shift_and_a_probability(a, b, shift):
    p = mann_whitney_p(a, b)
    assert 0 < p <= 1
    assert mann_whitney_p(b, a) == p
    assert mann_whitney_p([x + shift for x in a], [x + shift for x in b]) == p


@pytest.mark.parametrize(("num", "smallest"), [(3, 2 / 20), (4, 2 / 70), (5, 2 / 252), (10, 2 / 184_756)])
def test_complete_separation_gives_the_smallest_p_there_is(num, smallest):
    a, b = [float(i) for i in range(num)], [float(100 + i) for i in range(num)]
    assert mann_whitney_p(a, b) == pytest.approx(smallest, rel=1e-12)


def test_the_exact_counts_do_not_overflow_at_the_largest_exact_size():
    a = [float(i) for i in range(EXACT_UP_TO)]
    b = [float(100 + i) for i in range(EXACT_UP_TO)]
    assert mann_whitney_p(a, b) == pytest.approx(2 / math.comb(60, 30), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 2.5, 6.0, 12.0])
def test_the_normal_approximation_takes_over_smoothly(shift):
    a = [float((7 * i) % 31) for i in range(EXACT_UP_TO)]  # 0..30 in a mixed order, so ties with b
    b = [float((11 * i) % 31) + shift for i in range(EXACT_UP_TO)]
    exact = mann_whitney_p(a, b)
    approximate = mann_whitney_p([*a, 15.0], [*b, 15.0 + shift])
    assert approximate == pytest.approx(exact, abs=0.02)


def test_the_tie_correction_matters_and_equal_values_are_no_difference():
    assert mann_whitney_p([1.0] * 40, [1.0] * 40) == 1.0
    a, b = [0.0] * 30 + [1.0] * 10, [0.0] * 20 + [1.0] * 20
    # Tied ranks shrink the variance: without the correction z is 2.00 - 1.92 and p is over 0.05.
    n, ties = 80, (50**3 - 50) + (30**3 - 30)
    variance = 40 * 40 / 12 * (n + 1 - ties / (n * (n - 1)))
    z = (200 - 0.5) / math.sqrt(variance)
    assert mann_whitney_p(a, b) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-12)


def test_an_empty_list_cannot_be_compared():
    with pytest.raises(ValueError, match="at least one sample"):
        mann_whitney_p([], [1.0])


def test_the_interval_holds_the_ratio_and_repeats_exactly():
    a = [1.0, 1.01, 1.02, 1.03, 1.04, 1.5]
    b = [2 * value for value in a]
    low, high = median_ratio_interval(a, b)
    assert low < 2 < high
    assert 1.2 < low < high < 3.1
    assert median_ratio_interval(a, b) == (low, high)


def test_the_interval_of_constant_samples_is_the_ratio_itself():
    assert median_ratio_interval([2.0] * 5, [3.0] * 5) == (1.5, 1.5)


def test_a_larger_sample_narrows_the_interval():
    a = [1 + 0.01 * i for i in range(6)]
    narrow, wide = median_ratio_interval(a * 20, a * 20), median_ratio_interval(a, a)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([0.0, 1.0], [1.0])])
def test_a_ratio_without_a_positive_base_is_refused(a, b):
    with pytest.raises(ValueError, match="ratio of medians"):
        median_ratio_interval(a, b)
