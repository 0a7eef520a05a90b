"""What several tests of the model's parts ask, given and hidden ones: values beside those of known mistakes,
arguments left as they were, tokens that see no later ones, a result that autograd can follow.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graded_support import model_truth as truth
from graded_support.compare import check_tensor, fail, rounding_bound
from graded_support.numbers import kind


def check_unchanged(argument: Tensor, before: Tensor, *, what: str, name: str) -> None:
    """Fail when a function has written into what it was given."""
    if not torch.equal(argument, before):
        fail(
            f"{what} changed its argument {name} in place; make a new tensor: others still need the old one "
            "(what ends in _, such as sub_, and also += and -= and *=, write into the tensor itself)"
        )


def check_causal(
    before: Any, after: Any, *, first_changed: int, shape: tuple[int, ...], what: str, hint: str
) -> None:
    """Results (batch, seq, ...) of inputs that differ at one token: those from it on differ, and no others.

    Both are the student's: this asks who sees whom, and values are another test's question.
    """
    for result in (before, after):
        _check_shape(result, shape, what)
    old, new = before.detach().double(), after.detach().double()
    # What is computed again may add up in another order.
    allowed = rounding_bound(torch.float32, shape[-1], old.abs().amax())
    check_tensor(
        after[:, :first_changed],
        old[:, :first_changed],
        what=f"{what} for the tokens before {first_changed}, after a change of token {first_changed},",
        allowed=allowed,
        dtype=torch.float32,
        hint=hint,
    )
    differences = (new - old).abs().amax(-1)
    for token in range(first_changed, shape[1]):
        if not (differences[:, token] > allowed).all():
            fail(
                f"{what} gives the same for token {token} after a change of token {first_changed}; "
                "expected another result: each token sees itself and all tokens before it"
            )


def check_gradient(
    result: Any,
    argument: Tensor,
    expected: Tensor,
    upstream: Tensor,
    *,
    what: str,
    allowed: Tensor,
    hint: str,
) -> None:
    """Fail unless the gradient of sum(result * upstream) with respect to `argument` is `expected`."""
    _check_shape(result, upstream.shape, what)
    if not result.requires_grad:
        fail(
            f"the result of {what} has no gradient: something between argument and result is detached "
            "(.detach(), .data, .item(), .numpy(), torch.tensor(...), torch.no_grad())"
        )
    (gradient,) = torch.autograd.grad(result, argument, upstream, allow_unused=True)
    check_tensor(
        gradient, expected, what=f"the gradient of {what}", allowed=allowed, dtype=argument.dtype, hint=hint
    )


def _check_shape(result: Any, shape: tuple[int, ...], what: str) -> None:
    if type(result) not in (Tensor, torch.nn.Parameter):
        fail(f"{what} returned {kind(result)}; expected a torch.Tensor")
    if result.shape != shape:
        fail(f"{what} has shape {tuple(result.shape)}; expected {tuple(shape)}")


def check_rope(
    adapters: Any, x: Tensor, positions: Tensor, *, theta: float = 10_000.0, max_seq_len: int = 64
) -> None:
    """run_rope of x (..., seq, d_k) at these positions."""
    d_k = x.shape[-1]
    wide = x.double()
    angles = truth.frequencies(d_k, theta)
    exponents = torch.arange(d_k // 2) / d_k

    def turned(angles: Tensor, at: Tensor = positions, **settings: bool) -> Tensor:
        return truth.rotate(wide, at, angles, **settings).expand(x.shape)

    def overwritten() -> Tensor:
        wrong, sines = expected.clone(), (positions[..., None] * angles).sin()
        wrong[..., 1::2] += (expected[..., 0::2] - wide[..., 0::2]) * sines
        return wrong

    expected = turned(angles)
    mistakes = {
        "channel i is rotated together with channel i + d_k/2; a pair is (2i, 2i + 1)": (
            lambda: turned(angles, halves=True)
        ),
        "the angle has the wrong sign": lambda: turned(-angles),
        "halves are rotated, with the wrong sign": lambda: turned(-angles, halves=True),
        "positions are ignored, and 0, 1, 2, ... taken": lambda: turned(angles, torch.arange(x.shape[-2])),
        "positions are counted from 1": lambda: turned(angles, positions + 1),
        "the exponent of theta is i / d_k; it is 2i / d_k": lambda: turned(theta**-exponents),
        "the exponent of theta is 4i / d_k; it is 2i / d_k": lambda: turned(theta ** (-4 * exponents)),
        "pairs are counted from 1; the first has i = 0": (
            lambda: turned(theta ** (-2 * (exponents + 1 / d_k)))
        ),
        "pairs are in the reverse order": lambda: turned(angles.flip(0)),
        "the angle is multiplied by theta^(2i / d_k), not divided": lambda: turned(1 / angles),
        "theta is 10000, whatever is asked for": lambda: turned(truth.frequencies(d_k, 10_000.0)),
        "the first channel of a pair is overwritten before the second is computed": overwritten,
        "nothing is rotated": wide,
    }
    # Two products and a sum in the type of x, and an angle that is off by its own roundings in fp32.
    partner = wide.abs().unflatten(-1, (-1, 2)).sum(-1).repeat_interleave(2, -1)
    largest_angle = positions.double()[..., None] * angles.repeat_interleave(2)
    allowed = rounding_bound(x.dtype, 3, partner) + rounding_bound(torch.float32, 4, partner * largest_angle)
    check_tensor(
        adapters.run_rope(d_k, theta, max_seq_len, x, positions),
        expected,
        what=f"run_rope of {tuple(x.shape)} with positions {tuple(positions.shape)}",
        allowed=allowed,
        dtype=x.dtype,
        mistakes=mistakes,
        hint="A pair (a, b) becomes (a cos - b sin, a sin + b cos) of the angle position / theta^(2i / d_k)."
        + (" Angles are kept in fp32: 16 bits do not tell position 998 from 999." if x.itemsize == 2 else ""),
    )


def check_attention(
    adapters: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, hint: str = ""
) -> None:
    """run_scaled_dot_product_attention of these."""
    wide_q, wide_k, wide_v = q.double(), k.double(), v.double()
    d_k, d_v = q.shape[-1], v.shape[-1]

    def scaled(scale: float) -> Tensor:
        return truth.attention(wide_q, wide_k, wide_v, mask, scale=scale)

    expected = scaled(1 / math.sqrt(d_k))
    scores = wide_q @ wide_k.mT / math.sqrt(d_k)
    over_queries = scores if mask is None else torch.where(mask, scores, -math.inf)
    mistakes = {
        "the scale 1 / sqrt(d_k) is missing": scaled(1.0),
        "scores are scaled by 1 / d_k; it is 1 / sqrt(d_k)": scaled(1 / d_k),
        "scores are multiplied by sqrt(d_k), not divided": scaled(math.sqrt(d_k)),
        "scores are scaled by 1 / sqrt(d_v); it is 1 / sqrt(d_k)": scaled(1 / math.sqrt(d_v)),
        "softmax is taken over the queries; it is taken over the keys": (
            truth.softmax(over_queries, -2) @ wide_v
        ),
    }
    if mask is not None:
        weights = truth.softmax(scores, -1)
        mistakes |= {
            "the mask is inverted; a key counts where it is True": (
                lambda: truth.attention(wide_q, wide_k, wide_v, ~mask)
            ),
            "the mask is ignored": weights @ wide_v,
            "hidden weights are set to 0 after softmax, and no longer add up to 1": (weights * mask) @ wide_v,
            "hidden scores are set to 0, whose exponential is 1; set them to -inf": (
                truth.softmax(scores * mask, -1) @ wide_v
            ),
            "1 is added to the scores that count (a boolean mask is added to them)": (
                truth.softmax(scores + mask, -1) @ wide_v
            ),
        }
    # What is hidden takes no part in the rounding either.
    counts = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    values = torch.where(counts[..., None], wide_v.abs()[..., None, :, :], 0.0).amax(dim=-2)
    # The sum of d_k products of a score, the sum of the exponentials, and the sum over the values.
    roundings = truth.attention_roundings(wide_q.abs(), wide_k.abs(), depth=1, mask=mask) + k.shape[-2]
    check_tensor(
        adapters.run_scaled_dot_product_attention(q, k, v, mask),
        expected,
        what=f"attention of Q {tuple(q.shape)}, K {tuple(k.shape)}, V {tuple(v.shape)}",
        allowed=rounding_bound(torch.float32, 1, roundings * values),
        dtype=torch.float32,
        mistakes=mistakes,
        hint=hint or "It is softmax(Q K^T / sqrt(d_k)) V; scores of hidden keys are -inf before softmax.",
    )


def check_model(
    adapters: Any, weights: dict[str, Tensor], num_layers: int, num_heads: int, ids: Tensor, *,
    context_length: int, theta: float = 10_000.0,
) -> None:  # fmt: skip
    """run_transformer_lm of ids (batch, seq)."""
    vocab_size, d_model = weights["token_embeddings.weight"].shape
    d_ff = weights["layers.0.ffn.w1.weight"].shape[0]
    layers = range(num_layers)
    head, final = weights["lm_head.weight"].double(), weights["ln_final.weight"].double()

    def logits(order: Sequence[int] = layers, theta: float = theta, **changed: Tensor) -> Tensor:
        used = weights | {name.replace("__", "."): value for name, value in changed.items()}
        return truth.logits(truth.residual_stream(ids, used, order, num_heads, theta), used)

    stream = truth.residual_stream(ids, weights, layers, num_heads, theta)
    expected = logits()
    embedding = weights["token_embeddings.weight"]
    mistakes = {
        "the final norm is missing": truth.linear(stream, head),
        "the weight of the final norm is left out": (
            truth.linear(truth.rms_norm(stream, torch.ones_like(final)), head)
        ),
        "softmax is taken: the model returns logits": truth.softmax(expected, -1),
        "logarithms of probabilities are returned: the model returns logits": (
            expected - torch.logsumexp(expected, -1, keepdim=True)
        ),
        "the embedding is the head as well: they are two matrices": lambda: logits(lm_head__weight=embedding),
        "embeddings are multiplied by sqrt(d_model)": (
            lambda: logits(token_embeddings__weight=embedding * math.sqrt(d_model))
        ),
        "all layers have the weights of the first": lambda: logits([0] * num_layers),
        "all layers have the weights of the last": lambda: logits([num_layers - 1] * num_layers),
        "layers run in the reverse order": lambda: logits(layers[::-1]),
        "only the first layer runs": lambda: logits([0]),
        "the last layer is left out": lambda: logits(layers[:-1]),
        "theta is 10000, whatever is asked for": lambda: logits(theta=10_000.0),
    }
    actual = adapters.run_transformer_lm(
        vocab_size, context_length, d_model, num_layers, num_heads, d_ff, theta, weights, ids
    )
    # Each layer adds the roundings of a block, relative to the largest number of the stream; the norm divides
    # by its root mean square, and the head adds up d_model products.
    roundings = truth.block_roundings(d_model, d_ff, ids.shape[1]) * num_layers + 2 * d_model
    relative = stream.abs().amax() / stream.square().mean(-1, keepdim=True).sqrt()
    size = relative * truth.linear(final.abs(), head.abs())
    check_tensor(
        actual,
        expected,
        what=f"run_transformer_lm of ids {tuple(ids.shape)}, context_length {context_length},",
        allowed=rounding_bound(torch.float32, roundings, size),
        dtype=torch.float32,
        mistakes=mistakes,
        hint=(
            "If run_transformer_block is right, look at what stands around the blocks: embedding, order of "
            "layers, final norm, head."
        ),
    )
