"""Matrix products and fused attention: what they allocate, keep for backward, and need in backward."""

import math

from cs_systems.estimator.operators import FOR_FACTOR, Operators
from cs_systems.estimator.tape import Kept
from cs_systems.estimator.tensors import Shape, Tensor, pointwise_strides
from cs_systems.estimator.views import Gradients

FOR_WEIGHT = "the gradient of the weight it meets"
FOR_INPUT = "the gradient of the input it meets"
FOR_SCORES = "the scores are computed again in backward"


class Eager(Operators):
    """All operators of the model: PyTorch's eager mode without the numbers."""

    def linear(self, x: Tensor, weight: Tensor, name: str) -> Tensor:
        """x @ weight.T for a weight stored (out, in), as one product of two matrices."""
        low, w = self.autocasted("matmul", x, self.transpose(weight))
        rows = self.reshape(low, _as_rows(x.shape))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_weight = self._weight_gradient(grad, kept["w"])
            return [self.new(_as_rows(shape), grad.dtype, "gradient of input"), for_weight]

        shape = x.shape
        node = self.node([rows, w], backward)
        self.keep(node, "x", rows, FOR_WEIGHT)
        self.keep(node, "w", w, FOR_INPUT)
        out = self.new((rows.shape[0], w.shape[1]), low.dtype, name)
        out.node = node
        return self.reshape(out, (*shape[:-1], w.shape[1]))

    def linear_with_bias(self, x: Tensor, weight: Tensor, bias: Tensor, name: str) -> Tensor:
        """x @ weight.T + bias as one operator (addmm)."""
        rows = self.reshape(x, _as_rows(x.shape))
        low_bias, low, w = self.autocasted("addmm", bias, rows, self.transpose(weight))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_x = self.new(_as_rows(shape), grad.dtype, "gradient of input")
            return [grad, for_x, self._weight_gradient(grad, kept["w"])]

        shape = x.shape
        node = self.node([low_bias, low, w], backward)
        self.keep(node, "x", low, FOR_WEIGHT)
        self.keep(node, "w", w, FOR_INPUT)
        out = self.new((rows.shape[0], w.shape[1]), low.dtype, name)
        out.node = node
        return self.reshape(out, (*shape[:-1], w.shape[1]))

    def matmul(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Products of the matrices on the last two of four axes."""
        low_a, low_b = self.autocasted("matmul", a, b)
        num_products = math.prod(a.shape[:-2])
        left = self.reshape(low_a, (num_products, *a.shape[-2:]))
        right = self.reshape(low_b, (num_products, *b.shape[-2:]))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_right = self.new(kept["right"].shape, grad.dtype, "gradient of factor")
            return [self.new(kept["left"].shape, grad.dtype, "gradient of factor"), for_right]

        node = self.node([left, right], backward)
        self.keep(node, "right", right, FOR_FACTOR)
        self.keep(node, "left", left, FOR_FACTOR)
        out = self.new((num_products, a.shape[-2], b.shape[-1]), low_a.dtype, name)
        out.node = node
        return self.reshape(out, (*a.shape[:-1], b.shape[-1]))

    def fused_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """scaled_dot_product_attention: no scores in memory, one log-sum-exp per row kept instead.

        On a CPU this is what PyTorch's flash kernel does, apart from its fixed workspace per thread. On a GPU it
        follows the sources of flash attention (bf16, fp16) and of the memory-efficient kernel (fp32, or with a
        bias), which has not been checked on one.
        """
        inputs = [q, k, v] if bias is None else [q, k, v, bias]
        low = self.autocasted("scaled_dot_product_attention", *inputs)

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            gradients: Gradients = [self._heads_last(kept[name], "gradient") for name in ("q", "k", "v")]
            workspace = self._attention_workspace(kept["q"])
            del workspace
            return gradients

        node = self.node(low[:3], backward)
        for key, tensor in zip(("q", "k", "v", "bias"), low, strict=False):
            self.keep(node, key, tensor, FOR_SCORES)
        batch, heads, seq, _ = q.shape
        is_flash = self.device_type == "cpu" or (low[0].dtype != "fp32" and bias is None)
        out = self._like(low[0], name) if is_flash else self._heads_last(low[0], name)
        rows = seq if is_flash else _round_up(seq, 32)
        lse = self.new((batch, heads, rows), "fp32", "log-sum-exp")
        self.keep(node, "lse", lse, "restores the softmax of each row")
        self.keep(node, "out", out, "the gradient of the softmax")
        out.node = node
        return out

    def _attention_workspace(self, q: Tensor) -> list[Tensor]:
        """What a GPU's backward kernel allocates: the gradient of q in fp32, and one number per row."""
        if self.device_type == "cpu":
            return []
        batch, heads, seq, d_head = q.shape
        rows = batch, heads, _round_up(seq, 128)
        widened = [self.new((*rows, _round_up(d_head, 32)), "fp32", "gradient of q in fp32")]
        return [self.new(rows, "fp32", "row sums"), *(widened if q.dtype != "fp32" else [])]

    def _weight_gradient(self, grad: Tensor, w: Tensor) -> Tensor:
        """Laid out like the transposed weight, so that the parameter takes it over without a copy."""
        return self.new(w.shape, grad.dtype, "gradient of weight", strides=(1, w.shape[0]))

    def _like(self, x: Tensor, name: str) -> Tensor:
        return self.new(x.shape, x.dtype, name, strides=pointwise_strides([x], x.shape))

    def _heads_last(self, x: Tensor, name: str) -> Tensor:
        """(batch, heads, seq, d_head) in the memory order batch, seq, heads."""
        _, heads, seq, d_head = x.shape
        strides = (seq * heads * d_head, d_head, heads * d_head, 1)
        return self.new(x.shape, x.dtype, name, strides=strides)


def _as_rows(shape: Shape) -> Shape:
    return math.prod(shape[:-1]), shape[-1]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
