"""Name the parts of a model for profilers, from outside: each in forward and again in backward."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from torch import Tensor, nn

from cs_systems.model.attention import SelfAttention, attention_output, attention_scores, naive_attention
from cs_systems.model.functional import softmax
from cs_systems.model.layers import FeedForward, LayerNorm, RMSNorm
from cs_systems.model.transformer import TransformerBlock, TransformerLM
from cs_systems.tracing.annotate import annotate_call


def annotate_model(model: TransformerLM) -> None:
    """Let every part of `model` run in a range, and its backward in one whose name ends in " (backward)".

    `block`, `norm`, `feed-forward` and `head` are modules. `attention` is the attention function alone, from
    rotated queries and keys to what the output projection gets, so that its time can be set against its
    FLOPs; with `naive_attention` there are `attention scores`, `attention softmax` and `attention final
    matmul` in it. Four projections a layer and the rotation are what is left of a block.

    Call it last: `apply_attention` drops the ranges of attention, until this is called again. Blocks that
    are recomputed in backward have their ranges once more there. A compiled model has none, and a loss that
    does the head's work itself has no `head`.
    """
    remove_annotations(model)
    for name, module in _named_parts(model):
        module.forward = functools.partial(_run_in_range, name, module.forward)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = functools.partial(_run_in_range, "attention", module.attention)


def remove_annotations(model: TransformerLM) -> None:
    """Take back what `annotate_model` did; nothing for a model without annotations."""
    for _, module in _named_parts(model):
        if _is_annotated(vars(module).get("forward")):
            del module.forward  # which uncovers the method of its class
    for module in model.modules():
        if isinstance(module, SelfAttention) and _is_annotated(module.attention):
            module.attention = module.attention.args[1]


def naive_attention_in_ranges(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = True, bias: Tensor | None = None
) -> Tensor:
    """`naive_attention` in three ranges that together are all of it, forward and backward.

    They are `attention scores` (product, scale, bias and mask), `attention softmax` and `attention final
    matmul`. Shapes are those of `naive_attention`.
    """
    # BEGIN SOLUTION nsys_profile
    compute_scores = functools.partial(attention_scores, is_causal=is_causal, bias=bias)
    scores = annotate_call("attention scores", compute_scores, q, k)
    weights = annotate_call("attention softmax", functools.partial(softmax, dim=-1), scores)
    return annotate_call("attention final matmul", attention_output, weights, v)
    # END SOLUTION


def _named_parts(model: TransformerLM) -> Iterator[tuple[str, nn.Module]]:
    for module in model.modules():
        if isinstance(module, TransformerBlock):
            yield "block", module
        elif isinstance(module, RMSNorm | LayerNorm):
            yield "norm", module
        elif isinstance(module, FeedForward):
            yield "feed-forward", module
    yield "head", model.lm_head


def _is_annotated(function: Any) -> TypeGuard[functools.partial]:
    return isinstance(function, functools.partial) and function.func is _run_in_range


def _run_in_range(name: str, function: Callable, *inputs: Any, **options: Any) -> Any:
    if function is naive_attention:
        function = naive_attention_in_ranges
    return annotate_call(name, functools.partial(function, **options), *inputs)
