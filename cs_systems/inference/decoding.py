"""A decoder: prompts in, then one token in, and each time the logits of the next token out.

`SimpleDecoder` runs the modules of the unchanged model, with whatever kernels were put into them, and shows
on one page what a cache does. `packed.PackedDecoder` computes the same, faster; tests hold one to the other.
"""

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cs_systems.inference.kv_cache import KVCache, LayerCache
from cs_systems.inference.prompts import PromptBatch, attention_bias, positions_of
from cs_systems.model.attention import Rotation, SelfAttention
from cs_systems.model.config import ModelConfig
from cs_systems.model.transformer import TransformerBlock, TransformerLM


@runtime_checkable
class Decoder(Protocol):
    """What `engine` needs. The state of a generation is in the cache alone, so one decoder serves many."""

    config: ModelConfig
    device: torch.device

    def new_cache(self, batch_size: int, num_tokens: int) -> KVCache:
        """A cache for `batch_size` sequences of `num_tokens` tokens, prompt included."""
        ...

    def prefill(self, batch: PromptBatch, cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """Run the prompts into the empty cache; logits of the token after each."""
        ...

    def decode_step(self, tokens: Int[Tensor, " batch"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """Append one token to each sequence; logits of the token after it."""
        ...


class SimpleDecoder:
    """The model's own layers around a cache, in the model's dtype."""

    def __init__(self, model: TransformerLM) -> None:
        self.model, self.config = model, model.config
        weight = model.token_embeddings.weight
        self.device, self.dtype = weight.device, weight.dtype

    def new_cache(self, batch_size: int, num_tokens: int) -> KVCache:
        """As in `Decoder`."""
        return KVCache(self.config, batch_size, num_tokens, self.dtype, self.device)

    def prefill(self, batch: PromptBatch, cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """As in `Decoder`."""
        cache.start(batch)
        return self._append(batch.token_ids, cache)

    def decode_step(self, tokens: Int[Tensor, " batch"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """As in `Decoder`."""
        return self._append(tokens[:, None], cache)

    @torch.inference_mode()
    def _append(self, token_ids: Int[Tensor, "batch new"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """Run new tokens, prompt or not, behind those in the cache: `TransformerLM.hidden_states`, cached."""
        model, config = self.model, self.config
        slots = cache.reserve(token_ids.shape[1])
        positions = positions_of(slots, cache.first)
        slopes = model.alibi_slopes if config.position == "alibi" else None
        bias = attention_bias(slots, cache.length + len(slots), cache.first, slopes)
        rotation = None
        x = model.token_embeddings(token_ids)
        if config.position == "learned":
            x = x + model.position_embeddings(positions + config.position_offset)
        elif config.position == "rope":
            rotation = model.rope_cos[positions][:, None], model.rope_sin[positions][:, None]
        if model.embedding_norm is not None:
            x = model.embedding_norm(x)
        blocks = cast(Iterable[TransformerBlock], model.layers)
        for block, layer in zip(blocks, cache.layers, strict=True):
            normed = block.ln1(x)
            attended = attend_cached(block.attn, normed, rotation, bias, layer, cache.length)
            if block.ln2 is None:
                x = x + attended + block.ffn(normed)
            else:
                x = x + attended
                x = x + block.ffn(block.ln2(x))
        cache.advance(len(slots))
        return model.lm_head(model.ln_final(x[:, -1]))


def attend_cached(
    attn: SelfAttention,
    x: Float[Tensor, "batch new d_model"],
    rotation: Rotation | None,
    bias: Float[Tensor, "#batch #heads new keys"],
    layer: LayerCache,
    length: int,
) -> Float[Tensor, "batch new d_model"]:
    """`SelfAttention.forward` for tokens that come after the `length` in the cache."""
    q = rearrange(attn.q_proj(x), "b s (h d) -> b h s d", h=attn.num_heads)
    k = rearrange(attn.k_proj(x), "b s (h d) -> b h s d", h=attn.num_kv_heads)
    v = rearrange(attn.v_proj(x), "b s (h d) -> b h s d", h=attn.num_kv_heads)
    if rotation is not None:
        q, k = attn.rotate(q, k, *rotation)
    keys, values = layer.append(k, v, length)
    grouped = rearrange(q * q.shape[-1] ** -0.5, "b (g r) s d -> b g r s d", g=attn.num_kv_heads)
    scores = rearrange(grouped @ keys[:, :, None].mT, "b g r s k -> b (g r) s k")
    weights = rearrange((scores + bias).softmax(-1), "b (g r) s k -> b g r s k", g=attn.num_kv_heads)
    return attn.output_proj(
        rearrange(weights.to(values.dtype) @ values[:, :, None], "b g r s d -> b s (g r d)")
    )
