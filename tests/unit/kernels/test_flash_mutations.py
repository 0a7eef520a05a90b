"""Mistakes in the attention kernels, one at a time: a quick check must notice each."""

import importlib.util

import pytest
import torch

from cs_systems.kernels import reference

KERNELS = ("flash_forward_kernel", "flash_dq_kernel", "flash_dkdv_kernel")

# What is wrong: the text that occurs exactly once in the kernels' source, and what replaces it.
MISTAKES = {
    "no scale in forward": ("LOG2_E\n\n    q = load_rows", "LOG2_E * HEAD_DIM**0.5\n\n    q = load_rows"),
    "no scale in dq's scores": ("LOG2_E\n\n    o = load_rows", "LOG2_E * HEAD_DIM**0.5\n\n    o = load_rows"),
    "no scale in dk's scores": ("LOG2_E\n\n    k = load_rows", "LOG2_E * HEAD_DIM**0.5\n\n    k = load_rows"),
    "no scale of dq": ("dq, HEAD_DIM**-0.5", "dq, 1.0"),
    "no scale of dk": ("dk, HEAD_DIM**-0.5", "dk, 1.0"),
    "a query does not see itself": ("(key <= query)", "(key < query)"),
    "a query sees the next key": ("(key <= query)", "(key <= query + 1)"),
    "keys beyond the end": ("visible = key < num_keys", "visible = key < num_keys + 1"),
    "the diagonal is taken for whole": ("(first_query, num_keys) //", "(first_query + 16, num_keys) //"),
    "last keys not visited": ("first_query + BLOCK_M, num_keys", "first_query + 1, num_keys"),
    "lse in base 2": ("(m + tl.log2(l)) * LN_2", "m + tl.log2(l)"),
    "lse without the maximum": ("(m + tl.log2(l))", "tl.log2(l)"),
    "the sum does not shrink": ("l = l * alpha +", "l = l +"),
    "o does not shrink": ("scale_rows(acc, alpha)", "acc"),
    "not divided by the sum": ("acc, 1 / l[:, None]", "acc, 1.0"),
    "no delta in dq": ("(dp - delta[:, None])", "dp"),
    "no delta in dk": ("(dp - delta[None, :])", "dp"),
    "delta of the first piece only": ("if len(o) == 2:", "if len(o) == 3:"),
    "products of the first piece only": ("if len(a) == 2:", "if len(a) == 3:"),
    "one query head of the group": ("range(GROUP * num_tiles)", "range(num_tiles)"),
    "a query head too far": ("head = kv_head * GROUP + member", "head = kv_head + member"),
    "rows in front of the diagonal unmasked": ("STRETCH != 1", "STRETCH == 2"),
    "ragged end of queries unmasked": ("STRETCH != 1", "STRETCH == 0"),
    "ragged end of queries not visited": ("num_queries\n        num_tiles", "whole_end\n        num_tiles"),
    "weights of queries that do not exist": ('queries_left, float("inf")', "queries_left, 0.0"),
    "rows beyond the end read": ("if RAGGED or FIRST", "if FIRST"),
    "columns beyond the head size read": (" & (column < HEAD_DIM), other", ", other"),
    "ALiBi scaled": (".to(ACC) * HEAD_DIM**0.5", ".to(ACC)"),
    "ALiBi the wrong way round": ("(key - query)", "(query - key)"),
    "ALiBi of the first head": ("slopes_ptr + head)", "slopes_ptr)"),
    "results cut off, not rounded": ("cast(piece, pointer", "piece.to(pointer"),
}  # fmt: skip
# batch, query heads, key heads, queries, keys, head size: one padded piece with ALiBi, and two pieces.
SHAPES = {"alibi": (1, 2, 1, 40, 43, 24), "full": (1, 4, 2, 37, 20, 80)}


@pytest.fixture(scope="module")
def flash(device):
    from cs_systems.kernels import flash_attention

    return flash_attention


