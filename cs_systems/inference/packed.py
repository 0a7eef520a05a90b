"""The fast decoder: weights fused, converted and laid out once, then as few operations a step as possible.

What makes it faster than `decoding.SimpleDecoder`: one product gives queries, keys and values, and one both
halves of a swiglu; weights lie as `projections` says; norms are single operations; attention without padding
or ALiBi needs no mask; and a step can be compiled whole. Prefill is never compiled: its length changes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cs_systems.device import DTYPES
from cs_systems.inference.kv_cache import KVCache, LayerCache
from cs_systems.inference.packed_block import PackedBlock, PackedNorm, fuse
from cs_systems.inference.projections import DenseLinear, Int8Linear, PackedLinear, choose_layout
from cs_systems.inference.prompts import PromptBatch, attention_bias, positions_of
from cs_systems.inference.settings import DecoderConfig
from cs_systems.model.attention import Rotation
from cs_systems.model.functional import apply_rope
from cs_systems.model.transformer import TransformerBlock, TransformerLM

_CAPACITY_MULTIPLE = 64  # of the cache of a compiled step: one graph serves prompts of many lengths
_MAX_GRAPHS = 256  # torch.compile's own limit of 8 would end a sweep over batch sizes

GRAPH_OPTIONS: dict[str, Any] = {"triton.cudagraphs": True}
"""What mode="reduce-overhead" of torch.compile means: replay a whole step as one CUDA graph."""

LOOP_OPTIONS: dict[str, Any] = {"realize_reads_threshold": 0, "realize_opcount_threshold": 0}
"""Write to memory what more than one loop iteration needs. Otherwise a norm is computed anew inside the sum
of products, once for each row of the matrix behind it."""

Attend = Callable[[LayerCache, Tensor, Tensor, Tensor], Tensor]
"""From the cache of a layer and new queries, keys and values to heads, all (batch, heads, new, d_head)."""


class PackedDecoder(nn.Module):
    """The `Decoder` that is fast. It copies the weights that it must convert; the model can then be deleted.

    A compiled step belongs to one batch size, one capacity, and padding or none; another is compiled anew. On
    a GPU it is a CUDA graph, which writes into the cache it was recorded with: use one cache for many
    generations. Nothing here has been run on a GPU yet.

    Raises:
        ValueError: for int8, when a matrix of the model has a shape that cannot be quantised.
    """

    token_table: Tensor | None
    position_table: Tensor | None
    rope_cos: Tensor | None
    rope_sin: Tensor | None
    slopes: Tensor | None

    def __init__(self, model: TransformerLM, settings: DecoderConfig) -> None:
        super().__init__()
        config = model.config
        self.config, self.settings = config, settings
        self.device = model.token_embeddings.weight.device
        self.dtype = torch.bfloat16 if settings.precision == "int8" else DTYPES[settings.precision]
        self.layout = choose_layout(settings, self.device)
        blocks = cast(Iterable[TransformerBlock], model.layers)
        packed = nn.ModuleList(PackedBlock(block, self.layout, self.dtype) for block in blocks)
        self.blocks = cast(Sequence[PackedBlock], packed)
        self.ln_final = PackedNorm(model.ln_final, self.dtype)
        self.lm_head = fuse([model.lm_head], self.layout, self.dtype)
        norm = model.embedding_norm
        self.embedding_norm = None if norm is None else PackedNorm(norm, self.dtype)
        # A tied head gives the embeddings too, unless its rows are scattered over the blocks of oneDNN.
        own_table = isinstance(self.lm_head, PackedLinear) or not config.tied_embeddings
        self._keep("token_table", model.token_embeddings.weight if own_table else None, self.dtype)
        learned = config.position == "learned"
        self._keep("position_table", model.position_embeddings.weight if learned else None, self.dtype)
        rope = config.position == "rope"
        self._keep("rope_cos", model.rope_cos if rope else None, torch.float32)
        self._keep("rope_sin", model.rope_sin if rope else None, torch.float32)
        self._keep("slopes", model.alibi_slopes if config.position == "alibi" else None, torch.float32)
        options = GRAPH_OPTIONS if self.device.type == "cuda" else LOOP_OPTIONS
        self._compiled_step = torch.compile(self._static_step, fullgraph=True, dynamic=False, options=options)

    def _keep(self, name: str, tensor: Tensor | None, dtype: torch.dtype) -> None:
        self.register_buffer(name, None if tensor is None else tensor.detach().to(dtype))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory; position tables that are computed do not count."""
        return sum(self._weight_bytes())

    def _weight_bytes(self) -> Iterator[int]:
        for module in self.modules():
            if isinstance(module, DenseLinear | PackedLinear | Int8Linear):
                yield module.num_bytes
            elif isinstance(module, PackedNorm):
                yield module.weight.nbytes + (0 if module.bias is None else module.bias.nbytes)
        for table in (self.token_table, self.position_table):
            if table is not None:
                yield table.nbytes

    def new_cache(self, batch_size: int, num_tokens: int) -> KVCache:
        """As in `Decoder`; for a compiled step the capacity is rounded up."""
        if not self.settings.compile:
            return KVCache(self.config, batch_size, num_tokens, self.dtype, self.device)
        rounded = -(-num_tokens // _CAPACITY_MULTIPLE) * _CAPACITY_MULTIPLE
        capacity = min(rounded, max(num_tokens, self.config.context_length))
        cache = KVCache(self.config, batch_size, capacity, self.dtype, self.device)
        if self.device.type == "cuda":  # or a CUDA graph would copy the cache to a place of its own
            for layer in cache.layers:
                torch._dynamo.mark_static_address(layer.key_storage)
                torch._dynamo.mark_static_address(layer.values)
        return cache

    @torch.inference_mode()
    def prefill(self, batch: PromptBatch, cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """As in `Decoder`; only the last position goes through the head."""
        return self.lm_head(self.ln_final(self._prefill(batch, cache)[:, -1]))

    @torch.inference_mode()
    def all_logits(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """As `TransformerLM.forward`: to see what the precision costs (`quantize.compare_logits`)."""
        cache = self.new_cache(*token_ids.shape)
        return self.lm_head(self.ln_final(self._prefill(PromptBatch(token_ids, None), cache)))

    @torch.inference_mode()
    def decode_step(self, tokens: Int[Tensor, " batch"], cache: KVCache) -> Float[Tensor, "batch vocab"]:
        """As in `Decoder`."""
        slot = cache.reserve(1)
        if self.settings.compile:
            with torch._dynamo.config.patch(
                recompile_limit=_MAX_GRAPHS, accumulated_recompile_limit=_MAX_GRAPHS
            ):
                logits = self._compiled_step(tokens, slot, cache.first, cache.layers)
            if self.device.type == "cuda":
                logits = logits.clone()  # the next replay of a CUDA graph writes its result to the same place
        else:
            logits = self._eager_step(tokens, slot, cache)
        cache.advance(1)
        return logits

    def _prefill(self, batch: PromptBatch, cache: KVCache) -> Float[Tensor, "batch seq d_model"]:
        cache.start(batch)
        seq = batch.token_ids.shape[1]
        slots = cache.reserve(seq)
        bias = None
        if batch.first is not None or self.slopes is not None:
            bias = attention_bias(slots, seq, batch.first, self.slopes).to(self.dtype)
        attend = functools.partial(attend_prompt, bias=bias)
        hidden = self._run(batch.token_ids, slots, batch.first, cache.layers, attend)
        cache.advance(seq)
        return hidden

    def _eager_step(self, tokens: Tensor, slot: Tensor, cache: KVCache) -> Tensor:
        """The logits after one token: slices of the cache, and no mask where nothing is hidden."""
        bias = None
        if cache.first is not None or self.slopes is not None:
            bias = self._group(attention_bias(slot, cache.length + 1, cache.first, self.slopes))
        attend = functools.partial(attend_sliced, length=cache.length, bias=bias)
        hidden = self._run(tokens[:, None], slot, cache.first, cache.layers, attend)
        return self.lm_head(self.ln_final(hidden[:, 0]))

    def _static_step(
        self, tokens: Tensor, slot: Tensor, first: Tensor | None, layers: list[LayerCache]
    ) -> Tensor:
        """The same for torch.compile: no shape depends on how far the generation is, so a mask does."""
        bias = self._group(attention_bias(slot, layers[0].values.shape[2], first, self.slopes))
        attend = functools.partial(attend_static, slot=slot, bias=bias)
        hidden = self._run(tokens[:, None], slot, first, layers, attend)
        return self.lm_head(self.ln_final(hidden[:, 0]))

    def _group(
        self, bias: Float[Tensor, "#batch #heads 1 keys"]
    ) -> Float[Tensor, "#batch #kv_heads #group keys"]:
        """The bias of one query, its heads grouped by the key head that they share."""
        return bias if bias.shape[1] == 1 else bias.squeeze(2).unflatten(1, (self.config.num_kv_heads, -1))

    def _run(
        self, token_ids: Tensor, slots: Tensor, first: Tensor | None, layers: list[LayerCache], attend: Attend
    ) -> Float[Tensor, "batch new d_model"]:
        """The residual stream after all blocks."""
        positions = positions_of(slots, first)
        x = self._embed(token_ids)
        if self.position_table is not None:
            x = x + F.embedding(positions + self.config.position_offset, self.position_table)
        rotation = None
        if self.rope_cos is not None and self.rope_sin is not None:
            rotation = self.rope_cos[positions][:, None], self.rope_sin[positions][:, None]
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for block, layer in zip(self.blocks, layers, strict=True):
            normed = block.ln1(x)
            attended = self._attention(block, normed, rotation, layer, attend)
            if block.ln2 is None:
                x = x + attended + block.feed_forward(normed)
            else:
                x = x + attended
                x = x + block.feed_forward(block.ln2(x))
        return x

    def _embed(self, token_ids: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new d_model"]:
        if self.token_table is not None:
            return F.embedding(token_ids, self.token_table)
        assert not isinstance(self.lm_head, PackedLinear)  # it would have a table beside it
        return self.lm_head.rows(token_ids)

    def _attention(
        self, block: PackedBlock, x: Tensor, rotation: Rotation | None, layer: LayerCache, attend: Attend
    ) -> Float[Tensor, "batch new d_model"]:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = block.qkv(x).unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
        if rotation is not None:
            qk = apply_rope(qk, *rotation)  # queries and keys turn by the same angles: at once
        q, k = qk.split([heads, kv_heads], dim=1)
        return block.output(attend(layer, q, k, v).transpose(1, 2).flatten(2))


def attend_prompt(layer: LayerCache, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None) -> Tensor:
    """Attention inside a prompt, whose keys and values begin the cache."""
    layer.append(k, v, 0)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def attend_sliced(
    layer: LayerCache, q: Tensor, k: Tensor, v: Tensor, *, length: int, bias: Tensor | None
) -> Tensor:
    """Attention of a new token to the `length` before it and itself; `bias`, if given, hides padding."""
    return decode_attention(q, *layer.append(k, v, length), bias)


def attend_static(
    layer: LayerCache, q: Tensor, k: Tensor, v: Tensor, *, slot: Tensor, bias: Tensor
) -> Tensor:
    """Attention of a new token to every slot of the cache, of which `bias` hides those still empty."""
    layer.write(k, v, slot)
    return decode_attention(q, layer.keys, layer.values, bias)


def decode_attention(
    q: Float[Tensor, "batch heads 1 d_head"],
    keys: Float[Tensor, "batch kv_heads keys d_head"],
    values: Float[Tensor, "batch kv_heads keys d_head"],
    bias: Float[Tensor, "#batch #kv_heads #group keys"] | None,
) -> Float[Tensor, "batch heads 1 d_head"]:
    """Attention of one query a sequence: the heads that share a key head are the rows of one product.

    PyTorch's fused attention is the faster one in fp32 on a CPU, and several times slower in bf16.
    """
    grouped = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[-1])
    if q.dtype == torch.float32 and not torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias).reshape(q.shape)
    scores = (grouped * q.shape[-1] ** -0.5) @ keys.mT
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1).to(values.dtype) @ values).reshape(q.shape)
