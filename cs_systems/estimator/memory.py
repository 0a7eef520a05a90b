"""Memory of a training step or a forward pass: which tensors are kept for backward, and when it peaks.

Bytes are of tensors. Left out: the CUDA context (0.3-0.6 GiB), cuBLAS and kernel workspaces, the allocator's
rounding to 512 bytes and its fragmentation; on a CPU the Python process and oneDNN's workspaces.

Saved bytes agree to the byte with `torch.autograd.graph.saved_tensors_hooks` on a CPU, under CPU autocast and under
the rules of CUDA autocast, and peaks within a percent with the CPU allocator's own record. Real GPUs were
compared with through published peaks of the course models: within 1 %. Fused attention on a GPU is unchecked.
"""

from dataclasses import dataclass
from typing import Literal

from cs_systems.estimator.autocast import autocast_rules
from cs_systems.estimator.products import Eager
from cs_systems.estimator.replay import Replay
from cs_systems.estimator.tape import Node, nodes_below
from cs_systems.estimator.tensors import Memory, Storage, Tensor
from cs_systems.model.config import ModelConfig

FORWARD, BACKWARD_START, BACKWARD_END, OPTIMIZER_STEP = (
    "forward", "backward_start", "backward_end", "optimizer_step",
)  # fmt: skip
"""Phases of a step: backward starts with the loss, the head and the last block, and ends with all the others."""


