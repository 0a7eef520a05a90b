"""Tensors without data: shape, strides, type and a counted storage, as PyTorch keeps them.

Which bytes are alive depends on which tensors share a storage, and whether `reshape` copies depends on the
strides; so both are followed, and the values are not.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "complex64": 8, "int64": 8, "bool": 1}
"""Bytes of one value by the name of its type."""

Shape = tuple[int, ...]


class Memory:
    """Bytes of the storages that are alive, by role, with the highest point of every phase."""

    def __init__(self) -> None:
        self.live_bytes: dict[str, int] = {}
        self.total_bytes = 0
        self.highest: dict[str, tuple[int, dict[str, int]]] = {}
        self.enter("setup")

    def enter(self, phase: str) -> None:
        """Start the phase of this name, or continue it."""
        self.phase = phase
        if self.total_bytes >= self.highest.get(phase, (0, {}))[0]:
            self.highest[phase] = self.total_bytes, dict(self.live_bytes)

    def change(self, role: str, num_bytes: int) -> None:
        """Add `num_bytes` to `role` (negative: freed), and keep the highest point of this phase."""
        self.live_bytes[role] = self.live_bytes.get(role, 0) + num_bytes
        self.total_bytes += num_bytes
        if num_bytes > 0 and self.total_bytes > self.highest[self.phase][0]:
            self.highest[self.phase] = self.total_bytes, dict(self.live_bytes)


class Storage:
    """A piece of memory that one or more tensors share; freed with the last of them."""

    __slots__ = ("memory", "name", "num_bytes", "num_kept", "num_tensors", "role")

    def __init__(self, memory: Memory, num_bytes: int, role: str, name: str) -> None:
        self.memory, self.num_bytes, self.role, self.name = memory, num_bytes, role, name
        self.num_tensors = self.num_kept = 0
        memory.change(role, num_bytes)

    def set_role(self, role: str) -> None:
        """Count the bytes under another role from now on."""
        if role != self.role:
            self.memory.change(self.role, -self.num_bytes)
            self.role = role
            self.memory.change(role, self.num_bytes)

    def count_kept(self, change: int) -> None:
        """Follow how many nodes of the graph keep this storage; while one does, it is a saved activation."""
        self.num_kept += change
        if self.role in ("temporaries", "saved_activations"):
            self.set_role("saved_activations" if self.num_kept else "temporaries")


class Tensor:
    """A view of a storage. `node` is what made it in the graph; None when no gradient flows through it."""

    __slots__ = ("dtype", "is_view", "node", "shape", "storage", "strides")

    def __init__(self, storage: Storage, shape: Shape, strides: Shape, dtype: str) -> None:
        self.storage, self.shape, self.strides, self.dtype = storage, shape, strides, dtype
        self.node: Any = None  # a Node or a Leaf of tape.py, which imports this module
        self.is_view = False
        storage.num_tensors += 1

    def __del__(self) -> None:
        # CPython frees an object with its last reference, in this replay as in the program that it follows.
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


def row_major(shape: Shape) -> Shape:
    """Strides of a contiguous tensor."""
    if not shape:
        return ()
    sizes = (max(size, 1) for size in reversed(shape[1:]))
    return tuple(itertools.accumulate(sizes, lambda stride, size: stride * size, initial=1))[::-1]


def is_contiguous(tensor: Tensor) -> bool:
    """Whether the tensor is row-major; the stride of an axis of length 1 does not matter."""
    wanted = row_major(tensor.shape)
    return all(n == 1 or s == w for n, s, w in zip(tensor.shape, tensor.strides, wanted, strict=True))


def is_dense(tensor: Tensor) -> bool:
    """Whether the values fill their memory without gaps or overlaps, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def view_strides(shape: Shape, strides: Shape, new_shape: Shape) -> Shape | None:
    """Strides with which `new_shape` views the same memory; None when it has to be copied.

    Old axes that lie evenly spaced form one chunk, and the new axes must fill the chunks exactly
    (ATen/TensorUtils.cpp, computeStride).
    """
    if math.prod(shape) == 0:
        return row_major(new_shape)
    result = [0] * len(new_shape)
    new_dim = len(new_shape) - 1
    chunk_stride, chunk_size, filled = strides[-1], 1, 1
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


def broadcast_shape(tensors: Sequence[Tensor]) -> Shape:
    """The common shape of the inputs of an element-wise operation."""
    num_dims = max(len(tensor.shape) for tensor in tensors)
    padded = [(1,) * (num_dims - len(tensor.shape)) + tensor.shape for tensor in tensors]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def promoted_type(tensors: Sequence[Tensor]) -> str:
    """Type of an element-wise result: the widest, where any floating type is wider than whole numbers."""
    types = {tensor.dtype for tensor in tensors}
    if "complex64" in types:
        return "complex64"
    floating = types & {"fp32", "bf16", "fp16"}
    if not floating:
        return tensors[0].dtype
    return floating.pop() if len(floating) == 1 else "fp32"


def pointwise_strides(tensors: Sequence[Tensor], shape: Shape) -> Shape:
    """Strides of an element-wise result: the memory order of the inputs, the first input deciding first.

    An insertion sort of the axes by stride, in which broadcast axes decide nothing
    (ATen/TensorIterator.cpp, reorder_dimensions).
    """
    contiguous = row_major(shape)
    if all(tensor.shape == shape and tensor.strides == contiguous for tensor in tensors):
        return contiguous
    aligned = [_aligned_strides(tensor, shape) for tensor in tensors]
    order = list(range(len(shape) - 1, -1, -1))  # the fastest axis first
    for start in range(1, len(order)):
        place = start
        for before in range(start - 1, -1, -1):
            comparison = _compare_axes(order[before], order[place], aligned, shape)
            if comparison > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif comparison < 0:
                break
    result, stride = [0] * len(shape), 1
    for dim in order:
        result[dim] = stride
        stride *= shape[dim]
    return tuple(result)


def _aligned_strides(tensor: Tensor, shape: Shape) -> Shape:
    """The strides of `tensor` broadcast to `shape`."""
    missing = len(shape) - len(tensor.shape)
    sizes, strides = (1,) * missing + tensor.shape, (0,) * missing + tensor.strides
    return tuple(0 if n == 1 != m else s for n, m, s in zip(sizes, shape, strides, strict=True))


def _compare_axes(a: int, b: int, aligned: Sequence[Shape], shape: Shape) -> int:
    """1 when axis `a` is slower than axis `b`, -1 when it is faster, 0 when the inputs do not tell."""
    for strides in aligned:
        if strides[a] == 0 or strides[b] == 0:
            continue
        if strides[a] != strides[b]:
            return 1 if strides[a] > strides[b] else -1
        if shape[a] > shape[b]:
            return 1
    return 0
