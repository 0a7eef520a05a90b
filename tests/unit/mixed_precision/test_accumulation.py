"""Each way to add against numpy, math.fsum, exact fractions or the same done one addition at a time."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_systems.mixed_precision import accumulation
from cs_systems.mixed_precision.accumulation import (
    add_in_blocks,
    add_one_by_one,
    add_pairwise,
    add_stochastically,
    add_with_kahan,
    compare_methods,
    course_sums,
    loop,
    points,
    repeat_stochastic,
)
from cs_systems.mixed_precision.formats import FORMATS, round_to, spacing

CPU = torch.device("cpu")
PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)
TYPES = [
    (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32), (torch.float32, torch.float64),
]  # fmt: skip


def test_the_course_s_four_sums_as_torch_prints_them():
    printed = {name: f"{total:.4f}" for name, total in course_sums().items()}
    assert printed == {
        "fp32": "10.0001", "fp16": "9.9531", "fp16 into fp32": "10.0021", "fp16 cast, into fp32": "10.0021",
    }  # fmt: skip


@PROPERTY
@given(st.floats(width=16, min_value=-60000, max_value=60000).filter(bool), st.sampled_from(TYPES))
@example(200.0, TYPES[0])
@example(1.0, TYPES[1])
@example(-31.0, TYPES[0])
def test_stretches_are_the_loop_bit_for_bit(number, types):
    terms, accumulator = types
    term = torch.tensor(number).to(terms)
    assert add_one_by_one(term, accumulator, 400).equal(loop(term, accumulator, 400))


@pytest.mark.parametrize("number", [0.01, -0.3, 1.0, 7.0, 6e-8])
def test_a_long_sum_is_numpy_s(number):
    for dtype, numpy_type in ((torch.float16, np.float16), (torch.float32, np.float32)):
        ours = add_one_by_one(torch.tensor(number, dtype=dtype), dtype, 200_000)
        with np.errstate(over="ignore"):
            expected = np.add.accumulate(np.full(200_000, number, numpy_type))
        assert np.array_equal(ours.numpy(), expected)


def test_kahan_is_within_one_spacing_where_the_plain_sum_is_not():
    term = torch.tensor(0.1, dtype=torch.float16)
    sums, plain = add_with_kahan(term, 5000), add_one_by_one(term, torch.float16, 5000)
    for number in (10, 500, 5000):
        exact = number * Fraction(term.item())
        assert abs(Fraction(sums[number - 1].item()) - exact) <= spacing(exact, FORMATS["fp16"])
    assert plain[-1] < 300 < sums[-1]


@PROPERTY
@given(st.lists(st.floats(width=16, min_value=-100, max_value=100), min_size=1, max_size=300))
def test_pairwise_and_blocks_are_near_the_exact_sum(numbers):
    terms = torch.tensor(numbers, dtype=torch.float16)
    exact = math.fsum(terms.tolist())
    magnitude = math.fsum(abs(number) for number in terms.tolist())
    half = 2.0**-11
    levels = math.ceil(math.log2(len(numbers))) if len(numbers) > 1 else 0
    # Higham, Accuracy and Stability of Numerical Algorithms, section 4.2; subnormal sums are exact.
    assert abs(add_pairwise(terms).item() - exact) <= 1.01 * levels * half * magnitude
    total = add_in_blocks(terms)
    assert total.dtype == torch.float32
    assert abs(total.item() - exact) <= 1.1 * min(127, len(numbers)) * half * magnitude + 1e-4


def test_blocks_keep_the_sum_in_a_block_narrow_and_the_rest_wide():
    terms = torch.ones(1000, dtype=torch.bfloat16)
    assert add_in_blocks(terms).item() == 1000  # one by one bf16 ends at 256
    terms[0] = 256  # in its block nothing is added to that any more
    assert add_in_blocks(terms).item() == 256 + 1000 - 128


@PROPERTY
@given(
    st.floats(width=16, min_value=2**-20, max_value=60000),
    st.sampled_from(["fp16", "bf16"]),
    st.lists(st.floats(min_value=0, max_value=1, exclude_max=True), min_size=1, max_size=200),
)
@example(40000.0, "fp16", [0.5, 0.99, 0.5])
def test_stochastic_rounding_is_the_rule_applied_one_addition_at_a_time(number, name, draws):
    format = FORMATS[name]
    term = round_to(Fraction(number), format)
    total, expected = Fraction(0), []
    for draw in draws:
        grid = spacing(total + term, format)
        total = math.floor((total + term) / grid + Fraction(draw)) * grid
        if total > format.largest:
            break
        expected.append(float(total))
    expected += [math.inf] * (len(draws) - len(expected))
    sums = add_stochastically(float(term), torch.tensor(draws, dtype=torch.float64), format)
    # A draw within 2**-40 of the edge may fall on the other side in float64; hypothesis likes 1 - 2**-53.
    if all(2**-40 < draw < 1 - 2**-40 or draw == 0 for draw in draws):
        assert sums.tolist() == expected


def test_stochastic_rounding_is_right_on_average_and_repeats_with_its_seed():
    totals = torch.tensor(repeat_stochastic(-0.01, 1000, "bf16", 0, 200))
    exact = -1000 * 0.010009765625
    standard_error = totals.std() / len(totals) ** 0.5
    assert abs(totals.mean() - exact) < 4 * standard_error
    assert totals.unique().numel() > 10
    assert repeat_stochastic(-0.01, 1000, "bf16", 3, 2) == totals[3:5].tolist()


def test_all_methods_of_the_course_s_number():
    told = []
    sums = {one.method: one for one in compare_methods(0.01, 1000, "bf16", 0, CPU, told.append)}
    assert list(sums) == told
    plain, wide = sums["one by one"], sums["one by one into fp32"]
    assert (plain.total, plain.stall_step, plain.predicted_stall_step) == (4.0, 351, 351)
    assert wide.total == sums["one by one, cast to fp32"].total == 10.009765625
    assert wide.stall_step is None
    assert sums["Kahan"].total == sums["pairwise"].total == sums["torch.sum"].total == 10.0
    for one in sums.values():
        assert (len(one.sums), one.sums[-1]) == (len(points(1000)), one.total)
        assert one.sums[0] == 0.010009765625


def test_points_are_spread_over_the_decades():
    assert points(1) == [1]
    assert points(5) == [1, 2, 3, 4, 5]
    many = points(10_000_000)
    assert (many[0], many[-1], sorted(set(many))) == (1, 10_000_000, many)
    assert 50 <= len(many) <= 60


def test_a_method_that_waits_for_each_addition_is_left_when_there_are_very_many(monkeypatch):
    monkeypatch.setattr(accumulation, "LONGEST_LOOP", 50)
    sums = {one.method: one for one in compare_methods(1.0, 1000, "bf16", 0, CPU)}
    assert sums["Kahan"].total is None
    expected = [float(number) if number <= 50 else None for number in points(1000)]
    assert list(sums["Kahan"].sums) == expected
    assert (sums["one by one"].total, sums["one by one"].stall_step) == (256.0, 257)
    assert sums["one by one into fp32"].total == 1000
