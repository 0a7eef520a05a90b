"""The parts of the model in float64, from their formulas; wrong settings give what known mistakes give.

Nothing is written the way a model is: queries, heads and pairs of channels are computed one after the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Turn = Callable[[Tensor], Tensor]
"""From a tensor to one of its shape, such as a rotation of each row of (..., seq, d_k) by its position."""


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x) of each element."""
    return x * torch.special.expit(x)


def swiglu(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """w2 (silu(w1 x) * (w3 x))."""
    return linear(silu(linear(x, w1)) * linear(x, w3), w2)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The last axis of x times a weight of (out, in)."""
    return torch.einsum("...i,oi->...o", x, weight)


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x_i) / sum_j exp(x_j)."""
    return (x - torch.logsumexp(x, dim, keepdim=True)).exp()


def frequencies(d_k: int, theta: float) -> Tensor:
    """Angle of each pair of channels at position 1: 1 / theta^(2i / d_k) for pair i."""
    return torch.tensor([theta ** (-2 * pair / d_k) for pair in range(d_k // 2)], dtype=torch.float64)


def rotate(x: Tensor, positions: Tensor, angles: Tensor, *, halves: bool = False) -> Tensor:
    """Turn pair i of channels by positions * angles[i]: pairs are (2i, 2i + 1), or halves: (i, i + d_k/2)."""
    leading = torch.broadcast_shapes(x.shape[:-1], positions.shape)
    turned = torch.empty(*leading, x.shape[-1], dtype=torch.float64)
    for pair, angle in enumerate(angles.tolist()):
        first, second = (pair, pair + len(angles)) if halves else (2 * pair, 2 * pair + 1)
        cos, sin = (angle * positions.double()).cos(), (angle * positions.double()).sin()
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned


def turner(seq: int, d_k: int, theta: float) -> Turn:
    """The rotation by positions 0, 1, 2, ..."""
    return lambda x: rotate(x, torch.arange(seq), frequencies(d_k, theta))


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d_k)) v, in which a key counts where `mask` is True."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    results = []
    for query in range(q.shape[-2]):
        scores = scale * (k * q[..., query, None, :]).sum(-1)
        if mask is not None:
            scores = torch.where(mask[..., query, :], scores, -math.inf)
        results.append((softmax(scores, -1)[..., None] * v).sum(-2))
    return torch.stack(results, dim=-2)


def attention_roundings(q: Tensor, k: Tensor, *, depth: int, mask: Tensor | None = None) -> Tensor:
    """Roundings in a weight of attention, relative to it, for each query.

    q and k are absolute values, and `depth` the roundings in each of them. An error of a score is about the
    relative error of its exponential, and enters once more through the sum of all.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = torch.where(mask, scores, 0.0)
    return 2 * (2 * depth + q.shape[-1]) * scores.amax(-1, keepdim=True) + k.shape[-2]


def causal(seq: int, shift: int = 0) -> Tensor:
    """Which keys a query sees: key j where j <= i + shift."""
    return torch.ones(seq, seq, dtype=torch.bool).tril(shift)


def head_results(
    x: Tensor,
    projections: Sequence[Tensor],
    num_heads: int,
    *,
    turn: Turn | None = None,
    turn_keys: Turn | None = None,
    turn_values: Turn | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    interleaved: bool = False,
) -> list[Tensor]:
    """What each head makes of (batch, seq, d_model): (batch, seq, d_head) each. It uses three projections.

    Right is causal, keys turned as queries, values not turned, and the rows of a head next to each other.
    """
    d_model = x.shape[-1]
    d_head = d_model // num_heads
    mask = causal(x.shape[-2]) if mask is None else mask
    results = []
    for head in range(num_heads):
        rows = slice(head, None, num_heads) if interleaved else slice(head * d_head, (head + 1) * d_head)
        q, k, v = (linear(x, weight[rows]) for weight in projections[:3])
        q = turn(q) if turn else q
        keys = turn_keys or turn
        k = keys(k) if keys else k
        v = turn_values(v) if turn_values else v
        results.append(attention(q, k, v, mask, scale=scale))
    return results


def self_attention(x: Tensor, projections: Sequence[Tensor], num_heads: int, **settings) -> Tensor:
    """Heads side by side, times the weight of the output; for settings see `head_results`."""
    return linear(torch.cat(head_results(x, projections, num_heads, **settings), dim=-1), projections[3])


def self_attention_allowance(
    x: Tensor, projections: Sequence[Tensor], num_heads: int, largest_position: int = 0
) -> tuple[Tensor, Tensor]:
    """Roundings (batch, seq, 1), and the magnitude of what is rounded (batch, seq, d_model).

    Counted are the terms of the four projections, those of a score, the keys, and the size of an angle.
    Queries and keys count as they are, not by the larger sums of absolute terms that the worst of cases asks
    for: the factor of `rounding_bound` makes up for it.
    """
    d_model, d_head = x.shape[-1], x.shape[-1] // num_heads
    q, k, v, output = projections
    roundings, values = torch.zeros(()), []
    for head in range(num_heads):
        rows = slice(head * d_head, (head + 1) * d_head)
        sizes = [linear(x, weight[rows]).abs() for weight in (q, k)]
        roundings = torch.maximum(roundings, attention_roundings(*sizes, depth=d_model + largest_position))
        values.append(linear(x.abs(), v[rows].abs()).cummax(dim=-2).values)
    return roundings + 2 * d_model, linear(torch.cat(values, dim=-1), output.abs())


def block_parts(
    weights: Mapping[str, Tensor], num_heads: int, theta: float, seq: int, eps: float = 1e-5
) -> tuple[Turn, Turn, Turn, Turn]:
    """Attention, feed-forward layer, first and second norm of a block: functions of (batch, seq, d_model)."""
    wide = {name: weight.detach().double() for name, weight in weights.items()}
    projections = [wide[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output")]
    turn = turner(seq, projections[0].shape[0] // num_heads, theta)
    feed_forward = [wide[f"ffn.{name}.weight"] for name in ("w1", "w2", "w3")]
    return (
        lambda x: self_attention(x, projections, num_heads, turn=turn),
        lambda x: swiglu(x, *feed_forward),
        lambda x: rms_norm(x, wide["ln1.weight"], eps),
        lambda x: rms_norm(x, wide["ln2.weight"], eps),
    )


def block(
    x: Tensor, weights: Mapping[str, Tensor], num_heads: int, theta: float, eps: float = 1e-5
) -> Tensor:
    """x + attention(norm1(x)), then x + feed-forward(norm2(x))."""
    attend, feed_forward, norm1, norm2 = block_parts(weights, num_heads, theta, x.shape[-2], eps)
    x = x + attend(norm1(x))
    return x + feed_forward(norm2(x))


def block_roundings(d_model: int, d_ff: int, seq: int) -> int:
    """Roundings on the longest way through a block, each relative to the largest number of the stream.

    Two norms and four products of d_model terms, a softmax and a product of seq terms, one product of d_ff.
    """
    return 6 * d_model + 2 * seq + d_ff


def layer_weights(weights: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """Those of one block, by their names in it."""
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def residual_stream(
    ids: Tensor, weights: Mapping[str, Tensor], layers: Sequence[int], num_heads: int, theta: float
) -> Tensor:
    """The rows of the ids after these layers: (batch, seq, d_model)."""
    x = weights["token_embeddings.weight"].double()[ids]
    for layer in layers:
        x = block(x, layer_weights(weights, layer), num_heads, theta)
    return x


def logits(stream: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The last norm and the head."""
    return linear(rms_norm(stream, weights["ln_final.weight"].double()), weights["lm_head.weight"].double())


def random_weights(d_model: int, d_ff: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Weights of one block in fp32, of a size that keeps numbers near 1; no two norms are alike."""
    shapes = {f"attn.{name}_proj.weight": (d_model, d_model) for name in ("q", "k", "v", "output")}
    shapes |= {
        "ffn.w1.weight": (d_ff, d_model),
        "ffn.w2.weight": (d_model, d_ff),
        "ffn.w3.weight": (d_ff, d_model),
    }
    weights = {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[1]) for name, shape in shapes.items()
    }
    for name in ("ln1.weight", "ln2.weight"):
        weights[name] = 0.5 + torch.rand(d_model, generator=generator)
    return weights


def random_model(
    vocab_size: int, d_model: int, d_ff: int, num_layers: int, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Weights of a whole model in fp32, by the names of run_transformer_lm."""
    weights = {"token_embeddings.weight": torch.randn(vocab_size, d_model, generator=generator)}
    for layer in range(num_layers):
        of_layer = random_weights(d_model, d_ff, generator=generator)
        weights |= {f"layers.{layer}.{name}": weight for name, weight in of_layer.items()}
    weights["ln_final.weight"] = 0.5 + torch.rand(d_model, generator=generator)
    weights["lm_head.weight"] = torch.randn(vocab_size, d_model, generator=generator) / math.sqrt(d_model)
    return weights
