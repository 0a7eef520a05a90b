"""Operators that move no numbers, and casts, where autocast acts."""

from cs_systems.estimator.tape import Backward, Kept, Leaf, Tape
from cs_systems.estimator.tensors import Shape, Tensor, is_contiguous, pointwise_strides

Gradients = list[Tensor | None]


class Views(Tape):
    """A tape with views, copies and casts."""

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

    def narrow(self, x: Tensor, size: int) -> Tensor:
        """`size` neighbouring entries of the last axis; its backward fills a whole tensor."""
        if size == x.shape[-1]:
            return self._view(x, x.view(x.shape, x.strides), lambda grad, _: [grad])
        before = x.shape
        return self._view(
            x, x.view((*before[:-1], size), x.strides), lambda grad, _: [self.new(before, grad.dtype, "padded")]
        )

    def as_complex(self, x: Tensor) -> Tensor:
        """Pairs of neighbours on the last axis as complex numbers."""
        return self._view(x, complex_view(x), lambda grad, _: [real_view(self._contiguous(grad))])

    def as_real(self, x: Tensor) -> Tensor:
        """Complex numbers as pairs of neighbours on the last axis."""
        return self._view(x, real_view(x), lambda grad, _: [complex_view(self._contiguous(grad))])

    def clone(self, x: Tensor, name: str) -> Tensor:
        """A row-major copy."""
        return self._view(x, self.new(x.shape, x.dtype, name), lambda grad, _: [grad])

    def cast(self, x: Tensor, dtype: str, name: str) -> Tensor:
        """`x` in another type: a copy, or `x` itself when it has that type."""
        if x.dtype == dtype:
            return x
        before, strides = x.dtype, pointwise_strides([x], x.shape)
        if x.storage.role == "parameters":
            out = self.new(x.shape, dtype, name, strides=strides, role="weight_casts")
            out.storage.name = f"{x.storage.name} as {dtype}"
        else:
            out = self.new(x.shape, dtype, name, strides=strides)

        def backward(grad: Tensor, _: Kept) -> Gradients:
            return [self.new(grad.shape, before, "gradient", strides=grad.strides)]

        return self._view(x, out, backward)

    def autocasted(self, op: str, *inputs: Tensor) -> list[Tensor]:
        """The inputs of `op` in the type that autocast gives them."""
        rules = self.autocast
        if rules is None:
            return list(inputs)
        if op in rules.lower:
            return [self._autocast(x, rules.low) for x in inputs]
        if op in rules.widen or (op in rules.promote and any(x.dtype == "fp32" for x in inputs)):
            return [self._autocast(x, "fp32") for x in inputs]
        return list(inputs)

    def _autocast(self, x: Tensor, dtype: str) -> Tensor:
        """Cast a tensor for one consumer, a parameter once for the whole forward pass.

        Only a parameter itself is cached: a transposed weight is a view, cast anew for every use.
        """
        name = f"{x.storage.name.rpartition('.')[2]} as {dtype}"
        if not (isinstance(x.node, Leaf) and x.dtype == "fp32"):
            return self.cast(x, dtype, name)
        if x.storage.name not in self.cast_cache:
            self.cast_cache[x.storage.name] = self.cast(x, dtype, name)
        return self.cast_cache[x.storage.name]

    def _view(self, x: Tensor, out: Tensor, backward: Backward) -> Tensor:
        if out is not x:
            out.node = self.node([x], backward)
        return out

    def _contiguous(self, x: Tensor) -> Tensor:
        return x if is_contiguous(x) else self.new(x.shape, x.dtype, "row-major copy")


def permuted(x: Tensor, axes: Shape) -> Tensor:
    """Another order of the axes, outside the graph."""
    return x.view(tuple(x.shape[axis] for axis in axes), tuple(x.strides[axis] for axis in axes))


def expanded(x: Tensor, shape: Shape) -> Tensor:
    """`x` repeated to `shape` without a copy, outside the graph."""
    strides = tuple(0 if n != m else s for n, m, s in zip(x.shape, shape, x.strides, strict=True))
    return x.view(shape, strides)


def complex_view(x: Tensor) -> Tensor:
    """Two neighbours on the last axis seen as one complex number."""
    strides = (*(stride // 2 for stride in x.strides[:-1]), 1)
    return x.view((*x.shape[:-1], x.shape[-1] // 2), strides, "complex64")


def real_view(x: Tensor) -> Tensor:
    """A complex number seen as two neighbours on the last axis."""
    strides = (*(stride * 2 for stride in x.strides[:-1]), 1)
    return x.view((*x.shape[:-1], x.shape[-1] * 2), strides, "fp32")
