"""RMSNorm of each row in one kernel, forward and backward, with the residual addition in front if wanted.

y = x / rms(x) * weight, where rms(x) = sqrt(mean(x^2) + eps). Forward reads x and writes y: 8 bytes for an
fp32 element, against 28 eager (square; mean; multiply by 1 / rms; multiply by the weight). Backward reads x
and dy and writes dx: 12 bytes against 92. In a Transformer the norm follows the addition of a layer's output
to the residual stream. Here it can do that addition too: 16 bytes against 40 forward (read both, write the
sum and y), 16 against 104 backward, where the gradient of the sum is added on the way.

One number a row is kept besides x, 1 / rms in fp32. With n = x / rms and g = dy * weight:
dx = (g - n mean(g n)) / rms, and dweight = sum over rows of dy n. Each program of backward adds up the rows
that it works on; a second, small sum over programs makes dweight, in the same order every time.
"""

import itertools
from typing import overload

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.device import UnsupportedError
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

_MAX_PROGRAMS = 512
"""Of backward: a few for each multiprocessor of a large GPU. Each writes one row of partial sums."""

_MAX_BACKWARD_COLUMNS = 8192
"""Longest row that backward holds in registers: x, dy, weight and the sum for dweight."""

_LONG_TILE = 4, 1024, 8
"""Rows, columns and warps of backward where rows are longer."""


@jit
def rmsnorm_forward_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, sum_ptr, inverse_rms_ptr, num_rows, num_columns, eps,
    x_row_stride, residual_row_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS whole rows, whose columns lie side by side; y and the sum are contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
    offset = row[:, None] * num_columns + column[None, :]
    x_offset = row[:, None] * x_row_stride + column[None, :]
    x = tl.load(x_ptr + x_offset, mask=mask, other=0).to(ACC)
    if ADDS:
        residual_offset = row[:, None] * residual_row_stride + column[None, :]
        x += tl.load(residual_ptr + residual_offset, mask=mask, other=0).to(ACC)
        rounded = cast(x, sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offset, rounded, mask=mask)
        x = rounded.to(ACC)  # what backward will read
        if COLUMNS > 16384:  # too much to keep in registers beside what is being loaded: back from the cache
            tl.debug_barrier()
            x = tl.load(sum_ptr + offset, mask=mask, other=0).to(ACC)
    inverse_rms = 1 / tl.sqrt(tl.sum(x * x, axis=1) / num_columns + eps)
    tl.store(inverse_rms_ptr + row, inverse_rms, mask=row < num_rows)
    weight = tl.load(weight_ptr + column, mask=column < num_columns, other=0).to(ACC)
    y = x * inverse_rms[:, None] * weight[None, :]
    tl.store(y_ptr + offset, cast(y, y_ptr.dtype.element_ty), mask=mask)


