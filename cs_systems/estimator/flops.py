"""Floating-point operations of the matrix products of a step; a multiply-add counts as two.

Convention: every matrix product of the model, the head and the products of attention included; all scores are
counted, also those that the causal mask hides, because the kernels measured here compute them. Norms,
softmax, activations and the optimizer are left out: below 1 % of the operations, though not of the time.
"""

from cs_systems.model.config import ModelConfig


def forward_flops_by_part(config: ModelConfig, batch_size: int, seq_len: int) -> dict[str, int]:
    """FLOPs of one forward pass over batch_size * seq_len = N tokens, by part of the model.

    With L layers, widths d and f, key width k = num_kv_heads * d_head and vocabulary V: projections
    2 N L (2 d^2 + 2 d k), scores 2 N S L d, weighted values 2 N S L d, feed-forward 2 N L c d f with c = 3
    matrices for swiglu and 2 otherwise, head 2 N d V.
    """
    tokens, layers, d_model = batch_size * seq_len, config.num_layers, config.d_model
    d_kv = config.num_kv_heads * config.d_head
    num_matrices = 3 if config.activation == "swiglu" else 2
    return {
        "attention projections": 2 * tokens * layers * (2 * d_model**2 + 2 * d_model * d_kv),
        "attention scores": 2 * tokens * seq_len * layers * d_model,
        "weighted values": 2 * tokens * seq_len * layers * d_model,
        "feed-forward": 2 * tokens * layers * num_matrices * d_model * config.d_ff,
        "head": 2 * tokens * d_model * config.vocab_size,
    }


def forward_flops(config: ModelConfig, batch_size: int, seq_len: int) -> int:
    """FLOPs of one forward pass."""
    return sum(forward_flops_by_part(config, batch_size, seq_len).values())


def backward_flops(config: ModelConfig, batch_size: int, seq_len: int) -> int:
    """FLOPs of one backward pass: each product Y = X W has two in backward, dX = dY W^T and dW = X^T dY.

    SDPA computes the scores once more, which is work that this count leaves out.
    """
    return 2 * forward_flops(config, batch_size, seq_len)
