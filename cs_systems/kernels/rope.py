"""Rotary position embedding of queries and keys in one kernel.

Channels (2i, 2i + 1) of the leading 2 * pairs are a point in the plane, turned by the angle of the position:
(a, b) becomes (a cos - b sin, a sin + b cos). Channels behind them pass through. Each way the kernel reads q
and k and writes them: 8 bytes for an fp32 element and 4 in bf16, against 44 forward and 72 backward for that
formula in eager fp32. Backward turns gradients by the opposite angle: the same kernel with -sin, for which
neither q nor k need be kept.

The result is a new tensor. To turn q and k where they are would move the same bytes, and save their memory
only while the projections' outputs live. Autograd refuses it: q and k are views of those outputs, and a
function of two results may overwrite no view. One function for each may, but then backward copies more.
"""

import itertools

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.kernels.language import accumulator, cast, jit
from cs_systems.kernels.launch import Variant, ceil_div, check_runnable, next_power_of_2, operator

_TILE = 2048  # elements that a program turns at a time: 16 a thread
_NUM_WARPS = 4
_HEADS_PER_PROGRAM = 4  # read cos and sin once


@jit
def turn_head(
    x_ptr, y_ptr, x_row_stride, y_row_stride, position, seq_len, d_head, num_pairs, cos, sin,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Some positions of one head: load whole rows, split them into pairs, turn, join, store."""
    channel = tl.arange(0, CHANNELS)
    mask = (position[:, None] < seq_len) & (channel[None, :] < d_head)
    x = tl.load(x_ptr + position[:, None] * x_row_stride + channel[None, :], mask=mask, other=0)
    pairs = tl.reshape(x.to(ACC), [ROWS, CHANNELS // 2, 2])
    a, b = tl.split(pairs)
    turned = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), [ROWS, CHANNELS])
    y = tl.where(channel[None, :] < 2 * num_pairs, turned, x.to(ACC))
    y = cast(y, y_ptr.dtype.element_ty)
    tl.store(y_ptr + position[:, None] * y_row_stride + channel[None, :], y, mask=mask)


@jit
def rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, turned_q_ptr, turned_k_ptr,
    num_heads, num_kv_heads, seq_len, d_head, num_pairs, table_batch_stride,
    q_batch_stride, q_head_stride, q_row_stride, k_batch_stride, k_head_stride, k_row_stride,
    turned_q_batch_stride, turned_q_head_stride, turned_q_row_stride,
    turned_k_batch_stride, turned_k_head_stride, turned_k_row_stride,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, HEADS: tl.constexpr, BACKWARD: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS positions of HEADS heads, those of q first; channels of a head lie side by side."""
    position = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    pair = tl.arange(0, CHANNELS // 2)
    table_mask = (position[:, None] < seq_len) & (pair[None, :] < num_pairs)
    table_offset = batch * table_batch_stride + position[:, None] * num_pairs + pair[None, :]
    cos = tl.load(cos_ptr + table_offset, mask=table_mask, other=0).to(ACC)
    sin = tl.load(sin_ptr + table_offset, mask=table_mask, other=0).to(ACC)
    if BACKWARD:
        sin = -sin
    for i in range(HEADS):
        head = (tl.program_id(1) * HEADS + i).to(tl.int64)
        kv_head = head - num_heads
        if head < num_heads:
            turn_head(
                q_ptr + batch * q_batch_stride + head * q_head_stride,
                turned_q_ptr + batch * turned_q_batch_stride + head * turned_q_head_stride,
                q_row_stride, turned_q_row_stride, position, seq_len, d_head, num_pairs, cos, sin,
                ROWS, CHANNELS, ACC,
            )  # fmt: skip
        elif kv_head < num_kv_heads:
            turn_head(
                k_ptr + batch * k_batch_stride + kv_head * k_head_stride,
                turned_k_ptr + batch * turned_k_batch_stride + kv_head * turned_k_head_stride,
                k_row_stride, turned_k_row_stride, position, seq_len, d_head, num_pairs, cos, sin,
                ROWS, CHANNELS, ACC,
            )  # fmt: skip


def _empty_in_order_of(x: Tensor) -> Tensor:
    """Without gaps, leading axes in memory as in `x`: a projection's (b s h d) stays (b s h d)."""
    order = [*sorted(range(x.dim() - 1), key=lambda axis: -x.stride(axis)), x.dim() - 1]
    buffer = torch.empty([x.shape[axis] for axis in order], dtype=x.dtype, device=x.device)
    return buffer.permute([order.index(axis) for axis in range(x.dim())])


def _outputs(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    return _empty_in_order_of(q), _empty_in_order_of(k)


@operator("rope", fake=_outputs)
def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """q and k turned, or in backward turned back; cos and sin are contiguous, their first axis batch or 1."""
    turned_q, turned_k = _outputs(q, k, cos, sin, backward)
    batch, num_heads, seq_len, d_head = q.shape
    num_kv_heads, num_pairs = k.shape[1], cos.shape[-1]
    rows, channels = _tile(d_head)
    grid = (ceil_div(seq_len, rows), ceil_div(num_heads + num_kv_heads, _HEADS_PER_PROGRAM), batch)
    rope_kernel[grid](
        q, k, cos, sin, turned_q, turned_k,
        num_heads, num_kv_heads, seq_len, d_head, num_pairs, 0 if len(cos) == 1 else seq_len * num_pairs,
        *q.stride()[:3], *k.stride()[:3], *turned_q.stride()[:3], *turned_k.stride()[:3],
        ROWS=rows, CHANNELS=channels, HEADS=_HEADS_PER_PROGRAM, BACKWARD=backward,
        ACC=accumulator(q.dtype), num_warps=_NUM_WARPS,
    )  # fmt: skip
    return turned_q, turned_k


class Rope(torch.autograd.Function):
    """Turn q and k; keeps only the tables for backward."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        """(batch, heads, seq, d_head) to the same, twice."""
        ctx.save_for_backward(cos, sin)
        return rotate(_side_by_side(q), _side_by_side(k), cos, sin, False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dk):
        """The gradients, turned back."""
        return *rotate(_side_by_side(dq), _side_by_side(dk), *ctx.saved_tensors, True), None, None


def rope(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads seq d_head"],
    cos: Float[Tensor, "seq pairs"] | Float[Tensor, "#batch 1 seq pairs"],
    sin: Float[Tensor, "seq pairs"] | Float[Tensor, "#batch 1 seq pairs"],
) -> tuple[Float[Tensor, "batch heads seq d_head"], Float[Tensor, "batch kv_heads seq d_head"]]:
    """q and k, each channel pair (2i, 2i + 1) turned by its angle, for any strides and in their memory order.

    Computed in fp32, returned in the dtypes of `q` and `k`.

    Args:
        q: queries.
        k: keys, with as many heads as they like.
        cos: of the angles of the leading 2 * pairs channels, the same for all sequences or for each its own.
        sin: in the same shape; the tables get no gradient.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors; the message says what to do.
        ValueError: when the tables are not for these positions and channels.
    """
    check_runnable(q, k, cos, sin)
    (batch, _, seq_len, d_head), num_pairs = q.shape, cos.shape[-1]
    shapes = [(seq_len, num_pairs), *((first, 1, seq_len, num_pairs) for first in (1, batch))]
    if cos.shape != sin.shape or tuple(cos.shape) not in shapes or 2 * num_pairs > d_head:
        raise ValueError(
            f"tables of shapes {tuple(cos.shape)} and {tuple(sin.shape)} do not fit queries of shape "
            f"{tuple(q.shape)}: give both as (seq, pairs) or (batch, 1, seq, pairs), 2 * pairs <= d_head"
        )
    if q.numel() == 0:
        return torch.empty_like(q), torch.empty_like(k)
    return Rope.apply(q, k, _table(cos), _table(sin))


def _side_by_side(x: Tensor) -> Tensor:
    """`x` with the channels of a head side by side, so that a thread reads 16 bytes at a time."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _table(table: Tensor) -> Tensor:
    return (table[None] if table.dim() == 2 else table[:, 0]).contiguous()


def _tile(d_head: int) -> tuple[int, int]:
    """(positions, channels) that a program turns at a time."""
    channels = max(2, next_power_of_2(d_head))
    return max(1, _TILE // channels), channels


def variants() -> list[Variant]:
    """Both directions at common widths of a head, in every type."""
    tensors = ("q_ptr", "k_ptr", "turned_q_ptr", "turned_k_ptr")
    axes = itertools.product(("q", "k", "turned_q", "turned_k"), ("batch", "head", "row"))
    divisible = ("d_head", "num_pairs", "table_batch_stride", *(f"{x}_{axis}_stride" for x, axis in axes))
    found = []
    for dtype, d_head, backward in itertools.product(("fp32", "bf16", "fp16"), (64, 128, 256), (False, True)):
        types = dict.fromkeys(tensors, f"*{dtype}") | {"cos_ptr": "*fp32", "sin_ptr": "*fp32"}
        rows, channels = _tile(d_head)
        constants = {"ROWS": rows, "CHANNELS": channels, "HEADS": _HEADS_PER_PROGRAM}
        constants |= {"BACKWARD": backward, "ACC": tl.float32}
        label = f"{dtype} d_head {d_head} {'backward' if backward else 'forward'}"
        found.append(Variant(rope_kernel, label, types, constants, _NUM_WARPS, divisible=divisible))
    return found
