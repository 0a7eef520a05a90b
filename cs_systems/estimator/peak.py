"""The peak of a step, phase by phase.

Alive are parameters and optimizer state always, saved tensors from forward until their block's backward,
gradients from their block's backward to the optimizer step, and the largest temporaries of the moment.
Steady state is meant: the optimizer has its state, and gradients are dropped before forward. The
temporaries follow the order of the operations in the model; they make the peak approximate, where the saved
tensors alone are exact.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from cs_systems.estimator.memory import (
    MemoryCase,
    block_tensors,
    block_weight_copies,
    embedding_tensors,
    feed_forward_tensors,
    head_tensors,
    logits_bytes,
    norm_tensors,
    num_scores,
    saved_tensors,
    total_bytes,
    weight_copies,
)
from cs_systems.estimator.parameters import largest_parameter, num_parameters, parameter_groups
from cs_systems.model.config import ModelConfig

LOGIT_CHUNK_BYTES = 2**29
"""The linear cross-entropy's buffer of logits; a test compares it with the kernel's."""

TILE = (64, 128)
"""Queries and keys of a block of `flash-torch`; a test compares them with the function's."""


@dataclass(frozen=True)
class PeakMemory:
    """Most bytes held in each phase of a step."""

    phases: dict[str, int]

    @property
    def peak_phase(self) -> str:
        """The phase that decides whether a case fits."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """The most bytes held at any moment."""
        return self.phases[self.peak_phase]


def predict_peak(config: ModelConfig, case: MemoryCase) -> PeakMemory:
    """Peak bytes of tensors in one step of `case`, by phase."""
    weights = case.stream_bytes * num_parameters(config)
    if case.mode == "forward":
        return PeakMemory({"forward": weights + inference_temporaries(config, case)})
    held = weights + (2 * weights if case.mode == "train-step" else 0)
    saved = total_bytes(saved_tensors(config, case)) + weight_copies(config, case)
    group_size = min(case.checkpoint_blocks, config.num_layers) or 1
    group = group_size * (total_bytes(block_tensors(config, case)) + block_weight_copies(config, case))
    recomputed = group if case.checkpoint_blocks else 0
    groups = parameter_groups(config)
    block_parameters = (groups["attention"] + groups["feed_forward"] + groups["norms"]) // config.num_layers
    embedding = case.stream_bytes * config.vocab_size * config.d_model
    # Gradients that exist when the first blocks run backward; a tied embedding has that of the head by then.
    later = weights - case.stream_bytes * (groups["embeddings"] + group_size * block_parameters)
    later += embedding if config.tied_embeddings else 0
    extra = backward_temporaries(config, case)
    phases = {
        "loss": held + saved + loss_temporaries(config, case),
        "backward of the last block": (
            held + saved - total_bytes(head_tensors(config, case)) + embedding + recomputed + extra
        ),
        "backward of the first block": (
            held + later + total_bytes(embedding_tensors(config, case)) + group + extra
        ),
        # A tied embedding already holds the gradient of the head when its own arrives and is added.
        "backward of the embedding": held + weights + (embedding if config.tied_embeddings else 0),
    }
    if case.mode == "train-step":
        phases["optimizer step"] = held + weights + optimizer_temporaries(config, case)
    return PeakMemory(phases)


def loss_temporaries(config: ModelConfig, case: MemoryCase) -> int:
    """Logits and shifted logits in fp32, next to the exponentials that are saved; and logits as they came.

    The kernels write over the logits. With a linear cross-entropy only some tokens have logits at a time.
    """
    if "linear-cross-entropy" in case.kernels:
        return min(LOGIT_CHUNK_BYTES, logits_bytes(config, case))
    if "cross-entropy" in case.kernels:
        return 0
    logits = case.num_tokens * config.vocab_size
    return 8 * logits + (0 if case.matmul_bytes == 4 else case.matmul_bytes * logits)


def backward_temporaries(config: ModelConfig, case: MemoryCase) -> int:
    """The most that the backward of a block holds beyond what the block had saved."""
    stream = case.num_tokens * config.d_model
    hidden = case.matmul_bytes * case.num_tokens * config.d_ff
    # Gradients of the product and of its factors, while the input of w2 is already freed.
    feed_forward = {"swiglu": 2, "relu": 2}.get(config.activation, 1) * hidden
    freed = total_bytes(feed_forward_tensors(config, case)) + total_bytes(norm_tensors("ln2", config, case))
    if case.attention == "naive":
        # Division: gradients of weights and exponentials, two quotients and their product; weights are freed.
        attention = (5 * case.softmax_bytes - case.matmul_bytes) * num_scores(config, case)
    else:
        attention = 4 * case.matmul_bytes * stream  # gradients of q, k, v and of the output
        attention += 2 * _tile_bytes(config, case)  # weights, and their gradients
    return 2 * 4 * stream + max(feed_forward, attention - freed)


def inference_temporaries(config: ModelConfig, case: MemoryCase) -> int:
    """The most that a forward pass without a graph holds beyond the parameters."""
    stream = case.stream_bytes * case.num_tokens * config.d_model
    heads = case.matmul_bytes * case.num_tokens * config.d_model
    hidden = case.matmul_bytes * case.num_tokens * config.d_ff
    # The embedding, the block's input and its norm stay alive; after attention also the new stream.
    feed_forward = 4 * stream + (3 if config.activation == "swiglu" else 2) * hidden
    attention = 3 * stream + 4 * heads
    if case.attention == "naive":  # scores, exponentials and weights
        attention += (2 * case.softmax_bytes + case.matmul_bytes) * num_scores(config, case)
    attention += 3 * _tile_bytes(config, case)  # before and after rescaling, and the products added
    head = loss_temporaries(config, case)
    if "linear-cross-entropy" not in case.kernels:  # exponentials, or with the kernel the logits alone
        head += (
            logits_bytes(config, case)
            if "cross-entropy" in case.kernels
            else (4 * case.num_tokens * config.vocab_size)
        )
    cast = case.matmul_bytes * config.d_model * config.d_ff if case.is_autocast else 0  # a weight at a time
    return max(feed_forward + cast, attention + cast, head)


def _tile_bytes(config: ModelConfig, case: MemoryCase) -> int:
    """Scores and sums of one block of every head, in fp32: what attention by tiles has in plain PyTorch."""
    if case.attention != "flash-torch":
        return 0
    queries, keys = (min(block, case.seq_len) for block in TILE)
    return 4 * case.batch_size * config.num_heads * queries * (keys + config.d_head)


def optimizer_temporaries(config: ModelConfig, case: MemoryCase) -> int:
    """What one AdamW update allocates: ours a tensor per parameter, torch's two, or all at once on a GPU."""
    largest = case.stream_bytes * largest_parameter(config)
    if case.optimizer == "torch":
        return case.stream_bytes * num_parameters(config) if case.device_type == "cuda" else 2 * largest
    return largest if case.optimizer == "adamw" else 0  # both fused ones work in place


