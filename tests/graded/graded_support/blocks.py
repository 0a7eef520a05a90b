"""Blocks that say how often they ran and which of their values are in memory, for tests of checkpointing."""

import gc
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointError

from graded_support.compare import check_tensor, fail, rounding_bound

WIDTH = 6
NO_GRADIENT = (
    "gradients end at detach(), at no_grad(), and where use_reentrant=True meets an input without one"
)
NOT_AGAIN = (
    "backward ran no block again, so everything was kept: put torch.utils.checkpoint.checkpoint around each "
    "group of blocks"
)
LATE = "a function made in a loop looks its variables up when it is called, after the loop"


class Block:
    """tanh(x W) W' + x; it remembers its calls, inputs and values, without keeping them alive."""

    def __init__(self, calls: list["Block"]) -> None:
        self.calls = calls
        self.weights = [(torch.randn(WIDTH, WIDTH) / 5).requires_grad_() for _ in range(2)]
        self.inputs: list[StorageWeakRef] = []
        self.inside: list[StorageWeakRef] = []

    def __call__(self, x: Tensor) -> Tensor:
        """The next value."""
        self.calls.append(self)
        self.inputs.append(StorageWeakRef(x.untyped_storage()))
        hidden = torch.tanh(x @ self.weights[0])
        self.inside.append(StorageWeakRef(hidden.untyped_storage()))
        return hidden @ self.weights[1] + x

    def in_float64(self, x: Tensor) -> Tensor:
        """The same for the truth, unnoticed."""
        first, second = (weight.double() for weight in self.weights)
        return torch.einsum("...i,ij->...j", torch.tanh(torch.einsum("...i,ij->...j", x, first)), second) + x


class Stack:
    """Some blocks and an input."""

    def __init__(self, num_blocks: int, *, input_needs_grad: bool = True) -> None:
        self.calls: list[Block] = []
        self.blocks = [Block(self.calls) for _ in range(num_blocks)]
        self.x = torch.randn(3, WIDTH, requires_grad=input_needs_grad)

    def run(self, adapters: Any, blocks_per_checkpoint: int) -> Tensor:
        """The student's result."""
        with warnings.catch_warnings():
            # Torch warns of what the tests find, and where warnings are errors ours would not be reached.
            warnings.simplefilter("ignore")
            return adapters.run_checkpointed_blocks(self.blocks, self.x, blocks_per_checkpoint)

    def kept(self) -> tuple[list[int], int]:
        """Numbers of the blocks whose inputs are in memory, and how many blocks have values inside.

        The input of the first is always there: the caller has it.
        """
        inputs = [i for i, block in enumerate(self.blocks) if _any_alive(block.inputs)]
        return inputs, sum(_any_alive(block.inside) for block in self.blocks)

    def order(self) -> list[int]:
        """Numbers of the blocks in the order in which they ran."""
        return [self.blocks.index(block) for block in self.calls]


def _any_alive(references: list[StorageWeakRef]) -> bool:
    return any(not reference.expired() for reference in references)


def check_what_is_kept(stack: Stack, blocks_per_checkpoint: int) -> None:
    """After forward: fail unless only the inputs of the groups are in memory."""
    num_blocks = len(stack.blocks)
    expected = list(range(0, num_blocks, blocks_per_checkpoint))
    if stack.kept() != (expected, 0):
        gc.collect()  # what is left in a cycle of references is not kept
    inputs, num_inside = stack.kept()
    after = f"after forward of {num_blocks} blocks with blocks_per_checkpoint={blocks_per_checkpoint}"
    if num_inside:
        fail(
            f"{after}, {num_inside} of them still keep values that they computed on the way; a checkpoint "
            f"keeps its input alone, and computes the rest again"
        )
    if inputs == list(range(num_blocks)) != expected:
        fail(
            f"{after} the input of every block is kept, as if it were 1: one checkpoint goes around "
            f"blocks_per_checkpoint blocks, and keeps the input of the first"
        )
    if inputs != expected:
        fail(f"{after} the inputs of the blocks {inputs} are kept, counted from 0; expected {expected}")


def check_values_and_gradients(stack: Stack, adapters: Any, blocks_per_checkpoint: int) -> None:
    """Compare with running the blocks one after the other in float64."""
    num_blocks = len(stack.blocks)
    output = stack.run(adapters, blocks_per_checkpoint)
    after = [stack.x.double()]
    for block in stack.blocks:
        after.append(block.in_float64(after[-1]))
    truth = after[-1]
    gradient = torch.randn(truth.shape)
    weights = [weight for block in stack.blocks for weight in block.weights]
    leaves = [*weights, stack.x] if stack.x.requires_grad else weights
    expected = torch.autograd.grad(truth, leaves, gradient.double())
    what = (
        f"run_checkpointed_blocks of {num_blocks} blocks with blocks_per_checkpoint={blocks_per_checkpoint}"
    )
    in_groups = num_blocks - num_blocks % max(blocks_per_checkpoint, 1)
    check_tensor(
        output.detach() if isinstance(output, Tensor) else output,
        truth.detach(),
        what=what,
        # Each block makes what comes in at most |W| |W'| + 1 times as large, and so its roundings.
        allowed=_margin(stack, num_blocks, 1.0),
        dtype=torch.float32,
        mistakes={
            "the last blocks, which are fewer than blocks_per_checkpoint, are left out": after[
                in_groups
            ].detach(),
            "only the first group of blocks is run": after[min(blocks_per_checkpoint, num_blocks)].detach(),
        },
        hint="It is what the blocks give, one after the other.",
    )
    if not output.requires_grad:
        fail(f"the result of {what} is cut off from the weights of the blocks: {NO_GRADIENT}")
    runs_the_same_again = True
    try:
        output.backward(gradient)
    except CheckpointError:
        runs_the_same_again = False
    if not runs_the_same_again:
        fail(f"backward of {what} computed something else again than forward had computed; perhaps {LATE}")
    for i, (leaf, expected_gradient) in enumerate(zip(leaves, expected, strict=True)):
        name = f"weight {i % 2} of block {i // 2}" if i < len(weights) else "the input"
        if leaf.grad is None:
            fail(f"{name} got no gradient through {what}: {NO_GRADIENT}")
        check_tensor(
            leaf.grad,
            expected_gradient,
            what=f"the gradient of {name}, {what}",
            allowed=_margin(stack, 2 * num_blocks, float(gradient.abs().max())),
            dtype=torch.float32,
            hint=f"Does backward run each group's own blocks again, on its own input? Perhaps {LATE}.",
        )
    if blocks_per_checkpoint and len(stack.order()) == num_blocks:
        fail(f"{what} has the right gradients, but {NOT_AGAIN}")


def _margin(stack: Stack, num_layers: int, magnitude: float) -> float:
    growth = 1.0
    for block in stack.blocks:
        norms = [float(torch.linalg.matrix_norm(weight.detach(), 2)) for weight in block.weights]
        growth *= norms[0] * norms[1] + 1
    start = float(stack.x.detach().abs().max()) + 1
    return float(rounding_bound(torch.float32, num_layers * WIDTH, growth * start * magnitude, factor=1.0))
