"""Tensors without data: shape, strides, dtype and a counted storage, as PyTorch keeps them.

Which bytes are alive depends on which tensors share a storage, and whether `reshape` copies depends on
strides; so both are followed, and nothing else is.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "complex64": 8, "int64": 8, "bool": 1}
"""Bytes of one value by the name of its type."""

Shape = tuple[int, ...]


class Memory:
    """Bytes of the storages that are alive, by role, with the highest point of every phase."""

    def __init__(self) -> None:
        self.live_bytes: dict[str, int] = {}
        self.total_bytes = 0
        self.phase = "setup"
        self.highest: dict[str, tuple[int, dict[str, int]]] = {self.phase: (0, {})}

    def change(self, role: str, num_bytes: int) -> None:
        """Add `num_bytes` (negative: free them) to `role`, and keep the highest point of this phase."""
        self.live_bytes[role] = self.live_bytes.get(role, 0) + num_bytes
        self.total_bytes += num_bytes
        if num_bytes > 0 and self.total_bytes > self.highest[self.phase][0]:
            self.highest[self.phase] = self.total_bytes, dict(self.live_bytes)

    def enter(self, phase: str) -> None:
        """Start or continue the phase of this name."""
        self.phase = phase
        if self.total_bytes >= self.highest.get(phase, (-1, {}))[0]:
            self.highest[phase] = self.total_bytes, dict(self.live_bytes)


class Storage:
    """A piece of memory that one or more tensors share; freed with the last of them."""

    __slots__ = ("memory", "name", "num_bytes", "num_saves", "num_tensors", "role")

    def __init__(self, memory: Memory, num_bytes: int, role: str, name: str) -> None:
        self.memory, self.num_bytes, self.role, self.name = memory, num_bytes, role, name
        self.num_tensors = self.num_saves = 0
        memory.change(role, num_bytes)

    def set_role(self, role: str) -> None:
        """Count the bytes under another role from now on."""
        if role != self.role:
            self.memory.change(self.role, -self.num_bytes)
            self.role = role
            self.memory.change(role, self.num_bytes)


class Tensor:
    """A view of a storage. `node` is what made it in the graph: None when no gradient flows through it."""

    __slots__ = ("dtype", "is_view", "node", "shape", "storage", "strides")

    def __init__(self, storage: Storage, shape: Shape, strides: Shape, dtype: str) -> None:
        self.storage, self.shape, self.strides, self.dtype = storage, shape, strides, dtype
        self.node = None
        self.is_view = False
        storage.num_tensors += 1

    def __del__(self) -> None:
        # CPython frees an object with its last reference, in this replay as in the program it follows.
        self.storage.num_tensors -= 1
        if not self.storage.num_tensors:
            self.storage.memory.change(self.storage.role, -self.storage.num_bytes)

    def view(self, shape: Shape, strides: Shape, dtype: str | None = None) -> "Tensor":
        """Another tensor on the same storage, outside the graph."""
        other = Tensor(self.storage, shape, strides, dtype or self.dtype)
        other.is_view = True
        return other

    def detach(self) -> "Tensor":
        """The same tensor outside the graph."""
        other = Tensor(self.storage, self.shape, self.strides, self.dtype)
        other.is_view = self.is_view
        return other


def contiguous(shape: Sequence[int]) -> Shape:
    """Strides of a row-major tensor."""
    return tuple(itertools.accumulate(reversed(shape[1:]), lambda stride, n: stride * max(n, 1), initial=1))[::-1]


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """The common shape of an element-wise operation."""
    shapes = list(shapes)
    num_dims = max(map(len, shapes))
    padded = [(1,) * (num_dims - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def view_strides(shape: Shape, strides: Shape, new_shape: Shape) -> Shape | None:
    """Strides with which `new_shape` views the same memory; None when it must be copied.

    Axes of the old shape that lie evenly spaced form one chunk, and the new axes must fill the chunks exactly
    (ATen computeStride).
    """
    if math.prod(shape) == 0:
        return contiguous(new_shape)
    result = [0] * len(new_shape)
    new_dim = len(new_shape) - 1
    chunk_stride, chunk_size, filled = strides[-1] if strides else 1, 1, 1
    for dim in range(len(shape) - 1, -1, -1):
        chunk_size *= shape[dim]
        if dim and (shape[dim - 1] == 1 or strides[dim - 1] == chunk_size * chunk_stride):
            continue
        while new_dim >= 0 and (filled < chunk_size or new_shape[new_dim] == 1):
            result[new_dim] = filled * chunk_stride
            filled *= new_shape[new_dim]
            new_dim -= 1
        if filled != chunk_size:
            return None
        if dim:
            chunk_stride, chunk_size, filled = strides[dim - 1], 1, 1
    return tuple(result) if new_dim == -1 else None


def pointwise_strides(tensors: Sequence[Tensor], shape: Shape) -> Shape:
    """Strides of an element-wise result: the memory order of the inputs, first input first.

    ATen TensorIterator::reorder_dimensions: an insertion sort of the axes by stride in which broadcast axes
    decide nothing.
    """
    if all(tensor.shape == shape and tensor.strides == contiguous(shape) for tensor in tensors):
        return contiguous(shape)
    num_dims = len(shape)
    padded = []
    for tensor in tensors:
        missing = num_dims - len(tensor.shape)
        sizes, strides = (1,) * missing + tensor.shape, (0,) * missing + tensor.strides
        padded.append([0 if n == 1 != m else s for n, m, s in zip(sizes, shape, strides, strict=True)])

    def comes_after(a: int, b: int) -> int:
        for strides in padded:
            if strides[a] == 0 or strides[b] == 0:
                continue
            if strides[a] != strides[b]:
                return 1 if strides[a] > strides[b] else -1
            if shape[a] > shape[b]:
                return 1
        return 0

    order = list(range(num_dims - 1, -1, -1))  # fastest axis first
    for start in range(1, num_dims):
        place = start
        for before in range(start - 1, -1, -1):
            comparison = comes_after(order[before], order[place])
            if comparison > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif comparison < 0:
                break
    result, stride = [0] * num_dims, 1
    for dim in order:
        result[dim] = stride
        stride *= shape[dim]
    return tuple(result)


def is_dense(tensor: Tensor) -> bool:
    """Whether the values fill their memory without gaps or overlaps, in any order of the axes."""
    axes = sorted((s, n) for s, n in zip(tensor.strides, tensor.shape, strict=True) if n != 1)
    stride = 1
    for axis_stride, size in axes:
        if axis_stride != stride:
            return False
        stride *= size
    return True


def is_contiguous(tensor: Tensor) -> bool:
    """Whether the tensor is row-major; the stride of an axis of length 1 does not matter."""
    wanted = contiguous(tensor.shape)
    return all(n == 1 or s == w for n, s, w in zip(tensor.shape, tensor.strides, wanted, strict=True))
