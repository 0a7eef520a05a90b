"""What a list of measured times says: its spread, and whether two lists differ by more than chance.

Times are not normally distributed: a floor set by the hardware, and a long tail of interruptions above it. So
the median and the interquartile range describe a case, and two cases are compared by rank, not by mean.
"""

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXACT_UP_TO = 30
"""Samples a side up to which `mann_whitney_p` is exact."""

_RESAMPLES = 2000


@dataclass(frozen=True)
class Samples:
    """Seconds of repeated measurements of one thing, in the order measured.

    Raises:
        ValueError: when there is no value, or one that is negative or not finite.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("no samples: a case needs at least one complete step; see --steps")
        for value in self.values:
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{value} s is no duration: is the file damaged?")

    @classmethod
    def from_values(cls, values: Iterable[float]) -> "Samples":
        """Samples from any iterable of seconds."""
        return cls(tuple(float(value) for value in values))

    @property
    def num(self) -> int:
        """Number of samples."""
        return len(self.values)

    @property
    def min(self) -> float:
        """Shortest: the least disturbed run."""
        return min(self.values)

    @property
    def max(self) -> float:
        """Longest: without warm-up usually the first."""
        return max(self.values)

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (divided by n - 1); None for a single sample, which has no spread."""
        return statistics.stdev(self.values) if self.num > 1 else None

    @property
    def median(self) -> float:
        """Middle value: half of the steps were faster."""
        return statistics.median(self.values)

    @property
    def iqr(self) -> float:
        """Interquartile range: the width of the middle half of the samples."""
        return quantile(self.values, 0.75) - quantile(self.values, 0.25)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Quantile with linear interpolation between the two nearest ranks, as `numpy.quantile` has it."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def mann_whitney_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p value of the Mann-Whitney test: how often chance alone separates the lists this far.

    Were both lists drawn from one distribution, every choice of which values belong to `a` would be equally
    likely. The answer is the share of choices whose rank sum is at least as far from its mean as the one
    seen; values that tie share their mean rank, so a tie counts one half. Exact up to `EXACT_UP_TO` values a
    side, above that the normal approximation with the corrections for ties and continuity (Mann and Whitney
    1947, Annals of Mathematical Statistics 18, 50-60).
    """
    if not (a and b):
        raise ValueError("two lists of at least one sample each are needed for a comparison")
    m, n = len(a), len(b)
    ranks = _doubled_ranks([*a, *b])
    mean = m * (m + n + 1)  # of the sum of m doubled ranks
    distance = abs(sum(ranks[:m]) - mean)
    if max(m, n) <= EXACT_UP_TO:
        ways = _count_subsets_by_sum(ranks, m)
        return sum(count for total, count in enumerate(ways) if abs(total - mean) >= distance) / sum(ways)
    ties = sum(count**3 - count for count in (ranks.count(rank) for rank in set(ranks)))
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    if variance <= 0:  # all values are equal
        return 1.0
    z = max(0.0, distance / 2 - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value, counted from 1; doubled, because the mean rank of a tie can be a half."""
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered)))}
    last = {value: index for index, value in enumerate(ordered)}
    return [first[value] + last[value] + 2 for value in values]


def _count_subsets_by_sum(ranks: Sequence[int], size: int) -> list[int]:
    """How many subsets of `size` ranks have each sum: item s of the result belongs to sum s.

    The counts are the coefficients of a polynomial, with a factor (1 + y x^rank) for each rank. Each
    polynomial in x is one large integer with x = 2^64, so that multiplying by x^rank is a shift. No
    coefficient reaches 2^64, as at most C(60, 30) = 1.2e17 subsets are counted.
    """
    polynomials = [1] + [0] * size  # one for each number of ranks taken so far
    for rank in ranks:
        for taken in range(size, 0, -1):
            polynomials[taken] += polynomials[taken - 1] << (64 * rank)
    digits = polynomials[size].to_bytes(8 * (sum(ranks) + 1), "little")
    return [int.from_bytes(digits[start : start + 8], "little") for start in range(0, len(digits), 8)]


def median_ratio_interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of median(b) / median(a) by the bootstrap: medians of lists drawn anew with replacement.

    Percentile method (Efron 1979), 2000 resamples; the same input gives the same answer.

    Raises:
        ValueError: when a list is empty, or `a` holds a value that is not positive.
    """
    if not (a and b) or min(a) <= 0:
        raise ValueError("a ratio of medians needs samples on both sides, and positive ones to divide by")
    draw = random.Random(seed).choices
    ratios = [
        statistics.median(draw(b, k=len(b))) / statistics.median(draw(a, k=len(a))) for _ in range(_RESAMPLES)
    ]
    return quantile(ratios, 0.025), quantile(ratios, 0.975)
