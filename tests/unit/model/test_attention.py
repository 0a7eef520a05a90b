"""Attention functions against a loop in double precision, and the module that uses them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.attention import (
    ATTENTION,
    TAKES_SLOPES,
    SelfAttention,
    naive_attention,
    sdpa_attention,
)
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import alibi_bias, alibi_slopes, apply_rope, rope_tables

HEADS = [(4, 4), (4, 2), (4, 1), (1, 1), (6, 3)]
NEEDS_TRITON = pytest.mark.skipif(bool(missing_for_triton("cpu")), reason=str(missing_for_triton("cpu")))
BY_NAME = {
    name: pytest.param(attend, id=name, marks=NEEDS_TRITON if name == "flash" else ())
    for name, attend in ATTENTION.items()
}
every = pytest.mark.parametrize("attend", BY_NAME.values())
both = pytest.mark.parametrize("attend", [BY_NAME[name] for name in ATTENTION if name not in TAKES_SLOPES])
tiled = pytest.mark.parametrize("attend", [BY_NAME[name] for name in TAKES_SLOPES])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than these tests take


def reference(q, k, v, *, is_causal=True, bias=None):
    """One query at a time, in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                last = i + 1 if is_causal else k.shape[2]
                keys, values = k[b, h // group, :last], v[b, h // group, :last]
                scores = keys @ q[b, h, i] / math.sqrt(q.shape[-1])
                if bias is not None:
                    scores = scores + bias.double().expand(q.shape[1], -1, -1)[h, i, :last]
                out[b, h, i] = torch.softmax(scores, 0) @ values
    return out


def make_qkv(heads, kv_heads, queries=5, keys=5, d_head=6, dtype=torch.float32, batch=2):
    return (
        torch.randn(batch, heads, queries, d_head).to(dtype),
        torch.randn(batch, kv_heads, keys, d_head).to(dtype),
        torch.randn(batch, kv_heads, keys, d_head).to(dtype),
    )


@both
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("bias_heads", [None, 1, "heads"])
def test_attention_is_its_formula(attend, heads, kv_heads, is_causal, bias_heads):
    q, k, v = make_qkv(heads, kv_heads)
    bias = None if bias_heads is None else torch.randn(heads if bias_heads == "heads" else 1, 5, 5)
    out = attend(q, k, v, is_causal=is_causal, bias=bias)
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out.double(), reference(q, k, v, is_causal=is_causal, bias=bias), rtol=1e-5, atol=1e-6
    )


@both
@pytest.mark.parametrize(("queries", "keys"), [(3, 7), (7, 3), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_queries_and_keys_of_different_length(attend, queries, keys, is_causal, with_bias):
    q, k, v = make_qkv(4, 2, queries, keys)
    bias = torch.randn(4, queries, keys) if with_bias else None
    out = attend(q, k, v, is_causal=is_causal, bias=bias)
    expected = reference(q, k, v, is_causal=is_causal, bias=bias)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@tiled
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (7, 3)])
def test_attention_by_tiles_is_its_formula(attend, heads, kv_heads, is_causal, queries, keys):
    q, k, v = make_qkv(heads, kv_heads, queries, keys)
    expected = reference(q, k, v, is_causal=is_causal)
    torch.testing.assert_close(attend(q, k, v, is_causal=is_causal).double(), expected, rtol=1e-5, atol=1e-6)


@tiled
def test_slopes_are_the_bias_of_alibi(attend):
    q, k, v = make_qkv(6, 3)
    slopes = alibi_slopes(6)
    expected = naive_attention(q, k, v, bias=alibi_bias(slopes, 5))
    torch.testing.assert_close(attend(q, k, v, is_causal=False, bias=slopes), expected)


@every
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1)])
def test_grouped_heads_are_repeated_key_heads(attend, heads, kv_heads):
    q, k, v = make_qkv(heads, kv_heads)
    expanded = [t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v)]
    torch.testing.assert_close(attend(q, k, v), attend(q, *expanded))


@both
def test_a_causal_bias_is_the_causal_flag(attend):
    q, k, v = make_qkv(4, 4)
    bias = alibi_bias(alibi_slopes(4), 5)
    plain = bias.masked_fill(bias.isinf(), 0.0)
    torch.testing.assert_close(attend(q, k, v, is_causal=False, bias=bias), attend(q, k, v, bias=plain))
    torch.testing.assert_close(attend(q, k, v, bias=bias), attend(q, k, v, bias=plain))


@every
def test_the_first_query_sees_only_the_first_key(attend):
    q, k, v = make_qkv(2, 2)
    torch.testing.assert_close(attend(q, k, v)[:, :, 0], v[:, :, 0])


