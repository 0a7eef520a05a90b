"""The autograd graph of a replay: what each operator keeps, and what a backward pass holds at any moment.

It follows PyTorch's engine: nodes run from the newest to the oldest, a node frees what it kept once it has run,
a gradient with several contributions is summed where the first one lies if nobody else uses that.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cs_systems.estimator.tensors import (
    ITEM_BYTES,
    Memory,
    Shape,
    Storage,
    Tensor,
    contiguous,
    is_dense,
    pointwise_strides,
    view_strides,
)

Kept = dict[str, Tensor]
"""The tensors a node kept for its backward, by the name its formula uses."""

Backward = Callable[[Tensor, Kept], list[Tensor | None]]
"""From the gradient of a result to one gradient per input, None where none is needed."""


class Leaf:
    """A parameter: the end of the graph, where the gradient is stored."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gradient: Tensor | None = None


class Node:
    """One operator in the graph: what it kept, and how gradients pass through it."""

    def __init__(self, number: int, scope: str, inputs: Sequence[Tensor], backward: Backward) -> None:
        self.number, self.scope, self.backward = number, scope, backward
        self.edges: list[Node | Leaf | None] = [tensor.node for tensor in inputs]
        self.input_shapes = [(tensor.shape, tensor.dtype) for tensor in inputs]
        self.kept: Kept = {}
        self.reasons: dict[str, str] = {}
        self.checkpoint: Checkpoint | None = None
        self.places: dict[str, int] = {}

    def unpack(self) -> Kept:
        """The tensors that were kept; inside a checkpoint they are recomputed at the first call."""
        if self.checkpoint is None:
            return self.kept
        return {name: self.checkpoint.take(place) for name, place in self.places.items()}


class StopRecomputation(Exception):  # noqa: N818  (a signal, not an error)
    """Everything that the checkpointed blocks had kept is there again."""


class Checkpoint:
    """Blocks whose kept tensors were dropped; `recompute` runs their forward pass again."""

    def __init__(self, inputs: Kept, recompute: Callable[["Checkpoint"], None]) -> None:
        self.inputs, self.recompute = inputs, recompute
        self.num_kept = 0
        self.recomputed: dict[int, Tensor] | None = None

    def take(self, place: int) -> Tensor:
        """Hand over the tensor kept at `place`, recomputing the blocks when none is there yet."""
        if self.recomputed is None:
            self.recompute(self)
        assert self.recomputed is not None
        return self.recomputed.pop(place)


@dataclass(frozen=True)
class Autocast:
    """Which operators cast their inputs. A cast parameter is kept for the whole forward pass, once."""

    low: str
    """Type of the operators in `lower`: bf16 or fp16."""
    lower: frozenset[str]
    """Operators that run in the low type."""
    widen: frozenset[str]
    """Operators that run in fp32."""
    promote: frozenset[str]
    """Operators that cast all inputs to the widest type among them."""


