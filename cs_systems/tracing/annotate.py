"""Name stretches of a program, so that a profiler's kernels can be told apart by them: `annotate`.

Whoever listens gets the names: nsys as NVTX ranges, `torch.profiler` as `record_function` ranges. When nobody
does, a range costs under a microsecond; while torch.compile traces, it disappears.
"""

import functools
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled, _profiler_type
from torch._C._profiler import ActiveProfilerType

from cs_systems import device as devices
from cs_systems.tracing.trace import BACKWARD_SUFFIX

# BEGIN SOLUTION nsys_profile
_is_compiling = torch.compiler.is_compiling  # bound once: looking it up is a tenth of the cost of a range
# END SOLUTION


class annotate:
    """A named range, `with annotate("forward"):`, or `@annotate("forward")` for every call of a function.

    Each entry needs an object of its own: one object must not be entered again before it was left.
    """

    __slots__ = ("_profiler_range", "_tool_range", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._tool_range = self._profiler_range = None

    def __enter__(self) -> "annotate":
        # BEGIN SOLUTION nsys_profile
        if _is_compiling():  # first, because torch.compile cannot trace the questions below
            return self
        tool_range = _tool_range(self.name)
        if tool_range is not None:
            tool_range.__enter__()
            self._tool_range = tool_range
        if _profiler_enabled() and not (tool_range is not None and _profiler_writes_nvtx()):
            self._profiler_range = torch.profiler.record_function(self.name)
            self._profiler_range.__enter__()
        return self
        # END SOLUTION

    def __exit__(self, *error: object) -> None:
        # BEGIN SOLUTION nsys_profile
        # What was entered is left, even if the profiler has been started or stopped in between.
        if self._profiler_range is not None:
            self._profiler_range.__exit__(None, None, None)
            self._profiler_range = None
        if self._tool_range is not None:
            self._tool_range.__exit__(None, None, None)
            self._tool_range = None
        # END SOLUTION

    def __call__(self, function: Callable) -> Callable:
        """`function` with a range around each call."""
        name = self.name

        @functools.wraps(function)
        def annotated(*args: Any, **kwargs: Any) -> Any:
            with annotate(name):
                return function(*args, **kwargs)

        return annotated


def annotate_call(name: str, function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)` in a range called `name`, and its backward in another: `name` + " (backward)".

    The function takes its tensors as `inputs` and returns a tensor or a tuple of them. A backward range needs
    an input that requires a gradient and someone who listens during forward; without, the graph stays as it
    is. With one, each such input reaches the function as a view, at which gradients meet: they may be added
    up in another order than without. Ranges belong to the thread that runs backward, so inputs and outputs
    should be on one device; an exception in backward leaves them open.
    """
    # BEGIN SOLUTION nsys_profile
    if _is_compiling():
        return function(*inputs)
    if not (torch.is_grad_enabled() and (_profiler_enabled() or _tool_range(name) is not None)):
        with annotate(name):
            return function(*inputs)
    backward = _BackwardRange(name + BACKWARD_SUFFIX)
    marked = [backward.close_at(value) if _requires_grad(value) else value for value in inputs]
    with annotate(name):
        output = function(*marked)
    if any(map(_requires_grad, inputs)):
        for value in output if isinstance(output, tuple) else (output,):
            if _requires_grad(value) and not any(value is mark for mark in marked):  # that one nobody touched
                backward.open_at(value)
    return output
    # END SOLUTION


# BEGIN SOLUTION nsys_profile
def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class _BackwardRange:
    """The range around those nodes of the graph that one call made.

    Autograd runs the nodes of a graph in the reverse order of their creation, so those of one call come one
    after another: from the node of its output to the views that were made of its inputs just before it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.range: annotate | None = None

    def open_at(self, output: Tensor) -> None:
        """In backward, open just before the node of `output` runs, unless another output came first."""
        # A call inside this one may have ended with the same node, and its range must open after ours. A view
        # of the output would be a node of our own, but a loss that writes its gradient over the logits, to
        # save memory, wants them to be no view.
        node = output.grad_fn
        assert node is not None
        ranges = node.metadata.setdefault(_RANGES, [])  # pyright: ignore[reportAttributeAccessIssue]
        if not ranges:
            node.register_prehook(functools.partial(_open_all, ranges))
        ranges.insert(0, self)

    def close_at(self, x: Tensor) -> Tensor:
        """A view of `x` to compute with: in backward, close when its gradient is known."""
        view = x.view_as(x)
        assert view.grad_fn is not None
        view.grad_fn.register_prehook(self.close)
        return view

    def open(self) -> None:
        if self.range is None:
            self.range = annotate(self.name)
            self.range.__enter__()
            # Called at the end of backward: it may end inside, if only gradients of inner values are wanted.
            torch.autograd.Variable._execution_engine.queue_callback(self.close)

    def close(self, *gradients: Any) -> None:
        if self.range is not None:
            self.range.__exit__()
            self.range = None


_RANGES = "cs_systems ranges"  # key in the metadata of a node


def _open_all(ranges: list[_BackwardRange], gradients: Any) -> None:
    for backward in ranges:
        backward.open()


# END SOLUTION


@functools.cache
def annotation_backend() -> str:
    """How ranges reach a tool from outside that is attached to this process, for the records of a run.

    "off": none is attached, or NVTX_DISABLE is set. "nvtx", "torch.cuda.nvtx": through that package. "mute":
    not at all, which is warned of. Decided once, at the first range; ranges of `torch.profiler` do not depend
    on it.
    """
    attached = "NVTX_INJECTION64_PATH" in os.environ or "NSYS_PROFILING_SESSION_ID" in os.environ
    if not attached or os.environ.get("NVTX_DISABLE"):
        return "off"
    problem = _why_nvtx_is_mute()
    if problem is None:
        return "nvtx"
    if devices.choose_device("auto").type == "cuda":
        return "torch.cuda.nvtx"
    warnings.warn(f"a profiler is attached, but it will see no ranges: {problem}", stacklevel=2)
    return "mute"


def _why_nvtx_is_mute() -> str | None:
    try:
        import nvtx
    except ImportError:
        return "the nvtx package is not installed (pip install nvtx)"
    # From 0.2.12 on, the package drops all ranges unless the tool answers a question that nsys until 2024.2
    # does not know; it tells by the type of its domains. Before 0.2.11 there is no telling.
    get_domain = getattr(nvtx, "get_domain", None)
    if get_domain is None:
        return "the nvtx package is too old; install nvtx 0.2.11"
    if type(get_domain(None)).__name__ == "DummyDomain":
        return "the nvtx package does not work with this nsys; install nvtx==0.2.11, or a newer nsys"
    return None


# BEGIN SOLUTION nsys_profile
@functools.cache
def _tool_range(name: str) -> AbstractContextManager | None:
    """A range of the attached tool, or None. It has no state: many threads may enter it, and many times."""
    backend = annotation_backend()
    if backend == "nvtx":
        import nvtx

        return nvtx.annotate(name)
    return _TorchRange(name) if backend == "torch.cuda.nvtx" else None


class _TorchRange:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        devices.push_nvtx_range(self.name)

    def __exit__(self, *error: object) -> None:
        devices.pop_nvtx_range()


def _profiler_writes_nvtx() -> bool:
    """Whether `emit_nvtx` records, as under nsys --pytorch=autograd-nvtx: it would repeat our range."""
    return _profiler_type() == ActiveProfilerType.NVTX


# END SOLUTION