@every
def test_huge_scores_pick_the_best_key_without_overflow(attend):
    q = torch.full((1, 1, 1, 4), 100.0)
    k = torch.stack([torch.full((4,), 99.0), torch.full((4,), 100.0), torch.zeros(4)])[None, None]
    v = torch.eye(3, 4)[None, None]
    torch.testing.assert_close(attend(q, k, v, is_causal=False)[0, 0, 0], v[0, 0, 1])


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS[:3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_naive_and_sdpa_agree(heads, kv_heads, with_bias):
    inputs = [t.requires_grad_() for t in make_qkv(heads, kv_heads, dtype=torch.float64)]
    if with_bias:
        inputs.append(torch.randn(heads, 5, 5, dtype=torch.float64, requires_grad=True))
    weight = torch.randn(2, heads, 5, 6, dtype=torch.float64)
    gradients = []
    for attend in (naive_attention, sdpa_attention):
        q, k, v, *bias = inputs
        out = attend(q, k, v, bias=bias[0] if bias else None)
        gradients.append(torch.autograd.grad((out * weight).sum(), inputs))
    for naive, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(naive, fused, rtol=1e-9, atol=1e-11)


def test_naive_attention_differentiates():
    inputs = [t.requires_grad_() for t in make_qkv(2, 1, 3, 4, 2, torch.float64, batch=1)]
    assert torch.autograd.gradcheck(naive_attention, inputs)


@every
def test_a_later_key_has_exactly_no_influence(attend):
    q, k, v = (t.requires_grad_() for t in make_qkv(4, 2, 6, 6))
    attend(q, k, v)[:, :, 2].square().sum().backward()
    for tensor in (k, v):
        assert torch.equal(tensor.grad[:, :, 3:], torch.zeros_like(tensor.grad[:, :, 3:]))
        assert (tensor.grad[:, :, :3] != 0).any(-1).all()


@both
@pytest.mark.parametrize("with_bias", [True, False])
def test_bf16_is_no_worse_than_the_formula_in_bf16(attend, with_bias):
    q, k, v = make_qkv(4, 2, 32, 32, 16, torch.bfloat16)
    bias = alibi_bias(alibi_slopes(4), 32) if with_bias else None
    out = attend(q, k, v, bias=bias)
    assert out.dtype == torch.bfloat16
    exact = reference(q, k, v, bias=None if bias is None else bias.masked_fill(bias.isinf(), 0.0))
    wide_k, wide_v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    scores = q @ (wide_k / 16**0.5).mT  # the scale on the other factor: the same mathematics, other rounding
    if bias is not None:
        scores = scores + bias.to(torch.bfloat16)
    low = torch.softmax(scores.masked_fill(torch.ones(32, 32).triu(1) > 0, -math.inf), -1) @ wide_v
    assert (out.double() - exact).abs().max() <= 2 * (low.double() - exact).abs().max()


@settings(deadline=None, max_examples=25)
@given(
    kv_heads=st.integers(1, 3), repeats=st.integers(1, 3), queries=st.integers(1, 9), keys=st.integers(1, 9),
    d_head=st.integers(1, 9), is_causal=st.booleans(),
)  # fmt: skip
def test_naive_and_sdpa_agree_on_any_shape(kv_heads, repeats, queries, keys, d_head, is_causal):
    q, k, v = make_qkv(kv_heads * repeats, kv_heads, queries, keys, d_head)
    naive, fused = (attend(q, k, v, is_causal=is_causal) for attend in (naive_attention, sdpa_attention))
    torch.testing.assert_close(naive, fused, rtol=1e-5, atol=1e-6)


def test_naive_attention_keeps_two_tensors_of_the_size_of_the_scores():
    q, k, v = (t.requires_grad_() for t in make_qkv(4, 2, 16, 16))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
    ):
        naive_attention(q, k, v)
    sizes = [t.numel() for t in kept.values() if t.is_floating_point()]
    assert sizes.count(2 * 4 * 16 * 16) == 2


# --- the module -------------------------------------------------------------------------------------------


def make_module(**changes):
    config = ModelConfig(**({"d_model": 16, "num_heads": 4, "d_ff": 8} | changes))
    module = SelfAttention(config).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    return module


def by_hand(module, x, rotation=None, bias=None):
    """Split and merge heads by slicing, without einops."""
    d_head = module.q_proj.weight.shape[0] // module.num_heads

    def heads_of(projection):
        y = F.linear(x, projection.weight, projection.bias)
        return torch.stack([y[..., i : i + d_head] for i in range(0, y.shape[-1], d_head)], dim=1)

    q, k, v = (heads_of(p) for p in (module.q_proj, module.k_proj, module.v_proj))
    if rotation is not None:
        q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
    out = reference(q, k, v, bias=bias)
    merged = torch.cat([out[:, h] for h in range(module.num_heads)], dim=-1)
    return F.linear(merged, module.output_proj.weight, module.output_proj.bias)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_module_projects_attends_and_projects_back(kv_heads, has_bias):
    module = make_module(num_kv_heads=kv_heads, attention_bias=has_bias)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x), by_hand(module, x))
    rotation = tuple(table.double() for table in rope_tables(5, 4, 10_000.0))
    torch.testing.assert_close(module(x, rotation), by_hand(module, x, rotation))
    slopes = alibi_slopes(4).double()
    expected = by_hand(module, x, bias=alibi_bias(slopes, 5).nan_to_num(neginf=0.0))
    torch.testing.assert_close(module(x, None, alibi_bias(slopes, 5)), expected)


def test_the_module_uses_the_attention_function_it_holds():
    module, x = make_module(), torch.randn(1, 3, 16, dtype=torch.float64)
    seen = []

    def spy(q, k, v, *, is_causal=True, bias=None):
        seen.append((q.shape, k.shape, is_causal, bias))
        return torch.zeros_like(q)

    module.attention = spy
    assert torch.equal(module(x), torch.zeros_like(x))
    assert seen == [((1, 4, 3, 4), (1, 4, 3, 4), True, None)]


def test_projections_have_the_shapes_of_grouped_heads():
    shapes = {name: tuple(weight.shape) for name, weight in make_module(num_kv_heads=2).named_parameters()}
    assert shapes == {
        "q_proj.weight": (16, 16),
        "k_proj.weight": (8, 16),
        "v_proj.weight": (8, 16),
        "output_proj.weight": (16, 16),
    }
