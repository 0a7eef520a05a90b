"""RMSNorm with and without a residual against its formula in fp64, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference
from cs_systems.model.functional import rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5


@pytest.fixture(scope="module")
def rmsnorm(device):
    from cs_systems.kernels.rmsnorm import rmsnorm

    return rmsnorm


def run(function, x, weight, dy, residual=None, dsum=None, eps=EPS):
    """Results and gradients; y (and the sum), dx, dweight (and that of the residual)."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, residual) if tensor is not None]
    outputs = function(inputs[0], inputs[1], eps, *inputs[2:])
    outputs = (outputs,) if residual is None else outputs
    given = [grad.to(y.dtype) for grad, y in zip((dy, dsum), outputs, strict=False)]
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, given)


def in_steps(x, weight, eps, residual=None):
    """In eager PyTorch as the model does it: the sum in the dtype of x, the norm in fp32."""
    total = x if residual is None else (x + residual).to(x.dtype)
    y = rms_norm(total, weight, eps)
    return y if residual is None else (y, total)


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(2,), (3, 7, 40), (5, 1024), (3, 1500), (5, 8193)])
def test_values_and_gradients(rmsnorm, device, assert_as_accurate, poisoned, dtype, adds, shape):
    x, residual, dy, dsum = (torch.randn(shape, device=device).to(dtype) for _ in range(4))
    weight = torch.randn(shape[-1], device=device).to(dtype)
    inputs = (x, weight, dy, residual, dsum) if adds else (x, weight, dy)
    ours = run(rmsnorm, *inputs)
    oracle = run(reference.rmsnorm, *(tensor.double() for tensor in inputs))
    plain = run(in_steps, *inputs)
    for result, truth, low in zip(ours, oracle, plain, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, truth, low)


@pytest.mark.parametrize("columns", [100, 16385])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_exactly_that_of_torch_and_is_what_gets_normalised(rmsnorm, device, dtype, columns):
    x, residual = (torch.randn(3, columns, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(columns, device=device)
    y, total = rmsnorm(x, weight, EPS, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, rmsnorm(total, weight, EPS))


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 400),
    step=st.integers(1, 2),
    adds=st.booleans(),
    transposed=st.booleans(),
)
def test_any_shape_and_stride(rmsnorm, device, rows, columns, step, adds, transposed):
    def draw():
        if transposed:
            return torch.randn(columns, rows * step, device=device)[:, ::step].T
        return torch.randn(rows, columns + step, device=device)[:, step:]

    x, dy, residual, dsum = (draw() for _ in range(4))
    weight = torch.randn(columns * step, device=device)[::step]
    inputs = (x, weight, dy, residual, dsum) if adds else (x, weight, dy)
    assert_same(run(rmsnorm, *inputs), run(reference.rmsnorm, *inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [6, 1024])
def test_a_program_of_backward_takes_several_rows(rmsnorm, device, poisoned, monkeypatch, columns):
    monkeypatch.setattr("cs_systems.kernels.rmsnorm._MAX_PROGRAMS", 4)
    x, dy, weight = (torch.randn(*shape, columns, device=device) for shape in ((11,), (11,), ()))
    inputs = (x, weight, dy)
    assert_same(run(rmsnorm, *inputs), run(reference.rmsnorm, *inputs), rtol=1e-4, atol=1e-4)


def test_eps_counts_and_rows_of_zeros_stay_zero(rmsnorm, device):
    x, weight = torch.zeros(2, 8, device=device), torch.randn(8, device=device)
    x[1] = 1e-3
    for eps in (1e-5, 1e-2):
        inputs = (x, weight, torch.randn(2, 8, device=device))
        assert_same(run(rmsnorm, *inputs, eps=eps), run(reference.rmsnorm, *inputs, eps=eps))


def test_a_stream_in_fp32_takes_a_layer_in_bf16(rmsnorm, device):
    x, dy, dsum = (torch.randn(4, 50, device=device) for _ in range(3))
    residual, weight = torch.randn(4, 50, device=device).bfloat16(), torch.randn(50, device=device)
    ours = run(rmsnorm, x, weight, dy, residual, dsum)
    assert [tensor.dtype for tensor in ours] == 4 * [torch.float32] + [torch.bfloat16]
    assert_same(ours, run(in_steps, x, weight, dy, residual, dsum))


def test_an_activation_in_bf16_takes_a_weight_in_fp32(rmsnorm, device):
    x, dy = (torch.randn(4, 50, device=device).bfloat16() for _ in range(2))
    y, dx, dweight = run(rmsnorm, x, torch.randn(50, device=device), dy)
    assert [tensor.dtype for tensor in (y, dx, dweight)] == [torch.bfloat16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("unused", [0, 1])
def test_one_of_the_two_results_may_be_unused(rmsnorm, device, unused):
    x, residual, dy = (torch.randn(3, 10, device=device) for _ in range(3))
    weight = torch.randn(10, device=device)
    gradients = []
    for function in (rmsnorm, reference.rmsnorm):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, residual)]
        outputs = function(*inputs[:2], EPS, inputs[2])
        used = [inputs[0], inputs[2]] if unused == 0 else inputs
        gradients.append(torch.autograd.grad(outputs[1 - unused], used, dy))
    assert_same(*gradients)


