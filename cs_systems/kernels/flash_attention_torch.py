"""FlashAttention-2 in plain PyTorch: read it beside `flash_attention.py`, the same steps on a GPU.

Attention as a formula writes scores, exponentials and weights to memory, each (queries, keys). FlashAttention
(Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism") works on blocks of queries and keys
and never has more than one block of scores. Softmax needs the maximum and the sum of a whole row; both are
kept for the keys seen so far, and sums made under a smaller maximum are scaled down when it grows:

    m    the largest score so far, one a query
    l    sum of exp(score - m)
    acc  sum of exp(score - m) v; in the end acc / l is the result o

For backward one number a query is kept of all that, lse = m + log(l): p = exp(score - lse) is the weight
again, at the price of one more matrix product. What the gradient of a score needs of the rest of its row is
one number too, delta, which can be had without any scores.

What a GPU does differently: one program works on one block of one head, here a step works on a block of all
heads; a block cut short by the end of the tensor is masked, here it is a shorter slice; exp is exp2 with
log2(e) folded into the scale, because that is its faster instruction; and products of 16-bit matrices are
added up in fp32, where torch rounds each product to 16 bits.
"""

# ruff: noqa: E741, because l is what the paper calls it.

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# BEGIN SOLUTION flash_forward
BLOCK_M, BLOCK_N = 64, 128
"""Queries and keys of a block: the fastest measured on a CPU (batch 4, 12 heads, 512 queries, d_head 64)."""
# END SOLUTION


class FlashAttentionTorch(torch.autograd.Function):
    """softmax(q k^T / sqrt(d_head)) v, block by block; keeps q, k, v, o and lse for backward.

    q is (..., queries, d_head), k and v (..., keys, d_head), where ... is (batch, heads) or only (batch).
    """

    @staticmethod
    def forward(ctx, q, k, v, is_causal=False, alibi_slopes=None):
        """One block of queries at a time meets all keys that it sees."""
        _check(q, k, is_causal, alibi_slopes)
        # BEGIN SOLUTION flash_forward
        q, k, v = (_as_autocast(tensor) for tensor in (q, k, v))
        (num_queries, d_head), num_keys, dtype = q.shape[-2:], k.shape[-2], q.dtype
        queries, keys, values = _flatten(q), _flatten(k), _flatten(v)
        num_heads, wide = len(queries), _wide(dtype)
        slopes = _slope_of_each_head(alibi_slopes, num_heads, wide)
        o = torch.empty_like(q)  # in the memory order of q, be it (b h s d) or a view of (b s h d)
        lse = torch.empty(num_heads, num_queries, dtype=wide, device=q.device)

        for start_m in range(0, num_queries, BLOCK_M):  # on a GPU: one program each, all at once
            end_m = min(start_m + BLOCK_M, num_queries)
            rows = (num_heads, end_m - start_m)
            q_block = queries[:, start_m:end_m]
            m = torch.full(rows, -torch.inf, dtype=wide, device=q.device)
            l = torch.zeros(rows, dtype=wide, device=q.device)
            acc = torch.zeros(*rows, d_head, dtype=wide, device=q.device)

            num_visible = min(end_m, num_keys) if is_causal else num_keys  # blocks behind are never touched
            for start_n in range(0, num_visible, BLOCK_N):
                end_n = min(start_n + BLOCK_N, num_visible)
                k_block, v_block = keys[:, start_n:end_n], values[:, start_n:end_n]
                s = _scores(q_block, k_block, start_m, start_n, is_causal, slopes)
                new_m = torch.maximum(m, s.amax(-1))
                alpha = torch.exp(m - new_m)
                p = s.sub_(new_m[..., None]).exp_()
                l = l * alpha + p.sum(-1)
                acc = acc * alpha[..., None] + _times(p.to(dtype), v_block)
                m = new_m

            o[..., start_m:end_m, :] = (acc / l[..., None]).view(*q.shape[:-2], -1, d_head)
            lse[:, start_m:end_m] = m + l.log()

        optional = [] if alibi_slopes is None else [alibi_slopes]
        ctx.save_for_backward(q, k, v, o, lse.view(q.shape[:-1]), *optional)
        ctx.is_causal = is_causal
        return o
        # END SOLUTION

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        """One block of keys at a time meets all queries that see it, and adds its part to their dq.

        That order of adding up is fixed only because blocks come one after the other. Programs of a GPU
        run at once, so there a second kernel computes p and ds again, for one block of queries at a time.
        """
        # BEGIN SOLUTION flash_backward
        q, k, v, o, lse, *optional = ctx.saved_tensors
        (num_queries, d_head), num_keys, dtype = q.shape[-2:], k.shape[-2], q.dtype
        queries, keys, values, dos = _flatten(q), _flatten(k), _flatten(v), _flatten(do)
        num_heads, num_groups, wide, scale = len(queries), len(keys), _wide(dtype), d_head**-0.5
        slopes = _slope_of_each_head(optional[0] if optional else None, num_heads, wide)
        lse = lse.view(num_heads, num_queries, 1)
        # With dp = do v^T, the gradient of the scores is ds = p (dp - delta), where delta = sum_j p_j dp_j of
        # the row equals sum_d o_d do_d.
        delta = (_flatten(o).to(wide) * dos.to(wide)).sum(-1, keepdim=True)
        dq = torch.zeros(queries.shape, dtype=wide, device=q.device)
        dk, dv = torch.empty_like(k), torch.empty_like(v)

        for start_n in range(0, num_keys, BLOCK_N):
            end_n = min(start_n + BLOCK_N, num_keys)
            k_block, v_block = keys[:, start_n:end_n], values[:, start_n:end_n]
            dk_block = torch.zeros(num_groups, end_n - start_n, d_head, dtype=wide, device=q.device)
            dv_block = torch.zeros_like(dk_block)

            first_m = start_n // BLOCK_M * BLOCK_M if ctx.is_causal else 0
            for start_m in range(first_m, num_queries, BLOCK_M):
                block_m = slice(start_m, min(start_m + BLOCK_M, num_queries))
                q_block, do_block = queries[:, block_m], dos[:, block_m]
                s = _scores(q_block, k_block, start_m, start_n, ctx.is_causal, slopes)
                p = s.sub_(lse[:, block_m]).exp_()
                dv_block += _transposed_times(p.to(dtype), do_block, num_groups)
                dp = _times(do_block, v_block.mT).to(wide)
                ds = dp.sub_(delta[:, block_m]).mul_(p).to(dtype)
                dk_block += _transposed_times(ds, q_block, num_groups)
                dq[:, block_m] += _times(ds, k_block)

            dk[..., start_n:end_n, :] = (dk_block * scale).view(*k.shape[:-2], -1, d_head)
            dv[..., start_n:end_n, :] = dv_block.view(*v.shape[:-2], -1, d_head)

        return torch.empty_like(q).copy_((dq * scale).view(q.shape)), dk, dv, None, None
        # END SOLUTION


