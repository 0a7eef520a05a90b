"""Bytes of tensors that a training step holds, tensor by tensor, from formulas.

Two questions are answered. `saved_tensors` lists what autograd keeps from forward to backward, and agrees
to the byte with what `torch.autograd.graph.saved_tensors_hooks` sees on the real model. `predict_peak` adds
parameters, gradients, optimizer state and the largest temporaries, phase by phase, to find the peak and who
owns it.

B sequences of S tokens make N = B * S tokens; h heads of width d_head make d = d_model; f is d_ff; A = B *
h * S^2 is the number of attention scores. Storages are counted once however many tensors share them.
Counted apart are parameters and buffers, which exist anyway, and the copies of weights that autocast makes.

Not included, because they are not tensors: the CUDA context (0.3 to 0.6 GiB), library workspaces, rounding
and fragmentation by the allocator. What SDPA keeps was checked on the CPU; on a GPU it is unverified.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cs_systems.estimator.parameters import parameter_shapes
from cs_systems.model.config import ModelConfig

ITEM_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}

Policy = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class SavedTensor:
    """One storage that is alive from forward to backward."""

    name: str
    num_bytes: int
    why: str
    """Which operation needs it in backward."""


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """Everything besides the model that decides how many bytes a step holds."""

    batch_size: int
    seq_len: int
    mode: Literal["forward", "forward-backward", "train-step"] = "train-step"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    param_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    attention: Literal["naive", "sdpa", "flash-torch", "flash"] = "naive"
    kernels: tuple[str, ...] = ()
    """Names of Triton kernels: rmsnorm, rope, swiglu and one of cross-entropy and linear-cross-entropy."""
    checkpoint_blocks: int = 0
    optimizer: Literal["adamw", "torch", "torch-fused", "triton"] = "adamw"
    device_type: Policy = "cpu"

    @property
    def is_autocast(self) -> bool:
        """Whether matrix products cast their inputs to `precision`."""
        return self.precision in ("bf16", "fp16") and self.precision != self.param_dtype

    @property
    def stream_bytes(self) -> int:
        """Bytes of a value of the residual stream, which has the type of the parameters."""
        return ITEM_BYTES[self.param_dtype]

    @property
    def matmul_bytes(self) -> int:
        """Bytes of an operand of a matrix product."""
        return ITEM_BYTES[self.precision] if self.is_autocast else self.stream_bytes

    @property
    def softmax_bytes(self) -> int:
        """Bytes of an exponential in our softmax: CUDA autocast runs exp in fp32, CPU autocast does not."""
        if self.precision in ("bf16", "fp16") and self.device_type == "cuda":
            return 4
        return self.matmul_bytes

    @property
    def num_tokens(self) -> int:
        """N = batch_size * seq_len."""
        return self.batch_size * self.seq_len

    def copies(self, consumers: int) -> int:
        """Copies of an activation that `consumers` matrix products keep: autocast casts once for each."""
        return consumers if self.is_autocast else 1


def num_scores(config: ModelConfig, case: MemoryCase) -> int:
    """A, the attention scores of one layer: B h S^2."""
    return case.batch_size * config.num_heads * case.seq_len**2


def norm_tensors(name: str, config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """A norm, computed in fp32 whatever the type of its input; the kernel keeps that input as it came."""
    width = config.d_model
    if config.norm == "rmsnorm" and "rmsnorm" in case.kernels:
        return [
            SavedTensor(f"{name} input", case.stream_bytes * case.num_tokens * width, "recomputes the rest"),
            SavedTensor(f"{name} 1/rms", 4 * case.num_tokens, "one value a token; fp32"),
        ]
    first = "input" if config.norm == "rmsnorm" else "input minus mean"
    return [
        SavedTensor(f"{name} {first}", 4 * case.num_tokens * width, "square, and product with 1/norm; fp32"),
        SavedTensor(f"{name} 1/norm", 4 * case.num_tokens, "product with the input; one value a token"),
        SavedTensor(f"{name} normalised", 4 * case.num_tokens * width, "product with the weight; fp32"),
    ]


def attention_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """Queries, keys, values and what the attention function keeps."""
    tokens, low = case.num_tokens, case.matmul_bytes
    d_kv = config.num_kv_heads * config.d_head
    rows = case.batch_size * config.num_heads * case.seq_len
    scores = num_scores(config, case)
    tensors = [
        SavedTensor("queries", low * tokens * config.d_model, "scores"),
        SavedTensor("keys", low * tokens * d_kv, "scores"),
        SavedTensor("values", low * tokens * d_kv, "weighted sum"),
    ]
    if case.attention == "naive":
        wide = 4 if config.position == "alibi" else case.softmax_bytes  # the fp32 bias widens the scores
        tensors += [
            SavedTensor("exponentials", wide * scores, "exp, and division by the sum"),
            SavedTensor("sums of exponentials", wide * rows, "division"),
            SavedTensor("attention weights", low * scores, "weighted sum of values"),
        ]
        if config.position != "alibi":
            tensors.append(SavedTensor("causal mask", case.seq_len**2, "masked_fill; one byte a score"))
    else:
        tensors.append(SavedTensor("log-sum-exp", 4 * rows, "the weights are recomputed from it; fp32"))
        is_joined = (
            config.position == "rope" and config.rotary_dim < config.d_head and "rope" not in case.kernels
        )
        if is_joined and config.num_heads > 1 and case.seq_len > 1:
            # The output is laid out as the queries are. Laid out as by the projection it is at the same time
            # the input of the output projection; not so where rotated and other channels were joined.
            tensors.append(
                SavedTensor("attention output", low * tokens * config.d_model, "gradient of the softmax")
            )
        if config.position == "alibi" and case.attention == "sdpa" and low != 4:
            tensors.append(
                SavedTensor(
                    "bias", low * config.num_heads * case.seq_len**2, "SDPA wants it in the type of q"
                )
            )
    if config.position == "rope" and "rope" not in case.kernels:  # the kernel reads the model's own tables
        rotation = 8 * case.seq_len * (config.rotary_dim // 2)
        tensors.append(SavedTensor("rotations of queries and keys", 2 * rotation, "complex product"))
    tensors.append(
        SavedTensor("output projection input", low * tokens * config.d_model, "its weight gradient")
    )
    return tensors


def feed_forward_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """What the feed-forward layer keeps besides its input."""
    hidden = case.matmul_bytes * case.num_tokens * config.d_ff
    last = SavedTensor("w2 input", hidden, "weight gradient of w2")
    if config.activation == "swiglu":
        gate = [SavedTensor("w1 output", hidden, "silu")]
        if "swiglu" not in case.kernels:  # which computes it again
            gate.append(SavedTensor("silu(w1 x)", hidden, "product with w3 x"))
        return [*gate, SavedTensor("w3 output", hidden, "product with silu(w1 x)"), last]
    if config.activation == "relu":
        return [last]  # relu needs only its own result
    return [SavedTensor("w1 output", hidden, config.activation), last]


def block_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """Everything one Transformer block keeps: the R of the memory questions."""
    tokens_bytes = case.matmul_bytes * case.num_tokens * config.d_model
    ffn_consumers = 2 if config.activation == "swiglu" else 1
    why = (
        "weight gradients; autocast makes a copy for each consumer"
        if case.is_autocast
        else "weight gradients"
    )
    if config.residual == "parallel":
        inputs = [SavedTensor("block input", case.copies(3 + ffn_consumers) * tokens_bytes, why)]
        return [
            *norm_tensors("ln1", config, case), *inputs,
            *attention_tensors(config, case), *feed_forward_tensors(config, case),
        ]  # fmt: skip
    return [
        *norm_tensors("ln1", config, case),
        SavedTensor("q, k, v projection input", case.copies(3) * tokens_bytes, why),
        *attention_tensors(config, case),
        *norm_tensors("ln2", config, case),
        SavedTensor("feed-forward input", case.copies(ffn_consumers) * tokens_bytes, why),
        *feed_forward_tensors(config, case),
    ]


def embedding_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """Ids and positions, and the norm that BLOOM puts behind them."""
    tensors = [SavedTensor("token ids", 8 * case.num_tokens, "rows of the embedding gradient")]
    if config.position == "learned":
        tensors.append(SavedTensor("positions", 8 * case.seq_len, "rows of the position gradient"))
    sdpa_keeps_it = case.attention == "sdpa" and case.matmul_bytes == 4
    recomputed = case.attention in ("naive", "sdpa") and case.checkpoint_blocks
    if config.position == "alibi" and (sdpa_keeps_it or recomputed):
        size = 4 * config.num_heads * case.seq_len**2
        tensors.append(SavedTensor("ALiBi bias", size, "SDPA or recomputation; shared by all blocks"))
    return tensors + (norm_tensors("embedding norm", config, case) if config.embedding_norm else [])


def logits_bytes(config: ModelConfig, case: MemoryCase) -> int:
    """Logits of all tokens, as the head's matrix product gives them."""
    return case.matmul_bytes * case.num_tokens * config.vocab_size


