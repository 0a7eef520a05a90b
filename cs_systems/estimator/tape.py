"""The autograd graph of a replay: what each operator keeps, and what a backward pass holds at any moment.

It follows PyTorch's engine. Nodes run from the newest to the oldest; a node drops what it kept once it has run;
a second gradient for the same tensor is added where the first one lies if nothing else uses that memory.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from cs_systems.estimator.autocast import Autocast
from cs_systems.estimator.tensors import (
    ITEM_BYTES,
    Memory,
    Shape,
    Storage,
    Tensor,
    broadcast_shape,
    is_dense,
    pointwise_strides,
    promoted_type,
    row_major,
    view_strides,
)

Kept = dict[str, Tensor]
"""The tensors a node kept for its backward, by the name its formula uses."""

Backward = Callable[[Tensor, Kept], list[Tensor | None]]
"""From the gradient of a result to one gradient per input, None where none is needed."""


class Leaf:
    """A parameter: an end of the graph, where a gradient is stored."""

    gradient: Tensor | None = None


class Node:
    """One operator in the graph: what it kept, and how a gradient passes through it."""

    def __init__(self, number: int, scope: str, inputs: Sequence[Tensor], backward: Backward) -> None:
        self.number, self.scope, self.backward = number, scope, backward
        self.edges: list[Node | Leaf | None] = [tensor.node for tensor in inputs]
        self.inputs = [(tensor.shape, tensor.dtype) for tensor in inputs]
        self.kept: Kept = {}
        self.reasons: dict[str, str] = {}
        self.checkpoint: Checkpoint | None = None
        self.places: dict[str, int] = {}

    def unpack(self) -> Kept:
        """What was kept; inside a checkpoint the first call computes it again."""
        if self.checkpoint is None:
            return self.kept
        return {name: self.checkpoint.take(place) for name, place in self.places.items()}

    def forget(self) -> None:
        """Drop what was kept, as a node does when it has run."""
        for tensor in self.kept.values():
            tensor.storage.count_kept(-1)
        self.kept, self.checkpoint, self.backward = {}, None, _has_run


class StopRecomputation(Exception):
    """All that the nodes of a checkpoint had kept is there again."""


class Checkpoint:
    """Blocks whose nodes keep nothing; `recompute` runs their forward pass again from `inputs`."""

    def __init__(self, inputs: Kept, recompute: Callable[["Checkpoint"], None]) -> None:
        self.inputs, self.recompute = inputs, recompute
        self.num_kept = 0
        self.recomputed: dict[int, Tensor] | None = None

    def take(self, place: int) -> Tensor:
        """Hand over the tensor kept at `place`."""
        if self.recomputed is None:
            self.recomputed = {}
            self.recompute(self)
        return self.recomputed.pop(place)


class Tape:
    """Allocates tensors, records nodes and runs backward. The operators are added by subclasses."""

    def __init__(self, memory: Memory, device_type: str, autocast: Autocast | None, *, grad: bool) -> None:
        self.memory, self.device_type, self.autocast, self.grad = memory, device_type, autocast, grad
        self.scope = ""
        self.checkpoint: Checkpoint | None = None
        self.is_recomputing = False
        self.cast_cache: dict[str, Tensor] = {}
        self._numbers = itertools.count()

    def new(
        self, shape: Shape, dtype: str, name: str, *, strides: Shape | None = None, role: str | None = None
    ) -> Tensor:
        """A tensor on memory of its own, row-major unless `strides` says otherwise."""
        if role is None:
            role = "logits" if self.scope == "loss" else "temporaries"
        path = f"{self.scope}.{name}" if self.scope else name
        storage = Storage(self.memory, math.prod(shape) * ITEM_BYTES[dtype], role, path)
        return Tensor(storage, shape, row_major(shape) if strides is None else strides, dtype)

    def pointwise(self, inputs: Sequence[Tensor], name: str) -> Tensor:
        """The result of an element-wise operation, outside the graph.

        A CPU first converts inputs of a narrower type, whole tensors at a time; a GPU converts as it reads.
        """
        shape, dtype = broadcast_shape(inputs), promoted_type(inputs)
        converted = [
            self.new(tensor.shape, dtype, "converted input")
            for tensor in inputs
            if self.device_type == "cpu" and tensor.dtype != dtype
        ]
        result = self.new(shape, dtype, name, strides=pointwise_strides(inputs, shape))
        del converted
        return result

    def reshaped(self, x: Tensor, shape: Shape) -> Tensor:
        """Another shape, outside the graph: a view where the strides allow it, otherwise a copy."""
        strides = view_strides(x.shape, x.strides, shape)
        if strides is not None:
            return x.view(shape, strides)
        return self.new(shape, x.dtype, f"copy of {x.storage.name.rpartition('.')[2]}")

    def node(self, inputs: Sequence[Tensor], backward: Backward) -> Node | None:
        """A node for an operator on `inputs`; None when no gradient can flow through it."""
        if self.grad and any(tensor.node is not None for tensor in inputs):
            return Node(next(self._numbers), self.scope, inputs, backward)
        return None

    def keep(self, node: Node | None, name: str, tensor: Tensor, reason: str) -> None:
        """Let `node` keep `tensor` for backward; `reason` tells a reader what for."""
        if node is None:
            return
        checkpoint = self.checkpoint
        if checkpoint is None:
            node.kept[name], node.reasons[name] = tensor.detach(), reason
            tensor.storage.count_kept(+1)
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

    def backward(self, result: Tensor, on_node: Callable[[Node], None]) -> None:
        """Run backward from the scalar `result`; `on_node` hears of every node before it runs."""
        root = result.node
        waiting = count_edges(root)
        gradients: dict[Node | Leaf, Tensor] = {root: self.new(result.shape, result.dtype, "gradient")}
        ready = [(-root.number, root)]
        recording, self.grad = self.grad, False
        while ready:
            node = heapq.heappop(ready)[1]
            on_node(node)
            self.scope = node.scope
            outputs = self._run(node, gradients.pop(node))
            for edge in node.edges:
                output = outputs.pop(0)
                if edge is None or output is None:
                    continue
                self._accumulate(gradients, edge, output)
                del output
                waiting[edge] -= 1
                if not waiting[edge] and isinstance(edge, Node):
                    heapq.heappush(ready, (-edge.number, edge))
                elif not waiting[edge]:
                    self._store(edge, gradients.pop(edge))
        self.grad, self.scope = recording, ""

    def _run(self, node: Node, gradient: Tensor) -> list[Tensor | None]:
        """The gradients of a node's inputs, in the shapes and types of the inputs."""
        kept = node.unpack()
        outputs = node.backward(gradient, kept)
        for index, (shape, dtype) in enumerate(node.inputs):
            output = outputs[index]
            if output is not None and output.shape != shape:  # the input was broadcast: sum over its copies
                output = outputs[index] = self.new(shape, output.dtype, "sum over broadcast axes")
            if output is not None and output.dtype != dtype:
                outputs[index] = self.new(shape, dtype, "gradient", strides=output.strides)
        node.forget()
        return outputs

    def _accumulate(self, gradients: dict[Node | Leaf, Tensor], edge: Node | Leaf, output: Tensor) -> None:
        before = gradients.pop(edge, None)
        if before is None:
            gradients[edge] = output
        elif before.storage.num_tensors == 1 and not before.is_view and is_dense(before):
            gradients[edge] = before  # added in place
        else:
            gradients[edge] = self.pointwise([before, output], "sum of gradients")

    def _store(self, leaf: Leaf, gradient: Tensor) -> None:
        """Make `gradient` the .grad of a parameter: taken over when laid out like it, otherwise copied."""
        if gradient.strides != row_major(gradient.shape):
            gradient = self.new(gradient.shape, gradient.dtype, "gradient")
        gradient.storage.set_role("gradients")
        leaf.gradient = gradient


def _has_run(gradient: Tensor, kept: Kept) -> list[Tensor | None]:
    raise AssertionError("a node runs once")


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


def count_edges(root: Node) -> dict[Node | Leaf, int]:
    """How many gradients every node and leaf below `root` will receive."""
    counts: dict[Node | Leaf, int] = {}
    for node in nodes_below(root):
        for edge in node.edges:
            if edge is not None:
                counts[edge] = counts.get(edge, 0) + 1
    return counts
