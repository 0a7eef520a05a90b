"""Binary floating point from first principles, in exact rational numbers: what fp16, bf16 and fp32 can hold.

A number of `significand_bits` bits between two powers of two lies on a grid; the grid gets twice as coarse at
each power of two. Everything about rounding follows from that, and so does the fate of a sum to which the
same number is added again and again: `walk` says what it does in each interval, without adding one by one.
"""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    """A binary format of IEEE 754, or bfloat16, which has the same rules."""

    name: str
    significand_bits: int
    """Bits of a normal number, the leading one included, which is not stored."""
    min_exponent: int
    """Exponent of the smallest normal number; below it the grid gets no finer."""
    max_exponent: int
    """Exponent of the largest number."""

    @property
    def epsilon(self) -> Fraction:
        """Distance from 1 to the next number."""
        return _power_of_two(1 - self.significand_bits)

    @property
    def largest(self) -> Fraction:
        """The largest finite number."""
        return (2 - self.epsilon) * _power_of_two(self.max_exponent)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest number with all bits of precision."""
        return _power_of_two(self.min_exponent)

    @property
    def smallest_subnormal(self) -> Fraction:
        """The smallest number above 0."""
        return self.smallest_normal * self.epsilon


FORMATS = {
    "fp16": Format("fp16", 11, -14, 15),
    "bf16": Format("bf16", 8, -126, 127),
    "fp32": Format("fp32", 24, -126, 127),
    "fp64": Format("fp64", 53, -1022, 1023),
}
"""Formats by the name used in flags and tables."""


def spacing(number: Fraction, format: Format) -> Fraction:
    """Distance from `number` to the next one away from 0 in a format without a largest number."""
    exponent = format.min_exponent if number == 0 else max(format.min_exponent, _exponent(number))
    return _power_of_two(exponent) * format.epsilon


def round_to(number: Fraction, format: Format) -> Fraction:
    """The nearest number of the format; of two equally near ones the one whose last bit is 0.

    Raises:
        OverflowError: when it is infinity.
    """
    grid = spacing(number, format)
    rounded = round(number / grid) * grid  # Python rounds halves to even too
    if abs(rounded) > format.largest:
        end = _show(format.largest)
        raise OverflowError(f"{_show(number)} becomes infinity in {format.name}, which ends at {end}")
    return rounded


def check_representable(number: Fraction, format: Format) -> None:
    """Raise ValueError when a number other than 0 becomes 0 or infinity in the format."""
    try:
        rounded = round_to(number, format)
    except OverflowError as error:
        raise ValueError(f"{error}; take a smaller number, or a format with a wider range") from None
    if rounded == 0:
        raise ValueError(
            f"{_show(number)} becomes 0 in {format.name}, whose smallest number is "
            f"{_show(format.smallest_subnormal)}; take a larger number, or a format with a wider range"
        )


def stall_value(term: Fraction, format: Format) -> Fraction | None:
    """The sum at which adding `term` to it, again and again from 0, changes nothing any more.

    There the term is less than half the distance to the next number, or exactly half of it, where the even
    neighbour wins, and a power of two is even. So the grid must be at least twice the power of two that is
    not below the term, and the sum comes to rest on the power of two where that grid begins.

    Returns:
        The sum, with the sign of `term`; None when it reaches infinity first.
    """
    exponent = _exponent(term)
    is_power = abs(term) == _power_of_two(exponent)
    grid = max(_power_of_two(exponent + 1 if is_power else exponent + 2), 2 * format.smallest_subnormal)
    value = grid / format.epsilon
    return None if value > format.largest else value if term > 0 else -value


@dataclass(frozen=True)
class Binade:
    """The additions that began with a sum from `low` up to `high`, a power of two and the next one."""

    low: Fraction
    high: Fraction
    spacing: Fraction
    """Distance between neighbouring numbers there."""
    becomes: Fraction
    """What most of these additions added."""
    num_additions: int
    error: Fraction
    """What all of them added, less what they should have added."""


@dataclass(frozen=True)
class Walk:
    """A sum of equal terms, from 0 on, each addition rounded to the format."""

    binades: tuple[Binade, ...]
    total: Fraction | None
    """The sum; None for infinity."""
    stall_step: int | None
    """Number of the first addition that changed nothing, if one did; counted from 1."""
    overflow_step: int | None
    """Number of the addition that gave infinity."""


def walk(term: Fraction, steps: int | None, format: Format) -> Walk:
    """Add a positive `term` of the format `steps` times, or with None until the sum stalls or overflows.

    Within a binade all sums lie on one grid, so what an addition adds depends on nothing but the term, and
    many additions are taken at one time. Only halves need care: rounding them to even leaves an even multiple
    of the grid behind, after which each addition adds the same again. So one addition is made by itself, and
    the ones that follow it in the binade repeat the next.

    Raises:
        ValueError: when `term` is not a positive number of the format.
    """
    if term <= 0 or round_to(term, format) != term:
        raise ValueError(f"{float(term):g} is not a positive number of {format.name}")
    total, done = term, 1  # to 0 it is added exactly
    rows: dict[Fraction, Counter[Fraction]] = {}
    stall_step = overflow_step = None
    while steps is None or done < steps:
        low, high = _binade(total, format)
        gains = rows.setdefault(low, Counter())
        try:
            gain = round_to(total + term, format) - total
        except OverflowError:
            overflow_step = done + 1
            break
        if gain == 0:
            stall_step = done + 1
            gains[gain] += 0 if steps is None else steps - done
            break
        gains[gain] += 1
        total, done = total + gain, done + 1
        end = min(high, format.largest)
        if total + term > end:
            continue
        gain = round_to(total + term, format) - total
        if gain > 0:  # the last of these additions reaches `end` at most before it is rounded
            num = int((end - term - total) // gain) + 1
            num = num if steps is None else min(num, steps - done)
            gains[gain] += num
            total, done = total + num * gain, done + num
    binades = tuple(_summarise(low, gains, term, format) for low, gains in rows.items() if gains.total())
    return Walk(binades, None if overflow_step else total, stall_step, overflow_step)


def _summarise(low: Fraction, gains: Counter[Fraction], term: Fraction, format: Format) -> Binade:
    error = sum((num * (gain - term) for gain, num in gains.items()), Fraction(0))
    ((becomes, _),) = gains.most_common(1)
    high = _binade(low, format)[1]
    return Binade(low, high, spacing(low, format), becomes, gains.total(), error)


def _binade(number: Fraction, format: Format) -> tuple[Fraction, Fraction]:
    """The power of two at or below a positive number and the next; from 0 for a subnormal number."""
    if number < format.smallest_normal:
        return Fraction(0), format.smallest_normal
    low = _power_of_two(_exponent(number))
    return low, 2 * low


def _exponent(number: Fraction) -> int:
    """The largest e with 2**e <= abs(number)."""
    numerator, denominator = abs(number.numerator), number.denominator
    exponent = numerator.bit_length() - denominator.bit_length()
    return exponent if _power_of_two(exponent) <= abs(number) else exponent - 1


def _power_of_two(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _show(number: Fraction) -> str:
    return f"{float(number):.5g}"
