"""Softmax of each row in one kernel, forward and backward.

The least that must move is one read of x and one write of y: 8 bytes for an fp32 element, against 20 for the
three eager passes (max; subtract and exp; sum; divide). Backward reads y and dy and writes dx: 12 bytes
against 28. A row that fits stays in registers from the read to the write; a longer one is read twice (Milakov
and Gimelshein 2018, "Online normalizer calculation for softmax").

A row that is all -inf gives zeros (torch gives nan), so that padding needs no special case.
"""

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.kernels.language import accumulator, cast, jit
from cs_systems.kernels.launch import (
    MAX_COLUMNS,
    Variant,
    as_rows,
    ceil_div,
    check_runnable,
    operator,
    row_tile,
)

# BEGIN SOLUTION softmax_kernel
_MAX_BACKWARD_COLUMNS = MAX_COLUMNS // 2  # two rows, y and dy, are in registers at a time


@jit
def softmax_forward_kernel(
    x_ptr, y_ptr, num_rows, num_columns, x_row_stride, x_column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS whole rows, each at most COLUMNS long; y is contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
    offset = row[:, None] * x_row_stride + column[None, :] * x_column_stride
    x = tl.load(x_ptr + offset, mask=mask, other=-float("inf")).to(ACC)
    largest = tl.max(x, axis=1)
    largest = tl.where(largest == -float("inf"), 0.0, largest)  # -inf - -inf would be nan
    exponentials = tl.exp(x - largest[:, None])
    sums = tl.sum(exponentials, axis=1)
    y = exponentials / tl.where(sums == 0, 1.0, sums)[:, None]
    y_offset = row[:, None] * num_columns + column[None, :]
    tl.store(y_ptr + y_offset, cast(y, y_ptr.dtype.element_ty), mask=mask)


@jit
def softmax_forward_online_kernel(
    x_ptr, y_ptr, num_columns, x_row_stride, x_column_stride,
    COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: one row of any length, COLUMNS at a time, read twice.

    First for its maximum and its sum, kept together by rescaling the sum whenever the maximum grows.
    """
    x_row = x_ptr + tl.program_id(0).to(tl.int64) * x_row_stride
    y_row = y_ptr + tl.program_id(0).to(tl.int64) * num_columns
    largest = tl.full([COLUMNS], -float("inf"), ACC)  # of every COLUMNS-th element: one reduction at the end
    sums = tl.zeros([COLUMNS], ACC)
    for start in range(0, num_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        # Kept in the L2 cache for the second read, which is the last.
        x = tl.load(
            x_row + column * x_column_stride, mask=column < num_columns, other=-float("inf"),
            eviction_policy="evict_last",
        ).to(ACC)  # fmt: skip
        new_largest = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)
        sums = sums * tl.exp(largest - shift) + tl.exp(x - shift)
        largest = new_largest
    row_largest = tl.max(largest, axis=0)
    row_largest = tl.where(row_largest == -float("inf"), 0.0, row_largest)
    row_sum = tl.sum(sums * tl.exp(largest - row_largest), axis=0)
    row_sum = tl.where(row_sum == 0, 1.0, row_sum)
    for start in range(0, num_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        x = tl.load(
            x_row + column * x_column_stride, mask=column < num_columns, other=-float("inf"),
            eviction_policy="evict_first",
        ).to(ACC)  # fmt: skip
        y = tl.exp(x - row_largest) / row_sum
        tl.store(y_row + column, cast(y, y_ptr.dtype.element_ty), mask=column < num_columns)


@jit
def softmax_backward_kernel(
    y_ptr, dy_ptr, dx_ptr, num_rows, num_columns, dy_row_stride, dy_column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS whole rows of dx_i = y_i (dy_i - sum_j dy_j y_j); y and dx are contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
    offset = row[:, None] * num_columns + column[None, :]
    dy_offset = row[:, None] * dy_row_stride + column[None, :] * dy_column_stride
    y = tl.load(y_ptr + offset, mask=mask, other=0).to(ACC)
    dy = tl.load(dy_ptr + dy_offset, mask=mask, other=0).to(ACC)
    dx = y * (dy - tl.sum(y * dy, axis=1)[:, None])
    tl.store(dx_ptr + offset, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


@jit
def softmax_backward_online_kernel(
    y_ptr, dy_ptr, dx_ptr, num_columns, dy_row_stride, dy_column_stride,
    COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: one row of any length, read twice."""
    y_row = y_ptr + tl.program_id(0).to(tl.int64) * num_columns
    dx_row = dx_ptr + tl.program_id(0).to(tl.int64) * num_columns
    dy_row = dy_ptr + tl.program_id(0).to(tl.int64) * dy_row_stride
    sums = tl.zeros([COLUMNS], ACC)
    for start in range(0, num_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        y = tl.load(y_row + column, mask=column < num_columns, other=0, eviction_policy="evict_last")
        dy = tl.load(dy_row + column * dy_column_stride, mask=column < num_columns, other=0)
        sums += y.to(ACC) * dy.to(ACC)
    row_sum = tl.sum(sums, axis=0)
    for start in range(0, num_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        y = tl.load(y_row + column, mask=column < num_columns, other=0, eviction_policy="evict_first")
        dy = tl.load(dy_row + column * dy_column_stride, mask=column < num_columns, other=0)
        dx = y.to(ACC) * (dy.to(ACC) - row_sum)
        tl.store(dx_row + column, cast(dx, dx_ptr.dtype.element_ty), mask=column < num_columns)


def _contiguous_like(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@operator("softmax_forward", fake=_contiguous_like)
def softmax_forward(x: Tensor) -> Tensor:
    """Softmax of the rows of (rows, columns); the result is contiguous."""
    num_rows, num_columns = x.shape
    y = _contiguous_like(x)
    rows, columns, warps = row_tile(num_columns)
    acc = accumulator(x.dtype)
    if num_columns <= MAX_COLUMNS:
        softmax_forward_kernel[(ceil_div(num_rows, rows),)](
            x, y, num_rows, num_columns, *x.stride(), ROWS=rows, COLUMNS=columns, ACC=acc, num_warps=warps
        )
    else:
        softmax_forward_online_kernel[(num_rows,)](
            x, y, num_columns, *x.stride(), COLUMNS=columns, ACC=acc, num_warps=warps
        )
    return y


@operator("softmax_backward", fake=_contiguous_like)
def softmax_backward(y: Tensor, dy: Tensor) -> Tensor:
    """Gradient by x from the contiguous result y and its gradient, all (rows, columns)."""
    num_rows, num_columns = y.shape
    dx = _contiguous_like(y)
    rows, columns, warps = row_tile(num_columns, _MAX_BACKWARD_COLUMNS)
    acc = accumulator(y.dtype)
    if num_columns <= _MAX_BACKWARD_COLUMNS:
        softmax_backward_kernel[(ceil_div(num_rows, rows),)](
            y, dy, dx, num_rows, num_columns, *dy.stride(),
            ROWS=rows, COLUMNS=columns, ACC=acc, num_warps=warps,
        )  # fmt: skip
    else:
        softmax_backward_online_kernel[(num_rows,)](
            y, dy, dx, num_columns, *dy.stride(), COLUMNS=columns, ACC=acc, num_warps=warps
        )
    return dx


# END SOLUTION


class Softmax(torch.autograd.Function):
    """Softmax of each row; keeps only its result for backward."""

    @staticmethod
    def forward(ctx, x):
        """(rows, columns) to the same."""
        # BEGIN SOLUTION softmax_kernel
        y = softmax_forward(x)
        ctx.save_for_backward(y)
        return y
        # END SOLUTION

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """Gradient of each row."""
        # BEGIN SOLUTION softmax_kernel
        (y,) = ctx.saved_tensors
        return softmax_backward(y, dy)
        # END SOLUTION


def softmax(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """exp(x_i - max) / sum_j exp(x_j - max) along `dim`, for x of any shape and strides; -inf rows give 0.

    Computed in fp32, returned in the dtype of `x`.

    Raises:
        UnsupportedError: when Triton cannot run on this tensor; the message says what to do.
    """
    check_runnable(x)
    if x.numel() == 0:
        return x.clone()
    moved = x.movedim(dim, -1)
    return Softmax.apply(as_rows(moved)).view(moved.shape).movedim(-1, dim)


# BEGIN INSTRUCTOR
def variants() -> list[Variant]:
    """One-pass kernels at the shortest, common and the longest rows, and the online kernels."""
    found = []
    divisible = ("num_columns", "x_row_stride", "dy_row_stride")
    for dtype in ("fp32", "bf16", "fp16"):
        pointers = {name: f"*{dtype}" for name in ("x_ptr", "y_ptr", "dy_ptr", "dx_ptr")}
        for num_columns in (16, 1024, 4096, _MAX_BACKWARD_COLUMNS, MAX_COLUMNS, 2 * MAX_COLUMNS):
            for whole, online, most, stride in (
                (softmax_forward_kernel, softmax_forward_online_kernel, MAX_COLUMNS, "x_column_stride"),
                (
                    softmax_backward_kernel, softmax_backward_online_kernel, _MAX_BACKWARD_COLUMNS,
                    "dy_column_stride",
                ),
            ):  # fmt: skip
                rows, columns, warps = row_tile(num_columns, most)
                constants = {"COLUMNS": columns, "ACC": tl.float32, stride: 1}
                kernel, more = (whole, {"ROWS": rows}) if num_columns <= most else (online, {})
                label = f"{dtype} {num_columns} columns"
                found.append(Variant(kernel, label, pointers, constants | more, warps, divisible=divisible))
    return found


# END INSTRUCTOR
