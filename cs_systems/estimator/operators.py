"""The operators of the model, each with what it allocates, what it keeps for backward, and its backward.

Names and formulas are those of PyTorch's derivatives.yaml. Every local of a backward function stays alive until
it returns, as C++ temporaries do. A scalar factor or summand is left out: it neither allocates nor is kept.
"""

from cs_systems.estimator.tape import Backward, Kept, Leaf, Tape
from cs_systems.estimator.tensors import Shape, Tensor, is_contiguous, pointwise_strides

Gradients = list[Tensor | None]


class Operators(Tape):
    """A tape with PyTorch's operators as methods; `name` labels a result that a reader of the ledger will see."""

    # -- views ------------------------------------------------------------------------------------------

    def _view(self, x: Tensor, out: Tensor, backward: Backward) -> Tensor:
        out.node = self.node([x], backward)
        return out

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        """Another shape: a view where the strides allow it, otherwise a copy."""
        before = x.shape
        return self._view(x, self.reshaped(x, shape), lambda grad, _: [self.reshaped(grad, before)])

    def permute(self, x: Tensor, axes: Shape) -> Tensor:
        """Another order of the axes."""
        inverse = tuple(axes.index(axis) for axis in range(len(axes)))
        return self._view(x, permuted(x, axes), lambda grad, _: [permuted(grad, inverse)])

    def transpose(self, x: Tensor) -> Tensor:
        """The last two axes swapped."""
        axes = tuple(range(len(x.shape)))
        return self.permute(x, (*axes[:-2], axes[-1], axes[-2]))

    def slice_last(self, x: Tensor, size: int, step: int = 1) -> Tensor:
        """`size` entries of the last axis, `step` apart."""
        if size == x.shape[-1]:
            return self._view(x, x.detach(), lambda grad, _: [grad])
        shape, strides = (*x.shape[:-1], size), (*x.strides[:-1], x.strides[-1] * step)
        before = x.shape
        return self._view(
            x, x.view(shape, strides), lambda grad, _: [self.new(before, grad.dtype, "slice backward")]
        )

    def contiguous(self, x: Tensor) -> Tensor:
        """A row-major copy."""
        out = self.new(x.shape, x.dtype, "copy")
        out.node = self.node([x], lambda grad, _: [grad])
        return out

    def as_complex(self, x: Tensor) -> Tensor:
        """Pairs of neighbours on the last axis as complex numbers."""
        return self._view(x, complex_view(x), lambda grad, _: [real_view(self._row_major(grad))])

    def as_real(self, x: Tensor) -> Tensor:
        """Complex numbers as pairs of neighbours on the last axis."""
        return self._view(x, real_view(x), lambda grad, _: [complex_view(self._row_major(grad))])

    def _row_major(self, x: Tensor) -> Tensor:
        return x if is_contiguous(x) else self.new(x.shape, x.dtype, "row-major copy")

    def cast(self, x: Tensor, dtype: str, name: str = "copy") -> Tensor:
        """`x` in another type: a copy, or `x` itself when it has that type."""
        if x.dtype == dtype:
            return x
        is_weight = x.storage.role == "parameters"
        if is_weight:
            name = f"{x.storage.name} as {dtype}"
        role = "weight_casts" if is_weight else "temporaries"
        out = self.new(x.shape, dtype, name, strides=pointwise_strides([x], x.shape), role=role)
        if is_weight:
            out.storage.name = name
        before = x.dtype

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [self.new(grad.shape, before, "cast gradient", strides=grad.strides)]

        out.node = self.node([x], backward)
        return out

    # -- autocast ---------------------------------------------------------------------------------------

    def autocasted(self, op: str, *inputs: Tensor) -> list[Tensor]:
        """The inputs of `op` in the type that autocast chooses; parameters are cast once and cached.

        A transposed weight is no leaf any more, so it is not cached: a new copy for every use.
        """
        policy = self.autocast
        if policy is None:
            return list(inputs)
        if op in policy.lower:
            target = policy.low
        elif op in policy.widen or (op in policy.promote and any(x.dtype == "fp32" for x in inputs)):
            target = "fp32"
        else:
            return list(inputs)
        return [self._autocast_one(x, target) for x in inputs]

    def _autocast_one(self, x: Tensor, target: str) -> Tensor:
        if x.dtype not in ("fp32", "bf16", "fp16"):
            return x
        if not (isinstance(x.node, Leaf) and x.dtype == "fp32" and target != "fp32"):
            return self.cast(x, target)
        key = x.storage.name
        if key not in self.cast_cache:
            self.cast_cache[key] = self.cast(x, target)
        return self.cast_cache[key]

    # -- element by element -----------------------------------------------------------------------------

    def add(self, a: Tensor, b: Tensor, name: str = "sum") -> Tensor:
        """a + b."""
        out = self.pointwise([a, b], name)
        out.node = self.node([a, b], lambda grad, _: [grad.detach(), grad.detach()])
        return out

    def sub(self, a: Tensor, b: Tensor, name: str = "difference") -> Tensor:
        """a - b."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            negative = self.pointwise([grad], "-gradient") if b_needs else None
            return [grad.detach(), negative]

        b_needs = b.node is not None
        out = self.pointwise([a, b], name)
        out.node = self.node([a, b], backward)
        return out

    def scale(self, x: Tensor, name: str = "scaled") -> Tensor:
        """x * constant."""
        out = self.pointwise([x], name)
        out.node = self.node([x], lambda grad, _: [self.pointwise([grad], "gradient * constant")])
        return out

    def shift(self, x: Tensor, name: str = "shifted") -> Tensor:
        """x + constant."""
        out = self.pointwise([x], name)
        out.node = self.node([x], lambda grad, _: [grad])
        return out

    def mul(self, a: Tensor, b: Tensor, name: str = "product") -> Tensor:
        """a * b; each factor is the derivative of the other."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self.pointwise([grad, kept["a"]], "gradient of factor") if b_needs else None
            for_a = self.pointwise([grad, kept["b"]], "gradient of factor") if a_needs else None
            return [for_a, for_b]

        a_needs, b_needs = a.node is not None, b.node is not None
        node = self.node([a, b], backward)
        if b_needs:
            self.keep(node, "a", a, "gradient of the factor it is multiplied with")
        if a_needs:
            self.keep(node, "b", b, "gradient of the factor it is multiplied with")
        out = self.pointwise([a, b], name)
        out.node = node
        return out

    def div(self, a: Tensor, b: Tensor, name: str = "quotient") -> Tensor:
        """a / b, with b a sum over the last axis of a."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self._div_other(grad, kept["a"], kept["b"])
            return [self.pointwise([grad, kept["b"]], "gradient of numerator"), for_b]

        node = self.node([a, b], backward)
        self.keep(node, "a", a, "gradient of the sum it is divided by")
        self.keep(node, "b", b, "gradient of what is divided by it")
        out = self.pointwise([a, b], name)
        out.node = node
        return out

    def _div_other(self, grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
        negative = self.pointwise([grad], "-gradient")
        once = self.pointwise([a, b], "a / b")
        twice = self.pointwise([once, b], "a / b / b")
        return self.pointwise([negative, twice], "-gradient * a / b^2")

    def addcmul(self, a: Tensor, b: Tensor, c: Tensor, name: str = "a + b * c") -> Tensor:
        """a + b * c."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self.pointwise([grad, kept["c"]], "gradient of factor")
            for_c = self.pointwise([grad, kept["b"]], "gradient of factor")
            return [grad, for_b, for_c]

        inputs = self.autocasted("addcmul", a, b, c)
        node = self.node(inputs, backward)
        self.keep(node, "b", inputs[1], "gradient of the norm's weight")
        self.keep(node, "c", inputs[2], "gradient of what the norm's weight scales")
        out = self.pointwise(inputs, name)
        out.node = node
        return out

    def square(self, x: Tensor, name: str = "square") -> Tensor:
        """x^2."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            power = self.pointwise([kept["x"]], "x^1")
            derivative = self.pointwise([power], "2 x")
            return [self.pointwise([grad, derivative], "gradient * 2 x")]

        [wide] = self.autocasted("pow", x)
        node = self.node([wide], backward)
        self.keep(node, "x", wide, "the derivative of the square is 2 x")
        out = self.pointwise([wide], name)
        out.node = node
        return out

    def exp(self, x: Tensor, name: str = "exponentials") -> Tensor:
        """e^x, which is its own derivative."""
        [wide] = self.autocasted("exp", x)
        return self._from_result(wide, name, "exp is its own derivative")

    def rsqrt(self, x: Tensor, name: str) -> Tensor:
        """1 / sqrt(x)."""
        [wide] = self.autocasted("rsqrt", x)
        return self._from_result(wide, name, "the derivative is a power of the result")

    def relu(self, x: Tensor, name: str) -> Tensor:
        """max(x, 0)."""
        return self._from_result(x, name, "tells where the input was negative")

    def _from_result(self, x: Tensor, name: str, reason: str) -> Tensor:
        node = self.node([x], lambda grad, kept: [self.pointwise([grad, kept["result"]], "gradient")])
        out = self.pointwise([x], name)
        self.keep(node, "result", out, reason)
        out.node = node
        return out

    def from_input(self, op: str, x: Tensor, name: str, reason: str) -> Tensor:
        """An element-wise operator whose derivative needs its input: silu, gelu, log."""
        [wide] = self.autocasted(op, x)
        node = self.node([wide], lambda grad, kept: [self.pointwise([grad, kept["x"]], "gradient")])
        self.keep(node, "x", wide, reason)
        out = self.pointwise([wide], name)
        out.node = node
        return out

    def masked_fill(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        """`x` with a constant where the boolean `mask` is set."""
        node = self.node([x], lambda grad, kept: [self.pointwise([grad], "masked gradient")])
        self.keep(node, "mask", mask, "no gradient flows to masked scores")
        out = self.new(x.shape, x.dtype, name, strides=x.strides)
        out.node = node
        return out

    # -- along the last axis ----------------------------------------------------------------------------

    def amax(self, x: Tensor) -> Tensor:
        """Largest entry of each row of a detached tensor."""
        return self.new((*x.shape[:-1], 1), x.dtype, "row maximum")

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each row, the axis kept."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [self.pointwise([expanded(grad, shape)], "gradient / n")]

        shape = x.shape
        out = self.new((*shape[:-1], 1), x.dtype, "mean")
        out.node = self.node([x], backward)
        return out

    def mean_of_all(self, x: Tensor) -> Tensor:
        """Mean of all entries, a scalar."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [self.new(shape, grad.dtype, "gradient / n")]

        shape = x.shape
        out = self.new((), x.dtype, "mean")
        out.node = self.node([x], backward)
        return out

    def sum(self, x: Tensor, *, keep_axis: bool, name: str) -> Tensor:
        """Sum of each row."""
        [wide] = self.autocasted("sum", x)
        shape = x.shape

        def backward(grad: Tensor, _: Kept) -> Gradients:
            if not keep_axis:
                grad = grad.view((*grad.shape, 1), (*grad.strides, 1))
            return [expanded(grad, shape)]

        out = self.new((*shape[:-1], 1) if keep_axis else shape[:-1], wide.dtype, name)
        out.node = self.node([wide], backward)
        return out

    def stack(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Two tensors side by side on a new last axis."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            half = grad.shape[:-1], grad.strides[:-1]
            return [grad.view(*half), grad.view(*half)]

        out = self.new((*a.shape, 2), a.dtype, name)
        out.node = self.node([a, b], backward)
        return out

    def concatenate(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Two tensors one after the other on the last axis."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [grad.view((*grad.shape[:-1], width), grad.strides) for width in widths]

        widths = a.shape[-1], b.shape[-1]
        out = self.new((*a.shape[:-1], sum(widths)), a.dtype, name)
        out.node = self.node([a, b], backward)
        return out

    def index(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """x[rows, columns]: one entry per pair of indices."""
        shape = x.shape
        node = self.node([x], lambda grad, kept: [self.new(shape, grad.dtype, "scattered gradient")])
        self.keep(node, "rows", rows, "where the gradient goes")
        self.keep(node, "columns", columns, "where the gradient goes")
        out = self.new(rows.shape, x.dtype, "chosen")
        out.node = node
        return out

    def embedding(self, ids: Tensor, weight: Tensor, name: str) -> Tensor:
        """A row of `weight` per id; its gradient is dense."""
        shape = weight.shape
        node = self.node([weight], lambda grad, kept: [self.new(shape, grad.dtype, "embedding gradient")])
        self.keep(node, "ids", ids, "which rows receive a gradient")
        out = self.new((*ids.shape, shape[1]), weight.dtype, name)
        out.node = node
        return out


def permuted(x: Tensor, axes: Shape) -> Tensor:
    """Another order of the axes, outside the graph."""
    return x.view(tuple(x.shape[axis] for axis in axes), tuple(x.strides[axis] for axis in axes))


def complex_view(x: Tensor) -> Tensor:
    """Two neighbours on the last axis seen as one complex number."""
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    return x.view(shape, (*(stride // 2 for stride in x.strides[:-1]), 1), "complex64")


def real_view(x: Tensor) -> Tensor:
    """A complex number seen as two neighbours on the last axis."""
    shape = (*x.shape[:-1], x.shape[-1] * 2)
    return x.view(shape, (*(stride * 2 for stride in x.strides[:-1]), 1), "fp32")


def expanded(x: Tensor, shape: Shape) -> Tensor:
    """`x` repeated to `shape` without a copy, outside the graph."""
    strides = tuple(0 if n != m else s for n, m, s in zip(x.shape, shape, x.strides, strict=True))
    return x.view(shape, strides)
