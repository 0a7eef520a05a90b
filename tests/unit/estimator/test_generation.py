"""FLOPs against printed ones, caches against a simulation, the largest batch against its definition."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.estimator.generation import (
    GenerationMemory,
    block_flops,
    cache_factor,
    predict_memory,
    prompt_flops,
    token_flops,
)
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import PRESETS

GPT_175B = PRESETS["gpt-175b"].config


@pytest.mark.parametrize(
    ("tokens", "printed_tflop", "digits"), [(1024, 361.19, 2), (512, 179.35, 1), (1, 0.35, 2)]
)
def test_block_flops_are_those_printed_for_a_175b_model(tokens, printed_tflop, digits):
    assert block_flops(GPT_175B, tokens) / 1e12 == pytest.approx(printed_tflop, abs=0.51 * 10**-digits)


@pytest.mark.parametrize("tokens", [1, 17, 512])
def test_block_flops_are_the_closed_formula_of_that_table(tokens):
    layers, width = GPT_175B.num_layers, GPT_175B.d_model
    formula = 24 * tokens * layers * width**2 * (1 + tokens / (6 * width))
    assert block_flops(GPT_175B, tokens) == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize("name", ["tiny", "gpt2-mqa-1.1b", "gptj-6b"])
def test_a_prompt_is_its_tokens_one_by_one_with_every_score_and_one_head(name):
    config, prompt_len = PRESETS[name].config, 24
    head = 2 * config.d_model * config.vocab_size
    one_by_one = prompt_len * (token_flops(config, prompt_len) - head) + head
    assert prompt_flops(config, prompt_len) == one_by_one


def test_token_flops_are_counted_by_torch_too():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cs_systems.inference.decoding import SimpleDecoder
    from cs_systems.inference.prompts import PromptBatch
    from cs_systems.model.transformer import TransformerLM

    config = ModelConfig(
        vocab_size=50, context_length=16, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2
    )
    decoder = SimpleDecoder(TransformerLM(config))
    cache = decoder.new_cache(1, 8)
    decoder.prefill(PromptBatch(torch.zeros(1, 6, dtype=torch.int64), None), cache)
    with FlopCounterMode(display=False) as counter:
        decoder.decode_step(torch.zeros(1, dtype=torch.int64), cache)
    assert counter.get_total_flops() == token_flops(config, 7)


@pytest.mark.parametrize("growth", ["static", "layer by layer", "whole"])
def test_cache_factor_is_what_a_simulation_of_the_last_step_holds(growth):
    layers, before, after = 5, 100, 101
    tensors = [before] * (2 * layers)
    if growth == "static":
        most = 2 * layers * after
    elif growth == "whole":  # all new tensors exist before an old one is dropped
        most = sum(tensors) + 2 * layers * after
    else:
        most = 0
        for index in range(2 * layers):
            most = max(most, sum(tensors) + after)
            tensors[index] = after
    assert cache_factor(growth, layers) == pytest.approx(most / (2 * layers * after), rel=0.01)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, 10**12), st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**8),
    st.floats(1, 2), st.integers(0, 10**13),
)  # fmt: skip
def test_the_largest_batch_fits_and_one_more_does_not(weights, cache, prompt_work, step_work, factor, memory):
    plan = GenerationMemory(weights, cache, cache // 2, factor, prompt_work, step_work)
    largest = plan.largest_batch(memory)
    assert largest == 0 or plan.peak_bytes(largest) <= memory + 1
    assert plan.peak_bytes(largest + 1) >= min(memory, weights)
    if memory >= weights:
        assert plan.peak_bytes(largest + 1) > memory - 1


def test_prediction_adds_up_and_explains_itself():
    plan = predict_memory(
        PRESETS["small"].config, weight_bytes=2**30, cache_bytes_per_token=2**15, value_bytes=2,
        prompt_len=100, new_tokens=29, capacity=128, growth="static",
    )  # fmt: skip
    assert plan.cache_bytes == plan.prompt_cache_bytes == 128 * 2**15
    assert plan.peak_bytes(0) == 2**30
    text = plan.explain(16)
    assert "weights 1.0 GiB + cache 64.0 MiB (16 sequences of 4.0 MiB)" in text
    assert plan.largest_batch(2**30 - 1) == 0


def test_a_growing_cache_holds_only_the_prompt_at_first_and_no_slot_for_the_last_token():
    plan = predict_memory(
        PRESETS["small"].config, weight_bytes=0, cache_bytes_per_token=10, value_bytes=2,
        prompt_len=100, new_tokens=29, capacity=10**6, growth="layer by layer",
    )  # fmt: skip
    assert (plan.prompt_cache_bytes, plan.cache_bytes) == (1000, 1280)
    assert "1.042 x" in plan.explain(1)