@pytest.fixture(scope="module")
def source(flash):
    from cs_systems.kernels import flash_kernels

    with open(flash_kernels.__file__) as file:
        return file.read()


@pytest.fixture(autouse=True)
def small_tiles(flash, monkeypatch):
    config = flash.TileConfig(32, 16, num_warps=4, num_stages=1)
    monkeypatch.setattr(flash, "_config", lambda *_: config)


def use_kernels_of(source, flash, tmp_path, monkeypatch):
    """Let the functions of `flash` launch kernels made from this source; Triton reads it from a file."""
    path = tmp_path / "mistaken_kernels.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mistaken_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in KERNELS:
        monkeypatch.setattr(flash, name, getattr(module, name))


@pytest.fixture(scope="module")
def cases(device):
    """q, k, v, the gradient of o, each with nan around it, options, and the right o, lse, dq, dk, dv."""
    torch.manual_seed(0)
    found = []
    for mask, (batch_size, num_heads, num_kv_heads, num_queries, num_keys, head_dim) in SHAPES.items():
        sizes = (num_heads, num_queries), (num_kv_heads, num_keys), (num_kv_heads, num_keys)
        inputs = []
        for heads, rows in (*sizes, (num_heads, num_queries)):
            around = torch.full((batch_size, heads, rows + 64, head_dim + 64), torch.nan, device=device)
            inputs.append(around[:, :, :rows, :head_dim].normal_())
        # A steep negative slope: 2^score of a query that does not exist would be infinite.
        slopes = torch.tensor([-20, 0.3], device=device) if mask == "alibi" else None
        found.append((inputs, mask == "alibi", slopes, true_results(*inputs, mask == "alibi", slopes)))
    return found


def true_results(q, k, v, do, is_causal, slopes):
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    o = reference.attention(q, k, v, is_causal=is_causal, alibi_slopes=slopes)
    # Values of 1 at the first key and 0 elsewhere give that key's weight, exp(score - lse).
    first = torch.zeros_like(v)
    first[:, :, 0] = 1
    weight = reference.attention(q, k, first, is_causal=is_causal, alibi_slopes=slopes)[..., 0]
    score = (q * k[:, :, :1].repeat_interleave(q.shape[1] // k.shape[1], 1)).sum(-1) * q.shape[-1] ** -0.5
    if slopes is not None:
        score = score - slopes[:, None] * torch.arange(q.shape[2], device=q.device)
    return o.detach(), (score - weight.log()).detach(), *torch.autograd.grad(o, (q, k, v), do)


def quick_check(flash, cases):
    """Both masks, ALiBi, shared key heads, ragged ends, one piece and two, and rounding to bf16."""
    for (q, k, v, do), is_causal, slopes, truth in cases:
        o, lse = flash.flash_forward(q, k, v, is_causal, slopes)
        torch.testing.assert_close((o, lse), truth[:2], rtol=1e-4, atol=1e-4)
        gradients = flash.flash_backward(do, q, k, v, o, lse, is_causal, slopes)
        torch.testing.assert_close(gradients, truth[2:], rtol=1e-4, atol=1e-4)
    q, k, v = torch.zeros(
        3, 1, 1, 16, 16, device=o.device, dtype=torch.bfloat16
    )  # equal weights: exact means
    o, _ = flash.flash_forward(q, k, v.normal_(), False, None)
    assert torch.equal(o, v.float().mean(2, keepdim=True).bfloat16().expand_as(o))


def test_without_a_mistake_the_check_passes(flash, source, cases, tmp_path, monkeypatch):
    use_kernels_of(source, flash, tmp_path, monkeypatch)
    quick_check(flash, cases)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow is what some of the mistakes cause
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(flash, source, cases, tmp_path, monkeypatch, mistake):
    right, wrong = MISTAKES[mistake]
    assert source.count(right) == 1
    use_kernels_of(source.replace(right, wrong), flash, tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        quick_check(flash, cases)
