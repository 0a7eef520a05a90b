"""Element-wise operators and reductions: what each allocates, keeps for backward, and needs in backward.

Names and formulas are those of PyTorch's derivatives.yaml. The locals of a backward function live until it
returns, as C++ temporaries do. Constant factors and summands are left out: they are not tensors.
"""

from cs_systems.estimator.tape import Kept
from cs_systems.estimator.tensors import Tensor
from cs_systems.estimator.views import Gradients, Views, expanded

FOR_FACTOR = "the gradient of the factor it is multiplied with"


class Operators(Views):
    """Views with arithmetic; `name` labels a result that a reader of the ledger may see."""

    def add(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """a + b: the gradient passes to both."""
        out = self.pointwise([a, b], name)
        out.node = self.node([a, b], lambda grad, _: [grad.detach(), grad.detach()])
        return out

    def sub(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """a - b."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [grad.detach(), self.pointwise([grad], "-gradient") if b_needs else None]

        b_needs = b.node is not None
        out = self.pointwise([a, b], name)
        out.node = self.node([a, b], backward)
        return out

    def scale(self, x: Tensor, name: str) -> Tensor:
        """x times a constant."""
        out = self.pointwise([x], name)
        out.node = self.node([x], lambda grad, _: [self.pointwise([grad], "gradient")])
        return out

    def shift(self, x: Tensor, name: str) -> Tensor:
        """x plus a constant."""
        out = self.pointwise([x], name)
        out.node = self.node([x], lambda grad, _: [grad])
        return out

    def mul(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """a * b: each factor is kept for the gradient of the other."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self.pointwise([grad, kept["a"]], "gradient") if "a" in kept else None
            for_a = self.pointwise([grad, kept["b"]], "gradient") if "b" in kept else None
            return [for_a, for_b]

        node = self.node([a, b], backward)
        if b.node is not None:
            self.keep(node, "a", a, FOR_FACTOR)
        if a.node is not None:
            self.keep(node, "b", b, FOR_FACTOR)
        out = self.pointwise([a, b], name)
        out.node = node
        return out

    def div(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """a / b."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self._gradient_of_divisor(grad, kept["a"], kept["b"])
            return [self.pointwise([grad, kept["b"]], "gradient"), for_b]

        node = self.node([a, b], backward)
        self.keep(node, "a", a, "the gradient of the sum that divides it")
        self.keep(node, "b", b, "the gradient of what it divides")
        out = self.pointwise([a, b], name)
        out.node = node
        return out

    def _gradient_of_divisor(self, grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
        negative = self.pointwise([grad], "-gradient")
        once = self.pointwise([a, b], "a / b")
        twice = self.pointwise([once, b], "a / b / b")
        return self.pointwise([negative, twice], "-gradient * a / b^2")

    def addcmul(self, a: Tensor, b: Tensor, c: Tensor, name: str) -> Tensor:
        """a + b * c."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            for_b = self.pointwise([grad, kept["c"]], "gradient")
            for_c = self.pointwise([grad, kept["b"]], "gradient")
            return [grad, for_b, for_c]

        inputs = self.autocasted("addcmul", a, b, c)
        node = self.node(inputs, backward)
        self.keep(node, "b", inputs[1], FOR_FACTOR)
        self.keep(node, "c", inputs[2], FOR_FACTOR)
        out = self.pointwise(inputs, name)
        out.node = node
        return out

    def square(self, x: Tensor, name: str) -> Tensor:
        """x^2."""

        def backward(grad: Tensor, kept: Kept) -> Gradients:
            power = self.pointwise([kept["x"]], "x^1")
            derivative = self.pointwise([power], "2 x")
            return [self.pointwise([grad, derivative], "gradient * 2 x")]

        [wide] = self.autocasted("pow", x)
        node = self.node([wide], backward)
        self.keep(node, "x", wide, "the derivative of its square")
        out = self.pointwise([wide], name)
        out.node = node
        return out

    def from_input(self, op: str, x: Tensor, name: str) -> Tensor:
        """An element-wise operator whose derivative needs its input: silu, gelu, log."""
        [wide] = self.autocasted(op, x)
        node = self.node([wide], lambda grad, kept: [self.pointwise([grad, kept["x"]], "gradient")])
        self.keep(node, "x", wide, f"the derivative of {op}")
        out = self.pointwise([wide], name)
        out.node = node
        return out

    def from_result(self, op: str, x: Tensor, name: str) -> Tensor:
        """An element-wise operator whose derivative needs its result: exp, rsqrt, relu."""
        [wide] = self.autocasted(op, x)
        node = self.node([wide], lambda grad, kept: [self.pointwise([grad, kept["result"]], "gradient")])
        out = self.pointwise([wide], name)
        self.keep(node, "result", out, f"the derivative of {op} comes from its result")
        out.node = node
        return out

    def masked_fill(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        """`x` with a constant where the boolean `mask` is set."""
        node = self.node([x], lambda grad, kept: [self.pointwise([grad], "masked gradient")])
        self.keep(node, "mask", mask, "no gradient flows to masked entries")
        out = self.new(x.shape, x.dtype, name, strides=x.strides)
        out.node = node
        return out

    def amax(self, x: Tensor) -> Tensor:
        """Largest entry of each row of the detached `x`."""
        return self.new((*x.shape[:-1], 1), x.dtype, "row maximum")

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each row, the axis kept."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [self.pointwise([expanded(grad, shape)], "gradient / n")]

        shape = x.shape
        out = self.new((*shape[:-1], 1), x.dtype, "mean")
        out.node = self.node([x], backward)
        return out

    def mean_of_all(self, x: Tensor, name: str) -> Tensor:
        """Mean of all entries, a scalar."""
        shape = x.shape
        out = self.new((), x.dtype, name)
        out.node = self.node([x], lambda grad, _: [self.new(shape, grad.dtype, "gradient / n")])
        return out

    def sum(self, x: Tensor, *, keep_axis: bool, name: str) -> Tensor:
        """Sum of each row."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [expanded(grad.view((*rows, 1), (*grad.strides[: len(rows)], 1)), shape)]

        [wide] = self.autocasted("sum", x)
        shape, rows = x.shape, x.shape[:-1]
        out = self.new((*rows, 1) if keep_axis else rows, wide.dtype, name)
        out.node = self.node([wide], backward)
        return out

    def concatenate(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Two tensors one after the other on the last axis."""

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [grad.view((*grad.shape[:-1], width), grad.strides) for width in widths]

        widths = a.shape[-1], b.shape[-1]
        out = self.new((*a.shape[:-1], widths[0] + widths[1]), a.dtype, name)
        out.node = self.node([a, b], backward)
        return out

    def index(self, x: Tensor, rows: Tensor, columns: Tensor, name: str) -> Tensor:
        """x[rows, columns]: one entry per pair of indices; only the indices are kept."""
        shape = x.shape
        node = self.node([x], lambda grad, kept: [self.new(shape, grad.dtype, "scattered gradient")])
        self.keep(node, "rows", rows, "where the gradient goes")
        self.keep(node, "columns", columns, "where the gradient goes")
        out = self.new(rows.shape, x.dtype, name)
        out.node = node
        return out

    def embedding(self, ids: Tensor, weight: Tensor, name: str) -> Tensor:
        """A row of `weight` per id; the gradient is as large as `weight`."""
        shape = weight.shape
        node = self.node([weight], lambda grad, kept: [self.new(shape, grad.dtype, "gradient")])
        self.keep(node, "ids", ids, "the rows that receive a gradient")
        out = self.new((*ids.shape, shape[1]), weight.dtype, name)
        out.node = node
        return out
