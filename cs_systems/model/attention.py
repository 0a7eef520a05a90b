"""Causal self-attention, and the functions that do its heart: the simple one first.

An attention function is a plain function from queries, keys and values to outputs. The module holds one;
`apply.apply_attention` exchanges it, so kernels and caches need no change here.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cs_systems.kernels.flash_attention_torch import flash_attention_torch
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import rotate, softmax
from cs_systems.model.layers import Linear

Rotation = tuple[Tensor, Tensor]
"""cos and sin for `apply_rope`, already restricted to the positions at hand."""

RotateFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From queries, keys, cos and sin to rotated queries and keys, as `functional.rotate`."""


class AttentionFunction(Protocol):
    """softmax(q k^T / sqrt(d_head) + bias) v per head; query heads share key heads in equal groups.

    The bias is (heads, queries, keys); functions in `TAKES_SLOPES` want the (heads,) slopes of ALiBi instead.
    """

    def __call__(
        self,
        q: Float[Tensor, "batch heads queries d_head"],
        k: Float[Tensor, "batch kv_heads keys d_head"],
        v: Float[Tensor, "batch kv_heads keys d_head"],
        *,
        is_causal: bool = True,
        bias: Float[Tensor, "#heads *queries_keys"] | None = None,
    ) -> Float[Tensor, "batch heads queries d_head"]:
        """`is_causal` hides keys after the query (top-left aligned); `bias` is added to the scaled scores."""
        ...


def naive_attention(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    bias: Float[Tensor, "#heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries d_head"]:
    """Materialise the scores: 2 * batch * heads * queries * keys values stay alive for backward.

    Query heads that share a key head are stacked along the query axis, so keys are never expanded.
    """
    # BEGIN SOLUTION scaled_dot_product_attention
    scores = attention_scores(q, k, is_causal=is_causal, bias=bias)
    return attention_output(softmax(scores, dim=-1), v)
    # END SOLUTION


def attention_scores(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    bias: Float[Tensor, "#heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """q k^T / sqrt(d_head) + bias, with -inf for hidden keys: the first step of `naive_attention`."""
    # BEGIN SOLUTION scaled_dot_product_attention
    kv_heads, queries, keys = k.shape[1], q.shape[2], k.shape[2]
    stacked = rearrange(q * q.shape[-1] ** -0.5, "b (g r) q d -> b g (r q) d", g=kv_heads)
    scores = rearrange(stacked @ k.mT, "b g (r q) k -> b (g r) q k", q=queries)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        later = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores
    # END SOLUTION


def attention_output(
    weights: Float[Tensor, "batch heads queries keys"], v: Float[Tensor, "batch kv_heads keys d_head"]
) -> Float[Tensor, "batch heads queries d_head"]:
    """The values averaged with the softmax of the scores: the last step of `naive_attention`."""
    # BEGIN SOLUTION scaled_dot_product_attention
    queries = weights.shape[2]
    weights = rearrange(weights, "b (g r) q k -> b g (r q) k", g=v.shape[1])
    return rearrange(weights.to(v.dtype) @ v, "b g (r q) d -> b (g r) q d", q=queries)
    # END SOLUTION


def sdpa_attention(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    bias: Float[Tensor, "#heads queries keys"] | None = None,
) -> Float[Tensor, "batch heads queries d_head"]:
    """PyTorch's fused kernel, which never writes the scores to memory."""
    if bias is not None:
        if is_causal:  # the kernel takes a mask or the causal flag, not both
            later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            bias = bias.masked_fill(later, float("-inf"))
        bias = bias.to(q.dtype).expand(1, q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=is_causal and bias is None, enable_gqa=k.shape[1] != q.shape[1]
    )


def flash_torch_attention(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    bias: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries d_head"]:
    """FlashAttention by tiles in plain PyTorch; `bias` holds ALiBi slopes, from which it makes its own."""
    return flash_attention_torch(q, k, v, is_causal=is_causal or bias is not None, alibi_slopes=bias)


def flash_attention(
    q: Float[Tensor, "batch heads queries d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    *,
    is_causal: bool = True,
    bias: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries d_head"]:
    """The same in Triton; needs a GPU, or the interpreter (see `kernels.launch.missing_for_triton`)."""
    from cs_systems.kernels import flash_attention as triton_kernel  # Triton exists on Linux only

    return triton_kernel.flash_attention(q, k, v, is_causal=is_causal or bias is not None, alibi_slopes=bias)


ATTENTION: dict[str, AttentionFunction] = {
    "naive": naive_attention,
    "sdpa": sdpa_attention,
    "flash-torch": flash_torch_attention,
    "flash": flash_attention,
}
"""Attention functions by the name used in flags and tables."""

TAKES_SLOPES = ("flash-torch", "flash")
"""Those that compute ALiBi's bias from one slope a head, so that nobody writes it to memory."""


class SelfAttention(nn.Module):
    """Project to queries, keys and values, attend, project back. MHA, GQA and MQA alike."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model, d_kv = config.d_model, config.num_kv_heads * config.d_head
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.q_proj = Linear(d_model, d_model, config.attention_bias)
        self.k_proj = Linear(d_model, d_kv, config.attention_bias)
        self.v_proj = Linear(d_model, d_kv, config.attention_bias)
        self.output_proj = Linear(d_model, d_model, config.attention_bias)
        self.attention: AttentionFunction = naive_attention
        self.rotate: RotateFunction = rotate

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        rotation: Rotation | None = None,
        bias: Float[Tensor, "#heads *seq_seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Attend causally; a `bias` carries the causal mask itself (-inf hides a key)."""
        # BEGIN SOLUTION multihead_self_attention
        q = rearrange(self.q_proj(x), "b s (h d) -> b h s d", h=self.num_heads)
        k = rearrange(self.k_proj(x), "b s (h d) -> b h s d", h=self.num_kv_heads)
        v = rearrange(self.v_proj(x), "b s (h d) -> b h s d", h=self.num_kv_heads)
        if rotation is not None:
            q, k = self.rotate(q, k, *rotation)
        heads = self.attention(q, k, v, is_causal=bias is None, bias=bias)
        return self.output_proj(rearrange(heads, "b h s d -> b s (h d)"))
        # END SOLUTION
