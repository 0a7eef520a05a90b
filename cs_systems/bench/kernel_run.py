"""Measure kernels: each operation as a formula, compiled, by PyTorch's own function and in Triton."""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cs_systems import device as devices
from cs_systems.bench.contest import (
    INTERPRETED,
    LARGEST_ERROR,
    Contestant,
    Outcome,
    Rules,
    counted,
    hold_contest,
    largest_error,
    launch_bound_notes,
)
from cs_systems.bench.kernel_case import (
    BASELINE,
    IMPLEMENTATIONS_OF,
    NUM_PARAMETER_TENSORS,
    STEP,
    KernelConfig,
    moved_bytes,
    passes_of,
    peak_bytes,
)
from cs_systems.bench.training import free_memory_bytes
from cs_systems.bench.turns import Timer, Turn
from cs_systems.kernels import reference
from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.functional import rope_tables
from cs_systems.optim import AdamW
from cs_systems.tables import format_bytes

Function = Callable[..., Any]

COPY = "copy"
"""A contestant in every contest that is no row: its rate is what the others are compared with."""

_COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
_EPS = 1e-5


@dataclass(frozen=True)
class Operation:
    """One kernel as functions of the same tensors."""

    make_inputs: Callable[[KernelConfig, Function], list[Tensor]]
    """The tensors, from a config and a function that draws random ones."""
    formula: Function
    torch: Function | None
    """None where PyTorch has no fused function."""
    triton: tuple[str, str]
    """Module and function in `cs_systems.kernels`."""
    adapt_triton: Callable[[Function], Function] = lambda function: function
    """Gives the Triton function the arguments of the formula."""
    num_constants: int = 0
    """How many of the tensors, at the end, get no gradient."""


def _with_residual(function: Function) -> Function:
    return lambda x, residual, weight: function(x, weight, _EPS, residual)


def _with_eps(function: Function) -> Function:
    return lambda x, weight: function(x, weight, _EPS)


def _heads(config: KernelConfig, draw: Function) -> Tensor:
    """(1, heads, tokens, d_head) in the memory order that a projection leaves."""
    num_heads = config.d_model // config.d_head
    return draw(1, config.num_tokens, num_heads, config.d_head).transpose(1, 2)


def _rope_inputs(config: KernelConfig, draw: Function) -> list[Tensor]:
    q, k = _heads(config, draw), _heads(config, draw)
    tables = rope_tables(config.num_tokens, config.d_head, 10_000.0)
    return [q, k, *(table.to(q.device) for table in tables)]


def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """In the type of q and k, as attention wants them; the tables are in fp32."""
    rotated_q, rotated_k = reference.rope(q, k, cos, sin)
    return rotated_q.to(q.dtype), rotated_k.to(k.dtype)


def _targets(config: KernelConfig, draw: Function) -> Tensor:
    return torch.randint(config.vocab_size, (config.num_tokens,), device=draw(1).device)


OPERATIONS = {
    "softmax": Operation(
        lambda config, draw: [draw(config.num_tokens, config.num_columns)],
        reference.softmax, functools.partial(F.softmax, dim=-1), ("softmax", "softmax"),
    ),
    "rmsnorm": Operation(
        lambda config, draw: [draw(config.num_tokens, config.d_model), draw(config.d_model)],
        _with_eps(reference.rmsnorm), lambda x, weight: F.rms_norm(x, weight.shape, weight, _EPS),
        ("rmsnorm", "rmsnorm"), _with_eps,
    ),
    "rmsnorm-residual": Operation(
        lambda config, draw: [*(draw(config.num_tokens, config.d_model) for _ in "xr"), draw(config.d_model)],
        _with_residual(reference.rmsnorm), None, ("rmsnorm", "rmsnorm"), _with_residual,
    ),
    "rope": Operation(_rope_inputs, _rope, None, ("rope", "rope"), num_constants=2),
    "swiglu": Operation(
        lambda config, draw: [draw(config.num_tokens, config.d_ff) for _ in ("gate", "up")],
        reference.swiglu, None, ("swiglu", "swiglu"),
    ),
    "cross-entropy": Operation(
        lambda config, draw: [draw(config.num_tokens, config.vocab_size), _targets(config, draw)],
        reference.cross_entropy, F.cross_entropy, ("cross_entropy", "cross_entropy"), num_constants=1,
    ),
    "linear-cross-entropy": Operation(
        lambda config, draw: [
            draw(config.num_tokens, config.d_model),
            draw(config.vocab_size, config.d_model) / config.d_model**0.5,
            _targets(config, draw),
        ],
        reference.linear_cross_entropy, None, ("linear_cross_entropy", "linear_cross_entropy"),
        num_constants=1,
    ),
    "weighted-sum": Operation(
        lambda config, draw: [draw(config.num_tokens, config.num_columns), draw(config.num_columns)],
        reference.weighted_sum, torch.mv, ("weighted_sum", "weighted_sum"),
    ),
}  # fmt: skip


