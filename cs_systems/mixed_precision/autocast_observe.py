"""Watch an unchanged model run: every operation with the types that go in and come out, and every module.

Operations are seen as functions of torch (`softmax`, not the kernels below it), which is where autocast
decides. What an operation does inside is not seen: its entry on a list stands for all of it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from cs_systems.mixed_precision.autocast_policy import CASTS, MOVES, TITLES, find_kind, plain_name

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a type, for example fp16; torch's own name for types that have no short one."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Operation:
    """One call of one operation."""

    module: str
    """The innermost module that was running; `loss` outside of all."""
    op: str
    inputs: tuple[str, ...]
    """Types of the floating-point inputs in order."""
    output: str
    rule: str
    """What decided the type of the output."""


class Observer(TorchFunctionMode):
    """A context that notes operations; `watch` adds the modules of a model."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.outputs: dict[str, Tensor] = {}
        """The last output of each module by name."""
        self._policy = policy
        self._running: list[str] = []
        self._origin: dict[int, Operation] = {}
        self._alive: list[Tensor] = []  # so that no two tensors of the run share an id

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Note the outputs of all modules of `model`, and which of them an operation belongs to."""
        # BEGIN SOLUTION benchmarking_mixed_precision
        handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # END SOLUTION

    def rule_of(self, tensor: Tensor) -> str:
        """What decided the type of a tensor that was seen as an output: `linear: lower precision`."""
        origin = self._origin.get(id(tensor))
        return f"{origin.op}: {origin.rule}" if origin else "an input"

    # BEGIN SOLUTION benchmarking_mixed_precision
    def _enter(self, name: str) -> Callable:
        return lambda module, inputs: self._running.append(name)

    def _leave(self, name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._running.pop()
            self.outputs[name] = output

        return hook

    # END SOLUTION

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then note it."""
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._note(plain_name(getattr(function, "__name__", "")), args, kwargs or {}, output)
        return output

    def _note(self, op: str, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        inputs = [tensor for tensor in _tensors((*args, *kwargs.values())) if _is_number(tensor)]
        if not inputs or not _is_number(output) or output is inputs[0]:
            return
        self._alive.append(output)
        dtypes = tuple(dtype_name(tensor.dtype) for tensor in inputs)
        if op in MOVES:
            if id(inputs[0]) in self._origin:
                self._origin[id(output)] = self._origin[id(inputs[0])]
            return
        out = dtype_name(output.dtype)
        rule = "cast in the model" if op in CASTS else self._rule(op, dtypes, out)
        module = self._running[-1] or "(model)" if self._running else "loss"
        operation = Operation(module, op, dtypes, out, rule)
        self.operations.append(operation)
        self._origin[id(output)] = operation

    def _rule(self, op: str, inputs: tuple[str, ...], output: str) -> str:
        kind = find_kind(op, self._policy)
        if kind == "unlisted":
            if len(set(inputs)) == 1:
                return "not listed, keeps its type"
            return "not listed, promotes" if output == "fp32" else "not listed, has its first input's type"
        if kind != "widest" and (kind == "fp32") != (output == "fp32"):  # a torch whose lists are others
            return f"{TITLES[kind]} in the table, yet {output} came out"
        return TITLES[kind]


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
