"""Whether the function that is timed does the work itself, seen in one call that is not measured."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch.autograd import grad
from torch.profiler import ProfilerActivity, profile

from graded_support.timed_results import RejectedError, Shape, make_inputs
from graded_support.watching import attention_of_pytorch, same_without_kernels, watched


def check_work(function: Callable[..., Any], shape: Shape, seed: int, implementation: str) -> None:
    """Call forward and backward once and look at what runs.

    In Triton forward must launch a kernel, and PyTorch must compute no product, softmax or sum of numbers in
    it; backward may be written in PyTorch. Nowhere may PyTorch compute attention as a whole.

    Args:
        function: q, k, v and is_causal to the result.
        shape: of the call, as large as those that are timed: what is fast there is what was seen.
        seed: of its inputs.
        implementation: "triton" or "pytorch".

    Raises:
        RejectedError: naming the operation.
    """
    *inputs, do = make_inputs(shape, seed)
    q, k, v = (tensor.requires_grad_() for tensor in inputs)
    in_triton = implementation == "triton"
    # The profiler sees the operations of compiled code too, of which the other has to run each by itself.
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        with watched() if in_triton else contextlib.nullcontext() as forward:
            o = function(q, k, v, True)
        grad(o, (q, k, v), do)
    if forward is not None:
        if not forward.kernels:
            raise RejectedError("no Triton kernel was launched in forward: this is PyTorch")
        _reject(forward.operations, "forward", "put it into the kernel")
    _reject(
        attention_of_pytorch(event.name for event in seen.events() or ()),
        "forward or backward",
        "write FlashAttention yourself",
    )
    if in_triton and same_without_kernels(lambda: (function(q, k, v, True),), (o,)):
        raise RejectedError("o is the same when its Triton kernels do not run: they have no part in it")


def _reject(operations: list[str], where: str, advice: str) -> None:
    if operations:
        raise RejectedError(f"PyTorch computed {operations[0]} in {where}; {advice}")