@jit
def rmsnorm_backward_kernel(
    x_ptr, weight_ptr, inverse_rms_ptr, dy_ptr, dsum_ptr, dx_ptr, partial_dweight_ptr,
    num_rows, num_columns, rows_per_program, x_row_stride, dy_row_stride, dsum_row_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: rows_per_program whole rows, ROWS at a time; dx and the partial sums are contiguous."""
    column = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + column, mask=column < num_columns, other=0).to(ACC)
    dweight = tl.zeros([COLUMNS], ACC)
    first_row = tl.program_id(0) * rows_per_program
    end_row = tl.minimum(first_row + rows_per_program, num_rows)
    for start in range(0, rows_per_program, ROWS):
        row = (first_row + start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row[:, None] < end_row) & (column[None, :] < num_columns)
        x_offset = row[:, None] * x_row_stride + column[None, :]
        dy_offset = row[:, None] * dy_row_stride + column[None, :]
        x = tl.load(x_ptr + x_offset, mask=mask, other=0)
        dy = tl.load(dy_ptr + dy_offset, mask=mask, other=0).to(ACC)
        inverse_rms = tl.load(inverse_rms_ptr + row, mask=row < end_row, other=0)[:, None]
        normalised = x.to(ACC) * inverse_rms
        dweight += tl.sum(dy * normalised, axis=0)
        dy *= weight[None, :]
        mean = tl.sum(dy * normalised, axis=1) / num_columns
        dx = (dy - normalised * mean[:, None]) * inverse_rms
        if ADDS:
            dsum_offset = row[:, None] * dsum_row_stride + column[None, :]
            dx += tl.load(dsum_ptr + dsum_offset, mask=mask, other=0).to(ACC)
        offset = row[:, None] * num_columns + column[None, :]
        tl.store(dx_ptr + offset, cast(dx, dx_ptr.dtype.element_ty), mask=mask)
    partial_offset = tl.program_id(0).to(tl.int64) * num_columns + column
    tl.store(partial_dweight_ptr + partial_offset, dweight, mask=column < num_columns)


@jit
def rmsnorm_backward_long_kernel(
    x_ptr, weight_ptr, inverse_rms_ptr, dy_ptr, dsum_ptr, dx_ptr, partial_dweight_ptr,
    num_rows, num_columns, x_row_stride, dy_row_stride, dsum_row_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows too long for the kernel above, COLUMNS at a time, read twice."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inverse_rms = tl.load(inverse_rms_ptr + row, mask=row < num_rows, other=0)[:, None]
    total = tl.zeros([ROWS], ACC)
    for start in range(0, num_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
        x_offset = row[:, None] * x_row_stride + column[None, :]
        dy_offset = row[:, None] * dy_row_stride + column[None, :]
        x = tl.load(x_ptr + x_offset, mask=mask, other=0, eviction_policy="evict_last").to(ACC)
        dy = tl.load(dy_ptr + dy_offset, mask=mask, other=0, eviction_policy="evict_last").to(ACC)
        weight = tl.load(weight_ptr + column, mask=column < num_columns, other=0).to(ACC)
        total += tl.sum(dy * weight[None, :] * x * inverse_rms, axis=1)
    mean = (total / num_columns)[:, None]
    for start in range(0, num_columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
        x_offset = row[:, None] * x_row_stride + column[None, :]
        dy_offset = row[:, None] * dy_row_stride + column[None, :]
        x = tl.load(x_ptr + x_offset, mask=mask, other=0, eviction_policy="evict_first").to(ACC)
        dy = tl.load(dy_ptr + dy_offset, mask=mask, other=0, eviction_policy="evict_first").to(ACC)
        weight = tl.load(weight_ptr + column, mask=column < num_columns, other=0).to(ACC)
        normalised = x * inverse_rms
        dx = (dy * weight[None, :] - normalised * mean) * inverse_rms
        if ADDS:
            dsum_offset = row[:, None] * dsum_row_stride + column[None, :]
            dx += tl.load(dsum_ptr + dsum_offset, mask=mask, other=0).to(ACC)
        offset = row[:, None] * num_columns + column[None, :]
        tl.store(dx_ptr + offset, cast(dx, dx_ptr.dtype.element_ty), mask=mask)
        partial_offset = tl.program_id(0).to(tl.int64) * num_columns + column
        partial = tl.sum(dy * normalised, axis=0)
        tl.store(partial_dweight_ptr + partial_offset, partial, mask=column < num_columns)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _forward_outputs(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> list[Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inverse_rms = torch.empty(x.shape[0], dtype=_wide(x.dtype), device=x.device)
    if residual is None:
        return [y, inverse_rms]
    return [y, inverse_rms, torch.empty(x.shape, dtype=x.dtype, device=x.device)]


@operator("rmsnorm_forward", fake=_forward_outputs)
def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> list[Tensor]:
    """y and 1 / rms of the rows of (rows, columns), and with a residual x + residual."""
    num_rows, num_columns = x.shape
    outputs = _forward_outputs(x, weight, eps, residual)
    adds = residual is not None
    residual, total = (residual, outputs[2]) if adds else (x, x)  # any pointers: the kernel leaves them alone
    rows, columns, warps = _forward_tile(num_columns)
    rmsnorm_forward_kernel[(ceil_div(num_rows, rows),)](
        x, residual, weight, outputs[0], total, outputs[1], num_rows, num_columns, eps,
        x.stride(0), residual.stride(0),
        ROWS=rows, COLUMNS=columns, ADDS=adds, ACC=accumulator(x.dtype), num_warps=warps,
    )  # fmt: skip
    return outputs


def _backward_outputs(
    x: Tensor, weight: Tensor, inverse_rms: Tensor, dy: Tensor, dsum: Tensor | None
) -> tuple[Tensor, Tensor]:
    num_programs = ceil_div(x.shape[0], _rows_per_program(*x.shape))
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((num_programs, x.shape[1]), dtype=_wide(x.dtype), device=x.device),
    )


@operator("rmsnorm_backward", fake=_backward_outputs)
def rmsnorm_backward(
    x: Tensor, weight: Tensor, inverse_rms: Tensor, dy: Tensor, dsum: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dx, plus dsum if there is one, and the partial sums of dweight, a row from each program."""
    num_rows, num_columns = x.shape
    dx, partial_dweight = _backward_outputs(x, weight, inverse_rms, dy, dsum)
    adds = dsum is not None
    dsum = dsum if adds else dy  # any pointer: the kernel leaves it alone
    strides = (x.stride(0), dy.stride(0), dsum.stride(0))
    tensors = (x, weight, inverse_rms, dy, dsum, dx, partial_dweight)
    grid, acc = (len(partial_dweight),), accumulator(x.dtype)
    rows, columns, warps = _backward_tile(num_columns)
    if num_columns <= _MAX_BACKWARD_COLUMNS:
        rmsnorm_backward_kernel[grid](
            *tensors, num_rows, num_columns, _rows_per_program(num_rows, num_columns), *strides,
            ROWS=rows, COLUMNS=columns, ADDS=adds, ACC=acc, num_warps=warps,
        )  # fmt: skip
    else:
        rmsnorm_backward_long_kernel[grid](
            *tensors, num_rows, num_columns, *strides,
            ROWS=rows, COLUMNS=columns, ADDS=adds, ACC=acc, num_warps=warps,
        )  # fmt: skip
    return dx, partial_dweight


def _rows_per_program(num_rows: int, num_columns: int) -> int:
    return ceil_div(num_rows, _MAX_PROGRAMS) if num_columns <= _MAX_BACKWARD_COLUMNS else _LONG_TILE[0]


def _tile(num_columns: int, values_per_thread: int) -> tuple[int, int, int]:
    rows, columns, warps = row_tile(num_columns)
    return rows, columns, max(warps, rows * columns // (32 * values_per_thread))


def _forward_tile(num_columns: int) -> tuple[int, int, int]:
    """(rows, columns, warps): a thread has 32 values of x."""
    return _tile(num_columns, 32)


def _backward_tile(num_columns: int) -> tuple[int, int, int]:
    """(rows, columns, warps): a thread has 8 values each of x, dy, weight and the sum for dweight."""
    return _tile(num_columns, 8) if num_columns <= _MAX_BACKWARD_COLUMNS else _LONG_TILE


class RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight of each row; keeps x, or the sum with the residual, and 1 / rms for backward."""

    @staticmethod
    def forward(ctx, x, weight, eps, residual):
        """(rows, columns) to the same; with a residual, also the sum."""
        y, inverse_rms, *total = rmsnorm_forward(x, weight, eps, residual)
        ctx.save_for_backward(*(total or [x]), weight, inverse_rms)
        ctx.residual_dtype = None if residual is None else residual.dtype
        return (y, *total) if total else y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dsum=None):
        """dx, which is the gradient of the residual too, and dweight."""
        x, weight, inverse_rms = ctx.saved_tensors
        dx, partial_dweight = rmsnorm_backward(
            x, weight, inverse_rms, _side_by_side(dy), None if dsum is None else _side_by_side(dsum)
        )
        dresidual = None if ctx.residual_dtype is None else dx.to(ctx.residual_dtype)
        return dx, partial_dweight.sum(0).to(weight.dtype), None, dresidual


@overload
def rmsnorm(x: Tensor, weight: Tensor, eps: float, residual: None = None) -> Tensor: ...
@overload
def rmsnorm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]: ...
def rmsnorm(
    x: Float[Tensor, "*rows columns"],
    weight: Float[Tensor, " columns"],
    eps: float,
    residual: Float[Tensor, "*rows columns"] | None = None,
) -> Float[Tensor, "*rows columns"] | tuple[Float[Tensor, "*rows columns"], Float[Tensor, "*rows columns"]]:
    """x / sqrt(mean(x^2) + eps) * weight of each row, computed in fp32, in the dtype of `x`.

    With a residual the result is the pair of the norm of x + residual and that sum, which has the dtype of
    `x` as well: the stream goes in as `x`, and what a layer adds to it as `residual`.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors, or rows are longer than 32,768.
    """
    check_runnable(x, weight, *(() if residual is None else (residual,)))
    if x.shape[-1] > MAX_COLUMNS:
        raise UnsupportedError(f"rmsnorm takes rows of up to {MAX_COLUMNS} columns, not {x.shape[-1]}")
    if x.numel() == 0:
        return torch.empty_like(x) if residual is None else (torch.empty_like(x), torch.empty_like(x))
    if residual is None:
        return RMSNorm.apply(_side_by_side(x), weight.contiguous(), eps, None).view(x.shape)
    y, total = RMSNorm.apply(_side_by_side(x), weight.contiguous(), eps, _side_by_side(residual))
    return y.view(x.shape), total.view(x.shape)


def _side_by_side(x: Tensor) -> Tensor:
    """`x` as (rows, columns) whose columns lie side by side, so that a thread reads 16 bytes at a time."""
    rows = as_rows(x)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def variants() -> list[Variant]:
    """Both directions at short, common and the longest rows, with and without a residual."""
    found = []
    tensors = ("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "sum_ptr", "dy_ptr", "dsum_ptr", "dx_ptr")
    divisible = ("num_columns", "x_row_stride", "residual_row_stride", "dy_row_stride", "dsum_row_stride")
    for dtype in ("fp32", "bf16", "fp16"):
        types = dict.fromkeys(tensors, f"*{dtype}")
        types |= {"inverse_rms_ptr": "*fp32", "partial_dweight_ptr": "*fp32", "eps": "fp32"}
        for num_columns in (64, 1024, 4096, _MAX_BACKWARD_COLUMNS, MAX_COLUMNS):
            is_long = num_columns > _MAX_BACKWARD_COLUMNS
            backward = rmsnorm_backward_long_kernel if is_long else rmsnorm_backward_kernel
            tiles = {rmsnorm_forward_kernel: _forward_tile, backward: _backward_tile}
            for adds, (kernel, tile) in itertools.product((False, True), tiles.items()):
                rows, columns, warps = tile(num_columns)
                constants = {"ROWS": rows, "COLUMNS": columns, "ADDS": adds, "ACC": tl.float32}
                label = f"{dtype} {num_columns} columns{' residual' if adds else ''}"
                found.append(Variant(kernel, label, types, constants, warps, divisible=divisible))
    return found