def find_obstacle(config: KernelConfig, implementation: str, device: torch.device) -> str | None:
    """What is lacking for an implementation, on this machine or at all; None if it can be tried."""
    if implementation == "triton":
        missing = missing_for_triton(device.type)
        if missing:
            return missing
    if implementation not in IMPLEMENTATIONS_OF[config.kernel]:
        return "there is no such implementation of this kernel"
    devices.release_cached_memory(device)  # what the last kernel needed and nobody holds any more
    free, needed = free_memory_bytes(device), peak_bytes(config)
    if free is not None and needed > free:
        return f"about {format_bytes(needed)} are needed, {format_bytes(free)} are free: try a smaller shape"
    return None


def run_kernel(
    config: KernelConfig,
    implementations: Sequence[str],
    on_step: Callable[[str], object],
    *,
    passes: Sequence[str],
    device: torch.device,
    timers: Mapping[str, Timer],
) -> tuple[dict[str, Outcome], bool]:
    """Outcomes of the implementations of one kernel, and whether Ctrl-C ended it."""
    torch.manual_seed(0)
    torch.compiler.reset()  # it gives up on a function that was compiled for many shapes
    devices.set_matmul_precision("fp32")
    passes = passes_of(config.kernel, passes)
    make = _make_optimizers if config.kernel == "adamw" else _make_functions
    contestants = make(config, implementations, passes, device)
    contestants[COPY] = _make_copy(device, passes)
    precision = "fp32" if config.kernel == "adamw" else config.precision
    rules = Rules(config.rounds, config.max_seconds, LARGEST_ERROR[precision], BASELINE, timers)
    outcomes, interrupted = hold_contest(contestants, rules, on_step)
    copy = outcomes.pop(COPY)
    for name, outcome in outcomes.items():
        _add_rates(outcome, copy, moved_bytes(config), device)
        outcome.notes += launch_bound_notes(outcome.metrics)
        if name == "triton" and device.type == "cpu":
            outcome.notes.append(INTERPRETED)
    return outcomes, interrupted


def _make_functions(
    config: KernelConfig, implementations: Sequence[str], passes: Sequence[str], device: torch.device
) -> dict[str, Contestant]:
    operation = OPERATIONS[config.kernel]
    draw = functools.partial(torch.randn, dtype=devices.DTYPES[config.precision], device=device)
    inputs = operation.make_inputs(config, draw)
    num_leaves = len(inputs) - operation.num_constants
    leaves = [tensor.requires_grad_() for tensor in inputs[:num_leaves]]
    wide = [tensor.detach().float().requires_grad_() for tensor in leaves]
    results = _as_tuple(operation.formula(*wide, *inputs[num_leaves:]))
    douts = [torch.randn_like(result) for result in results]
    backward = any(name != "forward" for name in passes)
    gradients = torch.autograd.grad(results, wide, douts) if backward else ()
    expected = [*(result.detach() for result in results), *gradients]
    return {
        name: _function_contestant(_resolve(operation, name), inputs, leaves, douts, expected, passes)
        for name in implementations
    }


