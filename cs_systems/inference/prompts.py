"""Prompts as one batch: unequal ones are padded on the left, so that all end, and go on, in the same slot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cs_systems.model.config import ModelConfig


@dataclass(frozen=True)
class PromptBatch:
    """Prompts side by side. Padding is masked, never looked at, so any id serves and none is reserved."""

    token_ids: Int[Tensor, "batch seq"]
    first: Int[Tensor, " batch"] | None
    """Slot of the first token of each prompt, the number of padded slots before it; None: none is padded."""


def make_batch(
    prompts: Sequence[Sequence[int]], config: ModelConfig, max_new_tokens: int, device: torch.device
) -> PromptBatch:
    """The prompts, checked against the model and against the tokens that will follow.

    Raises:
        ValueError: when there is no prompt, one is empty, has an id outside the vocabulary, or is too long.
    """
    if not prompts:
        raise ValueError("there is no prompt; give at least one")
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise ValueError(
            f"prompt {lengths.index(0)} is empty; give at least one token, such as the model's start token"
        )
    seq = max(lengths)
    if seq > config.context_length:
        raise ValueError(
            f"prompt {lengths.index(seq)} has {seq} tokens, over context_length {config.context_length}; "
            f"shorten it"
        )
    if seq + max_new_tokens > config.context_length:
        raise ValueError(
            f"{seq} prompt tokens and {max_new_tokens} new ones are over context_length "
            f"{config.context_length}; use --max-new-tokens {config.context_length - seq} or less, "
            f"or a shorter prompt"
        )
    for row, prompt in enumerate(prompts):
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < config.vocab_size:
                raise ValueError(
                    f"prompt {row} holds token {token}, outside the vocabulary of {config.vocab_size}; "
                    f"use the tokenizer that the model was trained with"
                )
    padded = [[0] * (seq - len(prompt)) + list(prompt) for prompt in prompts]
    first = None
    if min(lengths) < seq:
        first = torch.tensor([seq - length for length in lengths], device=device)
    return PromptBatch(torch.tensor(padded, device=device), first)


def positions_of(
    slots: Int[Tensor, " queries"], first: Int[Tensor, " batch"] | None
) -> Int[Tensor, "#batch queries"]:
    """Position in its own sequence of the token in each slot; padding counts as 0."""
    if first is None:
        return slots[None]
    return (slots - first[:, None]).clamp(min=0)


def attention_bias(
    slots: Int[Tensor, " queries"],
    num_keys: int,
    first: Int[Tensor, " batch"] | None,
    slopes: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "#batch #heads queries keys"]:
    """What is added to the scores of queries in `slots` and keys in slots 0 to `num_keys` - 1.

    -inf hides later keys and padding; ALiBi adds slope * (key - query), which does not change when a sequence
    moves to the right. A padded query sees its own slot, whose result nobody uses: a softmax over nothing
    would be nan, and nan times 0 is nan.
    """
    hidden = hidden_keys(slots, num_keys, first)
    if slopes is None:
        return torch.zeros(hidden.shape, device=slots.device).masked_fill(hidden, float("-inf"))
    distance = torch.arange(num_keys, device=slots.device) - slots[:, None]
    return (slopes[:, None, None] * distance).masked_fill(hidden, float("-inf"))


def hidden_keys(
    slots: Int[Tensor, " queries"], num_keys: int, first: Int[Tensor, " batch"] | None
) -> Bool[Tensor, "#batch 1 queries keys"]:
    """Keys that a query must not see."""
    keys = torch.arange(num_keys, device=slots.device)
    hidden = (keys > slots[:, None])[None, None]
    if first is None:
        return hidden
    padding = (keys < first[:, None])[:, None, None]
    return hidden | (padding & (keys != slots[:, None]))
