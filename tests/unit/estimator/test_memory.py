"""Saved tensors: the formulas against autograd itself, to the byte."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.estimator.memory import (
    MemoryCase,
    block_tensors,
    head_tensors,
    saved_tensors,
    total_bytes,
    weight_copies,
)
from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import PRESETS

SHAPES = {  # batch_size and model
    "one layer": (1, ModelConfig(vocab_size=50, context_length=32, d_model=64, num_layers=1, num_heads=2)),
    "three heads": (2, ModelConfig(vocab_size=70, context_length=24, d_model=96, num_layers=4, num_heads=3)),
    "wide": (
        3,
        ModelConfig(vocab_size=64, context_length=16, d_model=128, num_layers=2, num_heads=8, d_ff=400),
    ),
    "long": (1, ModelConfig(vocab_size=33, context_length=128, d_model=32, num_layers=5, num_heads=4)),
}
TYPES = {  # precision, parameter type and whose autocast rules
    "fp32": {},
    "autocast cuda": {"precision": "bf16", "device_type": "cuda"},
    "autocast cpu": {"precision": "bf16", "device_type": "cpu"},
    "stored bf16": {"param_dtype": "bf16"},
    "stored bf16, autocast cuda": {"precision": "bf16", "param_dtype": "bf16", "device_type": "cuda"},
    "stored bf16, autocast cpu": {"precision": "bf16", "param_dtype": "bf16"},
}


def predicted_bytes(config, case) -> int:
    return total_bytes(saved_tensors(config, case)) + weight_copies(config, case)


@pytest.mark.parametrize(
    ("shape", "activation", "attention", "types"),
    list(itertools.product(SHAPES, ["swiglu", "gelu"], ["naive", "sdpa", "flash-torch"], TYPES)),
)
def test_saved_bytes_are_exact(shape, activation, attention, types, saved_bytes):
    batch_size, config = SHAPES[shape]
    config = config.replace(activation=activation)
    case = MemoryCase(
        batch_size=batch_size, seq_len=config.context_length, attention=attention, **TYPES[types]
    )
    assert predicted_bytes(config, case) == saved_bytes(config, case)


@st.composite
def configs(draw) -> ModelConfig:
    num_heads = draw(st.sampled_from([1, 2, 3, 4]))
    switches = ["tied_embeddings", "attention_bias", "ffn_bias", "head_bias", "embedding_norm"]
    return ModelConfig(
        vocab_size=draw(st.integers(2, 60)),
        context_length=draw(st.integers(1, 24)),
        num_heads=num_heads,
        num_kv_heads=draw(st.sampled_from([n for n in range(1, num_heads + 1) if num_heads % n == 0])),
        d_model=num_heads * draw(st.sampled_from([4, 8, 12])),
        d_ff=draw(st.integers(1, 70)),
        num_layers=draw(st.integers(1, 3)),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        activation=draw(st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu"])),
        position=draw(st.sampled_from(["rope", "learned", "alibi"])),
        residual=draw(st.sampled_from(["sequential", "parallel"])),
        **{name: draw(st.booleans()) for name in switches},
    )


def test_saved_bytes_are_exact_for_every_variant(saved_bytes):
    @settings(max_examples=60, deadline=None)
    @given(
        config=configs(),
        batch_size=st.integers(2, 3),
        attention=st.sampled_from(["naive", "sdpa", "flash-torch"]),
        types=st.sampled_from(sorted(TYPES)),
    )
    def check(config, batch_size, attention, types):
        case = MemoryCase(
            batch_size=batch_size, seq_len=config.context_length, attention=attention, **TYPES[types]
        )
        assert predicted_bytes(config, case) == saved_bytes(config, case)

    check()


def test_the_entries_have_different_names():
    config = ModelConfig(d_model=64, num_layers=2, position="learned", embedding_norm=True)
    names = [tensor.name for tensor in saved_tensors(config, MemoryCase(batch_size=1, seq_len=8))]
    assert len(names) == len(set(names))


def test_course_formula_of_one_block():
    """R = 4 (5 N f + 10 N d + 2 B h S^2) for a hand-written silu; F.silu saves one tensor of N f less."""
    config = PRESETS["2.7B"].config
    for seq_len, published_mib in ((128, 166.2), (256, 364.5), (512, 857.2), (1024, 2227.0), (2048, 6504.0)):
        case = MemoryCase(batch_size=4, seq_len=seq_len)
        ours = total_bytes(block_tensors(config, case)) + 4 * case.num_tokens * config.d_ff
        assert ours / 2**20 == pytest.approx(published_mib, rel=2e-3)


@pytest.mark.parametrize("attention", ["sdpa", "flash-torch", "flash"])
def test_fused_attention_saves_no_term_in_the_square_of_the_length(attention):
    config = PRESETS["small"].config

    def bytes_of(seq_len, attention):
        return total_bytes(
            block_tensors(config, MemoryCase(batch_size=1, seq_len=seq_len, attention=attention))
        )

    assert bytes_of(2048, attention) == 2 * bytes_of(1024, attention)
    assert bytes_of(2048, "naive") > 2.5 * bytes_of(1024, "naive")


def test_autocast_does_not_halve_activations():
    config = PRESETS["small"].config
    fp32 = predicted_bytes(config, MemoryCase(batch_size=4, seq_len=512))
    bf16 = predicted_bytes(
        config, MemoryCase(batch_size=4, seq_len=512, precision="bf16", device_type="cuda")
    )
    assert 0.7 < bf16 / fp32 < 0.9


def test_logits_are_saved_once():
    config, case = PRESETS["small"].config, MemoryCase(batch_size=4, seq_len=128)
    of_vocabulary = [t for t in head_tensors(config, case) if t.num_bytes >= 4 * 4 * 128 * config.vocab_size]
    assert [tensor.name for tensor in of_vocabulary] == ["exponentials of logits"]


PARTIAL_ROTARY = ModelConfig(
    vocab_size=20, context_length=6, d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, rotary_dim=8,
    head_bias=True,
)  # fmt: skip


@pytest.mark.parametrize("config", [SHAPES["one layer"][1], PARTIAL_ROTARY], ids=["plain", "partial rotary"])
@pytest.mark.parametrize(
    ("kernels", "attention", "types"),
    [
        ("", "flash", "fp32"),
        ("", "flash", "autocast cpu"),
        ("rmsnorm", "naive", "fp32"),
        ("rmsnorm", "naive", "stored bf16"),
        ("rope", "flash", "autocast cpu"),
        ("swiglu", "naive", "autocast cpu"),
        ("cross-entropy", "naive", "autocast cpu"),
        ("cross-entropy", "sdpa", "stored bf16"),
        ("linear-cross-entropy", "naive", "fp32"),
        ("linear-cross-entropy", "naive", "autocast cpu"),
        ("rmsnorm rope swiglu cross-entropy", "flash", "autocast cpu"),
    ],
)
def test_saved_bytes_of_kernels_are_exact(config, kernels, attention, types, saved_bytes):
    pytest.importorskip("triton", reason="needs Triton (Linux)")
    case = MemoryCase(
        batch_size=2, seq_len=config.context_length, attention=attention, kernels=tuple(kernels.split()),
        **TYPES[types],
    )  # fmt: skip
    assert predicted_bytes(config, case) == saved_bytes(config, case)
