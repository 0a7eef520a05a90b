"""Presets: the published shapes, exact parameter counts, and which preset a command line means."""

import pytest
import torch

from cs_systems.model.config import ModelConfig
from cs_systems.model.presets import ALIASES, COURSE_SIZES, PRESETS, find_preset, resolve_model
from cs_systems.model.transformer import TransformerLM

COURSE_TABLE = {  # d_model, d_ff, num_layers, num_heads, parameters at a vocabulary of 10,000
    "small": (768, 3072, 12, 12, 128_625_408),
    "medium": (1024, 4096, 24, 16, 423_183_360),
    "large": (1280, 5120, 36, 20, 969_411_840),
    "xl": (1600, 6400, 48, 25, 1_998_235_200),
    "2.7B": (2560, 10_240, 32, 32, 3_406_809_600),
    "10B": (4608, 12_288, 50, 36, 12_832_823_808),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_exactly_the_parameters_it_states(name):
    with torch.device("meta"):
        model = TransformerLM(PRESETS[name].config)
    assert sum(weight.numel() for weight in model.parameters()) == PRESETS[name].num_parameters
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert PRESETS[name].source


@pytest.mark.parametrize("name", COURSE_TABLE)
def test_the_course_presets_are_the_course_table(name):
    config = PRESETS[name].config
    shape = (config.d_model, config.d_ff, config.num_layers, config.num_heads)
    assert (*shape, PRESETS[name].num_parameters) == COURSE_TABLE[name]
    d, d_ff, layers, _, parameters = COURSE_TABLE[name]
    vocab = 10_000
    assert (
        layers * (4 * d * d + 3 * d * d_ff + 2 * d) + 2 * vocab * d + d == parameters
    )  # the handout's formula
    # The rest of a course model is the course's: rotary, RMSNorm, SwiGLU, no biases, untied.
    assert config == ModelConfig(d_model=d, d_ff=d_ff, num_layers=layers, num_heads=shape[3])


def test_the_course_sizes_are_presets_in_ascending_order():
    counts = [PRESETS[name].num_parameters for name in COURSE_SIZES]
    assert counts == sorted(counts)
    assert set(COURSE_SIZES) == set(COURSE_TABLE)


@pytest.mark.parametrize("name", COURSE_TABLE)
@pytest.mark.parametrize(
    "typed",
    [
        ("d_model", "d_ff", "num_layers", "num_heads"),
        ("d_model", "num_layers"),
        ("d_model", "num_layers", "d_ff"),
    ],
)
def test_the_shape_of_a_course_size_finds_that_size(name, typed):
    values = dict(zip(("d_model", "d_ff", "num_layers", "num_heads"), COURSE_TABLE[name], strict=False))
    assert resolve_model(None, {field: values[field] for field in typed}) == (name, PRESETS[name].config)


def test_without_any_shape_the_model_is_small():
    assert resolve_model(None, {}) == ("small", ModelConfig())
    label, config = resolve_model(None, {"context_length": 64, "vocab_size": 100})
    assert (label, config) == ("small", ModelConfig(context_length=64, vocab_size=100))


def test_a_shape_that_no_preset_has_is_built_from_the_defaults():
    assert resolve_model(None, {"d_model": 512, "num_layers": 4}) == (
        "d512-L4",
        ModelConfig(d_model=512, num_layers=4),
    )
    _, config = resolve_model(None, {"d_model": 2560, "num_layers": 2})
    assert config.num_heads == 40  # the 2.7B preset's 32 heads belong to 32 layers
    assert resolve_model(None, {"d_model": 2560, "num_layers": 32, "num_heads": 40})[1].num_heads == 40


def test_a_width_or_a_depth_alone_names_no_preset():
    assert resolve_model(None, {"d_model": 1024}) == ("d1024-L12", ModelConfig(d_model=1024))
    assert resolve_model(None, {"num_layers": 24}) == ("d768-L24", ModelConfig(num_layers=24))


def test_variants_of_a_matched_shape_are_named():
    label, config = resolve_model(None, {"d_model": 1024, "num_layers": 24, "norm": "layernorm"})
    assert label == "medium+norm=layernorm"
    assert config == PRESETS["medium"].config.replace(norm="layernorm")


def test_the_label_names_each_change_but_not_the_sizes_of_the_data():
    given = {"num_layers": 3, "norm": "rmsnorm", "context_length": 32, "vocab_size": 500, "num_kv_heads": 4}
    label, config = resolve_model("small", given)
    assert label == "small+num_layers=3+num_kv_heads=4"
    assert config == ModelConfig(num_layers=3, num_kv_heads=4, context_length=32, vocab_size=500)


def test_an_alias_is_the_preset_it_stands_for_under_the_name_typed():
    assert ALIASES["xl-2026"] == "2.7B"
    assert resolve_model("xl-2026", {}) == ("xl-2026", PRESETS["2.7B"].config)
    assert not set(ALIASES) & set(PRESETS)


@pytest.mark.parametrize(
    ("typed", "meant"), [("smal", "small"), ("SMALL", "small"), ("2.7b", "2.7B"), ("xl-2025", "xl-2026")]
)
def test_a_misspelt_preset_is_answered_with_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=f"--model {typed} is no preset; did you mean {meant}\\?"):
        find_preset(typed)


def test_an_unknown_preset_is_answered_with_all_names():
    with pytest.raises(ValueError, match=r"known: tiny, small,.*xl-2026"):
        find_preset("zzz")


def test_a_learned_preset_refuses_a_context_beyond_its_table():
    with pytest.raises(ValueError, match="--context-length 4096 is over the 2048 learned positions"):
        resolve_model("gpt2-mha-1.3b", {"context_length": 4096})


def test_variants_keep_the_traits_of_their_family():
    opt, bloom, gptj = (PRESETS[name].config for name in ("opt-6.7b", "bloom-176b", "gptj-6b"))
    assert (opt.position, opt.position_offset, opt.activation, opt.vocab_size) == (
        "learned",
        2,
        "relu",
        50_272,
    )
    assert (bloom.position, bloom.embedding_norm, bloom.tied_embeddings) == ("alibi", True, True)
    assert (gptj.residual, gptj.rotary_dim, gptj.d_head, gptj.head_bias) == ("parallel", 64, 256, True)
    assert PRESETS["gpt2-mqa-1.1b"].config.num_kv_heads == 1
