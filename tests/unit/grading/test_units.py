"""Numbers as students type them, and the units that they get wrong."""

import math
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.grading.units import UNITS, UnitError, UnreadableError, read_quantity
from cs_systems.tables import format_bytes, format_count, format_seconds


@pytest.mark.parametrize(
    ("given_text", "unit", "value", "half_digit", "num_digits"),
    [
        ("12.3 ms", "s", "0.0123", "0.00005", 3),
        ("12.3ms", "s", "0.0123", "0.00005", 3),
        ("12.3 \u00b5s", "s", "1.23e-5", "5e-8", 3),
        ("12.3 \u03bcs", "s", "1.23e-5", "5e-8", 3),
        ("12.30 us.", "s", "1.23e-5", "5e-9", 4),
        ("2 min", "s", "120", "30", 1),
        ("1,000 ms", "s", "1", "0.0005", 4),
        ("0", "s", "0", "0.5", 1),
        ("1.5GiB", "B", "1610612736", "53687091.2", 2),
        ("1.5 GB", "B", "1.5e9", "5e7", 2),
        ("1.5 kB", "B", "1500", "50", 2),
        ("1.5 KB", "B", "1500", "50", 2),
        ("480 MiB", "MiB", "480", "0.5", 3),
        ("0.5 GiB", "MiB", "512", "51.2", 1),
        ("7 bytes", "B", "7", "0.5", 1),
        ("128,625,408", "", "128625408", "0.5", 9),
        ("128 625 408", "", "128625408", "0.5", 9),
        ("128_625_408", "", "128625408", "0.5", 9),
        (128625408, "", "128625408", "0.5", 9),
        (0.5, "", "0.5", "0.05", 1),
        ("128.6M", "", "128600000", "50000", 4),
        ("1e9", "", "1e9", "5e8", 1),
        ("1.50E+9", "", "1.5e9", "5e6", 3),
        ("3.4 billion", "", "3.4e9", "5e7", 2),
        ("3.4 Billion FLOP", "FLOP", "3.4e9", "5e7", 2),
        ("3.4*10^9 FLOPs", "FLOP", "3.4e9", "5e7", 2),
        ("3.4 \u00d7 10^9", "", "3.4e9", "5e7", 2),
        ("3.4 x 10**-3", "", "3.4e-3", "5e-5", 2),
        ("12 TFLOP/s", "FLOP/s", "12e12", "5e11", 2),
        ("12 TFLOPS", "FLOP/s", "12e12", "5e11", 2),
        ("700 tokens/s", "tokens/s", "700", "0.5", 3),
        ("1.5 TB/s", "B/s", "1.5e12", "5e10", 2),
        ("50 %", "", "0.5", "0.005", 2),
        ("50%", "%", "50", "0.5", 2),
        ("2.05x", "", "2.05", "0.005", 3),
        ("\u22123.0", "", "-3", "0.05", 2),
        (".5", "", "0.5", "0.05", 1),
        ("0.050", "", "0.05", "0.0005", 2),
    ],
)
def test_numbers_are_read_with_their_unit_and_their_rounding(given_text, unit, value, half_digit, num_digits):
    quantity = read_quantity(given_text, unit)
    assert quantity.value == pytest.approx(float(Decimal(value)), rel=1e-14, abs=0)
    assert quantity.half_digit == pytest.approx(float(Decimal(half_digit)), rel=1e-14)
    assert quantity.num_digits == num_digits


@pytest.mark.parametrize(
    ("given_text", "words"),
    [
        ("", "one number in digits"),
        ("twelve ms", "one number in digits"),
        ("ms", "one number in digits"),
        ("nan", "one number in digits"),
        (math.nan, "one number in digits"),
        (math.inf, "one number in digits"),
        ("0x10", "one number in digits"),
        ("1/3 s", "one number in digits"),
        ("1.2.3 s", "one number in digits"),
        ("2 min 5 s", "one number in digits"),
        ("12,3 ms", "decimal point"),
        ("1,23,456", "decimal point"),
        ("~12 ms", "without a range"),
        ("< 1 ms", "without a range"),
        ("12-13 ms", "without a range"),
        ("12 \u2013 13 ms", "without a range"),
        ("12 to 13 ms", "without a range"),
        ("12 \u00b1 1 ms", "without a range"),
        ("1e999 s", "too large"),
        pytest.param(10**5000, "too large", id="more digits than Python prints"),
        ("9" * 81, "one number in digits"),
    ],
)
def test_what_is_no_number_is_unreadable(given_text, words):
    with pytest.raises(UnreadableError, match=words):
        read_quantity(given_text, "s")


