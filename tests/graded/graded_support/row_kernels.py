"""What the tests of kernels along rows share: layouts of a matrix, and softmax compared with the truth."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graded_support.compare import check_tensor, rounding_bound
from graded_support.kernel_calls import apply

LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T,
    "every second column": lambda x: x[:, ::2],
    "one row for all": lambda x: x[:1].expand(x.shape),
}
"""Views of a contiguous matrix, by what is special about their strides."""


def as_if_contiguous(x: Tensor) -> Tensor:
    """What a kernel reads that ignores the strides of x, in float64; values are those of the same memory."""
    room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if room < x.numel():  # such a kernel would read beyond the end
        return x.double()
    return torch.as_strided(x, x.shape, (x.shape[1], 1)).double()


def run_softmax(adapters: Any, x: Tensor, launches: int | None = None) -> Tensor:
    """What the kernel returns, and whether it is one."""
    function = adapters.get_softmax_autograd_function_triton()
    return apply(function, x, what="the softmax kernel", in_triton=True, launches=launches)


def softmax_error(x: Tensor, y: Tensor) -> Tensor:
    """How far y, the softmax of x, may be off: of each exponential its argument, and their sum, in fp32."""
    distance = (x.amax(1, keepdim=True) - x).abs()
    return rounding_bound(torch.float32, 1, y * (x.shape[1] + 2 + distance))


def _spacing(dtype: torch.dtype, values: Tensor) -> Tensor:
    """Distance of neighbouring numbers at these values; all below the smallest normal one have the same."""
    return torch.finfo(dtype).eps * values.abs().clamp(min=torch.finfo(dtype).smallest_normal)


def check_softmax(adapters: Any, x: Tensor) -> None:
    """Compare the kernel's values with the truth and with known mistakes."""
    actual = run_softmax(adapters, x)
    wide = x.double()
    truth = wide.softmax(1)
    exponentials = (wide - wide.amax(1, keepdim=True)).exp()
    total = exponentials.sum(1, keepdim=True)
    num_padded = (1 << (x.shape[1] - 1).bit_length()) - x.shape[1]
    check_tensor(
        actual,
        truth,
        what=f"softmax of {tuple(x.shape)} with strides {x.stride()}",
        allowed=softmax_error(wide, truth) + _spacing(x.dtype, truth) / 2,
        dtype=x.dtype,
        mistakes={
            "softmax runs over a column; it is over each row": lambda: wide.softmax(0),
            "softmax runs over the whole array at once": lambda: wide.flatten().softmax(0).view(x.shape),
            "the columns that pad a tile count as logits of 0; load them as -inf": (
                lambda: exponentials / (total + num_padded * (-wide.amax(1, keepdim=True)).exp())
            ),
            "the exponentials are not divided by their sum": exponentials,
            "the logarithm of softmax is returned": lambda: wide.log_softmax(1),
            "the strides of x are not used, as if its rows lay one after the other": (
                lambda: as_if_contiguous(x).softmax(1)
            ),
        }
        | {
            f"only the first {tile} columns of a row count": lambda tile=tile: (
                exponentials / exponentials[:, :tile].sum(1, keepdim=True)
            )
            for tile in (1024, 2048, 4096, 8192, 16384, 32768)
            if tile < x.shape[1]
        },
        hint=(
            "nan or inf: the largest of the row is not subtracted before exp, or a sum does not fit into "
            "fp16 (convert to fp32 after loading). Else look at the mask of the tile."
        ),
    )
