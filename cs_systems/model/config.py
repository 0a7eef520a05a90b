"""One frozen dataclass that describes a decoder-only Transformer; its defaults are the `small` preset.

This module imports neither torch nor jaxtyping: the command line and the estimator read it alone.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Literal, get_args

DERIVED = -1
"""Value of a field that is computed from the others; its docstring gives the formula."""

Norm = Literal["rmsnorm", "layernorm"]
Activation = Literal["swiglu", "gelu", "gelu_tanh", "relu"]
Position = Literal["rope", "learned", "alibi"]
Residual = Literal["sequential", "parallel"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and variant of a decoder-only Transformer. Sizes are counts, never bytes.

    Raises:
        ValueError: on a combination that cannot be built; the message names the flag and a fix.
    """

    vocab_size: int = 10_000
    """Number of token ids."""
    context_length: int = 256
    """Tokens in the longest sequence; the benchmark runs sequences of exactly this length."""
    d_model: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Number of Transformer blocks."""
    num_heads: int = DERIVED
    """Query heads of one attention layer (-1: d_model / 64)."""
    num_kv_heads: int = DERIVED
    """Key and value heads: num_heads is MHA, 1 is MQA, between them GQA (-1: num_heads)."""
    d_ff: int = DERIVED
    """Hidden width of the feed-forward layer (-1: 4 * d_model)."""
    norm: Norm = "rmsnorm"
    """Normalisation before attention, before the feed-forward layer and before the head."""
    norm_eps: float = 1e-5
    """Added to the variance (layernorm) or mean square (rmsnorm) before the square root."""
    activation: Activation = "swiglu"
    """Feed-forward non-linearity; swiglu has three weight matrices, the others two."""
    position: Position = "rope"
    """How attention learns about order."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rotary_dim: int = DERIVED
    """Leading channels of a head that rope rotates (-1: all; GPT-J rotates 64 of 256)."""
    num_positions: int = DERIVED
    """Sequence length that the learned position table covers (-1: context_length)."""
    position_offset: int = 0
    """Unused leading rows of the learned position table (OPT keeps 2)."""
    residual: Residual = "sequential"
    """sequential: x += attn(norm(x)), then x += ffn(norm(x)); parallel: x += attn(n) + ffn(n) of one n."""
    embedding_norm: bool = False
    """Normalise the token embeddings (BLOOM)."""
    tied_embeddings: bool = False
    """Use the token embedding as the weight of the head."""
    attention_bias: bool = False
    """Biases on the four attention projections."""
    ffn_bias: bool = False
    """Biases on the feed-forward projections."""
    head_bias: bool = False
    """Bias on the logits (GPT-J)."""

    def __post_init__(self) -> None:
        self._one_of("norm", Norm)
        self._one_of("activation", Activation)
        self._one_of("position", Position)
        self._one_of("residual", Residual)
        for name in ("vocab_size", "context_length", "d_model", "num_layers"):
            self._at_least_one(name)
        self._derive("num_heads", max(1, self.d_model // 64))
        self._derive("num_kv_heads", self.num_heads)
        self._derive("d_ff", 4 * self.d_model)
        self._derive("num_positions", self.context_length)
        self._check_heads()
        self._derive("rotary_dim", self.d_head)
        self._check_positions()
        if not self.norm_eps > 0:
            raise ValueError(f"--norm-eps {self.norm_eps:g} must be over 0, for example 1e-5")
        if not self.rope_theta > 0:
            raise ValueError(f"--rope-theta {self.rope_theta:g} must be over 0, for example 10000")

    @property
    def d_head(self) -> int:
        """Channels of one attention head: d_model / num_heads."""
        return self.d_model // self.num_heads

    def replace(self, **changes: object) -> "ModelConfig":
        """A copy with `changes`; fields derived from a changed one are derived again unless given.

        `dataclasses.replace` alone would keep the d_ff = 3072 of d_model = 768 after d_model changed.
        """
        depends = {
            "d_model": ("num_heads", "num_kv_heads", "d_ff", "rotary_dim"),
            "num_heads": ("num_kv_heads", "rotary_dim"),
        }
        for source, derived in depends.items():
            if changes.get(source, getattr(self, source)) != getattr(self, source):
                changes = dict.fromkeys(derived, DERIVED) | changes
        if self.position != "learned":  # the table of a learned preset is published: never resized
            changes = {"num_positions": DERIVED} | changes
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def _derive(self, name: str, value: int) -> None:
        if getattr(self, name) == DERIVED:
            object.__setattr__(self, name, value)  # the one sanctioned write to a frozen field
        self._at_least_one(name)

    def _at_least_one(self, name: str) -> None:
        if getattr(self, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(self, name)} must be at least 1")

    def _one_of(self, name: str, choices: Any) -> None:
        value = getattr(self, name)
        if value not in get_args(choices):
            raise ValueError(f"--{name} {value} is unknown; known: {', '.join(get_args(choices))}")

    def _check_heads(self) -> None:
        if self.d_model % self.num_heads:
            heads = self.num_heads
            around = itertools.chain.from_iterable((heads - i, heads + i) for i in range(1, heads))
            near = next(n for n in around if self.d_model % n == 0)
            raise ValueError(
                f"--d-model {self.d_model} is not divisible by --num-heads {self.num_heads}; "
                f"try --num-heads {near} (heads of {self.d_model // near} channels)"
            )
        if self.num_heads % self.num_kv_heads:
            divisors = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ValueError(
                f"--num-heads {self.num_heads} is not divisible by --num-kv-heads "
                f"{self.num_kv_heads}; each key head serves the same number of query heads, "
                f"so try one of {', '.join(map(str, divisors))}"
            )

    def _check_positions(self) -> None:
        if self.position == "rope" and (self.rotary_dim % 2 or self.rotary_dim > self.d_head):
            raise ValueError(
                f"rope rotates pairs of channels: --rotary-dim {self.rotary_dim} must be even and at most "
                f"{self.d_head}, the channels of a head (--d-model {self.d_model} / --num-heads "
                f"{self.num_heads}); use another of the three, or --position learned"
            )
        if self.position == "learned" and self.context_length > self.num_positions:
            raise ValueError(
                f"--context-length {self.context_length} is over the {self.num_positions} learned "
                f"positions of this model; use --context-length {self.num_positions} or less, "
                f"or --position rope"
            )
        if self.position_offset < 0:
            raise ValueError(f"--position-offset {self.position_offset} must not be negative")
