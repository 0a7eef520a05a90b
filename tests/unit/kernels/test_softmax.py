"""Softmax against its formula in fp64, for rows of any length, and mistakes that must not go unnoticed."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def module(device):
    from cs_systems.kernels import softmax

    return softmax


@pytest.fixture(scope="module")
def softmax(module):
    return module.softmax


def run(function, x, dy, dim=-1):
    x = x.detach().clone().requires_grad_()
    y = function(x, dim)
    return y.detach(), *torch.autograd.grad(y, x, dy.to(y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1,), (3, 1), (2, 5, 7), (130, 64), (3, 1000), (1, 16385), (2, 32768), (1, 32769), (2, 65537)],
    ids=str,
)
def test_values_and_gradients(softmax, device, assert_as_accurate, poisoned, dtype, shape):
    x, dy = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    ours = run(softmax, x, dy)
    truth = run(reference.softmax, x.double(), dy.double())
    plain = run(reference.softmax, x, dy)
    for result, true, low in zip(ours, truth, plain, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, true, low)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    shape=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    dim=st.integers(-3, 2), step=st.integers(1, 2), reverse=st.booleans(),
)  # fmt: skip
def test_any_shape_stride_and_dim(softmax, device, shape, dim, step, reverse):
    dim = max(-len(shape), min(dim, len(shape) - 1))
    x, dy = (torch.randn([size * step for size in shape], device=device) for _ in range(2))
    x, dy = (tensor[tuple(slice(None, None, step) for _ in shape)] for tensor in (x, dy))
    if reverse:
        x = x.permute(list(reversed(range(x.dim()))))
        dy = dy.permute(list(reversed(range(x.dim()))))
    torch.testing.assert_close(run(softmax, x, dy, dim), run(reference.softmax, x, dy, dim))


@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_long_rows_along_any_dim(softmax, device, dim):
    shape = [2, 1, 2]
    shape[dim] = 33000
    x = torch.randn(shape, device=device)
    torch.testing.assert_close(softmax(x, dim), reference.softmax(x, dim))


def test_an_expanded_row_and_an_expanded_gradient(softmax, device):
    x = torch.randn(1, 40, device=device).expand(5, 40)
    y = softmax(x.clone().requires_grad_())
    torch.testing.assert_close(softmax(x), y)
    assert torch.autograd.grad(y.sum(), y, retain_graph=True)[0].stride() == (0, 0)
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(softmax(x).sum(), x)
    torch.testing.assert_close(dx, torch.zeros_like(dx))  # rows add up to 1 whatever x is


@pytest.mark.parametrize("num_columns", [50, 33000])
def test_extreme_values(softmax, device, num_columns):
    x = torch.randn(9, num_columns, device=device)
    x[0] *= 1e4
    x[1] = 5.0
    x[2, 0] = -torch.inf
    x[3] *= 1e-30
    x[4] *= 1e30
    x[5] += 1e4
    x[6] -= 1e4
    x[7, 1:] = -torch.inf
    x[8] = -torch.inf
    dy = torch.randn_like(x)
    y, dx = run(softmax, x, dy)
    torch.testing.assert_close((y, dx), run(reference.softmax, x, dy), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y[:8].sum(1), torch.ones(8, device=device))
    assert y[2, 0] == dx[2, 0] == 0
    assert y[7].nonzero().tolist() == [[0]]
    assert not y[8].any()
    assert not dx[8].any()


@pytest.mark.parametrize("num_columns", [50, 33000])
def test_nan_stays_in_its_row(softmax, device, num_columns):
    x = torch.randn(6, num_columns, device=device)
    x[2, num_columns // 2] = torch.nan
    y, dx = run(softmax, x, torch.randn_like(x))
    for result in (y, dx):
        assert result[2].isnan().all()
        assert not result[[0, 1, 3, 4, 5]].isnan().any()


@pytest.mark.parametrize("num_columns", [300, 33000])
def test_shift_and_permutation(softmax, device, num_columns):
    x = torch.randn(4, num_columns, device=device)
    order = torch.randperm(num_columns, device=device)
    y = softmax(x)
    torch.testing.assert_close(softmax(x + 64), y, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(softmax(x[:, order]), y[:, order])


def test_the_online_kernels_agree_with_the_others(module, device, monkeypatch):
    x, dy = torch.randn(2, 5, 5000, device=device)
    whole = run(module.softmax, x, dy)
    for limit in ("MAX_COLUMNS", "_MAX_BACKWARD_COLUMNS"):
        monkeypatch.setattr(module, limit, 1000)
    monkeypatch.setattr(module, "row_tile", lambda *_: (1, 512, 4))
    torch.testing.assert_close(run(module.softmax, x, dy), whole)


@pytest.mark.parametrize("num_columns", [300, 33000])
def test_two_runs_agree_to_the_last_bit(softmax, device, num_columns):
    x, dy = torch.randn(2, 3, num_columns, device=device).bfloat16()
    assert all(map(torch.equal, run(softmax, x, dy), run(softmax, x, dy)))


def test_inputs_are_left_as_they_were(softmax, device):
    x, dy = torch.randn(2, 3, 40, device=device)
    before = x.clone(), dy.clone()
    run(softmax, x, dy)
    assert torch.equal(x, before[0])
    assert torch.equal(dy, before[1])


@pytest.mark.parametrize("shape", [(3, 5), (1, 33000)])
def test_gradients_are_those_of_the_function(softmax, device, shape):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, x, fast_mode=shape[1] > 100)


def test_a_second_derivative_is_refused(softmax, device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(softmax(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it itself
@pytest.mark.parametrize("dim", [-1, 0])
def test_compiled_into_one_graph(softmax, device, no_shape_checks, dim):
    x, dy = torch.randn(2, 4, 50, device=device).bfloat16()
    compiled = torch.compile(softmax, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(compiled, x, dy, dim), run(softmax, x, dy, dim)))
    with torch.no_grad():
        assert torch.equal(compiled(x, dim), softmax(x, dim))


def test_operators_are_what_torch_expects(module, device, no_shape_checks):
    x = torch.randn(20, 5, device=device, dtype=torch.bfloat16).T
    torch.library.opcheck(module.softmax_forward.custom_op, (x,))
    torch.library.opcheck(module.softmax_backward.custom_op, (module.softmax(x), x))


def test_without_a_gradient_and_under_autocast(softmax, device):
    x = torch.randn(4, 9, device=device, requires_grad=True)
    with torch.no_grad():
        assert not softmax(x).requires_grad
    with torch.autocast(device, torch.bfloat16):
        y = softmax(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert (y.dtype, dx.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, x.softmax(-1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(softmax, device, reentrant):
    x = torch.randn(4, 9, device=device)
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    checkpoint(softmax, leaf, use_reentrant=reentrant).square().sum().backward()
    plain.softmax(-1).square().sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty(softmax, device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    y = softmax(x)
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_integers_are_refused(softmax, device, no_shape_checks):
    with pytest.raises(UnsupportedError, match="int64"):
        softmax(torch.ones(2, 3, device=device, dtype=torch.int64))


def quick_check(module, device):
    """Odd rows with large values, long rows whose maximum grows on the way, and how bf16 is rounded."""
    short = torch.randn(3, 37, device=device)
    short[0] *= 100
    long = torch.linspace(-50, 50, 33000, device=device)[None]
    for x in (short, long):
        dy = torch.randn_like(x)
        expected = run(reference.softmax, x, dy)
        torch.testing.assert_close(run(module.softmax, x, dy), expected, rtol=1e-4, atol=1e-6)
    assert_rounded(module, device)


def test_results_in_bf16_are_rounded_to_nearest(module, device):
    assert_rounded(module, device)


def assert_rounded(module, device):
    """Cut off instead, half of the elements would differ."""
    for num_columns in (1000, 33000):
        x, dy = torch.randn(2, 2, num_columns, device=device).bfloat16()
        y, dx = run(module.softmax, x, dy)
        true_y = reference.softmax(x.double())
        true_dx = y.double() * (dy.double() - (y.double() * dy.double()).sum(-1, keepdim=True))
        assert (y == true_y.bfloat16()).float().mean() > 0.99
        assert (dx == true_dx.bfloat16()).float().mean() > 0.99


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is what some of the mistakes cause
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("no mistake", "no mistake"),
        ("tl.exp(x - largest[:, None])", "tl.exp(x)"),
        ('mask=mask, other=-float("inf")', "mask=mask, other=0"),
        ("y * (dy - tl.sum(y * dy, axis=1)[:, None])", "y * dy"),
        ("(dy.to(ACC) - row_sum)", "dy.to(ACC)"),
        ("sums * tl.exp(largest - shift)", "sums"),
        ("sums * tl.exp(largest - row_largest)", "sums"),
        ("tl.exp(x - row_largest) / row_sum", "tl.exp(x - row_largest)"),
        ("cast(y, y_ptr.dtype.element_ty)", "y.to(y_ptr.dtype.element_ty)"),
        ("cast(dx, dx_ptr.dtype.element_ty)", "dx.to(dx_ptr.dtype.element_ty)"),
    ],
    ids=[
        "none", "no maximum", "no column mask", "backward without the row's sum", "the same online",
        "sum not rescaled", "sums of columns not rescaled", "not divided",
        "cut off forward", "cut off backward",
    ],
)  # fmt: skip
def test_mistakes_would_be_noticed(module, device, tmp_path, monkeypatch, right, wrong):
    with open(module.__file__) as file:
        source = file.read()
    assert right == wrong or right in source
    # The operators of a copy need names of their own.
    path = tmp_path / "mistaken_softmax.py"
    name = f"mistaken_{abs(hash(right))}_"
    path.write_text(source.replace(right, wrong).replace('@operator("', f'@operator("{name}'))
    spec = importlib.util.spec_from_file_location("mistaken_softmax", path)
    mistaken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mistaken)
    if right == wrong:
        quick_check(mistaken, device)
    else:
        with pytest.raises(AssertionError):
            quick_check(mistaken, device)