@pytest.mark.parametrize(
    ("given_text", "unit", "words"),
    [
        ("12.3", "s", "a unit is missing; write it behind the number, for example ms"),
        (12.3, "B", "for example MiB"),
        ("0.5", "%", "for example %"),
        ("12 ms", "B", "'ms' is a unit of s; this is asked in B"),
        ("12 GB", "s", "'GB' is a unit of B"),
        ("12 ms", "", "asked without a unit"),
        ("12 TFLOP/s", "FLOP", "'TFLOP/s' is a unit of FLOP/s"),
        ("12 GFLOPS", "FLOP", "capital S"),
        ("12 GB/s", "B", "a unit of B/s"),
        ("12 %", "s", "'%' is no unit"),
        *(
            (f"12 {bits}", "B", "counts bits")
            for bits in ("Gb", "gb", "kb", "b", "Gib", "Mbit", "Gibit", "bits")
        ),
        ("100 Gb/s", "B/s", "counts bits"),
        ("100 Gbit/s", "B/s", "counts bits"),
        ("12 MS", "s", "did you mean ms?"),
        ("12 miB", "B", "did you mean MiB?"),
        ("12 parsecs", "", "no unit known here"),
    ],
)
def test_a_missing_or_wrong_unit_is_named_and_the_number_is_not(given_text, unit, words):
    with pytest.raises(UnitError) as error:
        read_quantity(given_text, unit)
    assert words in str(error.value)
    assert "12" not in str(error.value)
    assert "100" not in str(error.value)


def test_the_same_number_in_other_units_is_told():
    others = read_quantity("0.48 GB", "B").others
    assert others["GB"] == pytest.approx(0.48e9)
    assert others["GiB"] == pytest.approx(0.48 * 2**30)
    assert read_quantity("50", "").others["%"] == 0.5


SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
SIZES = {"B": SIZES, "s": {"s": 1, "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.decimals(min_value=0, max_value=10**7, places=3),
    st.sampled_from([(kind, unit) for kind, units in SIZES.items() for unit in units]),
    st.sampled_from(["{}{}", "{} {}", " {}  {} ", "{:,} {}", "+{} {}", "{:e} {}"]),
)
def test_every_way_of_writing_gives_the_exact_product(number, kind_and_unit, layout):
    kind, unit = kind_and_unit
    expected = number * Decimal(SIZES[kind][unit])
    assert read_quantity(layout.format(number, unit), kind).value == pytest.approx(float(expected), rel=1e-14)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.floats(1e-8, 99, allow_nan=False), st.integers(1, 2**49))
def test_what_our_tables_print_is_read_back_to_the_last_digit_shown(seconds, count):
    for text, unit, true in [
        (format_seconds(seconds), "s", seconds),
        (format_bytes(count), "B", count),
        (format_count(count), "", count),
    ]:
        quantity = read_quantity(text, unit)
        assert abs(quantity.value - true) <= quantity.half_digit * (1 + 1e-9)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.text(max_size=30) | st.text(st.sampled_from("0123456789.,eE+-x*^ %smGiBbFLOP/"), max_size=30),
    st.sampled_from(sorted(UNITS)),
)
def test_any_text_is_a_finite_number_or_refused_in_one_line(text, unit):
    message = ""
    try:
        quantity = read_quantity(text, unit)
    except (UnitError, UnreadableError) as error:
        message = str(error)
    else:
        assert math.isfinite(quantity.value)
        assert quantity.half_digit >= 0
        assert all(map(math.isfinite, quantity.others.values()))
    assert "\n" not in message
    assert not (text.isascii() and re.search(r"\d", message))


@pytest.mark.parametrize(("typed", "value"), [("2^64", 2.0**64), ("2**10", 1024.0), ("10 ^ 3", 1000.0)])
def test_a_power_is_a_number(typed, value):
    assert read_quantity(typed, "").value == value
