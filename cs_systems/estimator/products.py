"""Matrix products and fused attention: what they allocate, keep and need in backward."""

import math

from cs_systems.estimator.operators import Gradients, Operators
from cs_systems.estimator.tape import Kept
from cs_systems.estimator.tensors import Tensor

FOR_WEIGHT = "input of a product: needed for the gradient of the weight"
FOR_INPUT = "weight of a product: needed for the gradient of its input"
FOR_FACTOR = "factor of a product: needed for the gradient of the other"
FOR_SCORES = "fused attention computes the scores again in backward"


class Products(Operators):
    """`Operators` with matrix products. Weights are stored (out, in) and used transposed."""

    def linear(self, x: Tensor, weight: Tensor, name: str) -> Tensor:
        """x @ weight.T, as one product of two matrices."""
        low, w = self.autocasted("matmul", x, self.transpose(weight))
        rows = self.reshape(low, (math.prod(x.shape[:-1]), x.shape[-1]))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_w = self._weight_gradient(grad, kept["w"])
            for_x = self.new(rows_shape, grad.dtype, "gradient of input") if x_needs else None
            return [for_x, for_w]

        rows_shape, x_needs = rows.shape, rows.node is not None
        node = self.node([rows, w], backward)
        self.keep(node, "x", rows, FOR_WEIGHT)
        self.keep(node, "w", w, FOR_INPUT)
        out = self.new((rows.shape[0], w.shape[1]), low.dtype, name)
        out.node = node
        return self.reshape(out, (*x.shape[:-1], w.shape[1]))

    def linear_with_bias(self, x: Tensor, weight: Tensor, bias: Tensor, name: str) -> Tensor:
        """x @ weight.T + bias in one operator."""
        rows = self.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
        bias_cast, rows_cast, w = self.autocasted("addmm", bias, rows, self.transpose(weight))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_x = self.new(rows_shape, grad.dtype, "gradient of input")
            return [grad, for_x, self._weight_gradient(grad, kept["w"])]

        rows_shape = rows.shape
        node = self.node([bias_cast, rows_cast, w], backward)
        self.keep(node, "x", rows_cast, FOR_WEIGHT)
        self.keep(node, "w", w, FOR_INPUT)
        out = self.new((rows.shape[0], w.shape[1]), w.dtype, name)
        out.node = node
        return self.reshape(out, (*x.shape[:-1], w.shape[1]))

    def _weight_gradient(self, grad: Tensor, w: Tensor) -> Tensor:
        """Laid out like the transposed weight, so that the parameter can take it over without a copy."""
        return self.new(w.shape, grad.dtype, "weight gradient", strides=(1, w.shape[0]))

    def matmul(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Products of the matrices on the last two of four axes."""
        low_a, low_b = self.autocasted("matmul", a, b)
        num_products = math.prod(a.shape[:-2])
        left = self.reshape(low_a, (num_products, *a.shape[-2:]))
        right = self.reshape(low_b, (num_products, *b.shape[-2:]))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_right = self.new(right_shape, grad.dtype, "gradient of factor")
            for_left = self.new(left_shape, grad.dtype, "gradient of factor")
            return [for_left, for_right]

        left_shape, right_shape = left.shape, right.shape
        node = self.node([left, right], backward)
        self.keep(node, "right", right, FOR_FACTOR)
        self.keep(node, "left", left, FOR_FACTOR)
        out = self.new((num_products, a.shape[-2], b.shape[-1]), low_a.dtype, name)
        out.node = node
        return self.reshape(out, (*a.shape[:-1], b.shape[-1]))

    def fused_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """scaled_dot_product_attention: never holds the scores; keeps one number per row to restore them."""
        low = self.autocasted("scaled_dot_product_attention", q, k, v, *([] if bias is None else [bias]))

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            return [self._heads_last(x, grad.dtype) for x in (kept["q"], kept["k"], kept["v"])]

        node = self.node(low[:3], backward)
        for name, x in zip(("q", "k", "v", "bias"), low, strict=False):
            self.keep(node, name, x, FOR_SCORES)
        out = self.pointwise(low[:1], "output")
        lse = self.new(q.shape[:3], "fp32", "log-sum-exp")
        self.keep(node, "lse", lse, FOR_SCORES)
        self.keep(node, "out", out, FOR_SCORES)
        out.node = node
        return out

    def _heads_last(self, x: Tensor, dtype: str) -> Tensor:
        """A gradient of the shape of `x` (batch, heads, seq, d_head) in the memory order batch, seq, heads."""
        batch, heads, seq, d_head = x.shape
        strides = (seq * heads * d_head, d_head, heads * d_head, 1)
        return self.new(x.shape, dtype, "attention gradient", strides=strides)
