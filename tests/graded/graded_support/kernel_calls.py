"""Call an autograd.Function as a user would, and notice what its values do not show.

Was a Triton kernel launched and did it do the work, were the inputs changed, is there a way back for
gradients: each in words. Where kernels run is decided when this is imported: pytest does so when it collects
the tests, and imports the submission later, so nothing in that can turn lost points into pending ones.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from graded_support.compare import fail
from graded_support.plugin import PENDING
from graded_support.watching import INTERPRETED, Watched, same_without_kernels, watched

IDLE = "is the same when its kernels do not run: they have no part in it"
NO_KERNEL = "no Triton kernel was launched: this is PyTorch"


def triton_device(test: Any) -> str:
    """Where kernels run: "cuda", or "cpu" in Triton's interpreter.

    For fixtures, which give `request.node`: where no kernel runs, this leaves the points of the test open.
    """
    if _WHY_NO_KERNEL_RUNS:
        test.user_properties.append((PENDING, _WHY_NO_KERNEL_RUNS))
        pytest.skip(PENDING + _WHY_NO_KERNEL_RUNS)
    return "cuda" if _HAS_GPU else "cpu"


def _why_no_kernel_runs() -> str:
    """In words, or empty where kernels do run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it needs Linux)"
    if _HAS_GPU:
        return ""
    if not INTERPRETED:
        return "needs an NVIDIA GPU that PyTorch can use, or TRITON_INTERPRET=1"
    versions = [importlib.metadata.version(name).split(".")[:2] for name in ("triton", "numpy")]
    triton_version, numpy_version = (tuple(int(part) for part in version) for version in versions)
    if triton_version < (3, 7) and numpy_version >= (2, 4):
        return (
            "the interpreter of Triton before 3.7 cannot loop with numpy 2.4 or later; take another of either"
        )
    return ""


_HAS_GPU = torch.cuda.is_available()
_WHY_NO_KERNEL_RUNS = _why_no_kernel_runs()


def apply(
    function: Any, *arguments: Any, what: str, in_triton: bool = False, launches: int | None = None
) -> Tensor:
    """`function.apply(*arguments)`, checked for what every autograd.Function must do.

    Args:
        function: what the adapter returned.
        arguments: what apply gets; tensors must be as before in the end.
        what: what the message calls it.
        in_triton: whether kernels must do the work.
        launches: how many, if that matters.
    """
    if not (isinstance(function, type) and issubclass(function, torch.autograd.Function)):
        fail(f"the adapter of {what} returned {function!r:.80}; expected the class itself, not its apply")
    tensors = {i: argument for i, argument in enumerate(arguments) if isinstance(argument, Tensor)}
    before = {i: tensor.detach().clone() for i, tensor in tensors.items()}
    with watched() if in_triton else contextlib.nullcontext() as seen:
        result = function.apply(*arguments)
    if seen:
        _check_work(seen, what, launches)
        if same_without_kernels(lambda: (function.apply(*arguments),), (result,)):
            fail(f"{what} {IDLE}")
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
    may: Collection[str] = (),
) -> tuple[Tensor, ...]:
    """The gradients of `inputs`, when `arriving` is that of the result.

    `in_triton` and `launches` are as for `apply`; `may` names PyTorch's work that is no shortcut.
    """
    if not isinstance(result, Tensor) or result.grad_fn is None:
        fail(f"{what} gave a result without grad_fn: nothing leads back from it to the inputs")
    before = arriving.clone()

    def differentiate() -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, arriving, allow_unused=True, retain_graph=in_triton)

    with watched() if in_triton else contextlib.nullcontext() as seen:
        try:
            found = differentiate()
        except RuntimeError as error:
            if "gradient" not in str(error):
                raise
            fail(f"{what}: {error}; backward returns one value for each argument of forward, None for flags")
    if seen:
        _check_work(seen, f"backward of {what}", launches, may)
        if same_without_kernels(differentiate, found):
            fail(f"backward of {what} {IDLE}")
    if not torch.equal(arriving, before):
        fail(f"backward of {what} changed the gradient that it was given: other users of it would be wrong")
    for i, gradient in enumerate(found):
        if gradient is None:
            fail(f"backward of {what} returned None for argument {i + 1}; expected its gradient")
    return found


def _check_work(seen: Watched, what: str, launches: int | None, may: Collection[str] = ()) -> None:
    if not seen.kernels:
        fail(f"{what}: {NO_KERNEL}")
    others = [name for name in seen.operations if name not in may]
    if others:
        fail(
            f"{what}: something was computed by PyTorch ({others[0]}), not by your kernel; PyTorch may make "
            "tensors and views of them, copy and cast"
        )
    if launches is not None and len(seen.kernels) != launches:
        names = ", ".join(seen.kernels)
        fail(f"{what} launched {len(seen.kernels)} kernels ({names}); {launches} should do it")
