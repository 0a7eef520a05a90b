"""A matrix product with fixed weights in the layout that runs fastest: dense, packed by oneDNN, or int8.

Decoding multiplies a few rows by every matrix of the model, so it is as fast as weights are read, and the
general product of a CPU library reads them at a third to a half of the speed of memory.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cs_systems.device import DTYPES
from cs_systems.inference.quantize import dequantize_rows, quantize_rows
from cs_systems.inference.settings import DecoderConfig

Layout = Literal["dense", "transposed", "packed", "int8"]

_PACKED_FOR_ROWS = 8  # oneDNN's blocks for 8 rows were as good for 1 and for 1024 as blocks made for those
_INT8_ROWS = 32  # with more, dequantising once is cheaper than the int8 product


def choose_layout(config: DecoderConfig, device: torch.device) -> Layout:
    """The fastest layout on `device`, as measured on one CPU with AVX-512; on a GPU dense or int8.

    Compiled for one sequence (fp32: two), the sum of products in `DenseLinear`; not compiled for one in fp32,
    the transposed matrix. Otherwise oneDNN's blocks, which for bf16 and fp16 need a CPU that knows the type.
    """
    if config.precision == "int8":
        return "int8"
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return "dense"
    if config.compile and config.expected_batch_size <= MULTIPLY_SUM_ROWS[DTYPES[config.precision]]:
        return "dense"
    if config.precision == "fp32" and config.expected_batch_size == 1 and not config.compile:
        return "transposed"
    supported = {
        "fp32": lambda: True,
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return "packed" if supported[config.precision]() else "dense"


MULTIPLY_SUM_ROWS = {torch.float32: 2, torch.bfloat16: 1, torch.float16: 1}
"""Up to this many rows, a compiled sum of products reads weights faster than a matrix product does."""


def multiply_sum(
    x: Float[Tensor, "*batch columns"], weight: Float[Tensor, "rows columns"] | Int[Tensor, "rows columns"]
) -> Float[Tensor, "*batch rows"]:
    """x W^T as a sum of products in fp32: when compiled one loop over W, else a tensor of all products."""
    return (x.float().unsqueeze(-2) * weight.float()).sum(-1)


def is_multiply_sum_better(x: Tensor) -> bool:
    """Whether this product is being compiled and has few rows."""
    few = x.numel() // x.shape[-1] <= MULTIPLY_SUM_ROWS[x.dtype]
    return few and torch.compiler.is_compiling()


class DenseLinear(nn.Module):
    """x W^T (+ b) with W as it is, or stored by columns, which one row of fp32 reads faster."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "rows columns"],
        bias: Float[Tensor, " rows"] | None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.T.contiguous().T if transposed else weight.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """The product, in the dtype of `x`."""
        if is_multiply_sum_better(x):
            product = multiply_sum(x, self.weight)
            return (product if self.bias is None else product + self.bias).to(x.dtype)
        return F.linear(x, self.weight, self.bias)

    def rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        """Rows of W: the embeddings of `ids`, when W is a head tied to the embedding."""
        return F.embedding(ids, self.weight) if self.weight.is_contiguous() else self.weight[ids]

    @property
    def num_bytes(self) -> int:
        """Bytes of weight and bias."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class PackedLinear(nn.Module):
    """x W^T (+ b) with W in blocks that suit oneDNN's kernels, which otherwise sort it anew each time.

    torch.compile can pack weights in this way too. The operations have no public names; where torch is built
    without them, `choose_layout` says dense.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
        self.register_buffer("weight", packed)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """The product, in the dtype of `x`."""
        if torch.compiler.is_compiling():
            return _packed_linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    @property
    def num_bytes(self) -> int:
        """Bytes of weight, with the padding of its blocks, and bias."""
        packed = torch.ops.mkldnn._nbytes(self.weight)
        return packed + (0 if self.bias is None else self.bias.nbytes)


@torch.library.custom_op("cs_systems::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of `PackedLinear` as one operation that torch.compile does not look into."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_packed_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Int8Linear(nn.Module):
    """x W^T (+ b) with W in 8 bits and one scale a row; x is bf16."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None) -> None:
        super().__init__()
        numbers, scales = quantize_rows(weight)
        self.register_buffer("weight", numbers)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """The product, in the dtype of `x`."""
        rows = x.numel() // x.shape[-1]
        if is_multiply_sum_better(x):
            product = (multiply_sum(x, self.weight) * self.scales).to(x.dtype)
        elif x.device.type == "cpu" and rows <= _INT8_ROWS:
            flat = x.reshape(rows, -1)
            product = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scales).view(
                *x.shape[:-1], -1
            )
        else:  # on a GPU, a compiler reads the 8 bits and widens them on the way
            product = F.linear(x, self.weight.to(x.dtype)) * self.scales
        return product if self.bias is None else product + self.bias

    def rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        """Rows of W, as in `DenseLinear.rows`."""
        return dequantize_rows(self.weight[ids], self.scales[ids])

    @property
    def num_bytes(self) -> int:
        """Bytes of numbers, scales and bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.weight.nbytes + self.scales.nbytes + bias


Projection = DenseLinear | PackedLinear | Int8Linear


def make_projection(
    layout: Layout, weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None
) -> Projection:
    """The product with `weight` in `layout`."""
    if layout == "packed":
        return PackedLinear(weight, bias)
    if layout == "int8":
        return Int8Linear(weight, bias)
    return DenseLinear(weight, bias, transposed=layout == "transposed")
