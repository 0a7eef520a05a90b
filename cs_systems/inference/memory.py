"""Bytes that generation needs, in closed form from the configuration alone. No torch here.

A forward pass without gradients keeps no activations, so weights and cache are nearly everything:
`weight_bytes + batch * positions * cache_bytes_per_token`. A cache that is concatenated anew in each step
holds the old and the new one at once, twice the second term; ours is allocated once.
"""

from cs_systems.inference.settings import Precision
from cs_systems.model.config import ModelConfig

VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 2}
"""Bytes of a number that is no weight of a matrix: activations, cache, norms, biases."""

MATRIX_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Bytes of a weight of a matrix; int8 adds a bf16 scale for every row."""


def cache_bytes_per_token(config: ModelConfig, precision: Precision) -> int:
    """Bytes of keys and values of one token in all layers: 2 layers kv_heads d_head bytes."""
    return 2 * config.num_layers * config.num_kv_heads * config.d_head * VALUE_BYTES[precision]


def cache_bytes(config: ModelConfig, precision: Precision, batch_size: int, capacity: int) -> int:
    """Bytes of a cache for `batch_size` sequences of at most `capacity` tokens, allocated at once."""
    return batch_size * capacity * cache_bytes_per_token(config, precision)


def weight_bytes(config: ModelConfig, precision: Precision, *, packed: bool = False) -> int:
    """Bytes of all weights as the fast decoder keeps them; a tied head is kept once.

    With `packed` (see `projections.choose_layout`) matrices are in blocks that only oneDNN can read: a tied
    head is a second copy of the embedding, and blocks that are not full, which this leaves out, are padded.
    """
    head = (config.vocab_size, config.d_model)
    untied = not config.tied_embeddings or packed
    matrices = config.num_layers * sum(_matrix_bytes(shape, precision) for shape in matrix_shapes(config))
    return matrices + _matrix_bytes(head, precision) + VALUE_BYTES[precision] * _num_others(config, untied)


def matrix_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(rows, columns) of the matrices of one block as they are stored: q, k, v in one, w1 and w3 in one."""
    d_model, d_kv = config.d_model, config.num_kv_heads * config.d_head
    up = 2 if config.activation == "swiglu" else 1
    return [
        (d_model + 2 * d_kv, d_model),
        (d_model, d_model),
        (up * config.d_ff, d_model),
        (d_model, config.d_ff),
    ]


def _matrix_bytes(shape: tuple[int, int], precision: Precision) -> int:
    rows, columns = shape
    scales = 2 * rows if precision == "int8" else 0
    return rows * columns * MATRIX_BYTES[precision] + scales


def _num_others(config: ModelConfig, untied: bool) -> int:
    """Numbers that are never quantised: embeddings (unless one tensor with the head), norms and biases."""
    d_model, num_layers = config.d_model, config.num_layers
    norm = d_model * (2 if config.norm == "layernorm" else 1)
    num_norms = num_layers * (2 if config.residual == "sequential" else 1) + 1 + config.embedding_norm
    qkv, output, up, down = (rows for rows, _ in matrix_shapes(config))
    biases = config.attention_bias * (qkv + output) + config.ffn_bias * (up + down)
    num = num_norms * norm + num_layers * biases
    if untied:
        num += config.vocab_size * d_model
    if config.position == "learned":
        num += (config.num_positions + config.position_offset) * d_model
    return num + config.head_bias * config.vocab_size
