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
    "the diagonal is taken for whole": ("tl.minimum(first_query, num_keys)", "tl.minimum(first_query + 16, num_keys)"),
    "last keys not visited": ("tl.minimum(first_query + BLOCK_M, num_keys)", "tl.minimum(first_query + 1, num_keys)"),
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
    "columns beyond the head size read": ("mask=(row < num_rows) & (column < HEAD_DIM), other", "mask=row < num_rows, other"),
    "ALiBi scaled": (".to(ACC) * HEAD_DIM**0.5", ".to(ACC)"),
    "ALiBi the wrong way round": ("(key - query)", "(query - key)"),
    "ALiBi of the first head": ("slopes_ptr + head)", "slopes_ptr)"),
    "results cut off, not rounded": ("value = cast(rows[i] * factor, pointer.dtype.element_ty)", "value = (rows[i] * factor).to(pointer.dtype.element_ty)"),
}  # fmt: skip
SHAPES = ((1, 3, 40, 43, 24), (1, 2, 37, 20, 48))
"""batch, heads, queries, keys, head size, for one key head: one padded piece, and two pieces."""


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
    """Inputs that lie in nan, options, and the right results with the log-sum-exp, for each quick check."""
    torch.manual_seed(0)
    found = []
    for (batch_size, num_heads, num_queries, num_keys, head_dim), is_causal in zip(
        SHAPES, (True, False), strict=True
    ):
        inputs = []
        for heads, rows in ((num_heads, num_queries), (1, num_keys), (1, num_keys), (num_heads, num_queries)):
            around = torch.full((batch_size, heads, rows + 64, head_dim + 64), torch.nan, device=device)
            inputs.append(around[:, :, :rows, :head_dim].normal_())
        slopes = torch.linspace(0.1, 0.5, num_heads, device=device) if is_causal else None
        options = {"is_causal": is_causal, "alibi_slopes": slopes}
        found.append((inputs, options, results(reference.attention, *inputs, **options)))
    return found


def results(function, q, k, v, do, **options):
    q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
    o = function(q, k, v, **options)
    return o.detach(), *torch.autograd.grad(o, (q, k, v), do)


def quick_check(flash, cases):
    """Both masks, ALiBi, shared key heads, ragged ends, one piece and two; lse; rounding to bf16."""
    for (q, k, v, do), options, truth in cases:
        o, lse = flash.flash_forward(q, k, v, *options.values())
        torch.testing.assert_close(o, truth[0], rtol=1e-4, atol=1e-4)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if not options["is_causal"]:
            torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-4, atol=1e-4)
        ours = results(flash.flash_attention, q, k, v, do, **options)
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
    q, k, v = torch.zeros(
        3, 1, 1, 16, 16, device=q.device, dtype=torch.bfloat16
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
