"""What stands between a function of tensors and a kernel: can it run here, and how are rows laid out."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cs_systems.device import UnsupportedError

# BEGIN SOLUTION softmax_kernel
MAX_COLUMNS = 32768
"""Longest row that one program holds in registers without spilling; longer rows are read in pieces."""

_TILE = 4096  # elements that one program handles: short rows share a program
# END SOLUTION


def missing_for_triton(device_type: str) -> str | None:
    """Why Triton kernels cannot run on "cpu" or "cuda" here, and what to do; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton (Linux only)"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return (
            "Triton kernels need an NVIDIA GPU; on a CPU set TRITON_INTERPRET=1 to run them in Triton's "
            "interpreter, which is right but very slow"
        )
    return None


def check_runnable(*tensors: Tensor) -> None:
    """Raise UnsupportedError unless Triton kernels can run on these tensors: one device, floating point."""
    device, dtypes = tensors[0].device, {tensor.dtype for tensor in tensors}
    if any(tensor.device != device for tensor in tensors):
        devices = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise UnsupportedError(f"a kernel got tensors on {devices}; move them to one device")
    allowed = {torch.float32, torch.bfloat16, torch.float16}
    if device.type == "cpu":
        allowed.add(torch.float64)  # for gradient checks through the interpreter
    if not dtypes <= allowed:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes - allowed))
        raise UnsupportedError(f"Triton kernels take fp32, bf16 and fp16, not {names}")
    missing = missing_for_triton(device.type)
    if missing:
        raise UnsupportedError(missing)


def as_rows(x: Tensor) -> Tensor:
    """`x` as (rows, columns) of one stride each: a view, or a copy where leading axes cannot be merged."""
    return x.reshape(-1, x.shape[-1])


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least `n`; Triton's tiles have such sides."""
    return 1 << max(0, n - 1).bit_length()


# BEGIN SOLUTION softmax_kernel
def row_tile(num_columns: int, most: int = MAX_COLUMNS) -> tuple[int, int, int]:
    """(rows, columns, warps) of the tile of one program of a kernel that works along rows.

    Short rows share a program so that each of its threads has a few elements. Rows over `most` are
    read in pieces of 4096 columns. At most 64 fp32 values a thread: no spills on sm_80 and sm_90.
    """
    if num_columns > most:
        return 1, _TILE, 8
    columns = next_power_of_2(num_columns)
    rows = max(1, _TILE // (4 * columns))
    warps = min(32, max(4, rows * columns // 2048))
    return rows, columns, warps


# END SOLUTION


# BEGIN INSTRUCTOR
@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel that the functions of this package may launch on a GPU.

    Every kernel's module lists its own in `variants()`; `aot.py` compiles them where there is no GPU.
    """

    kernel: Any
    label: str
    types: Mapping[str, str]
    """Triton types of the arguments that are neither constants nor i32: pointers ("*bf16"), "fp32", ..."""
    constants: Mapping[str, Any]
    """Values of the constexpr arguments."""
    num_warps: int
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    """Integer arguments divisible by 16 in practice: a launch specialises on them by itself."""
    uses_tensor_cores: bool = False


# END INSTRUCTOR


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], "Operator"]:
    """Decorate a function that allocates outputs and launches kernels, so that torch.compile can call it.

    Args:
        name: under which torch knows it, as cs_systems::name.
        fake: the same arguments to outputs of the right shape, dtype and strides, without computing them.
    """

    def decorate(function: Callable[..., Any]) -> Operator:
        return Operator(name, function, fake)

    return decorate


class Operator:
    """Launch directly in eager mode, through torch's dispatcher (some 20 us more) when compiling."""

    def __init__(self, name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.function = function
        self.custom_op = torch.library.custom_op(f"cs_systems::{name}", function, mutates_args=())
        self.custom_op.register_fake(fake)

    def __call__(self, *args: Any) -> Any:
        """The outputs of the function."""
        return (self.custom_op if torch.compiler.is_compiling() else self.function)(*args)