@dataclass(frozen=True)
class SavedTensor:
    """One piece of memory that the graph keeps from forward to backward."""

    name: str
    """Where it was made: layers.0.attn.exponentials."""
    num_bytes: int
    why: str
    """What backward needs it for."""
    kind: Literal["activation", "weight_cast"]
    """weight_cast: autocast's copy of a parameter, which grows with the model and not with the batch."""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of tensors at the highest point of each phase of a step, and what they are at the peak."""

    phases: dict[str, int]
    peak_bytes: int
    peak_phase: str
    breakdown: dict[str, int]
    """Bytes at the peak by role: parameters, gradients, optimizer_state, saved_activations, weight_casts, logits
    (with all of the loss), inputs, buffers, temporaries."""


def saved_tensors(
    config: ModelConfig,
    *,
    batch_size: int,
    seq_len: int,
    precision: str = "fp32",
    param_dtype: str = "fp32",
    attention: str = "naive",
    checkpoint_blocks: int = 0,
    device_type: str = "cpu",
) -> list[SavedTensor]:
    """Everything kept for backward at the end of the loss, in the order in which it is first kept.

    A storage is listed once, however many tensors share it; parameters and buffers are not listed. With
    `checkpoint_blocks` the blocks keep their inputs alone; `recomputed_tensors` are added during backward.
    """
    memory = Memory()
    tape = Eager(memory, device_type, autocast_rules(precision, device_type), grad=True)
    replay = Replay(config, tape, param_dtype, attention)
    loss = replay.loss(*_inputs(tape, batch_size, seq_len), checkpoint_blocks)
    found: dict[Storage, list[str]] = {}
    for node in sorted(nodes_below(loss.node), key=lambda node: node.number):
        for tensor, reason in _kept_by(node):
            reasons = found.setdefault(tensor.storage, [])
            if reason not in reasons:
                reasons.append(reason)
    return [
        SavedTensor(
            storage.name,
            storage.num_bytes,
            "; ".join(reasons),
            "weight_cast" if storage.role == "weight_casts" else "activation",
        )
        for storage, reasons in found.items()
        if storage.role not in ("parameters", "buffers")
    ]


def recomputed_tensors(
    config: ModelConfig, *, checkpoint_blocks: int, **settings: int | str
) -> list[SavedTensor]:
    """What the largest checkpointed group of blocks keeps for as long as its own backward runs."""
    group = config.replace(num_layers=min(checkpoint_blocks, config.num_layers))
    entries = saved_tensors(group, **settings)  # pyright: ignore[reportArgumentType]
    last = f"layers.{group.num_layers - 1}.stream after block"  # the input of the next group
    return [entry for entry in entries if entry.name.startswith("layers.") and entry.name != last]


def predict_peak(
    config: ModelConfig,
    *,
    batch_size: int,
    seq_len: int,
    mode: str = "train-step",
    precision: str = "fp32",
    param_dtype: str = "fp32",
    attention: str = "naive",
    checkpoint_blocks: int = 0,
    optimizer: str = "adamw",
    device_type: str = "cpu",
) -> PeakMemory:
    """Peak of a step in a steady state: the optimizer has its state, gradients are None when forward starts.

    Args:
        config: the model; its parameters are counted in `param_dtype`, its position tables in fp32.
        batch_size: sequences per step.
        seq_len: tokens of each.
        mode: forward (without a graph), forward-backward or train-step.
        precision: fp32 and tf32 need no casts, bf16 and fp16 are autocast.
        param_dtype: type of parameters, gradients and optimizer state.
        attention: naive or sdpa.
        checkpoint_blocks: blocks per activation checkpoint, 0 for none.
        optimizer: adamw (ours), torch (one parameter at a time on a CPU, all at once on a GPU) or torch-fused.
        device_type: cpu or cuda; decides the rules of autocast and how operators convert their inputs.
    """
    memory = Memory()
    tape = Eager(memory, device_type, autocast_rules(precision, device_type), grad=mode != "forward")
    replay = Replay(config, tape, param_dtype, attention)
    state = _optimizer_state(replay, optimizer) if mode == "train-step" else []
    inputs = _inputs(tape, batch_size, seq_len)
    memory.enter(FORWARD)
    loss = replay.loss(*inputs, checkpoint_blocks)
    tape.cast_cache.clear()
    if mode != "forward":
        late = ("loss", "ln_final", "lm_head", f"layers.{config.num_layers - 1}")

        def follow(node: Node) -> None:
            is_late = node.scope.startswith(tuple(f"{part}." for part in late)) or node.scope in late
            memory.enter(BACKWARD_START if is_late else BACKWARD_END)

        tape.backward(loss, follow)
    if mode == "train-step":
        memory.enter(OPTIMIZER_STEP)
        _optimizer_step(replay, optimizer)
    del state
    del memory.highest["setup"]
    peak_phase = max(memory.highest, key=lambda phase: memory.highest[phase][0])
    peak_bytes, breakdown = memory.highest[peak_phase]
    return PeakMemory(
        phases={phase: num_bytes for phase, (num_bytes, _) in memory.highest.items()},
        peak_bytes=peak_bytes,
        peak_phase=peak_phase,
        breakdown={role: num_bytes for role, num_bytes in breakdown.items() if num_bytes},
    )


def _inputs(tape: Eager, batch_size: int, seq_len: int) -> tuple[Tensor, Tensor]:
    ids, targets = (
        tape.new((batch_size, seq_len), "int64", name, role="inputs") for name in ("token ids", "targets")
    )
    return ids, targets


def _kept_by(node: Node) -> list[tuple[Tensor, str]]:
    kept = [(tensor, node.reasons[name]) for name, tensor in node.kept.items()]
    if node.checkpoint is not None:
        kept += [(tensor, "input of a checkpoint") for tensor in node.checkpoint.inputs.values()]
    return kept


def _optimizer_state(replay: Replay, optimizer: str) -> list[Tensor]:
    """Two moments a parameter; torch.optim counts the steps in one more number each."""
    state = []
    for name, weight in replay.parameters.items():
        for _ in range(2):
            state.append(replay.tape.new(weight.shape, weight.dtype, name, role="optimizer_state"))
        if optimizer != "adamw":
            state.append(replay.tape.new((), "fp32", name, role="optimizer_state"))
    return state


def _optimizer_step(replay: Replay, optimizer: str) -> None:
    """Allocate what the step does: the square root of the second moments, one parameter at a time or all."""
    tape, weights = replay.tape, list(replay.parameters.values())
    if optimizer == "torch" and tape.device_type == "cuda":
        together = [tape.new(weight.shape, weight.dtype, "denominator") for weight in weights]
        del together
        return
    denominator = None
    for weight in weights if optimizer != "torch-fused" else []:
        root = tape.new(weight.shape, weight.dtype, "square root") if optimizer == "torch" else None
        denominator = tape.new(weight.shape, weight.dtype, "denominator")  # the old one is freed only now
        del root
    del denominator
