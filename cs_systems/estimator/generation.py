"""What generating text costs: operations of a prompt and of a token, bytes that are alive, the largest batch.

Everything in memory but the weights grows in proportion to the batch, so the largest batch that fits is a
division. What it divides by depends on how a cache grows: allocated once, or concatenated for each token,
when the old and the new one are alive together.
"""

from dataclasses import dataclass
from typing import Literal

from cs_systems.estimator.flops import forward_flops_by_part
from cs_systems.model.config import ModelConfig
from cs_systems.tables import format_bytes

CacheGrowth = Literal["static", "layer by layer", "whole"]
"""How a cache takes a new token: in place; concatenated one tensor after another; or all of them at once."""

USABLE = 0.95
"""Share of a GPU's memory that tensors can fill. The published sweep over batch sizes on an A100 80GB ends
between 94.8 and 96.6 % in all six columns of one engine, if the whole cache is alive twice."""


WORK_FACTOR = 2
"""Temporaries are counted twice: the C heap does not use a freed block again for one of another size at once.
The growth of a process on a CPU was 1.9 and 2.4 times the temporaries for two engines of a GPT-2 of 124M."""


def block_flops(config: ModelConfig, seq_len: int) -> int:
    """FLOPs of all blocks over a prompt of one sequence, without the head; all scores counted.

    With d_ff = 4 d_model and one key head a query head it is 24 s l h^2 (1 + s / 6 h), the formula of a
    published CPU table of a 175B model: 361.19 TFLOP for 1024 tokens, 179.35 for 512, 0.35 for one.
    """
    parts = forward_flops_by_part(config, batch_size=1, seq_len=seq_len)
    return sum(parts.values()) - parts["head"]


def prompt_flops(config: ModelConfig, prompt_len: int) -> int:
    """FLOPs of a prompt of one sequence; only its last position goes through the head."""
    return block_flops(config, prompt_len) + 2 * config.d_model * config.vocab_size


def token_flops(config: ModelConfig, num_keys: int) -> int:
    """FLOPs of one token of one sequence that attends to `num_keys` tokens, itself included."""
    attention = 4 * config.num_layers * config.d_model
    return prompt_flops(config, 1) + attention * (num_keys - 1)


def cache_factor(growth: CacheGrowth, num_layers: int) -> float:
    """Caches alive at once at the worst moment, in units of one whole cache.

    `layer by layer`: keys, then values of each layer are replaced, so one of 2 L tensors exists twice.
    """
    return {"static": 1.0, "layer by layer": 1 + 1 / (2 * num_layers), "whole": 2.0}[growth]


@dataclass(frozen=True)
class GenerationMemory:
    """Bytes of a generation: weights, and for each sequence of the batch its cache and temporaries."""

    weight_bytes: int
    cache_bytes: int
    """Of one sequence with all its tokens."""
    prompt_cache_bytes: int
    """Of one sequence when its prompt is being processed: the same if allocated at once."""
    cache_factor: float
    """See `cache_factor`."""
    prompt_work_bytes: int
    """Temporaries of one sequence while its prompt is processed."""
    step_work_bytes: int
    """Temporaries of one sequence in a later step."""

    @property
    def sequence_bytes(self) -> float:
        """Bytes of one sequence at the worst moment."""
        last_step = self.cache_factor * self.cache_bytes + self.step_work_bytes
        return max(last_step, self.prompt_cache_bytes + self.prompt_work_bytes)

    def peak_bytes(self, batch_size: int) -> int:
        """Bytes at the worst moment."""
        return round(self.weight_bytes + batch_size * self.sequence_bytes)

    def largest_batch(self, memory_bytes: int) -> int:
        """The most sequences that fit into `memory_bytes`; 0 when the weights alone do not."""
        return max(0, int((memory_bytes - self.weight_bytes) // self.sequence_bytes))

    def explain(self, batch_size: int) -> str:
        """The account behind `peak_bytes`, in words."""
        alive = f"{self.cache_factor:.4g} x " if self.cache_factor > 1 else ""
        cache = format_bytes(batch_size * self.cache_bytes)
        rest = self.peak_bytes(batch_size) - self.weight_bytes
        work = rest - batch_size * self.cache_factor * self.cache_bytes
        return (
            f"weights {format_bytes(self.weight_bytes)} + cache {alive}{cache} ({batch_size} sequences of "
            f"{format_bytes(self.cache_bytes)}) + temporaries {format_bytes(max(0.0, work))} = "
            f"{format_bytes(self.peak_bytes(batch_size))}"
        )


def predict_memory(
    config: ModelConfig,
    *,
    weight_bytes: int,
    cache_bytes_per_token: int,
    value_bytes: int,
    prompt_len: int,
    new_tokens: int,
    capacity: int,
    growth: CacheGrowth,
) -> GenerationMemory:
    """Bytes of a generation with the given cache. Weights and cache are exact, temporaries approximate.

    Args:
        config: the model.
        weight_bytes: of all weights, as the engine stores them.
        cache_bytes_per_token: keys and values of one token in all layers.
        value_bytes: of an activation.
        prompt_len: tokens of a prompt.
        new_tokens: tokens generated after it; the last is never fed back and takes no slot.
        capacity: tokens that a static cache has room for.
        growth: how the cache takes a token.
    """
    slots = capacity if growth == "static" else prompt_len + new_tokens - 1
    cache = slots * cache_bytes_per_token
    d_kv = config.num_kv_heads * config.d_head
    feed_forward = 3 * config.d_model + (4 if config.activation == "swiglu" else 2) * config.d_ff
    attention = 4 * config.d_model + 2 * d_kv
    token_work = value_bytes * max(feed_forward, attention)
    logits = (value_bytes + 4) * config.vocab_size  # as computed, and once more in fp32 or as a mask
    return GenerationMemory(
        weight_bytes=weight_bytes,
        cache_bytes=cache,
        prompt_cache_bytes=cache if growth == "static" else prompt_len * cache_bytes_per_token,
        cache_factor=cache_factor(growth, config.num_layers),
        prompt_work_bytes=WORK_FACTOR * max(prompt_len * token_work, logits),
        step_work_bytes=WORK_FACTOR * max(token_work, logits),
    )
