"""Time flash attention, forward and backward, so that only work that was done counts.

It is also the leaderboard's worker. What can be gained by accident or by a trick is worth nothing here:

- everything that measures is bound when this module is imported, before the submission is; a submission that
  replaces a function of `time` or `torch` is turned away;
- each call gets inputs of its own, made outside of the clock from a seed that the submission does not know,
  so nothing that was kept from another call is of use; memory that results may land in was filled with nan;
- the whole device is waited for before the clock starts and before it stops;
- one call is watched before any is timed: nobody gets a time for PyTorch's own attention, nor as Triton for a
  kernel that leaves the work to PyTorch;
- results must be plain tensors: one that computes when it is looked at is none;
- results and gradients of the timed calls are copied as soon as the clock stops, and compared with the
  formula once everything is timed. The formula comes last, so no right answer lies about in memory;
- a time that no machine like this one can reach is refused.

It is a fence and no wall: whoever runs in the same process can climb over it, so results are worth a look.
"""

import functools
import json
import os
import pathlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, clone, empty, full, matmul
from torch.autograd import grad
from torch.cuda import synchronize

from graded_support import timed_results
from graded_support.submission import load_adapters, use_submission
from graded_support.timed_results import (
    NAMES,
    RejectedError,
    Shape,
    check_kind,
    check_results,
    formula,
    full_of_nan,
    make_inputs,
)
from graded_support.timed_work import check_work

GETTERS = {
    "triton": "get_flashattention_autograd_function_triton",
    "pytorch": "get_flashattention_autograd_function_pytorch",
}
"""Functions of the adapters by the name of what they return."""

WARMUP_CALLS = 3
"""Calls that are not counted: kernels are compiled in them."""

FLOOR = 1e-3
"""Share of the time that the machine needs at its peak below which nobody can have worked."""

_KEPT_SHARE = 0.25  # of free memory that results of timed calls may take
_KEPT_BYTES_CPU = 2**28
_MESSAGE_LENGTH = 300

Call = Callable[[Tensor, Tensor, Tensor, Tensor], Sequence[Tensor]]
"""From q, k, v, and the gradient of the result: o, dq, dk, dv."""


GPU_SHAPE = {"heads": 16, "seq": 16384, "d_head": 64, "dtype": torch.bfloat16}
"""The shape of the course's leaderboard in 2025."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the submission is imported."""

    shape: Shape
    warmup_seeds: tuple[int, ...]
    """Of the inputs of each call that is not counted."""
    watched_seed: int
    """Of the inputs of the call that is watched."""
    seeds: tuple[int, ...]
    """Of the inputs of each call that is."""
    kept: frozenset[int]
    """Numbers of the calls, from 1 on, that are checked: all, or a draw where memory is short."""
    bytes_per_s: float
    flops_per_s: float
    """What this machine reaches: see `measure_peaks`."""
    functions: dict[str, object]
    """What must not be replaced, by name."""

    @property
    def floor_s(self) -> float:
        """Below this many seconds nobody can have done the work."""
        least = max(8 * self.shape.bytes_of_array / self.bytes_per_s, self.shape.flops / self.flops_per_s)
        return FLOOR * least


def prepare(shape: Shape, seed: int, calls: int) -> Plan:
    """Draw the inputs and measure the machine. Call it before the submission is imported."""
    draw = random.Random(seed)
    warmup_seeds, seeds = (tuple(draw.getrandbits(63) for _ in range(num)) for num in (WARMUP_CALLS, calls))
    memory = _KEPT_BYTES_CPU
    if shape.device.type == "cuda":
        memory = _KEPT_SHARE * torch.cuda.mem_get_info(shape.device)[0]
    num_kept = min(calls, max(1, int(memory / (4 * shape.bytes_of_array))))
    kept = frozenset(draw.sample(range(1, calls + 1), num_kept))
    peaks = measure_peaks(shape.dtype, shape.device)
    return Plan(shape, warmup_seeds, draw.getrandbits(63), seeds, kept, *peaks, functions_in_use())


