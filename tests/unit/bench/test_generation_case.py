"""Batch sizes as typed, points that cannot be, predicted bytes against those of real caches and weights."""

import argparse

import pytest

from cs_systems.bench.generation_case import (
    GenerationCase,
    GenerationWorkload,
    cache_capacity,
    check_case,
    int8_obstacle,
    parse_batch_sizes,
    predict,
    weight_read_bytes,
)
from cs_systems.estimator.parameters import num_parameters
from cs_systems.inference.packed import PackedDecoder
from cs_systems.inference.settings import DecoderConfig
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import PRESETS
from cs_systems.model.transformer import TransformerLM

TINY = PRESETS["tiny"].config


def make_case(model=TINY, batch_size=2, **settings):
    return GenerationCase("tiny", model, GenerationWorkload(**settings), batch_size)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("1", (1,)),
        ("4,1,4", (4, 1)),
        ("2-5", (2, 3, 4, 5)),
        ("8-40+16", (8, 24, 40)),
        ("3-50*4", (3, 12, 48)),
        ("1,2,4,...,20", (1, 2, 4, 8, 16, 20)),
        (
            "1,2,4,...,64,128,256,384,...,1000",
            (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 640, 768, 896, 1000),
        ),
    ],
)
def test_batch_sizes_are_lists_ranges_and_ladders(text, sizes):
    assert parse_batch_sizes(text) == (sizes, False)


def test_a_ladder_without_an_end_is_open():
    sizes, is_open = parse_batch_sizes("1, 2, 4, ...")
    assert is_open
    assert sizes == tuple(2**power for power in range(18))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "at least 1"),
        ("a", "no batch size"),
        ("", "no batch size"),
        ("8-4", "does not go up"),
        ("1-8*1", "does not go up"),
        ("1,...", "three numbers"),
        ("1,2,5,...", "neither"),
        ("4,2,1,...", "neither"),
        ("1,2,4,...,x", "one number or nothing"),
    ],
)
def test_other_texts_are_refused_with_what_is_wrong(text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        parse_batch_sizes(text)


def test_points_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="--prompt-len 200 is over the context of tiny, 128"):
        check_case(make_case(prompt_len=200))
    with pytest.raises(ValueError, match="are 130 tokens, over the context"):
        check_case(make_case(prompt_len=100, new_tokens=30))
    with pytest.raises(ValueError, match="bytes need 256"):
        check_case(make_case(TINY.replace(vocab_size=100), prompt_len=8))
    check_case(make_case(prompt_len=96, new_tokens=32))
    for name in ("prompt_len", "new_tokens", "runs"):
        with pytest.raises(ValueError, match="at least 1"):
            GenerationWorkload(**{name: 0})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("compile_it", [False, True])
def test_predicted_weights_and_cache_are_those_of_the_decoder(precision, compile_it):
    engine = "ours-compiled" if compile_it else "ours"
    case = make_case(prompt_len=60, new_tokens=20, precision=precision, engine=engine)
    settings = DecoderConfig(precision=precision, compile=compile_it, expected_batch_size=2)
    decoder = PackedDecoder(TransformerLM(TINY), settings)
    plan = predict(case, packed=decoder.layout == "packed")
    assert plan.weight_bytes == decoder.weight_bytes
    cache = decoder.new_cache(2, 79)
    assert cache.capacity == cache_capacity(case) == (128 if compile_it else 79)
    assert 2 * plan.cache_bytes == cache.num_bytes


def test_a_step_reads_all_weights_but_the_tables():
    assert weight_read_bytes(PRESETS["gpt2-124m"].config, "fp32") == 4 * (124_439_808 - 1024 * 768)
    untied = ModelConfig(vocab_size=300, d_model=64, num_layers=1)
    assert weight_read_bytes(untied, "bf16") == 2 * (num_parameters(untied) - 300 * 64)


def test_int8_needs_rows_of_a_multiple_of_16():
    assert int8_obstacle(TINY) is None
    odd = ModelConfig(d_model=24, num_heads=3, num_layers=1)
    assert "rows of 24" in (int8_obstacle(odd) or "")
    with pytest.raises(ValueError, match="multiple of 16"):
        PackedDecoder(TransformerLM(odd), DecoderConfig(precision="int8"))
