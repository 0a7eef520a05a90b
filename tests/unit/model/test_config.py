"""ModelConfig: defaults, derived fields, what is refused and with which advice."""

import dataclasses
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.model.config import DERIVED, ModelConfig
from cs_systems.model.presets import PRESETS

DERIVED_FIELDS = ("num_heads", "num_kv_heads", "d_ff", "rotary_dim", "num_positions")


def error_of(**fields):
    with pytest.raises(ValueError, match="--") as caught:
        ModelConfig(**fields)
    return str(caught.value)


def test_the_defaults_are_the_small_preset():
    assert ModelConfig() == PRESETS["small"].config


def test_derived_fields_follow_their_documented_formulas():
    config = ModelConfig(d_model=1024, context_length=77)
    assert (config.num_heads, config.num_kv_heads, config.d_ff) == (16, 16, 4096)
    assert (config.d_head, config.rotary_dim, config.num_positions) == (64, 64, 77)
    grouped = ModelConfig(d_model=1024, num_heads=8)
    assert (grouped.num_kv_heads, grouped.d_head, grouped.rotary_dim) == (8, 128, 128)


def test_a_model_narrower_than_one_usual_head_has_one_head():
    assert ModelConfig(d_model=32).num_heads == 1


def test_a_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().d_model = 3
    assert hash(ModelConfig()) == hash(ModelConfig(d_model=768))


@settings(deadline=None)
@given(
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 6),
    half_head=st.integers(1, 8),
    layers=st.integers(1, 3),
)
def test_every_accepted_shape_is_consistent(heads, kv_heads, half_head, layers):
    fields = {
        "d_model": heads * 2 * half_head,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "num_layers": layers,
    }
    if heads % kv_heads:
        assert "--num-kv-heads" in error_of(**fields)
        return
    config = ModelConfig(**fields)
    assert config.d_head * config.num_heads == config.d_model
    assert config.num_heads % config.num_kv_heads == 0
    assert all(getattr(config, name) != DERIVED for name in DERIVED_FIELDS)
    assert ModelConfig(**dataclasses.asdict(config)) == config  # what a record stores builds the model again


@settings(deadline=None)
@given(d_model=st.integers(1, 2000), heads=st.integers(1, 200))
def test_the_number_of_heads_that_an_error_suggests_is_the_nearest_that_works(d_model, heads):
    fields = {"d_model": d_model, "position": "alibi"}
    if d_model % heads == 0:
        assert ModelConfig(num_heads=heads, **fields).num_heads == heads
        return
    suggested = int(re.search(r"try --num-heads (\d+)", error_of(num_heads=heads, **fields)).group(1))
    assert ModelConfig(num_heads=suggested, **fields).num_heads == suggested
    assert not any(d_model % n == 0 for n in range(1, 2200) if abs(n - heads) < abs(suggested - heads))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"vocab_size": 0}, ["--vocab-size 0", "at least 1"]),
        ({"context_length": -1}, ["--context-length -1", "at least 1"]),
        ({"d_model": 0}, ["--d-model 0", "at least 1"]),
        ({"num_layers": 0}, ["--num-layers 0", "at least 1"]),
        ({"num_heads": 0}, ["--num-heads 0", "at least 1"]),
        ({"num_kv_heads": -2}, ["--num-kv-heads -2", "at least 1"]),
        ({"d_ff": 0}, ["--d-ff 0", "at least 1"]),
        ({"rotary_dim": 0}, ["--rotary-dim 0", "at least 1"]),
        ({"num_positions": 0}, ["--num-positions 0", "at least 1"]),
        ({"d_model": 768, "num_heads": 10}, ["--d-model 768", "--num-heads 10", "try --num-heads 8", "96"]),
        ({"num_heads": 12, "num_kv_heads": 5}, ["--num-heads 12", "--num-kv-heads 5", "1, 2, 3, 4, 6, 12"]),
        ({"d_model": 65}, ["--rotary-dim", "65", "--num-heads", "--position learned"]),
        ({"rotary_dim": 66}, ["--rotary-dim 66", "64"]),
        ({"rotary_dim": 7}, ["--rotary-dim 7", "even"]),
        ({"norm_eps": 0.0}, ["--norm-eps 0", "over 0", "1e-5"]),
        ({"norm_eps": float("nan")}, ["--norm-eps nan", "over 0"]),
        ({"rope_theta": -1.0}, ["--rope-theta -1", "over 0", "10000"]),
        ({"position_offset": -1}, ["--position-offset -1", "negative"]),
        (
            {"position": "learned", "num_positions": 64, "context_length": 65},
            ["--context-length 65", "64 learned", "--context-length 64", "--position rope"],
        ),
    ],
)
def test_a_bad_field_is_refused_with_its_flag_and_advice_in_one_line(fields, parts):
    message = error_of(**fields)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("norm", "rms", "rmsnorm, layernorm"),
        ("activation", "silu", "swiglu, gelu, gelu_tanh, relu"),
        ("position", "rotary", "rope, learned, alibi"),
        ("residual", "paralel", "sequential, parallel"),
    ],
)
def test_a_misspelt_variant_is_refused_even_where_types_are_not_checked(no_shape_checks, name, value, known):
    # Unchecked it would build another model without a word: any residual but "sequential" is parallel.
    assert error_of(**{name: value}) == f"--{name} {value} is unknown; known: {known}"


def test_limits_that_belong_to_another_kind_of_position_do_not_apply():
    ModelConfig(d_model=65, position="alibi")  # an odd head is only a problem for rope
    ModelConfig(num_positions=4, context_length=64, position="rope")  # no table, no limit


def test_replace_derives_again_what_depends_on_the_change():
    wide = ModelConfig(d_model=768).replace(d_model=1024)
    assert wide == ModelConfig(d_model=1024)
    assert dataclasses.replace(ModelConfig(d_model=768), d_model=1536).d_ff == 3072  # why replace() exists
    split = ModelConfig(d_model=768).replace(num_heads=6)
    assert (split.num_kv_heads, split.rotary_dim, split.d_ff) == (6, 128, 3072)
    assert ModelConfig().replace(context_length=512).num_positions == 512


def test_replace_keeps_what_is_given_beside_the_change():
    config = ModelConfig().replace(d_model=1024, d_ff=100, num_heads=8, num_kv_heads=2, rotary_dim=16)
    assert (config.d_ff, config.num_heads, config.num_kv_heads, config.rotary_dim) == (100, 8, 2, 16)


def test_replace_with_the_same_value_changes_nothing():
    for preset in PRESETS.values():
        same = {"d_model": preset.config.d_model, "num_heads": preset.config.num_heads}
        assert preset.config.replace(**same) == preset.config
        assert preset.config.replace() == preset.config


def test_replace_never_resizes_a_learned_position_table():
    learned = PRESETS["opt-1.3b"].config
    short = learned.replace(context_length=64)
    assert (short.context_length, short.num_positions) == (64, 2048)
    with pytest.raises(ValueError, match="--context-length 4096 is over the 2048 learned positions"):
        learned.replace(context_length=4096)
    assert learned.replace(context_length=4096, position="rope").context_length == 4096
    assert learned.replace(context_length=4096, num_positions=4096).num_positions == 4096


def test_replace_gives_a_table_to_a_model_that_had_none():
    assert ModelConfig().replace(position="learned", context_length=300).num_positions == 300


@pytest.mark.parametrize("module", ["config", "presets"])
def test_configuration_is_read_without_torch(module):
    code = (
        f"import sys, cs_systems.model.{module}; print({{'torch', 'jaxtyping', 'numpy'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