def advise(config: ModelConfig, case: MemoryCase, free_bytes: int, overhead: int | float = 1.0) -> str:
    """One line for a case that needs more than `free_bytes`: by how much, and which flags would make it fit.

    Every single change is tried with the estimator, then every pair; only what would fit is named. `overhead`
    is what the allocator takes for each byte of tensors.
    """
    need = overhead * predict_peak(config, case).peak_bytes
    opening = f"needs {need / 2**30:.1f} GiB, {free_bytes / 2**30:.1f} GiB free"

    def fits(changes: tuple[Change, ...]) -> bool:
        changed = case
        for change in changes:
            changed = dataclasses.replace(changed, **change.settings)
        return overhead * predict_peak(config, changed).peak_bytes <= free_bytes

    changes = _possible_changes(case)
    for number in (1, 2):
        fitting = [
            combination for combination in itertools.combinations(changes, number) if fits(combination)
        ]
        if fitting:
            ways = [" with ".join(change.flag for change in combination) for combination in fitting[:3]]
            return f"{opening}: try {', or '.join(ways)}"
    return f"{opening}: no batch size, precision or checkpointing makes it fit; try a smaller --model"


@dataclass(frozen=True)
class Change:
    """A flag a user could set, and what it means to the estimator."""

    flag: str
    settings: dict[str, Any]


def _possible_changes(case: MemoryCase) -> list[Change]:
    """What could lower the peak, mildest first; a smaller batch changes the experiment most."""
    changes = []
    if case.attention == "naive":
        changes.append(Change("--attention sdpa", {"attention": "sdpa"}))
    if case.mode != "forward" and not case.checkpoint_blocks:
        changes.append(Change("--checkpoint-blocks 1", {"checkpoint_blocks": 1}))
    if case.precision in ("fp32", "tf32"):
        changes.append(Change("--precision bf16", {"precision": "bf16"}))
    if case.param_dtype == "fp32":
        changes.append(Change("--param-dtype bf16", {"param_dtype": "bf16"}))
    if case.batch_size > 1:
        changes.append(Change("--batch-size 1", {"batch_size": 1}))
    return changes
