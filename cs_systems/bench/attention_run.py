"""Measure attention: the implementations by name, what they must compute, and one shape of the grid."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cs_systems import device as devices
from cs_systems.bench.attention_case import (
    BASELINE,
    AttentionConfig,
    attention_flops,
    explain_memory,
    peak_bytes,
)
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
from cs_systems.bench.training import free_memory_bytes
from cs_systems.bench.turns import Timer, Turn
from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.attention import ATTENTION, naive_attention
from cs_systems.tables import format_bytes

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

_SDPA_BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_REFERENCE_SCORES = 2**24
"""Scores that the reference computes at one time: 64 MiB in fp32."""


def find_obstacle(config: AttentionConfig, implementation: str, device: torch.device) -> str | None:
    """Why this machine cannot run it on such tensors, whatever their length; None if it can."""
    if implementation == "flash":
        return missing_for_triton(device.type)
    if implementation in _SDPA_BACKENDS:
        q = torch.randn(1, 1, 16, config.d_head, device=device, dtype=devices.DTYPES[config.precision])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of every condition that is not met
                resolve(implementation, config.causal)(q, q, q)
        except RuntimeError:
            return (
                f"PyTorch has no such kernel for {config.precision}, d_head {config.d_head} on {device.type}"
            )
    return None


def find_lack_of_memory(
    config: AttentionConfig, implementation: str, passes: Sequence[str], device: torch.device
) -> str | None:
    """Why an implementation is predicted not to fit into the memory that is free now; None if it fits."""
    devices.release_cached_memory(device)  # what the last shape needed and nobody holds any more
    free = free_memory_bytes(device)
    if free is None or peak_bytes(config, implementation, passes) <= free:
        return None
    return f"{format_bytes(free)} are free, and {explain_memory(config, implementation, passes)}"


def find_any_obstacle(
    config: AttentionConfig, implementation: str, passes: Sequence[str], device: torch.device
) -> str | None:
    """What this machine lacks for an implementation: the means or the memory."""
    lacking = find_obstacle(config, implementation, device)
    return lacking or find_lack_of_memory(config, implementation, passes, device)


def resolve(implementation: str, causal: bool) -> Attention:
    """The implementation as a function of queries, keys and values, (batch, heads, seq, d_head) each."""
    if implementation == "naive-compiled":
        return torch.compile(functools.partial(naive_attention, is_causal=causal), dynamic=False)
    if implementation in _SDPA_BACKENDS:
        backend = _SDPA_BACKENDS[implementation]

        def with_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return with_backend
    return functools.partial(ATTENTION[implementation], is_causal=causal)


def run_shape(
    config: AttentionConfig,
    implementations: Sequence[str],
    on_step: Callable[[str], object],
    *,
    passes: Sequence[str],
    device: torch.device,
    timers: Mapping[str, Timer],
) -> tuple[dict[str, Outcome], bool]:
    """Outcomes of the implementations on one shape, and whether Ctrl-C ended it."""
    torch.manual_seed(0)
    torch.compiler.reset()  # it gives up on a function that was compiled for many shapes
    devices.set_matmul_precision("fp32")
    dtype = devices.DTYPES[config.precision]
    q, k, v, do = (torch.randn(config.shape, dtype=dtype, device=device) for _ in range(4))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    with_gradients = any(name != "forward" for name in passes)
    expected = compute_reference((q, k, v), do, config.causal, with_gradients)
    contestants = {
        name: _contestant(resolve(name, config.causal), (q, k, v), do, expected, passes)
        for name in implementations
    }
    rules = Rules(config.rounds, config.max_seconds, LARGEST_ERROR[config.precision], BASELINE, timers)
    outcomes, interrupted = hold_contest(contestants, rules, on_step)
    for name, outcome in outcomes.items():
        if outcome.status == "oom":
            outcome.reason = f"{outcome.reason}: {explain_memory(config, name, passes)}"
        _add_rates(outcome, config, passes)
        if name == "flash" and device.type == "cpu":
            outcome.notes.append(INTERPRETED)
    return outcomes, interrupted


def compute_reference(
    inputs: tuple[Tensor, Tensor, Tensor], do: Tensor, causal: bool, with_gradients: bool
) -> list[Tensor]:
    """o, and dq, dk, dv if asked for, by the formula in fp32 (fp64 for fp64), some queries at a time."""
    wide = torch.promote_types(inputs[0].dtype, torch.float32)
    q, k, v = (tensor.detach().to(wide) for tensor in inputs)
    o, dq, dk, dv = torch.empty_like(q), torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    batch, heads, seq, _ = q.shape
    rows = max(1, _REFERENCE_SCORES // (batch * heads * seq))
    positions = torch.arange(seq, device=q.device)
    for start in range(0, seq, rows):
        chunk = slice(start, start + rows)
        bias = None
        if causal:
            hidden = positions[None, :] > positions[chunk, None]
            bias = torch.zeros(1, *hidden.shape, dtype=wide, device=q.device).masked_fill(hidden, -torch.inf)
        leaves = [tensor.requires_grad_(with_gradients) for tensor in (q[:, :, chunk].clone(), k, v)]
        o_chunk = naive_attention(*leaves, is_causal=False, bias=bias)
        o[:, :, chunk] = o_chunk.detach()
        if with_gradients:
            dq[:, :, chunk], dk_part, dv_part = torch.autograd.grad(o_chunk, leaves, do[:, :, chunk].to(wide))
            dk += dk_part
            dv += dv_part
    return [o, dq, dk, dv] if with_gradients else [o]


@contextlib.contextmanager
def saved_bytes(inputs: Sequence[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes by address of everything that autograd keeps meanwhile, apart from the inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _contestant(
    attend: Attention,
    inputs: tuple[Tensor, Tensor, Tensor],
    do: Tensor,
    expected: list[Tensor],
    passes: Sequence[str],
) -> Contestant:
    graph: list[Tensor] = []

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(*inputs)

    def forward_for_backward() -> None:
        graph[:] = [attend(*inputs)]

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(graph.pop(), inputs, do)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*inputs), inputs, do)

    def check() -> dict[str, Any]:
        if len(expected) == 1:
            return {"max_error": largest_error([forward()], expected)}
        if "forward" in passes:
            forward()  # compiled apart from the one that prepares for backward
        attend(*inputs)  # the first call may also allocate a workspace, which stays
        before = devices.allocated_bytes(inputs[0].device)
        with saved_bytes(inputs) as kept:
            o = attend(*inputs)
        after = devices.allocated_bytes(inputs[0].device)
        kept[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
        held = sum(kept.values()) if before is None or after is None else after - before
        results = [o.detach(), *torch.autograd.grad(o, inputs, do)]
        return {"max_error": largest_error(results, expected), "held_bytes": held}

    turns = {
        "forward": Turn(forward),
        "backward": Turn(backward, prepare=forward_for_backward),
        "forward-backward": Turn(forward_backward),
    }
    return Contestant(check, {name: turns[name] for name in passes})


def _add_rates(outcome: Outcome, config: AttentionConfig, passes: Sequence[str]) -> None:
    flops = attention_flops(config)
    seconds = {name: counted(outcome.metrics, name) for name in passes}
    outcome.metrics["tflops_per_s"] = {
        name: flops[name] / value / 1e12 for name, value in seconds.items() if value
    }
    outcome.notes += launch_bound_notes(outcome.metrics)