def head_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """Final norm, head and cross-entropy, which runs in fp32."""
    norm = norm_tensors("ln_final", config, case)
    width = case.matmul_bytes * case.num_tokens * config.d_model
    if "linear-cross-entropy" in case.kernels:
        why = "computed in forward, multiplied in backward"
        bias = [SavedTensor("gradient of the head's bias", 4 * config.vocab_size, why)] * config.head_bias
        weight = SavedTensor("gradient of the head", 4 * config.vocab_size * config.d_model, f"{why}; fp32")
        return [*norm, SavedTensor("gradient of the head's input", width, why), weight, *bias]
    head = [*norm, SavedTensor("head input", width, "its weight gradient")]
    if "cross-entropy" in case.kernels:
        size = logits_bytes(config, case)
        return [*head, SavedTensor("gradient of the logits", size, "written over them in forward")]
    logits = 4 * case.num_tokens * config.vocab_size
    return [
        *head,
        SavedTensor("exponentials of logits", logits, "exp; fp32"),
        SavedTensor("sums of exponentials", 4 * case.num_tokens, "log"),
        SavedTensor(
            "row numbers and targets", 16 * case.num_tokens, "where to put the gradient of the targets"
        ),
    ]


def block_weight_copies(config: ModelConfig, case: MemoryCase) -> int:
    """Bytes of one block's weights as autocast casts them for the matrix products."""
    if not case.is_autocast:
        return 0
    block = (shape for name, shape in parameter_shapes(config).items() if name.startswith("layers.0."))
    return case.matmul_bytes * sum(math.prod(shape) for shape in block if len(shape) == 2)


