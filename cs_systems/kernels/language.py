"""What every kernel needs from Triton and Triton gets wrong in one of its two modes.

A kernel runs compiled on a GPU, or interpreted with numpy on a CPU when TRITON_INTERPRET=1 is set before this
package is imported. The interpreter is for checking values: it is thousands of times slower than a GPU. In
bf16 it multiplies the raw bits as if they were integers and rounds by cutting off; `dot` and `cast` do it
right, and compile to exactly `tl.dot` and `.to`. All other arithmetic of a kernel should be in fp32.
"""

import inspect
import os
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


def jit(function: Any) -> Any:
    """`triton.jit`, for the function as it was written: shape checks of the tests may have wrapped it."""
    return triton.jit(inspect.unwrap(function))


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b; PRECISION of fp32 operands: "tf32", "tf32x3" (nearly fp32) or "ieee" (no tensor cores).

    fp64 operands (only the interpreter gets them, for gradient checks) are multiplied as they are.
    """
    if INTERPRET:
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc, input_precision="ieee", out_dtype=acc.dtype)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@jit
def cast(x, dtype: tl.constexpr):
    """fp32 to any type, rounding to nearest even: for every store, and for operands of `dot`."""
    if INTERPRET:
        if dtype == tl.bfloat16:
            bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The type a kernel computes in: fp32, and fp64 for fp64 tensors, which only gradient checks use."""
    return tl.float64 if dtype == torch.float64 else tl.float32
