"""Shares of gradients and updates that are lost, for numbers whose fate is known."""

import pytest
import torch
from torch import nn

from cs_systems.mixed_precision.underflow import lost_update_fraction, measure_underflow
from cs_systems.optim import AdamW


class Weights(nn.Module):
    """One row of weights."""

    def __init__(self, values, dtype=torch.float32):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(values, dtype=dtype))


SLOPES = torch.tensor([1.0, -(2.0**-16), 2.0**-20, 2.0**-26, 0.0])


def loss(weights, dtype=torch.float32):
    """A sum whose gradients are SLOPES: in `dtype` for the middle step and in fp32 for the weights."""
    logits = weights["row"].to(dtype)
    return (logits.float() * SLOPES).sum(), logits


def measure(scale, dtype):
    return measure_underflow(Weights([1.0] * 5), lambda weights: loss(weights, dtype), loss, scale)


def test_of_four_gradients_fp16_loses_the_one_below_its_smallest_number():
    result = measure(1.0, torch.float16)
    assert result.zeroed_logit_fraction == result.zeroed_fraction == 1 / 4
    assert result.below_fp16_fraction == 1 / 4  # 2^-26 < 2^-24
    assert result.below_fp16_normal_fraction == 3 / 4
    length = float(SLOPES.double().norm())
    assert result.gradient_error == pytest.approx(2.0**-26 / length, rel=1e-6)


@pytest.mark.parametrize(("scale", "dtype"), [(2.0**4, torch.float16), (1.0, torch.bfloat16)])
def test_a_scale_or_more_exponent_keeps_it(scale, dtype):
    result = measure(scale, dtype)
    assert result.zeroed_fraction == result.gradient_error == 0
    assert result.below_fp16_fraction == 1 / 4  # a fact about the gradient, not about the scale


def test_an_overflow_has_no_error_that_json_could_hold():
    assert measure(2.0**16, torch.float16).gradient_error is None


def test_the_model_is_left_alone():
    model = Weights([1.0] * 5)
    measure_underflow(model, loss, loss, 1.0)
    assert model.row.grad is None
    assert model.row.tolist() == [1.0] * 5


@pytest.mark.parametrize(("dtype", "lost"), [(torch.float32, 0.0), (torch.bfloat16, 1 / 2)])
def test_updates_below_half_the_spacing_are_lost(dtype, lost):
    """Adam's first step is lr: numbers below 1 are 2^-8 apart in bf16, those at 0.01 are 2^-14."""
    model = Weights([1.0, 0.01, 0.5], dtype)
    before = {"row": model.row.detach().clone()}
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.row.grad = torch.tensor([0.3, 0.3, 0.0], dtype=dtype)  # the third is not due to move
    optimizer.step()
    assert lost_update_fraction(before, model, optimizer) == lost
