"""Keys and values of all tokens so far, in memory that is allocated once and written in place.

Without a cache, token n + 1 costs a pass over all n tokens before it. With one, a step computes the new
token only, and reads the rest. Each layer has its own two buffers: one buffer for all layers would be copied
as a whole whenever a compiled step writes one layer of it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cs_systems.inference.prompts import PromptBatch
from cs_systems.model.config import ModelConfig


@dataclass(frozen=True)
class LayerCache:
    """Buffers of one layer, written with `append` or, where no shape may change, with `write`."""

    key_storage: Float[Tensor, "batch kv_heads rows columns"]
    """(capacity, d_head) for each head, or the transpose of it."""
    values: Float[Tensor, "batch kv_heads capacity d_head"]
    is_transposed: bool

    @property
    def keys(self) -> Float[Tensor, "batch kv_heads capacity d_head"]:
        """All slots, filled or not, however they are stored."""
        return self.key_storage.mT if self.is_transposed else self.key_storage

    def append(
        self,
        keys: Float[Tensor, "batch kv_heads new d_head"],
        values: Float[Tensor, "batch kv_heads new d_head"],
        length: int,
    ) -> tuple[Float[Tensor, "batch kv_heads end d_head"], Float[Tensor, "batch kv_heads end d_head"]]:
        """Write behind the `length` tokens that are there; returns views of all keys and values so far."""
        end = length + keys.shape[2]
        self.keys[:, :, length:end] = keys
        self.values[:, :, length:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def write(
        self,
        keys: Float[Tensor, "batch kv_heads 1 d_head"],
        values: Float[Tensor, "batch kv_heads 1 d_head"],
        slot: Int[Tensor, " 1"],
    ) -> None:
        """Write one token. A compiled step that wrote through the view `keys` would copy the whole buffer."""
        if self.is_transposed:
            self.key_storage.index_copy_(3, slot, keys.mT)
        else:
            self.key_storage.index_copy_(2, slot, keys)
        self.values.index_copy_(2, slot, values)


class KVCache:
    """The caches of all layers, and how much of them is filled.

    Keys of 16 bits lie transposed in memory, which the product of a query with all keys reads faster; in fp32
    PyTorch's attention wants them as they are. All buffers start as zeros: a compiled step multiplies slots
    that are not yet filled by a weight of 0, and 0 times whatever was in memory may be nan. One cache serves
    many generations, one after the other.

    Raises:
        ValueError: when the capacity is over the model's context.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        if capacity > config.context_length:
            raise ValueError(
                f"a cache of {capacity} tokens is over context_length {config.context_length}; "
                f"generate fewer tokens or shorten the prompt"
            )
        self.batch_size, self.capacity = batch_size, capacity
        heads, d_head = config.num_kv_heads, config.d_head
        is_transposed = dtype.itemsize == 2
        key_shape = (d_head, capacity) if is_transposed else (capacity, d_head)
        self.layers = [
            LayerCache(
                torch.zeros(batch_size, heads, *key_shape, dtype=dtype, device=device),
                torch.zeros(batch_size, heads, capacity, d_head, dtype=dtype, device=device),
                is_transposed,
            )
            for _ in range(config.num_layers)
        ]
        self.length = 0
        self.first: Int[Tensor, " batch"] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.key_storage.nbytes + layer.values.nbytes for layer in self.layers)

    def start(self, batch: PromptBatch) -> None:
        """Forget what is cached; the prompts of `batch` come next.

        Raises:
            ValueError: when they do not fit.
        """
        batch_size, seq = batch.token_ids.shape
        if batch_size != self.batch_size:
            raise ValueError(f"{batch_size} prompts do not fit a cache for {self.batch_size}; make a new one")
        self.length, self.first = 0, batch.first
        self.reserve(seq)

    def reserve(self, num_tokens: int) -> Int[Tensor, " new"]:
        """The slots that the next `num_tokens` tokens will take; `advance` then counts them in.

        Raises:
            ValueError: when the cache is full.
        """
        if self.length + num_tokens > self.capacity:
            raise ValueError(
                f"the cache holds {self.length} of {self.capacity} tokens, too full for {num_tokens} more; "
                f"make one of larger capacity"
            )
        device = self.layers[0].values.device
        return torch.arange(self.length, self.length + num_tokens, device=device)

    def advance(self, num_tokens: int) -> None:
        """Count tokens as cached, once all layers have written them."""
        self.length += num_tokens