class Tape:
    """Allocates, records and runs backward. The operators are in `operators.Operators`, a subclass."""

    def __init__(self, memory: Memory, *, autocast: Autocast | None, grad: bool) -> None:
        self.memory, self.autocast, self.grad = memory, autocast, grad
        self.scope = ""
        self.checkpoint: Checkpoint | None = None
        self.is_recomputing = False
        self.cast_cache: dict[str, Tensor] = {}
        self._numbers = itertools.count()

    # -- allocation -------------------------------------------------------------------------------------

    def new(
        self, shape: Shape, dtype: str, name: str, *, strides: Shape | None = None, role: str = "temporaries"
    ) -> Tensor:
        """A tensor on memory of its own, row-major unless `strides` says otherwise."""
        num_values = 1
        for size in shape:
            num_values *= size
        storage = Storage(self.memory, num_values * ITEM_BYTES[dtype], role, self._path(name))
        return Tensor(storage, shape, contiguous(shape) if strides is None else strides, dtype)

    def pointwise(self, inputs: Sequence[Tensor], name: str, dtype: str | None = None) -> Tensor:
        """The result of an element-wise operation on `inputs`, outside the graph."""
        shape = broadcast_shapes(inputs)
        dtype = dtype or promoted(inputs)
        return self.new(shape, dtype, name, strides=pointwise_strides(inputs, shape))

    def reshaped(self, x: Tensor, shape: Shape) -> Tensor:
        """`x` with another shape, outside the graph: a view where the strides allow it, otherwise a copy."""
        strides = view_strides(x.shape, x.strides, shape)
        if strides is not None:
            return x.view(shape, strides)
        return self.new(shape, x.dtype, f"copy of {x.storage.name.rpartition('.')[2]}")

    def _path(self, name: str) -> str:
        return f"{self.scope}.{name}" if self.scope else name

    # -- recording --------------------------------------------------------------------------------------

    def node(self, inputs: Sequence[Tensor], backward: Backward) -> Node | None:
        """A node for an operator on `inputs`; None when no gradient can flow through it."""
        if self.grad and any(tensor.node is not None for tensor in inputs):
            return Node(next(self._numbers), self.scope, inputs, backward)
        return None

    def keep(self, node: Node | None, name: str, tensor: Tensor, reason: str) -> None:
        """Let `node` keep `tensor` for backward; `reason` says to a reader what for."""
        if node is None:
            return
        checkpoint = self.checkpoint
        if checkpoint is None:
            node.kept[name] = tensor.detach()
            node.reasons[name] = reason
            count_save(tensor.storage, +1)
        elif self.is_recomputing:
            assert checkpoint.recomputed is not None
            place = len(checkpoint.recomputed)
            checkpoint.recomputed[place] = tensor.detach()
            if place + 1 == checkpoint.num_kept:
                raise StopRecomputation
        else:
            node.checkpoint = checkpoint
            node.places[name] = checkpoint.num_kept
            checkpoint.num_kept += 1

    # -- backward ---------------------------------------------------------------------------------------

    def backward(self, result: Tensor, on_node: Callable[[Node], None]) -> None:
        """Run backward from the scalar `result`; `on_node` hears of every node before it runs."""
        root = result.node
        assert isinstance(root, Node)
        waiting = count_edges(root)
        gradients: dict[Node | Leaf, Tensor] = {root: self.new(result.shape, result.dtype, "gradient of loss")}
        ready = [(-root.number, root)]
        while ready:
            node = heapq.heappop(ready)[1]
            on_node(node)
            outputs = self._run(node, gradients.pop(node))
            for edge in node.edges:
                output = outputs.pop(0)
                if edge is None or output is None:
                    continue
                self._accumulate(gradients, edge, output)
                del output
                waiting[edge] -= 1
                if waiting[edge]:
                    continue
                if isinstance(edge, Leaf):
                    store_gradient(self, edge, gradients.pop(edge))
                else:
                    heapq.heappush(ready, (-edge.number, edge))

    def _run(self, node: Node, gradient: Tensor) -> list[Tensor | None]:
        """The gradients of the inputs in their shapes and types; then the node forgets what it kept."""
        kept = node.unpack()
        outputs = node.backward(gradient, kept)
        for index, (shape, dtype) in enumerate(node.input_shapes):
            output = outputs[index]
            if output is None:
                continue
            if output.shape != shape:  # the input was broadcast: sum over the copies
                output = outputs[index] = self.new(shape, output.dtype, "sum over broadcast axes")
            if output.dtype != dtype:
                outputs[index] = self.new(shape, dtype, "cast gradient", strides=output.strides)
        for tensor in node.kept.values():
            count_save(tensor.storage, -1)
        node.kept, node.checkpoint, node.backward = {}, None, already_run
        return outputs

    def _accumulate(self, gradients: dict[Node | Leaf, Tensor], edge: Node | Leaf, output: Tensor) -> None:
        before = gradients.pop(edge, None)
        if before is None:
            gradients[edge] = output
        elif before.storage.num_tensors == 1 and not before.is_view and is_dense(before):
            gradients[edge] = before
        else:
            gradients[edge] = self.pointwise([before, output], "sum of gradients")


def already_run(gradient: Tensor, kept: Kept) -> list[Tensor | None]:
    """Stands in for the formula of a node that has run, so that what it refers to can be freed."""
    raise AssertionError("a node runs once")


def store_gradient(tape: Tape, leaf: Leaf, gradient: Tensor) -> None:
    """Make `gradient` the .grad of a parameter: taken over if its layout is the parameter's, else copied."""
    assert leaf.gradient is None
    if gradient.strides != contiguous(gradient.shape):
        gradient = tape.new(gradient.shape, gradient.dtype, "gradient")
    gradient.storage.set_role("gradients")
    leaf.gradient = gradient


def count_save(storage: Storage, change: int) -> None:
    """Follow how many nodes keep a storage, and count its bytes as saved while there is one."""
    storage.num_saves += change
    if storage.role in ("temporaries", "saved_activations"):
        storage.set_role("saved_activations" if storage.num_saves else "temporaries")


def count_edges(root: Node) -> dict[Node | Leaf, int]:
    """Number of gradients that every node and leaf below `root` will receive."""
    counts: dict[Node | Leaf, int] = {}
    for node in nodes_below(root):
        for edge in node.edges:
            if edge is not None:
                counts[edge] = counts.get(edge, 0) + 1
    return counts


def nodes_below(root: Node) -> Iterator[Node]:
    """Every node from which `root` was computed, itself included."""
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        yield node
        for edge in node.edges:
            if isinstance(edge, Node) and edge not in seen:
                seen.add(edge)
                stack.append(edge)


def broadcast_shapes(inputs: Sequence[Tensor]) -> Shape:
    """The common shape of `inputs`."""
    shapes = [tensor.shape for tensor in inputs]
    num_dims = max(map(len, shapes))
    padded = [(1,) * (num_dims - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def promoted(inputs: Sequence[Tensor]) -> str:
    if any(tensor.dtype == "complex64" for tensor in inputs):
        return "complex64"
    """Type of an element-wise result: fp32 beside another floating type, any floating type beside whole numbers."""
    floating = {tensor.dtype for tensor in inputs} & {"fp32", "bf16", "fp16"}
    if not floating:
        return inputs[0].dtype
    return floating.pop() if len(floating) == 1 else "fp32"
