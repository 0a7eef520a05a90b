"""FLOPs: against torch's own counter on the real model, and the published table of course sizes."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cs_systems.estimator.flops import backward_flops, forward_flops, forward_flops_by_part
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import COURSE_SIZES, PRESETS
from cs_systems.model.transformer import TransformerLM

TFLOP = {  # forward, batch 4, at 128, 256, 512, 1024 and 2048 tokens
    "small": (0.126, 0.257, 0.534, 1.145, 2.600),
    "medium": (0.429, 0.871, 1.794, 3.795, 8.414),
    "large": (0.992, 2.007, 4.111, 8.609, 18.76),
    "xl": (2.050, 4.140, 8.441, 17.53, 37.63),
    "2.7B": (3.484, 7.010, 14.19, 29.07, 60.89),
    "10B": (13.15, 26.43, 53.34, 108.6, 225.0),
}


@pytest.mark.parametrize(
    ("activation", "position", "num_kv_heads", "bias"),
    list(itertools.product(["swiglu", "gelu"], ["rope", "learned", "alibi"], [4, 2, 1], [False, True])),
)
def test_forward_and_backward_are_what_torch_counts(activation, position, num_kv_heads, bias):
    config = ModelConfig(
        vocab_size=50, context_length=12, d_model=32, num_layers=2, num_heads=4, num_kv_heads=num_kv_heads,
        d_ff=70, activation=activation, position=position, attention_bias=bias, ffn_bias=bias,
    )  # fmt: skip
    with torch.device("meta"):
        model = TransformerLM(config)
        ids = torch.zeros(3, 10, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(ids)
    assert counter.get_total_flops() == forward_flops(config, 3, 10)
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == backward_flops(config, 3, 10)


@pytest.mark.parametrize("model", COURSE_SIZES)
def test_course_table(model):
    for seq_len, tflop in zip((128, 256, 512, 1024, 2048), TFLOP[model], strict=True):
        assert forward_flops(PRESETS[model].config, 4, seq_len) / 1e12 == pytest.approx(tflop, rel=3e-3)


def test_softmax_is_under_two_percent_of_the_attention_products():
    """Five operations a score against 4 d_head: the reason why its share of time is a surprise."""
    config = PRESETS["small"].config
    parts = forward_flops_by_part(config, 4, 512)
    num_scores = 4 * config.num_heads * 512**2 * config.num_layers
    products = parts["attention scores"] + parts["weighted values"]
    assert 5 * num_scores / products == pytest.approx(5 / (4 * config.d_head))
