"""Formats and rounding against torch's own casts, torch.finfo, numpy and sums added one by one."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_systems.mixed_precision.formats import (
    FORMATS,
    check_representable,
    round_to,
    spacing,
    stall_value,
    walk,
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
PROPERTY = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.mark.parametrize("name", FORMATS)
def test_limits_are_those_of_torch(name):
    known = torch.finfo(DTYPES[name])
    ours = FORMATS[name]
    assert float(ours.largest) == known.max
    assert float(ours.epsilon) == known.eps
    assert float(ours.smallest_normal) == known.smallest_normal
    assert float(ours.smallest_subnormal) == known.smallest_normal * known.eps
    half_of_it = ours.smallest_subnormal / 2
    casts = [torch.tensor(float(f * half_of_it), dtype=torch.float64).to(DTYPES[name]) for f in (1, 2)]
    assert (casts[0] == 0, casts[1] > 0) == (True, True)


@PROPERTY
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(["fp16", "bf16"]))
@example(65519.99609375, "fp16")
@example(65520.0, "fp16")
@example(2.0**-25, "fp16")
@example(2049.0, "fp16")
@example(257.0, "bf16")
def test_rounding_is_torch_s_cast_bit_for_bit(number, name):
    expected = torch.tensor(number, dtype=torch.float32).to(DTYPES[name]).item()
    try:
        ours = float(round_to(Fraction(number), FORMATS[name]))
    except OverflowError:
        ours = math.copysign(math.inf, number)
    assert ours == expected


@PROPERTY
@given(
    st.floats(min_value=-1e39, max_value=1e39), st.sampled_from([("fp16", np.float16), ("fp32", np.float32)])
)
def test_rounding_is_numpy_s_cast_of_float64(number, kind):
    name, numpy_type = kind
    with np.errstate(over="ignore", under="ignore"):
        expected = float(np.float64(number).astype(numpy_type))
    try:
        ours = float(round_to(Fraction(number), FORMATS[name]))
    except OverflowError:
        ours = math.copysign(math.inf, number)
    assert ours == expected


@PROPERTY
@given(st.floats(width=16, min_value=0, exclude_max=False, max_value=65472, allow_nan=False))
def test_spacing_is_numpy_s(number):
    expected = np.nextafter(np.float16(number), np.float16(np.inf)) - np.float16(number)
    assert float(spacing(Fraction(number), FORMATS["fp16"])) == float(expected)
    assert float(spacing(Fraction(number), FORMATS["fp32"])) == float(np.spacing(np.float32(number)))


@pytest.mark.parametrize(
    ("number", "name", "words"),
    [
        (70000, "fp16", "70000 becomes infinity in fp16, which ends at 65504"),
        (Fraction(1, 10**9), "fp16", "becomes 0 in fp16"),
    ],
)
def test_a_number_outside_the_range_is_refused(number, name, words):
    with pytest.raises(ValueError, match=words):
        check_representable(Fraction(number), FORMATS[name])
    check_representable(Fraction(number), FORMATS["bf16"])


def test_where_the_course_s_sums_stall():
    terms = {name: round_to(Fraction(1, 100), FORMATS[name]) for name in FORMATS}
    assert stall_value(terms["bf16"], FORMATS["bf16"]) == 4
    assert stall_value(terms["fp16"], FORMATS["fp16"]) == 32
    assert stall_value(-terms["fp16"], FORMATS["fp16"]) == -32
    assert stall_value(Fraction(1), FORMATS["fp32"]) == 2**24
    assert stall_value(Fraction(31), FORMATS["fp16"]) is None  # 65536 would be the place
    assert walk(terms["bf16"], None, FORMATS["bf16"]).stall_step == 351
    assert walk(terms["fp16"], None, FORMATS["fp16"]).stall_step == 2799


def add_one_by_one(term, name):
    """All sums from 0 until they no longer change: numpy's for fp16, torch's for bf16, which numpy lacks."""
    if name == "fp16":
        with np.errstate(over="ignore"):
            sums = np.add.accumulate(np.full(2**13, term, np.float16)).astype(float).tolist()
        return [0.0, *sums[: sums.index(sums[-1]) + 1]]
    sums, total = [0.0], torch.tensor(term, dtype=DTYPES[name])
    while total.item() != sums[-1]:
        sums.append(total.item())
        total = total + torch.tensor(term, dtype=DTYPES[name])
    return sums


@settings(PROPERTY, max_examples=50)
@given(st.floats(width=16, min_value=2**-20, max_value=65504), st.sampled_from(["fp16", "bf16"]))
@example(1.0, "bf16")
@example(2.0**-24, "fp16")
@example(31.0, "fp16")
@example(3.0, "bf16")
def test_a_walk_is_the_sum_added_one_by_one(number, name):
    format = FORMATS[name]
    term = torch.tensor(number).to(DTYPES[name]).item()
    sums = add_one_by_one(term, name)
    exact = Fraction(term)
    whole = walk(exact, None, format)
    if sums[-1] == math.inf:
        assert stall_value(exact, format) is None
        assert (whole.total, whole.overflow_step, whole.stall_step) == (None, len(sums) - 1, None)
    else:
        assert float(stall_value(exact, format)) == sums[-1]
        assert (float(whole.total), whole.overflow_step, whole.stall_step) == (sums[-1], None, len(sums))
    for steps in {1, len(sums) // 3, len(sums) // 2, len(sums) - 2} - {0}:
        part = walk(exact, steps, format)
        assert float(part.total) == sums[steps]
        assert 1 + sum(binade.num_additions for binade in part.binades) == steps
        assert exact + sum(row.num_additions * exact + row.error for row in part.binades) == part.total


def test_a_walk_shows_what_an_addition_becomes():
    term = round_to(Fraction(1, 100), FORMATS["fp16"])
    result = walk(term, 1000, FORMATS["fp16"])
    last = result.binades[-1]
    assert (float(result.total), last.low, last.high) == (9.953125, 8, 16)
    assert last.spacing == last.becomes == Fraction(1, 128)
    assert last.error == last.num_additions * (Fraction(1, 128) - term)
    with pytest.raises(ValueError, match=r"0\.01 is not a positive number of fp16"):
        walk(Fraction(1, 100), 1, FORMATS["fp16"])
