"""AdamW over all parameters in one kernel launch.

An update needs the weight, its gradient and two running means, and changes three of them: 4 reads and 3
writes, 28 bytes for an fp32 parameter. One operation of PyTorch after the other moves 148 bytes, in 18
launches a tensor, and a model has hundreds of tensors.

So that one launch can serve tensors of all sizes, the kernel is given a table with the addresses and the
numbers of each tensor instead of the tensors. Gradients are new tensors in every step, and the numbers
change too: the table, 96 bytes a tensor, is written anew and copied to the GPU, without waiting, each step.
Which program does which part of which tensor depends on the sizes only and stays on the GPU.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from cs_systems.device import UnsupportedError
from cs_systems.kernels.language import accumulator, cast, jit
from cs_systems.kernels.launch import Variant, ceil_div, check_runnable

_BLOCK = 2048  # elements of one program
_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
_COLUMNS = tl.constexpr(12)  # of the int64 table: 5 integers, and the bits of 7 numbers in fp64

Loss = Tensor | float


@jit
def pointer_from(table_ptr, entry_ptr, dtype, ALIGNED: tl.constexpr):
    """The pointer to `dtype` whose address is in the table; known to be a multiple of 16 bytes if ALIGNED.

    The compiler forgets that when a number becomes a pointer, but not when a number is added to one.
    """
    BYTES: tl.constexpr = dtype.primitive_bitwidth // 8
    distance = (tl.load(entry_ptr) - table_ptr.to(tl.int64)) // BYTES
    if ALIGNED:
        distance = tl.multiple_of(distance, 16 // BYTES)  # then 16 bytes are read at a time
    return table_ptr.to(tl.pointer_type(dtype)) + distance


@jit
def number_from(entry_ptr, ACC: tl.constexpr):
    """The fp64 number whose bits are in the table."""
    return tl.load(entry_ptr).to(tl.float64, bitcast=True).to(ACC)


@jit
def adamw_kernel(
    table_ptr, blocks_ptr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK elements of one tensor; `blocks` says of which, and how many blocks come before."""
    entry = table_ptr + tl.load(blocks_ptr + 2 * tl.program_id(0)) * _COLUMNS
    start = tl.load(blocks_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    weight_ptr = pointer_from(table_ptr, entry, DTYPE, ALIGNED)
    gradient_ptr = pointer_from(table_ptr, entry + 1, DTYPE, ALIGNED)
    mean_ptr = pointer_from(table_ptr, entry + 2, DTYPE, ALIGNED)
    square_ptr = pointer_from(table_ptr, entry + 3, DTYPE, ALIGNED)
    size = tl.load(entry + 4)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    decay = number_from(entry + 5, ACC)  # 1 - lr * weight_decay
    step_size = number_from(entry + 6, ACC)  # lr / (1 - beta1^t)
    correction = number_from(entry + 7, ACC)  # sqrt(1 - beta2^t)
    one_minus_beta1 = number_from(entry + 8, ACC)
    beta2 = number_from(entry + 9, ACC)
    one_minus_beta2 = number_from(
        entry + 10, ACC
    )  # not 1 - beta2: of 0.999 in fp32 five digits would be left
    eps = number_from(entry + 11, ACC)

    offset = start + tl.arange(0, BLOCK)
    mask = offset < size
    weight = tl.load(weight_ptr + offset, mask=mask, other=0).to(ACC)
    gradient = tl.load(gradient_ptr + offset, mask=mask, other=0).to(ACC)
    mean = tl.load(mean_ptr + offset, mask=mask, other=0).to(ACC)
    square = tl.load(square_ptr + offset, mask=mask, other=0).to(ACC)
    mean += (gradient - mean) * one_minus_beta1
    square = square * beta2 + gradient * gradient * one_minus_beta2
    weight = weight * decay - step_size * mean / (tl.sqrt(square) / correction + eps)
    tl.store(weight_ptr + offset, cast(weight, DTYPE), mask=mask)
    tl.store(mean_ptr + offset, cast(mean, DTYPE), mask=mask)
    tl.store(square_ptr + offset, cast(square, DTYPE), mask=mask)


@functools.lru_cache(maxsize=8)
def _blocks_of(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """(programs, 2): for each program the number of its tensor, and its block in that tensor."""
    counts = torch.tensor([ceil_div(size, _BLOCK) for size in sizes])
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    block = torch.arange(len(tensor)) - (counts.cumsum(0) - counts)[tensor]
    return torch.stack((tensor, block), dim=1).to(device, torch.int32)


def _laid_out_like(weight: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, or a copy with the dtype and strides of `weight`: the kernel knows memory, not axes."""
    if (tensor.shape, tensor.stride(), tensor.dtype) == (weight.shape, weight.stride(), weight.dtype):
        return tensor
    return torch.empty_like(weight).copy_(tensor)


def _check(weights: list[Tensor]) -> None:
    check_runnable(*weights)
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            raise UnsupportedError("FusedAdamW does not take sparse gradients; use optim.AdamW")
        # A tensor made like one whose elements lie side by side has its strides.
        if not weight.is_contiguous() and torch.empty_like(weight, device="meta").stride() != weight.stride():
            raise UnsupportedError(
                f"FusedAdamW got a parameter of shape {tuple(weight.shape)} with strides {weight.stride()}, "
                "whose memory has gaps or is shared; make it contiguous"
            )


class FusedAdamW(torch.optim.Optimizer):
    """`optim.AdamW` as one kernel, with the same arguments, defaults, errors and state.

    Computed in fp32 (`optim.AdamW` rounds each step of the formula to the parameter's dtype), and one launch
    for each dtype; tensors that do not start at, or hold, a multiple of 16 are in a launch of their own.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr {lr} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be at least 0 and below 1")
        if eps < 0 or weight_decay < 0:
            raise ValueError(f"eps {eps} and weight_decay {weight_decay} must not be negative")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns what `closure` returned.

        Raises:
            UnsupportedError: when Triton cannot run on these parameters; nothing has been changed by then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [
            (group, weight)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        if with_gradient:
            _check([weight for _, weight in with_gradient])
        launches: dict[tuple[torch.dtype, bool], list[_Update]] = {}
        for group, weight in with_gradient:
            update = self._advance(group, weight)
            aligned = not any(integer % 16 for integer in update.integers)
            launches.setdefault((weight.dtype, aligned), []).append(update)
        for (dtype, aligned), updates in launches.items():
            _launch(dtype, aligned, updates)
        return loss

    def _advance(self, group: dict[str, Any], weight: Tensor) -> "_Update":
        """Count the step and say what is to be done."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        state["step"] += 1
        for name in ("exp_avg", "exp_avg_sq"):  # a loaded state may be laid out in another way
            state[name] = _laid_out_like(weight, state[name])
        tensors = (weight, _laid_out_like(weight, weight.grad), state["exp_avg"], state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        decay = 1 - group["lr"] * group["weight_decay"]
        step_size = group["lr"] / (1 - beta1 ** state["step"])
        correction = math.sqrt(1 - beta2 ** state["step"])
        return _Update(
            tensors,
            [*(tensor.data_ptr() for tensor in tensors), weight.numel()],
            [decay, step_size, correction, 1 - beta1, beta2, 1 - beta2, group["eps"]],
        )


class _Update(NamedTuple):
    """A row of the table, and the tensors in it, which must live until the kernel is launched."""

    tensors: tuple[Tensor, ...]
    integers: list[int]
    numbers: list[float]


def _launch(dtype: torch.dtype, aligned: bool, updates: list[_Update]) -> None:
    device = updates[0].tensors[0].device
    integers = torch.tensor([update.integers for update in updates])
    numbers = torch.tensor([update.numbers for update in updates], dtype=torch.float64)
    table = torch.cat((integers, numbers.view(torch.int64)), dim=1)
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    blocks = _blocks_of(tuple(update.integers[-1] for update in updates), device)
    adamw_kernel[(len(blocks),)](
        table, blocks, BLOCK=_BLOCK, DTYPE=_TRITON_DTYPES[dtype], ALIGNED=aligned, ACC=accumulator(dtype),
        num_warps=8,
    )  # fmt: skip


def variants() -> list[Variant]:
    """Every dtype, with and without aligned tensors."""
    found = []
    for name, dtype in (("fp32", tl.float32), ("bf16", tl.bfloat16), ("fp16", tl.float16)):
        for aligned in (True, False):
            constants = {"BLOCK": _BLOCK, "DTYPE": dtype, "ALIGNED": aligned, "ACC": tl.float32}
            label = f"{name} {'aligned' if aligned else 'any address'}"
            pointers = {"table_ptr": "*i64", "blocks_ptr": "*i32"}
            found.append(Variant(adamw_kernel, label, pointers, constants, num_warps=8))
    return found
