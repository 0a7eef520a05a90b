"""Changes applied to an unchanged model from outside: the attention function, activation checkpointing."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cs_systems.model.attention import ATTENTION, TAKES_SLOPES, SelfAttention
from cs_systems.model.functional import alibi_bias
from cs_systems.model.transformer import TransformerLM, run_in_order


def apply_attention(model: nn.Module, name: str) -> None:
    """Let every attention layer of `model` use the attention function called `name`.

    Raises:
        ValueError: when there is no such function.
    """
    if name not in ATTENTION:
        raise ValueError(f"--attention {name} is unknown; known: {', '.join(ATTENTION)}")
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = ATTENTION[name]
        elif isinstance(module, TransformerLM):
            module.position_bias = slopes_alone if name in TAKES_SLOPES else alibi_bias


def slopes_alone(slopes: Tensor, seq: int) -> Tensor:
    """The bias that attention functions in `TAKES_SLOPES` want in place of `alibi_bias`."""
    return slopes


def apply_checkpointing(model: TransformerLM, blocks_per_checkpoint: int) -> None:
    """Keep only the input of every `blocks_per_checkpoint` blocks and recompute the rest in backward.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". 0 keeps everything.

    Raises:
        ValueError: when the number is negative.
    """
    if blocks_per_checkpoint < 0:
        raise ValueError(f"--checkpoint-blocks {blocks_per_checkpoint} must be 0 (off) or more")
    model.run_blocks = (
        functools.partial(run_checkpointed, blocks_per_checkpoint=blocks_per_checkpoint)
        if blocks_per_checkpoint
        else run_in_order
    )


def run_checkpointed(
    blocks: Iterable[Callable[..., Tensor]], x: Tensor, *others: Any, blocks_per_checkpoint: int
) -> Tensor:
    """As `transformer.run_in_order`, with one checkpoint around each group of blocks.

    The last group may be smaller. Blocks that draw random numbers, as dropout does, would draw others when
    they are computed again.
    """
    # BEGIN SOLUTION gradient_checkpointing
    blocks = list(blocks)
    for start in range(0, len(blocks), blocks_per_checkpoint):
        group = blocks[start : start + blocks_per_checkpoint]
        # Blocks of this project draw none, so the generator's state need not be saved and restored.
        x = checkpoint(run_in_order, group, x, *others, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportAssignmentType]
    return x
    # END SOLUTION