@pytest.mark.parametrize("adds", [False, True])
def test_gradients_are_those_of_the_function(rmsnorm, device, adds):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    shapes = ((3, 5), (5,), (3, 5))[: 3 if adds else 2]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda x, weight, *r: rmsnorm(x, weight, EPS, *r), inputs, fast_mode=True)


def test_two_runs_agree_to_the_last_bit(rmsnorm, device):
    inputs = [torch.randn(30, 20, device=device) for _ in range(4)]
    weight = torch.randn(20, device=device)
    first, second = (run(rmsnorm, inputs[0], weight, *inputs[1:]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch warns of itself
@pytest.mark.parametrize("adds", [False, True])
def test_torch_compile_takes_it_whole(rmsnorm, device, no_shape_checks, adds):
    x, dy, residual, dsum = (torch.randn(6, 20, device=device) for _ in range(4))
    inputs = (x, torch.randn(20, device=device), dy, *((residual, dsum) if adds else ()))
    compiled = torch.compile(rmsnorm, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, *inputs), run(rmsnorm, *inputs), rtol=0, atol=0)


@pytest.mark.parametrize("columns", [20, 8193])
def test_the_operators_are_what_torch_expects(rmsnorm, device, columns):
    from cs_systems.kernels.rmsnorm import rmsnorm_backward, rmsnorm_forward

    x, dy, residual = (torch.randn(2, columns, device=device) for _ in range(3))
    weight, inverse_rms = torch.randn(columns, device=device), torch.ones(2, device=device)
    checks = ("test_schema", "test_faketensor")
    for other in (None, residual):
        torch.library.opcheck(rmsnorm_forward.custom_op, (x, weight, EPS, other), test_utils=checks)
        torch.library.opcheck(
            rmsnorm_backward.custom_op, (x, weight, inverse_rms, dy, other), test_utils=checks
        )


def test_a_second_derivative_is_refused(rmsnorm, device):
    x, weight = torch.randn(3, 4, device=device, requires_grad=True), torch.ones(4, device=device)
    (dx,) = torch.autograd.grad(rmsnorm(x, weight, EPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_no_rows_give_none_and_rows_that_are_too_long_are_refused(rmsnorm, device):
    nothing, weight = torch.randn(0, 4, device=device), torch.ones(4, device=device)
    assert rmsnorm(nothing, weight, EPS).shape == (0, 4)
    assert [y.shape for y in rmsnorm(nothing, weight, EPS, nothing)] == [(0, 4), (0, 4)]
    longest = torch.ones(1, 32769, device=device)
    with pytest.raises(UnsupportedError, match="up to 32768 columns, not 32769"):
        rmsnorm(longest, longest[0], EPS)
