"""Layer norm op by op against torch's own in float64, numpy in fp16, and closed forms of its limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cs_systems.mixed_precision.formats import FORMATS, stall_value
from cs_systems.mixed_precision.layer_norm import (
    LAYER_NORM,
    RMS_NORM,
    compare_norms,
    find_scale,
    overflow_bound,
    relative_error,
    run_operations,
    sweep,
    take_apart,
    underflow_bound,
    unit_inputs,
)

Z = unit_inputs(64, 0)


@pytest.mark.parametrize(("scale", "offset", "eps"), [(1.0, 0.0, 1e-5), (30.0, 7.0, 0.5)])
def test_the_operations_are_layer_norm_and_rms_norm(scale, offset, eps):
    x = offset + scale * Z
    ours = run_operations(x, eps, torch.float64)["normalised"]
    torch.testing.assert_close(ours[0], F.layer_norm(x, (64,), eps=eps))
    assert all(ours[0].equal(other) for other in ours[1:])
    ours = run_operations(x, eps, torch.float64, RMS_NORM)["normalised"]
    torch.testing.assert_close(ours[0], F.rms_norm(x, (64,), eps=eps))


def test_every_operation_is_rounded_to_fp16_as_numpy_does_it():
    x = (3 + 2 * Z).to(torch.float16).numpy()
    low = {name: result[0].numpy() for name, result in run_operations(3 + 2 * Z, 1e-5, torch.float16).items()}
    total = np.add.accumulate(x)[-1:]
    mean = total / np.float16(64)
    squares = (x - mean) * (x - mean)
    variance = np.add.accumulate(squares)[-1:] / np.float16(64) + np.float16(1e-5)
    for name, expected in (("sum", total), ("mean", mean), ("squares", squares), ("with eps", variance)):
        assert expected.dtype == np.float16
        assert np.array_equal(low[name], expected), name
    assert abs(low["rsqrt"] - 1 / np.sqrt(variance.astype(float))) <= 2.0**-11 * low["rsqrt"]


def test_where_fp16_leaves_its_range():
    steps = {step.name: step for step in take_apart(300 * Z, 1e-5, torch.float16)}
    expected = int((300 * Z).to(torch.float16).double().square().ge(65520).sum())
    assert steps["squares"].num_inf == expected > 0
    assert steps["squares"].largest == math.inf
    assert steps["squares"].exact_largest == pytest.approx(90000 * Z.square().max().item())
    assert steps["squares"].total_error is None
    assert (steps["rsqrt"].largest, steps["rsqrt"].num_lost) == (0, 1)
    assert (steps["normalised"].num_nan, steps["normalised"].num_lost) == (0, 64)
    assert all(step.num_inf + step.num_nan == 0 for step in take_apart(300 * Z, 1e-5, torch.bfloat16))


def test_nothing_to_normalise_and_an_eps_that_fp16_does_not_have():
    steps = {step.name: step for step in take_apart(torch.ones(64, dtype=torch.float64), 1e-8, torch.float16)}
    assert steps["with eps"].largest == 0
    assert steps["rsqrt"].num_inf == 1
    assert steps["normalised"].num_nan == 64


def test_errors_are_those_of_one_operation_and_of_all():
    x = 100 + unit_inputs(16, 0)
    steps = {step.name: step for step in take_apart(x, 1e-5, torch.bfloat16)}
    rounded = x.to(torch.bfloat16).double()
    expected = ((rounded - x).square().mean() / x.square().mean()).sqrt().item()
    assert steps["x"].own_error == steps["x"].total_error == pytest.approx(expected)
    assert steps["centred"].own_error <= 2.0**-8
    assert steps["centred"].total_error > 50 * steps["x"].total_error  # the mean took the digits
    assert steps["normalised"].own_error <= 2.0**-8 < steps["normalised"].total_error


def test_a_mean_of_0_is_measured_by_the_size_of_the_inputs():
    steps = {step.name: step for step in take_apart(Z, 1e-5, torch.float16)}
    assert abs(steps["mean"].exact_largest) < 1e-12
    assert steps["mean"].total_error == pytest.approx(steps["mean"].largest, rel=1e-6)
    assert steps["sum"].total_error == pytest.approx(steps["sum"].largest / 64, rel=1e-6)


def test_pytorch_s_own_norm_has_neither_problem():
    norms = compare_norms(300 * Z, 1e-5, torch.float16)
    errors = {name: relative_error(low, exact)[0] for name, (low, exact) in norms.items()}
    assert errors["layer norm, op by op"] == errors["RMS norm, op by op"] == 1  # all zeros
    assert errors["F.layer_norm"] < 2.0**-10
    assert errors["F.rms_norm"] < 2.0**-10
    assert errors["F.layer_norm, fp32 input"] < 1e-6
    assert norms["F.layer_norm"][0].dtype == torch.float16
    assert norms["F.layer_norm, fp32 input"][0].dtype == torch.float32


def test_a_sweep_is_each_of_its_rows():
    scales = torch.tensor([[0.1], [300.0]], dtype=torch.float64)
    errors = sweep(scales * Z, 1e-5, torch.float16)
    assert list(errors) == ["x", *(name for name, *_ in LAYER_NORM), "F.layer_norm"]
    for row, scale in enumerate((0.1, 300.0)):
        for step in take_apart(scale * Z, 1e-5, torch.float16):
            assert errors[step.name][row] == pytest.approx(step.total_error), step.name


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_bounds_are_where_squares_leave_the_format(name):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]

    def square(number):  # torch casts by way of float32, so nothing very near to the bounds is tried
        return torch.tensor(number**2, dtype=torch.float64).to(dtype)

    top, bottom = overflow_bound(FORMATS[name]), underflow_bound(FORMATS[name])
    assert (square(top * (1 - 1e-6)).isinf(), square(top * (1 + 1e-6)).isinf()) == (False, True)
    assert (square(bottom * (1 - 1e-4)).item(), square(bottom * (1 + 1e-4)).item() > 0) == (0, True)


def test_eps_vanishes_in_a_larger_variance():
    eps = torch.tensor(1e-5, dtype=torch.float16)
    from_here = stall_value(FORMATS["fp16"].smallest_subnormal * 168, FORMATS["fp16"])
    assert eps.item() == 168 * 2.0**-24
    variance = torch.tensor(float(from_here), dtype=torch.float16)
    assert (variance + eps, variance / 2 + eps > variance / 2) == (variance, True)


def test_the_scale_from_which_on_something_happens():
    assert find_scale(lambda scale: scale >= 81.1, 1e-3, 1e3) == pytest.approx(81.1, rel=1e-5)
    assert find_scale(lambda scale: False, 1e-3, 1e3) is None


def test_inputs_have_mean_0_and_deviation_1():
    assert abs(Z.mean().item()) < 1e-15
    assert Z.std(correction=0).item() == pytest.approx(1)
    assert not Z.equal(unit_inputs(64, 1))
