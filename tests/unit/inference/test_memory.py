"""Closed forms of bytes against published counts; other tests here compare with real storage."""

import pytest

from cs_systems.inference.memory import cache_bytes, cache_bytes_per_token, weight_bytes
from cs_systems.model.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_weights_are_the_published_parameters(name):
    preset = PRESETS[name]
    assert weight_bytes(preset.config, "fp32") == 4 * preset.num_parameters
    assert weight_bytes(preset.config, "bf16") == 2 * preset.num_parameters


@pytest.mark.parametrize(
    ("name", "precision", "bytes_per_token"),
    [
        ("gpt2-mha-1.3b", "bf16", 196_608), ("bloom-1.3b", "fp32", 393_216),
        ("gpt2-mqa-1.1b", "bf16", 12_288),
        ("gpt-175b", "fp16", 4_718_592),
        ("bloom-176b", "bf16", 4_014_080), ("gpt2-mha-1.3b", "int8", 196_608),
    ],
)  # fmt: skip
def test_cache_of_one_token(name, precision, bytes_per_token):
    config = PRESETS[name].config
    assert cache_bytes_per_token(config, precision) == bytes_per_token
    assert cache_bytes(config, precision, 3, 5) == 15 * bytes_per_token


def test_int8_is_a_byte_for_each_weight_of_a_matrix_and_two_for_each_row():
    config = PRESETS["gpt2-mha-1.3b"].config
    d, vocab, num_layers = 2048, 50_258, 24
    matrices, rows = 12 * d * d, 3 * d + d + 4 * d + d
    others = num_layers * 13 * d + 2048 * d + 2 * d  # biases and norms, positions, last norm
    expected = num_layers * (matrices + 2 * rows) + vocab * (d + 2) + 2 * others
    assert weight_bytes(config, "int8") == expected
    assert weight_bytes(config, "bf16", packed=True) - weight_bytes(config, "bf16") == 2 * vocab * d
