"""What the cache holds, where, in how many bytes, and what does not fit."""

import pytest
import torch

from cs_systems.inference.kv_cache import KVCache
from cs_systems.inference.memory import cache_bytes
from cs_systems.inference.prompts import PromptBatch
from cs_systems.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=11, context_length=12, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=8
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


@pytest.mark.parametrize("precision", DTYPES)
def test_bytes_are_the_closed_form_and_those_of_the_storage(precision):
    cache = KVCache(CONFIG, 5, 7, DTYPES[precision])
    storage = sum(
        tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )
    assert cache.num_bytes == storage == cache_bytes(CONFIG, precision, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_read_back_in_order_and_written_in_place(dtype):
    layer = KVCache(CONFIG, 2, 6, dtype).layers[1]
    keys, values = torch.randn(2, 2, 2, 5, 8).to(dtype)
    address = layer.keys.data_ptr(), layer.values.data_ptr()
    layer.append(keys[:, :, :3], values[:, :, :3], 0)
    layer.write(keys[:, :, 3:4], values[:, :, 3:4], torch.tensor([3]))
    read = layer.append(keys[:, :, 4:], values[:, :, 4:], 4)
    assert torch.equal(read[0], keys)
    assert torch.equal(read[1], values)
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == address
    assert not layer.keys[:, :, 5:].any()
    assert not layer.values[:, :, 5:].any()


@pytest.mark.parametrize(("dtype", "stride"), [(torch.float32, 1), (torch.bfloat16, 6), (torch.float16, 6)])
def test_keys_of_16_bits_are_stored_transposed(dtype, stride):
    assert KVCache(CONFIG, 2, 6, dtype).layers[0].keys.stride(-1) == stride


def test_layers_do_not_share_memory():
    cache = KVCache(CONFIG, 1, 4)
    assert len({layer.values.data_ptr() for layer in cache.layers}) == CONFIG.num_layers


def test_slots_follow_one_another_until_the_cache_is_full():
    cache = KVCache(CONFIG, 2, 4)
    cache.start(PromptBatch(torch.zeros(2, 3, dtype=torch.long), None))
    assert cache.reserve(3).tolist() == [0, 1, 2]
    cache.advance(3)
    assert cache.reserve(1).tolist() == [3]
    cache.advance(1)
    with pytest.raises(ValueError, match=r"holds 4 of 4 tokens, too full for 1 more; make one of larger"):
        cache.reserve(1)
    cache.start(PromptBatch(torch.zeros(2, 1, dtype=torch.long), torch.tensor([0, 0])))
    assert cache.reserve(1).tolist() == [0]
    assert cache.first is not None


def test_what_does_not_fit_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"^a cache of 13 tokens is over context_length 12; "):
        KVCache(CONFIG, 1, 13)
    cache = KVCache(CONFIG, 2, 4)
    with pytest.raises(ValueError, match=r"^3 prompts do not fit a cache for 2; make a new one$"):
        cache.start(PromptBatch(torch.zeros(3, 1, dtype=torch.long), None))
    with pytest.raises(ValueError, match="too full for 5 more"):
        cache.start(PromptBatch(torch.zeros(2, 5, dtype=torch.long), None))