def flash_attention_torch(
    q: Float[Tensor, "batch *heads queries d_head"],
    k: Float[Tensor, "batch *kv_heads keys d_head"],
    v: Float[Tensor, "batch *kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch *heads queries d_head"]:
    """Attention in blocks on any device, in the dtype and the memory order of `q`, for any strides.

    Query heads that share a key head are stacked as rows of one product, so keys are never expanded.

    Args:
        q: queries, with or without an axis of heads.
        k: keys; kv_heads divides heads.
        v: values.
        is_causal: hide key j from query i < j, also where there are more queries than keys or fewer.
        alibi_slopes: adds slope * (j - i) to the scaled scores of each head; only when causal.

    Raises:
        ValueError: when heads cannot be shared equally, or slopes do not fit.
    """
    return FlashAttentionTorch.apply(q, k, v, is_causal, alibi_slopes)


def _check(q: Tensor, k: Tensor, is_causal: bool, alibi_slopes: Tensor | None) -> None:
    num_heads, num_kv_heads = q.shape[1:-2].numel(), k.shape[1:-2].numel()  # 1 where there is no such axis
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads in equal groups")
    if alibi_slopes is not None and not is_causal:
        raise ValueError("ALiBi is defined for causal attention: pass is_causal=True")
    if alibi_slopes is not None and alibi_slopes.shape != (num_heads,):
        raise ValueError(f"{num_heads} heads need as many slopes, not {tuple(alibi_slopes.shape)}")


# BEGIN SOLUTION flash_forward
def _as_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast wants for matrix products here; fp64 is left alone, as torch does."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _flatten(x: Tensor) -> Tensor:
    """(..., rows, d_head) as (all of ..., rows, d_head): a view, or a copy where axes cannot be merged."""
    return x.flatten(0, -3)


def _slope_of_each_head(slopes: Tensor | None, num_heads: int, wide: torch.dtype) -> Tensor | None:
    """Slopes as (batch * heads, 1, 1)."""
    if slopes is None:
        return None
    return slopes.to(wide).repeat(num_heads // len(slopes))[:, None, None]


def _times(x: Tensor, y: Tensor) -> Tensor:
    """x @ y for x of each query head and y of each key head, which serves a group of query heads."""
    return (x.reshape(len(y), -1, x.shape[-1]) @ y).view(*x.shape[:-1], -1)


def _transposed_times(x: Tensor, y: Tensor, num_groups: int) -> Tensor:
    """x^T @ y of each query head, summed over those that share a key head."""
    x, y = (tensor.reshape(num_groups, -1, tensor.shape[-1]) for tensor in (x, y))
    return x.mT @ y


def _scores(
    q_block: Tensor, k_block: Tensor, start_m: int, start_n: int, is_causal: bool, slopes: Tensor | None
) -> Tensor:
    """Scaled scores of a block in fp32, with ALiBi, and -inf where a key is hidden."""
    s = _times(q_block, k_block.mT).to(_wide(q_block.dtype)).mul_(q_block.shape[-1] ** -0.5)
    query = torch.arange(start_m, start_m + s.shape[-2], device=s.device)[:, None]
    key = torch.arange(start_n, start_n + s.shape[-1], device=s.device)[None, :]
    if slopes is not None:
        s.addcmul_(slopes, (key - query).to(s.dtype))
    last_key = start_n + s.shape[-1] - 1
    if is_causal and last_key > start_m:  # most blocks need no mask
        s.masked_fill_(key > query, -torch.inf)
    return s


# END SOLUTION
