"""How text is generated: how many tokens, how one is chosen, in which precision. No torch here."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""Type of the weights; with int8 everything else (activations, norms, biases, cache) is bf16."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """How the fast decoder runs a model; none of it changes what is computed, but for rounding."""

    precision: Precision = "bf16"
    """Weights and cache: fp32, bf16, fp16; int8 keeps one scale a row of weights and computes in bf16."""
    compile: bool = False
    """Compile the step of one token (on a GPU to a CUDA graph): takes from seconds to a minute, once."""
    expected_batch_size: int = 1
    """Sequences that will mostly be decoded together; weights are laid out for it, other numbers work too."""

    def __post_init__(self) -> None:
        if self.expected_batch_size < 1:
            raise ValueError(f"--expected-batch-size {self.expected_batch_size} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """When generation ends and how a token is chosen from the logits."""

    max_new_tokens: int = 100
    """Tokens to generate after each prompt."""
    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0 takes the most probable token (greedy)."""
    top_k: int = 0
    """Draw only among the k most probable tokens (0: all)."""
    top_p: float = 1.0
    """Draw only among the fewest tokens that hold this share of the probability."""
    seed: int = 0
    """Seed of the random numbers."""
    stop_tokens: tuple[int, ...] = ()
    """A sequence ends with the first of these ids; it is part of the result."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"--max-new-tokens {self.max_new_tokens} must not be negative")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature {self.temperature} must be 0 (greedy) or a number above")
        if self.top_k < 0:
            raise ValueError(f"--top-k {self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p} must be above 0 and at most 1 (all tokens)")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("--top-k and --top-p need a --temperature above 0; at 0 nothing is drawn")
