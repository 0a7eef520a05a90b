"""Cross-entropy of logits in one kernel, which leaves the gradient behind while it has the logits at hand.

Loss and gradient need the same maximum and the same sum, so one read of the logits serves both:
loss_t = log(sum_j exp(x_tj)) - x_t,target and dx_tj = (softmax(x_t)_j - [j = target]) / num_tokens. One
program holds a row of up to 32,768 logits in registers; longer rows are read twice, as in `softmax.py`.

Bytes for each fp32 logit, forward and backward:

    eager                         116   nine passes forward, fourteen backward
    into a new buffer              16   read, write the gradient; backward reads it and writes it multiplied
    overwrite_logits=True           8   read, write; backward has nothing to do when the loss's gradient is 1
    without a gradient              4   read

Backward knows its incoming gradient only on the device: asking for it would stop the host until the GPU has
caught up. So a kernel looks at it, and returns at once if it is 1, as it is for a plain `loss.backward()`.
"""

import torch
import triton.language as tl
from jaxtyping import Float, Int
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

_SCALE_ELEMENTS, _SCALE_PIECES = 4096, 8  # of one program: few programs, as most have nothing to do


@jit
def cross_entropy_kernel(
    logits_ptr, targets_ptr, losses_ptr, gradient_ptr,
    num_rows, num_columns, row_stride, column_stride, divisor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: ROWS whole rows. The gradient is contiguous, and may lie where the logits are."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = (row[:, None] < num_rows) & (column[None, :] < num_columns)
    offset = row[:, None] * row_stride + column[None, :] * column_stride
    x = tl.load(logits_ptr + offset, mask=mask, other=-float("inf")).to(ACC)
    target = tl.load(targets_ptr + row, mask=row < num_rows, other=0)
    is_target = column[None, :] == target.to(tl.int32)[:, None]
    largest = tl.max(x, axis=1)
    shifted = x - tl.where(largest == -float("inf"), 0.0, largest)[:, None]  # -inf - -inf would be nan
    exponentials = tl.exp(shifted)
    sums = tl.sum(exponentials, axis=1)
    # nan is the sign of a wrong target, and of a row in which every class has probability 0.
    sums = tl.where((target >= 0) & (target < num_columns) & (sums > 0), sums, float("nan"))
    # Loading x at the target would race with other threads' writes where the gradient overwrites the logits.
    chosen = tl.sum(tl.where(is_target, shifted, 0.0), axis=1)
    tl.store(losses_ptr + row, tl.log(sums) - chosen, mask=row < num_rows)
    if WITH_GRADIENT:
        one = tl.full([], 1.0, ACC) / divisor
        gradient = exponentials * (one / sums)[:, None]
        gradient = tl.where(is_target, gradient - one, gradient)
        gradient_offset = row[:, None] * num_columns + column[None, :]
        tl.store(gradient_ptr + gradient_offset, cast(gradient, gradient_ptr.dtype.element_ty), mask=mask)


@jit
def cross_entropy_online_kernel(
    logits_ptr, targets_ptr, losses_ptr, gradient_ptr,
    num_columns, row_stride, column_stride, divisor,
    COLUMNS: tl.constexpr, WITH_GRADIENT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: one row of any length, COLUMNS at a time; read twice if the gradient is wanted."""
    row = tl.program_id(0).to(tl.int64)
    logits_row = logits_ptr + row * row_stride
    gradient_row = gradient_ptr + row * num_columns
    target = tl.load(targets_ptr + row).to(tl.int64)
    largest = tl.full([COLUMNS], -float("inf"), ACC)  # of every COLUMNS-th element: one reduction at the end
    sums = tl.zeros([COLUMNS], ACC)
    chosen = tl.zeros([COLUMNS], ACC)
    for start in range(0, num_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        # Kept in the L2 cache for the second read, which is the last.
        x = tl.load(
            logits_row + column * column_stride, mask=column < num_columns, other=-float("inf"),
            eviction_policy="evict_last",
        ).to(ACC)  # fmt: skip
        new_largest = tl.maximum(largest, x)
        shift = tl.where(new_largest == -float("inf"), 0.0, new_largest)  # -inf - -inf would be nan
        sums = sums * tl.exp(largest - shift) + tl.exp(x - shift)
        chosen += tl.where(column == target, x, 0.0)
        largest = new_largest
    row_largest = tl.max(largest, axis=0)
    row_largest = tl.where(row_largest == -float("inf"), 0.0, row_largest)
    row_sum = tl.sum(sums * tl.exp(largest - row_largest), axis=0)
    row_sum = tl.where((target >= 0) & (target < num_columns) & (row_sum > 0), row_sum, float("nan"))
    tl.store(losses_ptr + row, tl.log(row_sum) - (tl.sum(chosen, axis=0) - row_largest))
    if WITH_GRADIENT:
        one = tl.full([], 1.0, ACC) / divisor
        factor = one / row_sum
        for start in range(0, num_columns, COLUMNS):
            column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            x = tl.load(
                logits_row + column * column_stride, mask=column < num_columns, other=-float("inf"),
                eviction_policy="evict_first",
            ).to(ACC)  # fmt: skip
            gradient = tl.exp(x - row_largest) * factor
            gradient = tl.where(column == target, gradient - one, gradient)
            gradient = cast(gradient, gradient_ptr.dtype.element_ty)
            tl.store(gradient_row + column, gradient, mask=column < num_columns)


@jit
def scale_kernel(
    x_ptr, y_ptr, factor_ptr, divisor, num_elements,
    ELEMENTS: tl.constexpr, PIECES: tl.constexpr, IN_PLACE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y = x * factor / divisor, PIECES times ELEMENTS a program; nothing to do in place if that is x."""
    factor = tl.load(factor_ptr).to(ACC) / divisor
    if (factor != 1.0) | (not IN_PLACE):
        for piece in range(PIECES):
            start = (tl.program_id(0).to(tl.int64) * PIECES + piece) * ELEMENTS
            offset = start + tl.arange(0, ELEMENTS)
            y = tl.load(x_ptr + offset, mask=offset < num_elements, other=0).to(ACC) * factor
            tl.store(y_ptr + offset, cast(y, y_ptr.dtype.element_ty), mask=offset < num_elements)


def write_losses(
    logits: Tensor, targets: Tensor, losses: Tensor, gradient: Tensor | None, divisor: int
) -> None:
    """Fill `losses` (rows,), and `gradient`, contiguous and possibly `logits` itself, unless it is None.

    Raises:
        IndexError: on a CPU, for a target outside the vocabulary. To look at targets on a GPU the host would
            have to wait for them; there the loss and the gradient of such a token are nan.
    """
    num_rows, num_columns = logits.shape
    if targets.device.type == "cpu" and (targets.min() < 0 or targets.max() >= num_columns):
        raise IndexError(f"targets must be from 0 to {num_columns - 1}")
    rows, columns, warps = row_tile(num_columns)
    tensors = (logits, targets.contiguous(), losses, logits if gradient is None else gradient)
    strides, acc, with_gradient = logits.stride(), accumulator(logits.dtype), gradient is not None
    if num_columns <= MAX_COLUMNS:
        cross_entropy_kernel[(ceil_div(num_rows, rows),)](
            *tensors, num_rows, num_columns, *strides, float(divisor),
            ROWS=rows, COLUMNS=columns, WITH_GRADIENT=with_gradient, ACC=acc, num_warps=warps,
        )  # fmt: skip
    else:
        cross_entropy_online_kernel[(num_rows,)](
            *tensors, num_columns, *strides, float(divisor),
            COLUMNS=columns, WITH_GRADIENT=with_gradient, ACC=acc, num_warps=warps,
        )  # fmt: skip


def empty_losses(logits: Tensor, *_: Tensor | int) -> Tensor:
    """Room for one loss a row: in fp32, or in fp64 for fp64 logits."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.empty(logits.shape[0], dtype=wide, device=logits.device)


def _losses_and_gradient(logits: Tensor, *_: Tensor | int) -> tuple[Tensor, Tensor]:
    return empty_losses(logits), torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@operator("cross_entropy_losses", fake=empty_losses)
def cross_entropy_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each row of (rows, columns)."""
    losses = empty_losses(logits)
    write_losses(logits, targets, losses, None, 1)
    return losses


@operator("cross_entropy_losses_and_gradient", fake=_losses_and_gradient)
def cross_entropy_losses_and_gradient(logits: Tensor, targets: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Loss of each row, and the gradient of their sum divided by `divisor`, contiguous."""
    losses, gradient = _losses_and_gradient(logits)
    write_losses(logits, targets, losses, gradient, divisor)
    return losses, gradient


def _launch_scale(x: Tensor, y: Tensor, factor: Tensor, divisor: int) -> None:
    scale_kernel[(ceil_div(x.numel(), _SCALE_ELEMENTS * _SCALE_PIECES),)](
        x, y, factor, float(divisor), x.numel(),
        ELEMENTS=_SCALE_ELEMENTS, PIECES=_SCALE_PIECES, IN_PLACE=x is y, ACC=accumulator(x.dtype),
        num_warps=8,
    )  # fmt: skip


def _empty_in(x: Tensor, factor: Tensor, divisor: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@operator("scale", fake=_empty_in)
def scale(x: Tensor, factor: Tensor, divisor: int, dtype: torch.dtype) -> Tensor:
    """x * factor / divisor in `dtype`, for contiguous x and a factor of one element, rounded only once.

    Torch would round the factor to the dtype of x first: a gradient scaler's 65536 / num_tokens to bf16.
    """
    y = _empty_in(x, factor, divisor, dtype)
    _launch_scale(x, y, factor, divisor)
    return y


def _split_divisor(dtype: torch.dtype, num_tokens: int) -> tuple[int, int]:
    """What forward and what backward divides by, to take the mean over tokens.

    A probability of 1e-4 over a thousand tokens is 0 in fp16. A gradient scaler would have kept it from
    vanishing, but its factor comes only in backward, and so does the division.
    """
    return (1, num_tokens) if dtype == torch.float16 else (num_tokens, 1)


class CrossEntropy(torch.autograd.Function):
    """Mean loss of the rows; forward keeps the gradient in a buffer of its own, backward multiplies it."""

    @staticmethod
    def forward(ctx, logits, targets):
        """(rows, columns) and (rows,) to a scalar."""
        divisor, ctx.remaining = _split_divisor(logits.dtype, targets.numel())
        losses, gradient = cross_entropy_losses_and_gradient(logits, targets, divisor)
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        """The gradient of the logits; the buffer stays as it is, so that backward may run again."""
        (gradient,) = ctx.saved_tensors
        return scale(gradient, dloss, ctx.remaining, gradient.dtype), None


class CrossEntropyInPlace(torch.autograd.Function):
    """The same with the gradient in place of the logits, which autograd is told.

    Whoever kept the logits for a backward of their own gets autograd's error about a modified tensor. The
    logits are also an output, so that a gradient for values read after they were overwritten arrives here.
    """

    @staticmethod
    def forward(ctx, logits, targets):
        """(..., columns), contiguous, and (...) to a scalar and the overwritten logits."""
        rows = as_rows(logits)
        losses = empty_losses(rows)
        divisor, ctx.remaining = _split_divisor(logits.dtype, targets.numel())
        write_losses(rows, targets, losses, rows, divisor)
        ctx.mark_dirty(logits)
        ctx.save_for_backward(logits)
        ctx.set_materialize_grads(False)
        return losses.mean(), logits

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, doverwritten):
        """The overwritten logits themselves, multiplied in place: a second backward is refused."""
        if doverwritten is not None:
            raise RuntimeError(
                "logits were used after cross_entropy had overwritten them; use them before it, or call it "
                "with overwrite_logits=False"
            )
        (gradient,) = ctx.saved_tensors
        _launch_scale(gradient, gradient, dloss, ctx.remaining)
        torch.autograd.graph.increment_version(gradient)
        return gradient.detach(), None


def check_targets(targets: Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless there is one integer target for each token, on the device of the logits."""
    if targets.shape != shape or targets.is_floating_point():
        raise ValueError(
            f"targets must be integers of shape {tuple(shape)}, not {targets.dtype} of {tuple(targets.shape)}"
        )
    if targets.device != device:
        raise UnsupportedError(
            f"targets are on {targets.device}, logits on {device}; move them to one device"
        )


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"], targets: Int[Tensor, "*batch"], *, overwrite_logits: bool = False
) -> Float[Tensor, ""]:
    """Mean over tokens of log(sum_j exp(logits_j)) - logits_target in nats, in fp32.

    A target outside the vocabulary is an IndexError on a CPU; on a GPU it makes the loss nan.

    Args:
        logits: of any strides, in any precision.
        targets: one class for each token.
        overwrite_logits: allows the gradient to take the place of the logits, whose values are lost by then.
            Only for the result of a matrix product that nobody reads again: an operation that kept them, a
            gradient through a later use and a second backward raise, but printing them shows the gradient.
            Done for contiguous logits that are neither a leaf nor a view and do not retain their gradient,
            outside of torch.compile.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors; the message says what to do.
    """
    check_runnable(logits)
    check_targets(targets, logits.shape[:-1], logits.device)
    if targets.numel() == 0:
        return logits.sum(dtype=torch.promote_types(logits.dtype, torch.float32)) * torch.nan
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return cross_entropy_losses(as_rows(logits), targets.reshape(-1)).mean()
    if overwrite_logits and not torch.compiler.is_compiling():
        kept = logits.is_leaf or logits.retains_grad
        if not kept and logits._base is None and logits.is_contiguous():
            return CrossEntropyInPlace.apply(logits, targets)[0]
    return CrossEntropy.apply(as_rows(logits), targets.reshape(-1))


def scale_variant(label: str, types: dict[str, str], in_place: bool) -> Variant:
    """The multiplication of a gradient, for these types of pointers."""
    constants = {
        "ELEMENTS": _SCALE_ELEMENTS,
        "PIECES": _SCALE_PIECES,
        "IN_PLACE": in_place,
        "ACC": tl.float32,
    }
    return Variant(scale_kernel, label, types, constants, num_warps=8, divisible=("num_elements",))


def variants() -> list[Variant]:
    """One-pass kernels at short, common and the longest rows, the online kernels, and the multiplication."""
    found = []
    divisible = ("num_columns", "row_stride")
    for dtype in ("fp32", "bf16", "fp16"):
        pointers = {name: f"*{dtype}" for name in ("logits_ptr", "gradient_ptr", "x_ptr", "y_ptr")}
        pointers |= {"targets_ptr": "*i64", "losses_ptr": "*fp32", "factor_ptr": "*fp32", "divisor": "fp32"}
        for num_columns in (16, 1024, MAX_COLUMNS, 2 * MAX_COLUMNS):
            rows, columns, warps = row_tile(num_columns)
            one_pass = num_columns <= MAX_COLUMNS
            kernel = cross_entropy_kernel if one_pass else cross_entropy_online_kernel
            for with_gradient in (True, False):
                constants = {"COLUMNS": columns, "WITH_GRADIENT": with_gradient, "ACC": tl.float32}
                constants |= {"column_stride": 1} | ({"ROWS": rows} if one_pass else {})
                label = f"{dtype} {num_columns} columns, {'' if with_gradient else 'no '}gradient"
                found.append(Variant(kernel, label, pointers, constants, warps, divisible=divisible))
        for in_place in (True, False):
            label = f"{dtype} {'in place' if in_place else 'to a new tensor'}"
            found.append(scale_variant(label, pointers, in_place))
    return found
