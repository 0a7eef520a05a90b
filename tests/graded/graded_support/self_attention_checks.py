"""Self-attention with several heads beside the truth, and beside what known mistakes make of it."""

from typing import Any

import torch
from torch import Tensor

from graded_support import model_truth as truth
from graded_support.compare import check_tensor, rounding_bound


def check_self_attention(
    adapters: Any, projections: list[Tensor], num_heads: int, x: Tensor, *, theta: float | None = None,
    positions: Tensor | None = None, max_seq_len: int = 32,
) -> None:  # fmt: skip
    """Causal self-attention of x (batch, seq, d_model); a theta asks for rotations, by these positions."""
    seq, d_model = x.shape[1:]
    d_head = d_model // num_heads
    wide = [weight.double() for weight in projections]
    stream = x.double()
    at = torch.arange(seq) if positions is None else positions

    def turn(
        y: Tensor, at: Tensor = at, d_k: int = d_head, base: float | None = theta, **pairs: bool
    ) -> Tensor:
        return truth.rotate(y, at, truth.frequencies(d_k, base), **pairs) if base else y

    def attend(turn=turn, weights=wide, heads=num_heads, **settings):
        return truth.self_attention(stream, weights, heads, turn=turn, **settings)

    wq, wk, wv, wo = wide
    by_head = torch.stack(truth.head_results(stream, wide, num_heads, turn=turn), dim=1)
    mistakes = {
        "no key is hidden: a token sees those after it": (
            lambda: attend(mask=torch.ones(seq, seq, dtype=torch.bool))
        ),
        "the causal mask is shifted by one: a token sees the next one": (
            lambda: attend(mask=truth.causal(seq, 1))
        ),
        "the causal mask is shifted by one: a token does not see itself": (
            lambda: attend(mask=truth.causal(seq, -1))
        ),
        "all other keys are hidden: a token sees nothing but itself": (
            lambda: attend(mask=torch.eye(seq, dtype=torch.bool))
        ),
        "the causal mask is inverted: a token sees itself and those after it": (
            lambda: attend(mask=truth.causal(seq).T)
        ),
        "heads are split along the wrong axis: the rows of a projection are ordered by head, d_head each": (
            lambda: attend(interleaved=True)
        ),
        "heads are joined without putting the axis of heads behind the sequence first": (
            lambda: truth.linear(by_head.reshape(x.shape), wo)
        ),
        "(batch, seq, d_model) is viewed as (batch, heads, seq, d_head) in one step: split d_model first": (
            lambda: _viewed_in_one_step(stream, wide, num_heads, turn)
        ),
        "there is one head, whatever num_heads says": (
            lambda: attend(lambda y: turn(y, d_k=d_model), heads=1)
        ),
        "scores are scaled by 1 / sqrt(d_model); it is 1 / sqrt(d_head)": lambda: attend(scale=d_model**-0.5),
        "the scale 1 / sqrt(d_head) is missing": lambda: attend(scale=1.0),
        "queries and keys are exchanged": lambda: attend(weights=[wk, wq, wv, wo]),
        "the projection of the output is missing": (
            lambda: attend(weights=[wq, wk, wv, torch.eye(d_model).double()])
        ),
        "the projections are used as (in, out)": lambda: attend(weights=[weight.T for weight in wide]),
        "the projection of the output is used as (in, out)": lambda: attend(weights=[wq, wk, wv, wo.T]),
    }  # fmt: skip
    if theta:
        mistakes |= {
            "nothing is rotated": lambda: attend(turn=None),
            "values are rotated too": lambda: attend(turn_values=turn),
            "queries are rotated and keys are not": lambda: attend(turn_keys=lambda y: y),
            "positions are ignored, and 0, 1, 2, ... taken": (
                lambda: attend(lambda y: turn(y, torch.arange(seq)))
            ),
            "channel i is rotated together with channel i + d_head/2; a pair is (2i, 2i + 1)": (
                lambda: attend(lambda y: turn(y, halves=True))
            ),
            "theta is 10000, whatever is asked for": lambda: attend(lambda y: turn(y, base=10_000.0)),
            "keys are hidden by their positions; a query sees the places up to its own, whatever these say": (
                lambda: attend(mask=at[..., :, None] >= at[..., None, :])
            ),
            "the row of all heads is rotated with angles of d_model; each head has those of d_head": (
                lambda: _rotated_before_split(stream, wide, num_heads, at, theta)
            ),
        }
    largest_position = int(at.max()) if theta else 0
    roundings, magnitude = truth.self_attention_allowance(stream, wide, num_heads, largest_position)
    if theta:
        name = "run_multihead_self_attention_with_rope"
        call = adapters.run_multihead_self_attention_with_rope
        actual = call(d_model, num_heads, max_seq_len, theta, *projections, x, positions)
    else:
        name = "run_multihead_self_attention"
        actual = adapters.run_multihead_self_attention(d_model, num_heads, *projections, x)
    check_tensor(
        actual,
        attend(),
        what=f"{name} of {tuple(x.shape)} with {num_heads} heads",
        allowed=rounding_bound(torch.float32, 1, roundings * magnitude),
        dtype=torch.float32,
        mistakes=mistakes,
        hint="Project, split into heads, rotate queries and keys if asked, attend causally, join, project.",
    )


def _rotated_before_split(
    x: Tensor, projections: list[Tensor], num_heads: int, positions: Tensor, theta: float
) -> Tensor:
    """What comes out when every head has the angles of its place in the whole row."""
    q, k, v = (truth.linear(x, weight) for weight in projections[:3])
    angles = truth.frequencies(x.shape[-1], theta)
    q, k = (truth.rotate(y, positions, angles) for y in (q, k))
    heads = zip(*(y.chunk(num_heads, -1) for y in (q, k, v)), strict=True)
    results = [truth.attention(*head, truth.causal(x.shape[1])) for head in heads]
    return truth.linear(torch.cat(results, dim=-1), projections[3])


def _viewed_in_one_step(x: Tensor, projections: list[Tensor], num_heads: int, turn: truth.Turn) -> Tensor:
    """What comes out when (batch, seq, d_model) is taken for (batch, heads, seq, d_head)."""
    shape = x.shape[0], num_heads, x.shape[1], -1
    q, k, v = (truth.linear(x, weight).reshape(shape).unbind(1) for weight in projections[:3])
    results = [
        truth.attention(turn(q[head]), turn(k[head]), v[head], truth.causal(x.shape[1]))
        for head in range(num_heads)
    ]
    return truth.linear(torch.cat(results, dim=-1), projections[3])