def _resolve(operation: Operation, implementation: str) -> Function:
    if implementation == "compiled":
        return torch.compile(operation.formula, dynamic=False)
    if implementation == "torch":
        assert operation.torch is not None
        return operation.torch
    if implementation == "triton":
        module, name = operation.triton
        return operation.adapt_triton(getattr(importlib.import_module(f"cs_systems.kernels.{module}"), name))
    return operation.formula


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _function_contestant(
    function: Function,
    inputs: list[Tensor],
    leaves: list[Tensor],
    douts: list[Tensor],
    expected: list[Tensor],
    passes: Sequence[str],
) -> Contestant:
    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _as_tuple(function(*inputs))

    def forward_backward() -> tuple[Tensor, ...]:
        results = _as_tuple(function(*inputs))
        gradients = [dout.to(result.dtype) for dout, result in zip(douts, results, strict=True)]
        return torch.autograd.grad(results, leaves, gradients)

    def check() -> dict[str, Any]:
        results = [*forward(), *(forward_backward() if len(expected) > len(douts) else ())]
        return {"max_error": largest_error(results, expected)}

    turns = {"forward": Turn(forward), "forward-backward": Turn(forward_backward)}
    return Contestant(check, {name: turns[name] for name in passes})


def _make_optimizers(
    config: KernelConfig, implementations: Sequence[str], passes: Sequence[str], device: torch.device
) -> dict[str, Contestant]:
    """One optimizer each, with parameters of its own that all start alike; no round starts anew."""
    del passes  # there is one
    size = config.num_parameters // NUM_PARAMETER_TENSORS
    start, gradients = (
        [torch.randn(size, device=device) for _ in range(NUM_PARAMETER_TENSORS)] for _ in "wg"
    )

    def make(optimizer: Function) -> tuple[list[Tensor], torch.optim.Optimizer]:
        weights = [weight.clone().requires_grad_() for weight in start]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return weights, optimizer(weights)

    def changes(weights: Sequence[Tensor]) -> list[Tensor]:
        return [weight.detach() - before for weight, before in zip(weights[:1], start, strict=False)]

    weights, eager = make(AdamW)
    eager.step()
    expected = changes(weights)

    def contestant(optimizer: Function) -> Contestant:
        weights, own = make(optimizer)

        def check() -> dict[str, Any]:
            own.step()
            return {"max_error": largest_error(changes(weights), expected)}

        return Contestant(check, {STEP: Turn(own.step)})

    return {name: contestant(_resolve_optimizer(name)) for name in implementations}


def _resolve_optimizer(implementation: str) -> Function:
    if implementation == "torch":
        return functools.partial(torch.optim.AdamW, fused=True)
    if implementation == "triton":
        return importlib.import_module("cs_systems.kernels.adamw").FusedAdamW
    return AdamW


def _make_copy(device: torch.device, passes: Sequence[str]) -> Contestant:
    source = torch.randn(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return Contestant(
        lambda: {"max_error": 0.0}, {name: Turn(lambda: target.copy_(source)) for name in passes}
    )


def _add_rates(outcome: Outcome, copy: Outcome, moved: Mapping[str, int], device: torch.device) -> None:
    """GB/s of the least bytes, and its share of the copy's rate in the same rounds."""
    rates, copy_rates, shares = {}, {}, {}
    for name, num_bytes in moved.items():
        seconds, copy_seconds = counted(outcome.metrics, name), counted(copy.metrics, name)
        if seconds and copy_seconds:
            rates[name] = num_bytes / seconds / 1e9
            copy_rates[name] = 2 * _COPY_BYTES[device.type] / copy_seconds / 1e9
            shares[name] = rates[name] / copy_rates[name]
    if rates:
        outcome.metrics |= {"gb_per_s": rates, "copy_gb_per_s": copy_rates, "fraction_of_copy": shares}
