"""Floating-point operations of the matrix products, forward and backward.

Convention: a multiplication and an addition are two operations. Every matrix product of the model counts, the head
included, with all S^2 scores of attention although half are masked: our attention, naive or fused, is counted as
what it multiplies without skipping. Embedding lookups and element-wise work (norms, softmax, activations, rope,
loss, optimizer) are left out; they cost time by their bytes, not by their operations.
"""

from cs_systems.model.config import ModelConfig


def forward_flops_by_part(config: ModelConfig, batch_size: int, seq_len: int) -> dict[str, int]:
    """Operations of one forward pass over `batch_size` sequences of `seq_len` tokens, by part of the model.

    With N = B S tokens, width d, key width k, feed-forward width f, m = 3 matrices in swiglu and 2 otherwise:
    projections 2 N L (2 d^2 + 2 d k), scores 2 N S L d, weighted values 2 N S L d, feed-forward 2 N L m d f,
    head 2 N V d.
    """
    tokens, d_model = batch_size * seq_len, config.d_model
    d_kv = config.num_kv_heads * config.d_head
    per_layer = {
        "attention_projections": 2 * tokens * (2 * d_model * d_model + 2 * d_model * d_kv),
        "attention_scores": 2 * tokens * seq_len * d_model,
        "attention_values": 2 * tokens * seq_len * d_model,
        "feed_forward": 2 * tokens * (3 if config.activation == "swiglu" else 2) * d_model * config.d_ff,
    }
    by_part = {part: config.num_layers * flops for part, flops in per_layer.items()}
    return by_part | {"head": 2 * tokens * config.vocab_size * d_model}


def forward_flops(config: ModelConfig, batch_size: int, seq_len: int) -> int:
    """Operations of one forward pass."""
    return sum(forward_flops_by_part(config, batch_size, seq_len).values())


def backward_flops(config: ModelConfig, batch_size: int, seq_len: int) -> int:
    """Operations of one backward pass: two products, for the input and for the weight, where forward has one.

    Fused attention computes the scores again, which is not counted: it is a cost of the method.
    """
    return 2 * forward_flops(config, batch_size, seq_len)


def training_flops(config: ModelConfig, batch_size: int, seq_len: int) -> int:
    """Operations of one training step; what activation checkpointing computes again is not counted."""
    return forward_flops(config, batch_size, seq_len) + backward_flops(config, batch_size, seq_len)
