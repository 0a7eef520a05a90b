"""What known mistakes in attention give, in float64: a wrong result is recognised by its numbers.

Each function returns what `check_tensor` takes as `mistakes`. Some depend on the size of a tile, so they are
tried for the common ones. Where a query has no key left, nothing is known of the result: there the number
that was found stands in.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graded_support.attention_truth import (
    NAMES,
    Inputs,
    scores_of,
    true_gradients,
    true_log_sum_exp,
    true_result,
)

TILES = (16, 32, 64, 128)
ALL_ONES = "the gradient that arrives is taken for all ones"


def result_mistakes(inputs: Inputs, found: Any) -> dict[str, Callable[[], Tensor]]:
    """For o; `found` is what came out."""
    v, num_keys = inputs.wide()[2], inputs.k.shape[1]

    def by_formula(visible: Tensor | None = None, scale: float | None = None) -> Tensor:
        scores = scores_of(inputs, visible, scale)
        has_keys = (scores > -torch.inf).any(-1, keepdim=True)
        return torch.where(has_keys, scores.softmax(-1) @ v, found.detach().double())

    mistakes = {
        "the scores are not multiplied by 1 / sqrt(d)": partial(by_formula, scale=1.0),
        "the scores are multiplied by 1 / sqrt(d) twice": partial(by_formula, scale=inputs.scale**2),
        "the result is not divided by the sum of the exponentials": (
            lambda: (scores_of(inputs) - scores_of(inputs).amax(-1, keepdim=True)).exp() @ v
        ),
        "every sequence of the batch is computed from the first one": (
            lambda: true_result(inputs).values[:1].expand(found.shape)
        ),
    }
    if inputs.is_causal:
        mistakes |= _mask_mistakes(inputs, by_formula)
    else:
        causal = Inputs(inputs.q, inputs.k, inputs.v, True)
        mistakes["the mask is applied although is_causal is False"] = partial(by_formula, causal.visible())
    for tile in TILES:
        if tile < num_keys:
            mistakes |= _tile_mistakes(inputs, tile, by_formula)
    return mistakes


def log_sum_exp_mistakes(inputs: Inputs) -> dict[str, Callable[[], Tensor]]:
    """For L."""
    scores = scores_of(inputs)
    lse, largest = true_log_sum_exp(inputs).values, scores.amax(-1)
    log_2 = torch.tensor(2.0).double().log()
    return {
        "L is a logarithm to base 2; divide by log2(e), or multiply by ln(2)": lambda: lse / log_2,
        "the sum's logarithm is to base 2, but the maximum is not": lambda: largest + (lse - largest) / log_2,
        "the maximum is not added to the logarithm of the sum": lambda: lse - largest,
        "only the maximum is kept, without the logarithm of the sum": lambda: largest,
        "the sum is added without its logarithm": lambda: largest + (lse - largest).exp(),
        "the sum of the exponentials is kept without its logarithm": lambda: (lse - largest).exp(),
        "the scores in L are not multiplied by 1 / sqrt(d)": (
            lambda: scores_of(inputs, scale=1.0).logsumexp(-1)
        ),
        "L is the sum over all keys, without the mask": (
            lambda: scores_of(inputs, torch.ones_like(inputs.visible())).logsumexp(-1)
        ),
    }


def gradient_mistakes(inputs: Inputs) -> dict[str, dict[str, Tensor | Callable[[], Tensor]]]:
    """For dq, dk and dv, by name."""
    everywhere = torch.ones_like(inputs.visible())
    lse = true_log_sum_exp(inputs).values[..., None]
    scores = scores_of(inputs)
    weights = (scores - lse).exp()
    right = {name: truth.values for name, truth in true_gradients(inputs).items()}
    unmasked = (scores_of(inputs, everywhere) - lse).exp()
    unscaled = (scores_of(inputs, scale=1.0) - lse).exp()
    ones = Inputs(inputs.q, inputs.k, inputs.v, inputs.is_causal, torch.ones_like(inputs.upstream()))
    wrong = {
        ALL_ONES: lambda: {name: truth.values for name, truth in true_gradients(ones).items()},
        "D, the sum of o * do in each row, is not subtracted from dP": (
            partial(_gradients, inputs, weights, keep=0.0)
        ),
        "D, the sum of o * do in each row, is added to dP instead of subtracted": (
            partial(_gradients, inputs, weights, keep=-1.0)
        ),
        "P is not made from L: it is exp(S - L)": partial(_gradients, inputs, scores.exp()),
        "S is not multiplied by 1 / sqrt(d) before P = exp(S - L)": partial(_gradients, inputs, unscaled),
        "backward forgets the mask": partial(_gradients, inputs, unmasked),
    }
    mistakes: dict[str, dict[str, Tensor | Callable[[], Tensor]]] = {
        name: {words: lambda give=give, name=name: give()[name] for words, give in wrong.items()}
        for name in NAMES
    }
    for name in ("dq", "dk"):
        mistakes[name][f"{name} is not multiplied by 1 / sqrt(d)"] = right[name] / inputs.scale
        mistakes[name][f"{name} is multiplied by 1 / sqrt(d) twice"] = right[name] * inputs.scale
    mistakes["dk"]["dk and dv are exchanged"] = right["dv"]
    mistakes["dv"]["dk and dv are exchanged"] = right["dk"]
    return mistakes


def _mask_mistakes(inputs: Inputs, by_formula: Callable[..., Tensor]) -> dict[str, Callable[[], Tensor]]:
    num_queries, num_keys = inputs.visible().shape
    v, visible = inputs.wide()[2], inputs.visible()
    return {
        "is_causal is ignored": partial(by_formula, torch.ones_like(visible)),
        "a query does not see the key at its own position (the mask is j <= i)": (
            partial(by_formula, inputs.visible(-1))
        ),
        "a query sees the key after its own position (the mask is j <= i)": (
            partial(by_formula, inputs.visible(1))
        ),
        "the mask is aligned at the last query and the last key; query i sees the keys 0 to i": (
            partial(by_formula, inputs.visible(num_keys - num_queries))
        ),
        "the mask is the wrong way round: queries see the keys after them": (
            partial(by_formula, torch.ones_like(visible).triu())
        ),
        "the mask is applied after softmax, so that hidden keys still count in the sum": (
            lambda: scores_of(inputs, torch.ones_like(visible)).softmax(-1).masked_fill(~visible, 0) @ v
        ),
        "hidden scores are 0 instead of -inf, so that they still count": (
            lambda: scores_of(inputs).masked_fill(~visible, 0).softmax(-1) @ v
        ),
    }


def _tile_mistakes(
    inputs: Inputs, tile: int, by_formula: Callable[..., Tensor]
) -> dict[str, Callable[[], Tensor]]:
    num_queries, num_keys = inputs.visible().shape
    device = inputs.q.device
    query, key = torch.arange(num_queries, device=device)[:, None], torch.arange(num_keys, device=device)
    visible, last_tile = inputs.visible(), key >= num_keys - tile
    of = f"(tiles of {tile} keys)"
    mistakes = {
        f"the last tile of keys is left out {of}": partial(by_formula, visible & ~last_tile),
        f"only the first tile of keys is read {of}": partial(by_formula, visible & (key < tile)),
        f"only the last tile of keys counts {of}": partial(by_formula, visible & last_tile),
        f"O is not scaled down by exp(old m - new m) when the maximum grows {of}": (
            partial(_rescaled, inputs, tile, o=False)
        ),
        f"l is not scaled down by exp(old m - new m) when the maximum grows {of}": (
            partial(_rescaled, inputs, tile, total=False)
        ),
        f"neither O nor l is scaled down by exp(old m - new m) when the maximum grows {of}": (
            partial(_rescaled, inputs, tile, o=False, total=False)
        ),
        f"each tile is divided by its own sum, as if it were a row of its own {of}": (
            partial(_softmax_of_each_tile, inputs, tile)
        ),
        f"each tile is divided by its own sum, and the tiles are averaged {of}": (
            lambda: _softmax_of_each_tile(inputs, tile) * tile / num_keys
        ),
    }
    if inputs.is_causal:
        mistakes |= {
            f"the mask counts queries and keys from the start of their tile, not of the sequence {of}": (
                partial(by_formula, key % tile <= query % tile)
            ),
            f"the mask counts from the start of the tile, and tiles behind the diagonal are skipped {of}": (
                partial(by_formula, (key // tile <= query // tile) & (key % tile <= query % tile))
            ),
            f"tiles behind the diagonal are skipped, but those on it are not masked {of}": (
                partial(by_formula, key // tile <= query // tile)
            ),
            f"tiles on the diagonal are left out {of}": partial(by_formula, key // tile < query // tile),
        }
    return mistakes


def _rescaled(inputs: Inputs, tile: int, *, o: bool = True, total: bool = True) -> Tensor:
    """O over l, where one of them is not scaled down when the maximum grows.

    Then each exponential keeps the maximum that its row had after its tile; else it is that of the whole row.
    """
    v, scores = inputs.wide()[2], scores_of(inputs)
    ends = torch.arange(scores.shape[-1], device=v.device) // tile * tile + tile - 1
    so_far = scores.cummax(-1).values[..., ends.clamp(max=scores.shape[-1] - 1)]
    late, right = (scores - so_far).exp(), (scores - scores.amax(-1, keepdim=True)).exp()
    return (right if o else late) @ v / (right if total else late).sum(-1, keepdim=True)


def _softmax_of_each_tile(inputs: Inputs, tile: int) -> Tensor:
    v, scores = inputs.wide()[2], scores_of(inputs)
    parts = [
        part.softmax(-1).nan_to_num() @ values
        for part, values in zip(scores.split(tile, -1), v.split(tile, 1), strict=True)
    ]
    return torch.stack(parts).sum(0)


def _gradients(inputs: Inputs, weights: Tensor, keep: float = 1.0) -> dict[str, Tensor]:
    """By autograd: as if P were `weights`, which change as exp(S), and `keep` times D were subtracted."""
    q, k, v = (tensor.requires_grad_() for tensor in inputs.wide())
    do = inputs.upstream().double()
    scores = q @ k.mT * inputs.scale
    p = weights * (scores - scores.detach()).exp()
    delta = (true_result(inputs).values * do).sum(-1, keepdim=True)
    total = (p @ v * do).sum() - keep * (p * delta).sum()
    return dict(zip(NAMES, torch.autograd.grad(total, (q, k, v)), strict=True))
