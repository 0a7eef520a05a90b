"""The first kernel to read: the weighted sum of each row, forward and backward, with nothing left out.

y_i = sum_j x_ij w_j. Forward reads x once and writes one number a row: 4 bytes in, almost none out, for each
fp32 element. Eager PyTorch writes x * w and reads it again: 12 bytes. Backward needs dx_ij = dy_i w_j, and
dw_j = sum_i dy_i x_ij, a sum over all rows: each program adds up its own rows and writes one partial sum, and
a second, small sum over programs finishes the job. Atomic additions would need no second sum, but they come
in a different order each time, and so would the last digits.
"""

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.kernels.language import accumulator, cast, jit
from cs_systems.kernels.launch import Variant, as_rows, ceil_div, check_runnable, next_power_of_2

# BEGIN SOLUTION weighted_sum
_TILE_ROWS, _MAX_TILE_COLUMNS = 16, 256


@jit
def weighted_sum_forward_kernel(
    x_ptr, weight_ptr, y_ptr, num_rows, num_columns, x_row_stride, x_column_stride, weight_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows, COLUMNS columns at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_offset = row.to(tl.int64) * x_row_stride  # a large tensor has more elements than int32 can count
    total = tl.zeros([ROWS], ACC)
    for start in range(0, num_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
        x = tl.load(x_ptr + row_offset[:, None] + column[None, :] * x_column_stride, mask=mask, other=0)
        weight = tl.load(weight_ptr + column * weight_stride, mask=column < num_columns, other=0)
        total += tl.sum(x.to(ACC) * weight.to(ACC)[None, :], axis=1)
    tl.store(y_ptr + row, cast(total, y_ptr.dtype.element_ty), mask=row < num_rows)


@jit
def weighted_sum_backward_kernel(
    x_ptr, weight_ptr, dy_ptr, dx_ptr, partial_dweight_ptr, num_rows, num_columns,
    x_row_stride, x_column_stride, weight_stride, dy_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: the same tile of x as forward; dx and partial sums are contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_offset = row.to(tl.int64)
    dy = tl.load(dy_ptr + row_offset * dy_stride, mask=row < num_rows, other=0).to(ACC)
    for start in range(0, num_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
        offset = row_offset[:, None] * x_row_stride + column[None, :] * x_column_stride
        x = tl.load(x_ptr + offset, mask=mask, other=0).to(ACC)
        weight = tl.load(weight_ptr + column * weight_stride, mask=column < num_columns, other=0).to(ACC)
        dx = dy[:, None] * weight[None, :]
        dx_offset = row_offset[:, None] * num_columns + column[None, :]
        tl.store(dx_ptr + dx_offset, cast(dx, dx_ptr.dtype.element_ty), mask=mask)
        partial = tl.sum(x * dy[:, None], axis=0)
        partial_offset = tl.program_id(0).to(tl.int64) * num_columns + column
        tl.store(partial_dweight_ptr + partial_offset, partial, mask=column < num_columns)


# END SOLUTION


class WeightedSum(torch.autograd.Function):
    """y = sum_j x_j weight_j; keeps x and weight for backward."""

    @staticmethod
    def forward(ctx, x, weight):
        """(rows, columns) and (columns,) to (rows,)."""
        # BEGIN SOLUTION weighted_sum
        num_rows, num_columns = x.shape
        y = torch.empty(num_rows, dtype=x.dtype, device=x.device)
        tile = _tile(num_columns)
        weighted_sum_forward_kernel[(ceil_div(num_rows, _TILE_ROWS),)](
            x, weight, y, num_rows, num_columns, *x.stride(), *weight.stride(),
            **tile, ACC=accumulator(x.dtype),
        )  # fmt: skip
        ctx.save_for_backward(x, weight)
        return y
        # END SOLUTION

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """dx of each element, and dweight from one partial sum a program."""
        # BEGIN SOLUTION weighted_sum
        x, weight = ctx.saved_tensors
        num_rows, num_columns = x.shape
        num_programs = ceil_div(num_rows, _TILE_ROWS)
        dx = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        partial_dweight = torch.empty(num_programs, num_columns, dtype=wide, device=x.device)
        weighted_sum_backward_kernel[(num_programs,)](
            x, weight, dy, dx, partial_dweight, num_rows, num_columns,
            *x.stride(), *weight.stride(), *dy.stride(), **_tile(num_columns), ACC=accumulator(x.dtype),
        )  # fmt: skip
        return dx, partial_dweight.sum(0).to(weight.dtype)
        # END SOLUTION


def weighted_sum(
    x: Float[Tensor, "*rows columns"], weight: Float[Tensor, " columns"]
) -> Float[Tensor, "*rows"]:
    """sum_j x_j weight_j of each row, for x of any shape and strides.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors; the message says what to do.
    """
    check_runnable(x, weight)
    return WeightedSum.apply(as_rows(x), weight).view(x.shape[:-1])


# BEGIN SOLUTION weighted_sum
def _tile(num_columns: int) -> dict[str, int]:
    return {"ROWS": _TILE_ROWS, "COLUMNS": min(_MAX_TILE_COLUMNS, next_power_of_2(num_columns))}


# END SOLUTION


# BEGIN INSTRUCTOR
def variants() -> list[Variant]:
    """Every tile in every type of input."""
    found = []
    kernels = {
        weighted_sum_forward_kernel: {"x_column_stride": 1, "weight_stride": 1},
        weighted_sum_backward_kernel: {"x_column_stride": 1, "weight_stride": 1, "dy_stride": 1},
    }
    divisible = ("num_columns", "x_row_stride")
    for dtype in ("fp32", "bf16", "fp16"):
        pointers = {name: f"*{dtype}" for name in ("x_ptr", "weight_ptr", "y_ptr", "dy_ptr", "dx_ptr")}
        pointers["partial_dweight_ptr"] = "*fp32"
        for num_columns in (64, 4096):
            for kernel, strides in kernels.items():
                constants = {**_tile(num_columns), **strides, "ACC": tl.float32}
                label = f"{dtype} {num_columns} columns"
                found.append(Variant(kernel, label, pointers, constants, 4, divisible=divisible))
    return found


# END INSTRUCTOR