def weight_copies(config: ModelConfig, case: MemoryCase) -> int:
    """Bytes of cast weights alive until backward: the head's, and the blocks' unless recomputed."""
    if not case.is_autocast:
        return 0
    num_blocks = 0 if case.checkpoint_blocks else config.num_layers
    keeps_head = "linear-cross-entropy" not in case.kernels
    head = keeps_head * case.matmul_bytes * config.vocab_size * config.d_model
    return num_blocks * block_weight_copies(config, case) + head


def saved_tensors(config: ModelConfig, case: MemoryCase) -> list[SavedTensor]:
    """What is alive between forward and backward, without parameters, buffers and `weight_copies`."""
    block = block_tensors(config, case)
    if case.checkpoint_blocks:
        size = case.stream_bytes * case.num_tokens * config.d_model
        starts = range(0, config.num_layers, case.checkpoint_blocks)
        blocks = [SavedTensor(f"input of block {i}", size, "start of the recomputation") for i in starts]
    else:
        blocks = [
            dataclasses.replace(tensor, name=f"block {i} {tensor.name}")
            for i in range(config.num_layers)
            for tensor in block
        ]
    return [*embedding_tensors(config, case), *blocks, *head_tensors(config, case)]


def total_bytes(tensors: Iterable[SavedTensor]) -> int:
    """Sum of the bytes of some tensors."""
    return sum(tensor.num_bytes for tensor in tensors)
