"""The Transformer block and the language model, whole on one page."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cs_systems.model.attention import Rotation, SelfAttention
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import alibi_bias, alibi_slopes, rope_tables
from cs_systems.model.layers import Embedding, FeedForward, Linear, make_norm
from cs_systems.model.pretrained import load_pretrained


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward around a residual stream, in sequence or in parallel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = make_norm(config)
        self.attn = SelfAttention(config)
        self.ln2 = make_norm(config) if config.residual == "sequential" else None
        self.ffn = FeedForward(config)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        rotation: Rotation | None = None,
        bias: Float[Tensor, "#heads *seq_seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """The residual stream after this block."""
        # BEGIN SOLUTION transformer_block
        normed = self.ln1(x)
        if self.ln2 is None:
            return x + self.attn(normed, rotation, bias) + self.ffn(normed)
        x = x + self.attn(normed, rotation, bias)
        return x + self.ffn(self.ln2(x))
        # END SOLUTION


RunBlocks = Callable[[Iterable[nn.Module], Tensor, Rotation | None, Tensor | None], Tensor]


def run_in_order(blocks: Iterable[Callable[..., Tensor]], x: Tensor, *others: Any) -> Tensor:
    """Run the blocks one after another, each as `block(x, *others)`.

    `apply.apply_checkpointing` puts another function in its place.
    """
    # BEGIN SOLUTION transformer_lm
    for block in blocks:
        x = block(x, *others)
    return x
    # END SOLUTION


class TransformerLM(nn.Module):
    """A decoder-only Transformer from token ids to logits.

    Parameters are named token_embeddings, layers.{i}.{ln1,attn,ln2,ffn}, ln_final and lm_head, as in the
    course, plus position_embeddings and embedding_norm where the configuration has them. Position tables that
    can be recomputed are buffers outside the state dict.
    """

    rope_cos: Tensor
    rope_sin: Tensor
    alibi_slopes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # A tied embedding is also the head: a standard deviation of 1 would give logits of size sqrt(d).
        std = config.d_model**-0.5 if config.tied_embeddings else 1.0
        self.token_embeddings = Embedding(config.vocab_size, config.d_model, std)
        if config.position == "learned":
            rows = config.num_positions + config.position_offset
            self.position_embeddings = Embedding(rows, config.d_model, std)
        self._build_tables()
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.run_blocks: RunBlocks = run_in_order
        self.position_bias: Callable[[Tensor, int], Tensor] = alibi_bias
        self.ln_final = make_norm(config)
        self.lm_head = Linear(config.d_model, config.vocab_size, config.head_bias)
        self._tie()

    @classmethod
    def from_checkpoint(cls, directory: str | pathlib.Path) -> "TransformerLM":
        """The model stored in a local directory in Hugging Face layout (config.json, *.safetensors).

        GPT-2, BLOOM, GPT-J, OPT and Llama are read; see `pretrained.load_pretrained` for the errors.
        """
        config, state = load_pretrained(pathlib.Path(directory))
        with torch.device("meta"):  # no point in drawing random weights that are replaced at once
            model = cls(config)
        model.load_state_dict(state, assign=True)
        model._tie()  # assigning gave the head a parameter of its own
        model._build_tables()
        return model

    def _tie(self) -> None:
        if self.config.tied_embeddings:
            self.lm_head.weight = self.token_embeddings.weight

    def _build_tables(self) -> None:
        config = self.config
        if config.position == "rope":
            cos, sin = rope_tables(config.context_length, config.rotary_dim, config.rope_theta)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)
        elif config.position == "alibi":
            self.register_buffer("alibi_slopes", alibi_slopes(config.num_heads), persistent=False)

    def forward(
        self,
        token_ids: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "#batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits for every position: `hidden_states` through the head; arguments and errors are the same."""
        # BEGIN SOLUTION transformer_lm
        return self.lm_head(self.hidden_states(token_ids, positions))
        # END SOLUTION

    def hidden_states(
        self,
        token_ids: Int[Tensor, "batch seq"],
        positions: Int[Tensor, "#batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """What the head turns into logits; a loss that never holds all logits at once starts from here.

        Args:
            token_ids: ids below vocab_size, at most context_length of them in a row.
            positions: position of each token for rope and learned embeddings; 0, 1, 2, ... when None.

        Raises:
            ValueError: when the sequence is longer than context_length.
        """
        seq = token_ids.shape[1]
        if seq > self.config.context_length:
            raise ValueError(
                f"a sequence of {seq} tokens is over context_length {self.config.context_length}; "
                f"shorten it or build the model with a larger context_length"
            )
        # BEGIN SOLUTION transformer_lm
        x = self.token_embeddings(token_ids)
        rotation = bias = None
        if self.config.position == "learned":
            if positions is None:
                positions = torch.arange(seq, device=x.device)[None]
            x = x + self.position_embeddings(positions + self.config.position_offset)
        elif self.config.position == "rope":
            rotation = self._rotation(seq, positions)
        else:
            bias = self.position_bias(self.alibi_slopes, seq)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.run_blocks(self.layers, x, rotation, bias)
        return self.ln_final(x)
        # END SOLUTION

    # BEGIN SOLUTION transformer_lm
    def _rotation(self, seq: int, positions: Tensor | None) -> Rotation:
        if positions is None:
            return self.rope_cos[:seq], self.rope_sin[:seq]
        return self.rope_cos[positions].unsqueeze(1), self.rope_sin[positions].unsqueeze(1)  # over heads

    # END SOLUTION
