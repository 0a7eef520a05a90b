"""FlashAttention in plain torch against the formula in fp64: values, gradients, and what it keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from cs_systems.kernels.flash_attention_torch import (
    BLOCK_M,
    BLOCK_N,
    FlashAttentionTorch,
    flash_attention_torch,
)
from cs_systems.model.attention import naive_attention

SLOPES = torch.tensor([0.5, 0.125, 0.25, 0.0625])


def formula(q, k, v, *, is_causal=True, alibi_slopes=None):
    bias = None
    if alibi_slopes is not None:
        distance = torch.arange(k.shape[-2])[None, :] - torch.arange(q.shape[-2])[:, None]
        bias = alibi_slopes.to(q.dtype)[:, None, None] * distance
    return naive_attention(q, k, v, is_causal=is_causal, bias=bias)


def tensors(num_heads, num_kv_heads, num_queries, num_keys, d_head, dtype=torch.float64):
    return [
        torch.randn(2, heads, length, d_head, dtype=torch.float64).to(dtype)
        for heads, length in ((num_heads, num_queries), (num_kv_heads, num_keys), (num_kv_heads, num_keys))
    ]


def run(function, inputs, do, **options):
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    o = function(*inputs, **options)
    return [o.detach(), *torch.autograd.grad(o, inputs, do.to(o.dtype))]


def assert_same(inputs, **options):
    do = torch.randn_like(inputs[0])
    for ours, truth in zip(
        run(flash_attention_torch, inputs, do, **options), run(formula, inputs, do, **options), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_queries", [1, BLOCK_M, BLOCK_M + 1, 3 * BLOCK_N + 5])
@pytest.mark.parametrize("num_keys", [1, BLOCK_N - 1, BLOCK_N, 2 * BLOCK_N + 1])
def test_blocks_and_their_edges(num_queries, num_keys, is_causal):
    assert_same(tensors(2, 2, num_queries, num_keys, 8), is_causal=is_causal)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    num_queries=st.integers(1, 200),
    num_keys=st.integers(1, 200),
    d_head=st.integers(1, 20),
    mask=st.sampled_from(["full", "causal", "alibi"]),
)
def test_any_shape(num_kv_heads, group, num_queries, num_keys, d_head, mask):
    num_heads = num_kv_heads * group
    slopes = torch.linspace(0.1, 0.5, num_heads) if mask == "alibi" else None
    inputs = tensors(num_heads, num_kv_heads, num_queries, num_keys, d_head)
    assert_same(inputs, is_causal=mask != "full", alibi_slopes=slopes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_causal", [True, False])
def test_as_accurate_as_the_formula_in_the_same_precision(assert_as_accurate, dtype, is_causal):
    inputs = tensors(4, 2, 200, 300, 64, dtype)
    do = torch.randn(2, 4, 200, 64).to(dtype)
    ours = run(flash_attention_torch, inputs, do, is_causal=is_causal)
    oracle = run(formula, [tensor.double() for tensor in inputs], do.double(), is_causal=is_causal)
    low_precision = run(formula, inputs, do, is_causal=is_causal)
    for result, truth, low in zip(ours, oracle, low_precision, strict=True):
        assert result.dtype == dtype
        assert_as_accurate(result, truth, low)


@pytest.mark.parametrize("mask", ["full", "causal", "alibi"])
def test_gradients_are_those_of_the_function(mask):
    inputs = [tensor.requires_grad_() for tensor in tensors(4, 2, 70, 131, 4)]
    slopes = SLOPES if mask == "alibi" else None
    assert torch.autograd.gradcheck(
        lambda q, k, v: flash_attention_torch(q, k, v, is_causal=mask != "full", alibi_slopes=slopes),
        inputs,
        fast_mode=True,
    )


def test_keeps_one_log_sum_exp_per_query_and_gives_no_gradient_to_the_rest():
    q, k, v = (torch.randn(3, length, 8, requires_grad=True) for length in (70, 90, 90))
    o = FlashAttentionTorch.apply(q, k, v)
    (lse,) = [tensor for tensor in o.grad_fn.saved_tensors if tensor.shape == (3, 70)]
    torch.testing.assert_close(lse, (q @ k.mT * 8**-0.5).logsumexp(-1))
    assert len(FlashAttentionTorch.backward(o.grad_fn, torch.ones_like(o))) == 5
    assert FlashAttentionTorch.backward(o.grad_fn, torch.ones_like(o))[3:] == (None, None)

    q, k, v = (tensor.float().requires_grad_() for tensor in tensors(4, 2, 70, 90, 8))
    o = FlashAttentionTorch.apply(q, k, v, True, SLOPES)
    assert [t.shape for t in o.grad_fn.saved_tensors].count((2, 4, 70)) == 1


def test_without_an_axis_of_heads_it_is_one_head():
    q, k, v = (tensor.float() for tensor in tensors(1, 1, 100, 150, 8))
    for slopes in (None, SLOPES[:1]):
        plain = flash_attention_torch(q[:, 0], k[:, 0], v[:, 0], alibi_slopes=slopes)
        torch.testing.assert_close(plain, formula(q, k, v, alibi_slopes=slopes)[:, 0])


@pytest.mark.parametrize("position", [0, 63, 64, 128, 199])
def test_nan_in_a_key_reaches_only_queries_that_see_it(position):
    q, k, v = tensors(2, 1, 200, 200, 8)
    k[:, :, position] = torch.nan
    o = flash_attention_torch(q, k, v)
    assert not o[:, :, :position].isnan().any()
    assert o[:, :, position:].isnan().all()


def test_blocks_that_no_query_sees_are_never_read():
    q, k, v = tensors(2, 1, 2 * BLOCK_M, 200, 8)
    v[:, :, BLOCK_M:] = torch.nan  # a hidden value has weight 0, and 0 * nan is nan
    o = flash_attention_torch(q, k, v)
    assert not o[:, :, :BLOCK_M].isnan().any()
    assert o[:, :, BLOCK_M:].isnan().all()


def test_large_scores_do_not_overflow():
    q, k, v = tensors(2, 2, 150, 150, 8)
    torch.testing.assert_close(flash_attention_torch(100 * q, 100 * k, v), formula(100 * q, 100 * k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_of_the_result_is_that_of_the_queries(dtype):
    qkv = torch.randn(2, 150, 3, 4, 16).to(dtype)
    strided = [tensor.transpose(1, 2) for tensor in qkv.unbind(2)]
    contiguous = [tensor.contiguous() for tensor in strided]
    before, do = qkv.clone(), torch.randn(2, 4, 150, 16)
    ours, theirs = (run(flash_attention_torch, inputs, do) for inputs in (strided, contiguous))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert ours[0].transpose(1, 2).is_contiguous()
    assert theirs[0].is_contiguous()
    assert torch.equal(qkv, before)
    expanded = [strided[0], *(tensor[:, :1].expand(-1, 4, -1, -1) for tensor in strided[1:])]
    shared = flash_attention_torch(strided[0], strided[1][:, :1], strided[2][:, :1])
    torch.testing.assert_close(flash_attention_torch(*expanded), shared)


def test_two_runs_agree_to_the_last_bit():
    inputs = tensors(4, 2, 200, 200, 16, torch.float32)
    do = torch.randn_like(inputs[0])
    first, second = (run(flash_attention_torch, inputs, do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_that_of_the_inputs():
    inputs = tensors(2, 2, 70, 70, 8, torch.float32)
    do = torch.randn_like(inputs[0])
    with torch.autocast("cpu", torch.bfloat16):
        ours = run(flash_attention_torch, inputs, do)
        wide = flash_attention_torch(*tensors(2, 2, 3, 3, 8))
    low_precision = run(flash_attention_torch, [tensor.bfloat16() for tensor in inputs], do)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16] + 3 * [torch.float32]
    assert wide.dtype == torch.float64
    for a, b in zip(ours, low_precision, strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_checkpointing_and_no_grad_change_nothing():
    inputs = tensors(2, 2, 70, 70, 8, torch.float32)
    do = torch.randn_like(inputs[0])
    plain = run(flash_attention_torch, inputs, do)
    again = run(lambda *qkv: checkpoint(flash_attention_torch, *qkv, use_reentrant=False), inputs, do)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    with torch.no_grad():
        assert torch.equal(flash_attention_torch(*inputs), plain[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch warns of itself
def test_torch_compile_takes_it_whole(no_shape_checks):
    inputs = tensors(4, 2, BLOCK_M + 1, BLOCK_M + 1, 8, torch.float32)
    do = torch.randn_like(inputs[0])
    compiled = torch.compile(flash_attention_torch, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled, inputs, do), run(flash_attention_torch, inputs, do), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_is_refused():
    q = torch.randn(1, 5, 4, requires_grad=True)
    (dq,) = torch.autograd.grad(flash_attention_torch(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_no_queries_give_no_result():
    assert flash_attention_torch(*tensors(2, 2, 0, 5, 8)).shape == (2, 2, 0, 8)


def test_arguments_that_do_not_fit_are_refused():
    q, k, v = tensors(4, 3, 5, 5, 8)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads"):
        flash_attention_torch(q, k, v)
    with pytest.raises(ValueError, match="is_causal=True"):
        flash_attention_torch(q, q, q, is_causal=False, alibi_slopes=SLOPES)
    with pytest.raises(ValueError, match=r"4 heads need as many slopes, not \(3,\)"):
        FlashAttentionTorch.apply(q, q, q, True, SLOPES[:3])
