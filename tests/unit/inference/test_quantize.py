"""8-bit weights: how far they are from the weights, and how far logits are told to be from exact ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.inference.quantize import LogitError, compare_logits, dequantize_rows, quantize_rows


@settings(derandomize=True, deadline=None, max_examples=40)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), power=st.integers(-8, 8), seed=st.integers(0, 99))
def test_no_weight_moves_by_more_than_half_a_step(rows, blocks, power, seed):
    weight = torch.randn(rows, 16 * blocks, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    numbers, scales = quantize_rows(weight)
    assert numbers.dtype == torch.int8
    assert scales.dtype == torch.bfloat16
    assert numbers.abs().max() <= 127
    error = (dequantize_rows(numbers, scales.double()) - weight.double()).abs()
    # Half a step, and for the largest weight of a row what its scale lost when it was rounded to bf16.
    bound = scales.double()[:, None] * 0.5 + weight.double().abs() * 2**-8
    assert (error <= bound * (1 + 1e-6)).all()


def test_each_row_has_its_own_scale():
    weight = torch.ones(3, 16) * torch.tensor([[1.0], [1000.0], [0.0]])
    numbers, scales = quantize_rows(weight)
    assert numbers[:, 0].tolist() == [127, 127, 0]
    assert scales.min() > 0  # also of a row of zeros, which must not be divided by zero
    torch.testing.assert_close(dequantize_rows(numbers, scales.float()), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("columns", [1, 8, 24, 40])
def test_rows_that_the_product_would_read_beyond_are_refused(columns):
    with pytest.raises(ValueError, match=f"multiple of 16 long, not {columns}; use a --d-model and --d-ff"):
        quantize_rows(torch.randn(4, columns))


def test_the_distance_of_logits_by_hand():
    exact = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert compare_logits(exact, exact) == LogitError(0.0, 0.0, 1.0)
    error = compare_logits(torch.tensor([[3.0, 4.0], [-0.5, 1.0]]), exact)
    assert error.relative_rms == pytest.approx((1.25 / 25) ** 0.5)
    assert error.worst == pytest.approx(0.25)
    assert error.same_top_token == 0.5
