"""silu(gate) * up against its formula in fp64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def swiglu(device):
    from cs_systems.kernels.swiglu import swiglu

    return swiglu


def run(function, gate, up, dy):
    gate, up = (tensor.detach().requires_grad_() for tensor in (gate, up))
    y = function(gate, up)
    return y.detach(), *torch.autograd.grad(y, (gate, up), dy.to(y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2048,), (2049,), (2, 3000)])
def test_values_and_gradients(swiglu, device, assert_as_accurate, poisoned, dtype, shape):
    gate, up, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
    ours = run(swiglu, gate, up, dy)
    oracle = run(reference.swiglu, gate.double(), up.double(), dy.double())
    plain = run(reference.swiglu, gate, up, dy)
    for result, truth, low in zip(ours, oracle, plain, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, truth, low)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(rows=st.integers(1, 50), columns=st.integers(1, 300), step=st.integers(1, 3), expand=st.booleans())
def test_any_shape_and_stride(swiglu, device, rows, columns, step, expand):
    gate = torch.randn(columns, rows * step, device=device)[:, ::step].T
    up = torch.randn(1 if expand else rows, columns * step, device=device)[:, ::step].expand(rows, columns)
    dy = torch.randn(columns, rows, device=device).T
    for ours, theirs in zip(run(swiglu, gate, up, dy), run(reference.swiglu, gate, up, dy), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of exp, in the interpreter
def test_extreme_gates_give_the_limit_and_no_nan(swiglu, device):
    gate = torch.tensor([-1e30, -200.0, -0.0, 0.0, 200.0, 1e30], device=device)
    y, dgate, dup = run(swiglu, gate, torch.full_like(gate, 2.0), torch.ones_like(gate))
    assert y.tolist() == [0, 0, 0, 0, 400, pytest.approx(2e30)]
    assert dgate.tolist() == [0, 0, 1, 1, 2, 2]
    assert dup.tolist() == [0, 0, 0, 0, 200, pytest.approx(1e30)]


def test_two_dtypes_meet_in_the_wider(swiglu, device):
    gate = torch.randn(40, device=device).bfloat16().requires_grad_()
    up = torch.randn(40, device=device, requires_grad=True)
    y = swiglu(gate, up)
    torch.testing.assert_close(y, reference.swiglu(gate.float(), up))
    y.sum().backward()
    assert (gate.grad.dtype, up.grad.dtype) == (torch.bfloat16, torch.float32)


def test_gradients_are_those_of_the_function(swiglu, device):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_two_runs_agree_to_the_last_bit(swiglu, device):
    inputs = [torch.randn(3000, device=device) for _ in range(3)]
    first, second = run(swiglu, *inputs), run(swiglu, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch warns of itself
def test_torch_compile_takes_it_whole(swiglu, device, no_shape_checks):
    inputs = [torch.randn(4, 5, device=device) for _ in range(3)]
    compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(run(compiled, *inputs), run(swiglu, *inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_the_operators_are_what_torch_expects(swiglu, device):
    from cs_systems.kernels.swiglu import swiglu_backward, swiglu_forward

    gate, up, dy = (torch.randn(4, 5, device=device) for _ in range(3))
    torch.library.opcheck(swiglu_forward.custom_op, (gate, up))
    torch.library.opcheck(swiglu_backward.custom_op, (gate, up, dy))


def test_a_second_derivative_is_refused(swiglu, device):
    gate = torch.randn(3, device=device, requires_grad=True)
    (dgate,) = torch.autograd.grad(swiglu(gate, gate).square().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dgate.sum().backward()


def test_nothing_gives_nothing(swiglu, device):
    assert swiglu(torch.randn(0, 4, device=device), torch.randn(0, 4, device=device)).shape == (0, 4)
