"""What happens while a submission's function runs: Triton kernels, operations of PyTorch, large tensors.

It sees what is launched and dispatched, and cannot tell who made numbers outside of PyTorch.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs kernels. Decided here, before any submission is imported."""

# Casts, copies, views, new tensors, scaling by a number and comparisons are no work in this sense.
_WORK = re.compile(
    r"mm|bmm|mv|dot|vdot|inner|outer|ger|addr|(sp|b)?addb?(mm|mv)|baddbmm|matmul|linear|bilinear|_trilinear|einsum"
    r"|_cdist_\w+|_?\w*(scaled_mm|softmax|attention|conv|convolution|(layer|rms|group|batch)_norm|pool[123]d|fft)\w*"
    r"|exp|exp2|expm1|pow|float_power|sigmoid|log_sigmoid\w*|tanh|sinh|cosh|softplus|silu|gelu|erf|erfc"
    r"|logsumexp|logaddexp2?|logcumsumexp|sum|nansum|cumsum|mean|nanmean|cumprod|prod|var|std|var_mean"
    r"|amax|amin|aminmax|cummax|cummin|topk|addcmul|addcdiv|lerp|index_add|index_reduce|scatter_add|scatter_reduce"
    r"|norm|linalg_\w+|segment_reduce|_embedding_bag\w*|trace|cross|kron|histc|bincount"
)
_NEW_MEMORY = re.compile(r"(new_)?empty(_\w+)?")


class _Operations(TorchDispatchMode):
    """Names of the operations that computed something, in this order; nothing counts within a kernel."""

    def __init__(self, fills: bool) -> None:
        super().__init__()
        self.fills = fills
        self.in_kernel = False
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation and run it; one that somebody registered is looked into."""
        kwargs = kwargs or {}
        if self.in_kernel or not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        if func.namespace not in ("aten", "prim", "prims"):
            on_gpu = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
            key = torch._C.DispatchKey.CUDA if on_gpu else torch._C.DispatchKey.CPU
            with self:
                return func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if is_work(name) or (name in ("max", "min") and len(args) < 2) or _multiplies_two(name, args):
            self.names.append(func._schema.name)
        result = func(*args, **kwargs)
        if self.fills and _NEW_MEMORY.fullmatch(name) and result.is_floating_point():
            result.fill_(math.nan)
        return result


def is_work(name: str) -> bool:
    """Whether an operation of PyTorch, named without aten::, does what a kernel is written for."""
    return _WORK.fullmatch(name.rstrip("_")) is not None


def attention_of_pytorch(names: Iterable[str]) -> list[str]:
    """Those of the operations that compute attention as a whole, forward or backward."""
    return [name for name in names if name.startswith("aten::") and "attention" in name]


def _multiplies_two(name: str, args: Collection[Any]) -> bool:
    factors = [arg for arg in args if isinstance(arg, Tensor) and arg.numel() > 1]
    return name == "mul" and len(factors) == 2


class Watched:
    """What was seen between the beginning and the end of `watched`."""

    def __init__(self, operations: _Operations) -> None:
        self._operations = operations
        self.kernels: list[str] = []
        """Names of the Triton kernels that were launched, in this order."""

    @property
    def operations(self) -> list[str]:
        """Operations of PyTorch that did a kernel's work, as "aten::bmm"."""
        return self._operations.names


@contextlib.contextmanager
def watched(*, runs_kernels: bool = True) -> Iterator[Watched]:
    """Watch what runs inside, in all threads of autograd too.

    Every `kernel[grid](...)` ends in the method `run` of one of these classes, in all of Triton 3.6 to 3.9,
    also behind heuristics and torch's custom operators. What autotune tries out counts as one launch. Kernels
    of torch.compile are not seen.

    Args:
        runs_kernels: False skips every kernel and fills new memory with nan: what is right even so was
            computed by something else.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    kinds: list[Any] = [Autotuner, JITFunction]
    if INTERPRETED:
        from triton.runtime.interpreter import InterpretedFunction

        kinds.append(InterpretedFunction)
    seen = Watched(_Operations(fills=not runs_kernels))
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            run = _noting(kind.run, seen, runs_kernels)
            stack.enter_context(mock.patch.object(kind, "run", run))
        stack.enter_context(seen._operations)
        yield seen


def _noting(run: Callable[..., Any], seen: Watched, runs: bool) -> Callable[..., Any]:
    operations = seen._operations

    @functools.wraps(run)
    def run_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        if operations.in_kernel:  # autotune tries it out
            return run(self, *args, **kwargs)
        if not kwargs.get("warmup"):
            seen.kernels.append(getattr(self, "base_fn", self).__name__)
        if not runs:
            return None
        operations.in_kernel = True
        try:
            return run(self, *args, **kwargs)
        finally:
            operations.in_kernel = False

    return run_and_note


def same_without_kernels(call: Callable[[], tuple[Any, ...]], results: tuple[Any, ...]) -> bool:
    """Whether a call gives one of its results again when no kernel runs; an error is something else."""
    again: tuple[Any, ...] = ()
    with watched(runs_kernels=False), contextlib.suppress(Exception):
        again = call()
    return any(
        isinstance(result, Tensor) and isinstance(other, Tensor) and torch.equal(result, other)
        for result, other in zip(results, again, strict=False)
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that an operation of PyTorch returned while this was on."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0
        self.where = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what came out."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() > self.num_elements:
                self.num_elements = tensor.numel()
                self.where = f"{func} returned one of shape {tuple(tensor.shape)}"
        return result
