"""The weighted sum against its formula in fp64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def weighted_sum(device):
    from cs_systems.kernels.weighted_sum import weighted_sum

    return weighted_sum


def run(function, x, weight, dy):
    x, weight = (tensor.detach().requires_grad_() for tensor in (x, weight))
    y = function(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy.to(y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (5, 7), (16, 256), (2, 17, 300), (3, 257)])
def test_values_and_gradients(weighted_sum, device, assert_as_accurate, poisoned, dtype, shape):
    x, weight, dy = (torch.randn(size, device=device).to(dtype) for size in (shape, shape[-1:], shape[:-1]))
    ours = run(weighted_sum, x, weight, dy)
    oracle = run(reference.weighted_sum, x.double(), weight.double(), dy.double())
    plain = run(reference.weighted_sum, x, weight, dy)
    for result, truth, low in zip(ours, oracle, plain, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, truth, low)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 600), step=st.integers(1, 3))
def test_any_shape_and_stride(weighted_sum, device, rows, columns, step):
    x = torch.randn(columns, rows * step, device=device)[:, ::step].T
    weight = torch.randn(columns * step, device=device)[::step]
    torch.testing.assert_close(
        weighted_sum(x, weight), reference.weighted_sum(x, weight), rtol=1e-4, atol=1e-4
    )


def test_gradients_are_those_of_the_function(weighted_sum, device):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 9), (9,)))
    assert torch.autograd.gradcheck(weighted_sum, (x, weight))


def test_a_second_derivative_is_refused(weighted_sum, device):
    x, weight = torch.randn(3, 4, device=device, requires_grad=True), torch.ones(4, device=device)
    (dx,) = torch.autograd.grad(weighted_sum(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_integers_are_refused(weighted_sum, device, no_shape_checks):
    with pytest.raises(UnsupportedError, match="int64"):
        weighted_sum(torch.ones(2, 3, device=device), torch.ones(3, device=device, dtype=torch.int64))