def measure_peaks(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Bytes a second of a copy and operations a second of a matrix product: the best of some."""
    size, width = (2**28, 4096) if device.type == "cuda" else (2**25, 512)
    target = empty(size, dtype=torch.int8, device=device)
    source = full((size,), 1, dtype=torch.int8, device=device)
    matrix = full((width, width), 0.5, dtype=dtype, device=device)
    copy_s = min(_seconds(lambda: target.copy_(source), device)[0] for _ in range(5))
    product_s = min(_seconds(lambda: matmul(matrix, matrix), device)[0] for _ in range(5))
    return 2 * size / copy_s, 2 * width**3 / product_s


def _seconds(job: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long it takes until all work of the device is done, on whatever stream, and what it returns."""
    wait = device.type == "cuda"
    if wait:
        synchronize(device)
    start = perf_counter()
    result = job()
    if wait:
        synchronize(device)
    return perf_counter() - start, result


def functions_in_use() -> dict[str, object]:
    """The functions of Python and torch that a measurement may stand on, by name."""
    owners = {
        "time": time,
        "torch": torch,
        "torch.Tensor": Tensor,
        "torch.autograd": torch.autograd,
        "torch.cuda": torch.cuda,
        "torch.cuda.Event": torch.cuda.Event,
        "torch.nn.functional": torch.nn.functional,
        __name__: sys.modules[__name__],
        timed_results.__name__: timed_results,
    }
    found = {f"{name}.{key}": value for name, owner in owners.items() for key, value in vars(owner).items()}
    found.pop("torch.manual_seed")  # torch wraps it itself when torch.compile is first used
    return {name: value for name, value in found.items() if callable(value)}


def race(
    plan: Plan, function: Any, implementation: str, tell: Callable[[str], object] = lambda stage: None
) -> dict[str, Any]:
    """Time an autograd function and then the formula in PyTorch, and check what the function computed.

    Args:
        plan: from `prepare`, before the submission was imported.
        function: class with .apply(q, k, v, is_causal).
        implementation: "triton" or "pytorch", what it should be written in: see `check_work`.
        tell: is told what happens next, in a few words.

    Returns:
        samples_s and warmup_samples_s: seconds of each call by "forward-backward" and "formula";
        checked_calls; error, the largest one over what is allowed; floor_s, bytes_per_s and flops_per_s.

    Raises:
        RejectedError: when the result is wrong, the time cannot be, or something else did the work.
    """
    shape, threads = plan.shape, torch.get_num_threads()
    call = _make_call(function)
    tell("in the warm-up")
    warmup_s = [seconds for seconds, _ in time_calls(call, shape, plan.warmup_seeds)]
    tell("while one call was watched")
    check_work(function.apply, shape, plan.watched_seed, implementation)
    tell("while its calls were timed")
    samples_s, results = [], {}
    for number, (seconds, outputs) in enumerate(time_calls(call, shape, plan.seeds), start=1):
        samples_s.append(seconds)
        if number in plan.kept:
            results[number] = outputs
    _check_functions(plan.functions)
    _check_floor(samples_s, plan)
    tell("while the formula was timed")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    formula_warmup_s, formula_s = (
        [seconds for seconds, _ in time_calls(formula, shape, seeds)]
        for seeds in (plan.warmup_seeds, plan.seeds)
    )
    tell("while its results were checked")
    error = check_results(shape, dict(enumerate(plan.seeds, start=1)), results)
    return {
        "samples_s": {"forward-backward": samples_s, "formula": formula_s},
        "warmup_samples_s": {"forward-backward": warmup_s, "formula": formula_warmup_s},
        "checked_calls": len(results),
        "error": error,
        "floor_s": plan.floor_s,
        "bytes_per_s": plan.bytes_per_s,
        "flops_per_s": plan.flops_per_s,
    }


def _make_call(function: Any) -> Call:
    apply = function.apply

    def call(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> tuple[Tensor, ...]:
        o = apply(q, k, v, True)
        check_kind("o", o, q)  # before autograd asks it for anything; costs a millionth of a second
        return o, *grad(o, (q, k, v), do)

    return call


def time_calls(call: Call, shape: Shape, seeds: Sequence[int]) -> Iterator[tuple[float, list[Tensor]]]:
    """Seconds of each call, on inputs of its own, and copies of what it returned.

    Raises:
        RejectedError: when a result is no plain tensor of the right shape, type and place.
    """
    for seed in seeds:
        inputs = make_inputs(shape, seed)
        for tensor in inputs[:3]:
            tensor.requires_grad_()
        # Results land where this was: what nobody writes to holds nan, and no answer of another call.
        poison = [full_of_nan(shape) for _ in NAMES]
        del poison
        with torch.enable_grad():
            seconds, outputs = _seconds(functools.partial(call, *inputs), shape.device)
        for name, output in zip(NAMES, outputs, strict=True):
            check_kind(name, output, inputs[0])
        yield seconds, [clone(output.detach()) for output in outputs]


def _check_functions(before: dict[str, object]) -> None:
    now = functions_in_use()
    replaced = [name for name, function in before.items() if now.get(name) is not function]
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        raise RejectedError(
            f"the submission replaced {replaced[0]}{more}; leave what is measured with as it is"
        )


def _check_floor(samples_s: Sequence[float], plan: Plan) -> None:
    fastest = min(samples_s)
    if not fastest >= plan.floor_s:
        raise RejectedError(
            f"a call took {fastest:.2g} s, and at its peak this machine needs {plan.floor_s / FLOOR:.2g} s: "
            "something else was timed"
        )


def main() -> None:
    """Time the submission that is asked for on standard input; lines of JSON on standard output.

    {"stage": words} before each part, and last {"seed": as asked for, "reason": why rejected or None, ...}.
    """
    channel = os.dup(1)
    os.dup2(2, 1)  # what a submission prints is no result

    def send(**event: Any) -> None:
        os.write(channel, (json.dumps(event) + "\n").encode())

    request = json.load(sys.stdin)
    device = torch.device(request["device"])
    shape = Shape(
        request["heads"], request["seq"], request["d_head"], getattr(torch, request["dtype"]), device
    )
    plan = prepare(shape, request["seed"], request["calls"])
    folder = request["submission"]
    send(stage="while it was imported")
    result: dict[str, Any] = {}
    reason = None
    try:
        use_submission(folder)
        adapters = load_adapters(pathlib.Path(folder, "tests", "adapters.py"))
        function = getattr(adapters, GETTERS[request["implementation"]])()
        result = race(plan, function, request["implementation"], lambda stage: send(stage=stage))
    except RejectedError as error:
        reason = str(error)
    except BaseException as error:  # whatever it raises, SystemExit too, is why it gets no time
        traceback.print_exc()
        reason = describe(error, folder)
    send(**result, seed=request["seed"], reason=reason)
    os._exit(0)  # nothing that a submission left behind can delay the end


def describe(error: BaseException, folder: str) -> str:
    """An exception in one line, with the last place in the submission that it came through."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)
    ]
    where = f" ({os.path.relpath(frames[-1].filename, folder)}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first[:_MESSAGE_LENGTH]}{where}"


if __name__ == "__main__":
    main()
