"""Rotary embedding of q and k against its formula in fp64 and the model's own, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.kernels import reference
from cs_systems.model.functional import rope_tables, rotate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def rope(device):
    from cs_systems.kernels.rope import rope

    return rope


def run(function, q, k, cos, sin, gradients):
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    turned = function(q, k, cos, sin)
    return *(x.detach() for x in turned), *torch.autograd.grad(turned, (q, k), gradients)


def draw(batch, heads, seq_len, d_head, device, layout="bshd", dtype=torch.float32):
    if layout == "bshd":  # as a projection leaves it
        return torch.randn(batch, seq_len, heads, d_head, device=device).to(dtype).transpose(1, 2)
    if layout == "bhsd":
        return torch.randn(batch, heads, seq_len, d_head, device=device).to(dtype)
    if layout == "slice":  # of one projection for q, k and v
        wide = torch.randn(batch, seq_len, 3, heads, d_head, device=device).to(dtype)
        return wide[:, :, 1].transpose(1, 2)
    if layout == "expanded":
        return torch.randn(batch, 1, seq_len, d_head, device=device).to(dtype).expand(-1, heads, -1, -1)
    return torch.randn(batch, heads, d_head, seq_len, device=device).to(dtype).mT


def draw_tables(batch, seq_len, rotary_dim, device, layout):
    cos, sin = rope_tables(300, rotary_dim, 10_000.0)
    if layout == "shared":
        return cos[:seq_len].to(device), sin[:seq_len].to(device)
    positions = torch.randint(300, (1 if layout == "one" else batch, seq_len))
    return cos[positions][:, None].to(device), sin[positions][:, None].to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "seq_len", "d_head", "rotary_dim", "tables"),
    [
        (3, 3, 40, 64, 64, "shared"),
        (5, 1, 17, 80, 80, "each"),
        (3, 3, 7, 10, 4, "one"),
        (2, 1, 1, 5, 2, "each"),
    ],
)
def test_values_and_gradients(
    rope, device, assert_as_accurate, poisoned, dtype, heads, kv_heads, seq_len, d_head, rotary_dim, tables
):
    q, dq = (draw(2, heads, seq_len, d_head, device, dtype=dtype) for _ in range(2))
    k, dk = (draw(2, kv_heads, seq_len, d_head, device, dtype=dtype) for _ in range(2))
    cos, sin = draw_tables(2, seq_len, rotary_dim, device, tables)
    ours = run(rope, q, k, cos, sin, (dq, dk))
    doubles = [tensor.double() for tensor in (q, k, cos, sin, dq, dk)]
    oracle = run(reference.rope, *doubles[:4], doubles[4:])
    plain = run(rotate, q, k, cos, sin, (dq, dk))
    for result, truth, low in zip(ours, oracle, plain, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, truth, low)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 5),
    kv_heads=st.integers(1, 5),
    seq_len=st.integers(1, 80),
    d_head=st.integers(2, 40),
    fraction=st.floats(0, 1),
    layouts=st.tuples(*2 * [st.sampled_from(["bshd", "bhsd", "slice", "expanded", "transposed"])]),
    tables=st.sampled_from(["shared", "each", "one"]),
)
def test_any_shape_and_stride(
    rope, device, batch, heads, kv_heads, seq_len, d_head, fraction, layouts, tables
):
    q, k = (
        draw(batch, n, seq_len, d_head, device, layout)
        for n, layout in zip((heads, kv_heads), layouts, strict=True)
    )
    dq, dk = (
        draw(batch, n, seq_len, d_head, device, layout)
        for n, layout in zip((heads, kv_heads), layouts, strict=True)
    )
    rotary_dim = max(2, int(fraction * d_head) // 2 * 2)
    cos, sin = draw_tables(batch, seq_len, rotary_dim, device, tables)
    before = q.clone(), k.clone()
    ours = run(rope, q, k, cos, sin, (dq, dk))
    theirs = run(reference.rope, q, k, cos, sin, (dq, dk))
    for result, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result, expected)
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_the_result_lies_in_memory_as_its_input(rope, device):
    tables = draw_tables(2, 9, 8, device, "shared")
    q, k = draw(2, 3, 9, 8, device, "slice"), draw(2, 3, 9, 8, device, "bhsd")
    turned_q, turned_k = rope(q, k, *tables)
    assert turned_q.transpose(1, 2).is_contiguous()
    assert turned_k.is_contiguous()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf * 0, in the interpreter
def test_channels_behind_the_pairs_pass_through_untouched(rope, device):
    q = draw(1, 2, 3, 10, device)
    q[..., 7], q[..., 8] = torch.inf, torch.nan
    turned, _ = rope(q, q, *draw_tables(1, 3, 4, device, "each"))
    assert torch.equal(turned[..., 4:].nan_to_num(5.0), q[..., 4:].nan_to_num(5.0))
    assert turned.isfinite().sum() == 2 * 3 * 8


def test_scores_depend_on_the_distance_only(rope, device):
    q, k = (draw(1, 1, 1, 16, device).expand(-1, -1, 50, -1) for _ in range(2))
    turned_q, turned_k = rope(q, k, *draw_tables(1, 50, 16, device, "shared"))
    scores = (turned_q @ turned_k.mT)[0, 0]
    for distance in (-20, 0, 7):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_function(rope, device):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    q, k = (torch.randn(2, heads, 3, 7, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    cos, sin = (table.double() for table in draw_tables(2, 3, 4, device, "each"))
    assert torch.autograd.gradcheck(lambda q, k: rope(q, k, cos, sin), (q, k), fast_mode=True)


def test_one_of_the_two_results_may_be_unused(rope, device):
    q, k = (draw(1, 2, 5, 8, device).requires_grad_() for _ in range(2))
    tables = draw_tables(1, 5, 8, device, "shared")
    dk = torch.randn(1, 2, 5, 8, device=device)
    ours = torch.autograd.grad(rope(q, k, *tables)[1], k, dk)
    theirs = torch.autograd.grad(reference.rope(q, k, *tables)[1], k, dk)
    torch.testing.assert_close(ours, theirs)


def test_two_runs_agree_to_the_last_bit(rope, device):
    q, k, dq, dk = (draw(2, 3, 9, 16, device) for _ in range(4))
    tables = draw_tables(2, 9, 16, device, "each")
    first, second = (run(rope, q, k, *tables, (dq, dk)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch warns of itself
def test_torch_compile_takes_it_whole(rope, device, no_shape_checks):
    q, k, dq, dk = (draw(2, 3, 9, 8, device) for _ in range(4))
    tables = draw_tables(2, 9, 6, device, "each")
    compiled = torch.compile(rope, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        run(compiled, q, k, *tables, (dq, dk)), run(rope, q, k, *tables, (dq, dk)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_operator_is_what_torch_expects(rope, device):
    from cs_systems.kernels.rope import rotate as turn

    q, k = draw(2, 3, 9, 8, device), draw(2, 1, 9, 8, device, "bhsd")
    cos, sin = (table[:, 0] for table in draw_tables(2, 9, 6, device, "each"))
    for backward in (False, True):
        torch.library.opcheck(turn.custom_op, (q, k, cos, sin, backward))


def test_a_second_derivative_is_refused(rope, device):
    q = draw(1, 1, 3, 4, device).requires_grad_()
    turned, _ = rope(q, q, *draw_tables(1, 3, 4, device, "shared"))
    (dq,) = torch.autograd.grad(turned.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_no_positions_give_no_result(rope, device):
    q = draw(1, 2, 0, 4, device)
    assert [x.shape for x in rope(q, q, *draw_tables(1, 0, 4, device, "shared"))] == 2 * [(1, 2, 0, 4)]


@pytest.mark.parametrize(("seq_len", "rotary_dim"), [(4, 8), (6, 8), (5, 10)])
def test_tables_that_do_not_fit_are_refused(rope, device, no_shape_checks, seq_len, rotary_dim):
    q = draw(1, 2, 5, 8, device)
    with pytest.raises(ValueError, match=r"do not fit queries of shape \(1, 2, 5, 8\)"):
        rope(q, q, *draw_tables(1, seq_len, rotary_dim, device, "shared"))
