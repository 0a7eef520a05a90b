"""Call an autograd.Function as a user would, and notice what its values do not show.

Was a Triton kernel launched, were the inputs changed, is there a way back for gradients: each in words.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graded_support.compare import fail
from graded_support.plugin import PENDING

NO_KERNEL = "no Triton kernel was launched: this is PyTorch"


def triton_device(test: Any) -> str:
    """Where kernels run: "cuda", or "cpu" in Triton's interpreter.

    For fixtures, which give `request.node`: where no kernel runs, this leaves the points of the test open.
    """
    why_not = _why_no_kernel_runs()
    if why_not:
        test.user_properties.append((PENDING, why_not))
        pytest.skip(PENDING + why_not)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _why_no_kernel_runs() -> str:
    """In words, or empty where kernels do run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it needs Linux)"
    if torch.cuda.is_available():
        return ""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "needs an NVIDIA GPU that PyTorch can use, or TRITON_INTERPRET=1"
    versions = [importlib.metadata.version(name).split(".")[:2] for name in ("triton", "numpy")]
    triton_version, numpy_version = (tuple(int(part) for part in version) for version in versions)
    if triton_version < (3, 7) and numpy_version >= (2, 4):
        return (
            "the interpreter of Triton before 3.7 cannot loop with numpy 2.4 or later; take another of either"
        )
    return ""


@contextlib.contextmanager
def counted_launches() -> Iterator[list[str]]:
    """Names of the Triton kernels that are launched inside, compiled or interpreted, in this order.

    Every `kernel[grid](...)` ends in the method `run` of one of two classes, in all of Triton 3.6 to 3.9,
    also behind autotune, heuristics and torch's custom operators. Kernels of torch.compile do not.
    """
    from triton.runtime.jit import JITFunction

    kinds: list[Any] = [JITFunction]
    if os.environ.get("TRITON_INTERPRET") == "1":
        from triton.runtime.interpreter import InterpretedFunction

        kinds.append(InterpretedFunction)
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "run", _counting(kind.run, names)))
        yield names


def _counting(run: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    @functools.wraps(run)
    def run_and_count(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        if not warmup:
            names.append(self.__name__)
        return run(self, *args, warmup=warmup, **kwargs)

    return run_and_count


def apply(
    function: Any, *arguments: Any, what: str, in_triton: bool = False, launches: int | None = None
) -> Tensor:
    """`function.apply(*arguments)`, checked for what every autograd.Function must do.

    Args:
        function: what the adapter returned.
        arguments: what apply gets; tensors must be as before in the end.
        what: what the message calls it.
        in_triton: whether it must launch a kernel.
        launches: how many, if that matters.
    """
    if not (isinstance(function, type) and issubclass(function, torch.autograd.Function)):
        fail(f"the adapter of {what} returned {function!r:.80}; expected the class itself, not its apply")
    tensors = {i: argument for i, argument in enumerate(arguments) if isinstance(argument, Tensor)}
    before = {i: tensor.detach().clone() for i, tensor in tensors.items()}
    with counted_launches() if in_triton else contextlib.nullcontext([]) as names:
        result = function.apply(*arguments)
    _check_launches(names, what, in_triton, launches)
    for i, tensor in tensors.items():
        if not torch.equal(tensor.detach(), before[i]):
            fail(f"{what} changed its argument {i + 1}: write results into new tensors only")
    return result


def gradients(
    result: Any,
    inputs: Sequence[Tensor],
    arriving: Tensor,
    *,
    what: str,
    in_triton: bool = False,
    launches: int | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of `inputs`, when `arriving` is that of the result."""
    if not isinstance(result, Tensor) or result.grad_fn is None:
        fail(f"{what} gave a result without grad_fn: nothing leads back from it to the inputs")
    before = arriving.clone()
    with counted_launches() if in_triton else contextlib.nullcontext([]) as names:
        try:
            found = torch.autograd.grad(result, inputs, arriving, allow_unused=True)
        except RuntimeError as error:
            if "gradient" not in str(error):
                raise
            fail(f"{what}: {error}; backward returns one value for each argument of forward, None for flags")
    _check_launches(names, f"backward of {what}", in_triton, launches)
    if not torch.equal(arriving, before):
        fail(f"backward of {what} changed the gradient that it was given: other users of it would be wrong")
    for i, gradient in enumerate(found):
        if gradient is None:
            fail(f"backward of {what} returned None for argument {i + 1}; expected its gradient")
    return found


def _check_launches(names: list[str], what: str, in_triton: bool, launches: int | None) -> None:
    if in_triton and not names:
        fail(f"{what}: {NO_KERNEL}")
    if launches is not None and len(names) != launches:
        fail(f"{what} launched {len(names)} kernels ({', '.join(names)}); {launches} should do it all")


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
