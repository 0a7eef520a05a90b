"""Reading checkpoints in Hugging Face layout: what is understood, what is refused, and that refusals advise.

Nothing here needs transformers: the files are written by hand. Whether the read models compute the same as
theirs is in test_against_hugging_face.py.
"""

import json
import math
import re

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import apply_rope, rope_tables
from cs_systems.model.hugging_face_config import READERS, config_from_hugging_face
from cs_systems.model.hugging_face_weights import MAPPERS, state_from_hugging_face
from cs_systems.model.pretrained import load_pretrained
from cs_systems.model.transformer import TransformerLM

# The settings of published files that matter here, old spellings included.
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05}  # fmt: skip
BLOOM_560M = {"model_type": "bloom", "vocab_size": 250880, "n_embed": 1024, "n_layer": 24,
              "num_attention_heads": 16, "layer_norm_epsilon": 1e-05}  # fmt: skip
GPTJ_6B = {"model_type": "gptj", "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28,
           "n_head": 16, "rotary_dim": 64, "n_inner": None, "activation_function": "gelu_new",
           "tie_word_embeddings": False}  # fmt: skip
OPT_125M = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": 768,
            "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072,
            "do_layer_norm_before": True, "word_embed_proj_dim": 768, "activation_function": "relu",
            "_remove_final_layer_norm": False}  # fmt: skip
LLAMA2_7B = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096,
             "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05,
             "hidden_act": "silu", "rope_scaling": None, "tie_word_embeddings": False}  # fmt: skip
LLAMA3_8B = LLAMA2_7B | {"vocab_size": 128256, "max_position_embeddings": 8192, "intermediate_size": 14336,
                         "num_key_value_heads": 8, "rope_theta": 500000.0}  # fmt: skip

TINY_LLAMA = LLAMA2_7B | {"vocab_size": 11, "max_position_embeddings": 16, "hidden_size": 8,
                          "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "num_key_value_heads": 1}  # fmt: skip
TINY_GPT2 = GPT2 | {"vocab_size": 11, "n_positions": 16, "n_embd": 6, "n_layer": 1, "n_head": 3}
TINY_BLOOM = {"model_type": "bloom", "vocab_size": 11, "hidden_size": 6, "n_layer": 1, "n_head": 3}


def llama_tensors(dtype=torch.float32):
    d, d_kv, d_ff, vocab = 8, 4, 12, 11
    shapes = {
        "model.embed_tokens.weight": (vocab, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (vocab, d),
    }
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}.weight": (d,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", d), ("k_proj", d_kv), ("v_proj", d_kv), ("o_proj", d)):
            shapes[f"{layer}.self_attn.{name}.weight"] = (rows, d)
        shapes |= {f"{layer}.mlp.{name}.weight": (d_ff, d) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (d, d_ff)
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def gpt2_tensors():
    d, vocab = 6, 11
    shapes = {"wte.weight": (vocab, d), "wpe.weight": (16, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{norm}.weight": (d,), f"h.0.{norm}.bias": (d,)}
    for name, d_in, d_out in (
        ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)
    ):  # fmt: skip
        shapes |= {f"h.0.{name}.weight": (d_in, d_out), f"h.0.{name}.bias": (d_out,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def bloom_tensors():
    d, vocab = 6, 11
    shapes = {"word_embeddings.weight": (vocab, d)}
    norms = ("word_embeddings_layernorm", "ln_f", "h.0.input_layernorm", "h.0.post_attention_layernorm")
    for norm in norms:
        shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    for name, d_in, d_out in (
        ("self_attention.query_key_value", d, 3 * d), ("self_attention.dense", d, d),
        ("mlp.dense_h_to_4h", d, 4 * d), ("mlp.dense_4h_to_h", 4 * d, d),
    ):  # fmt: skip
        shapes |= {f"h.0.{name}.weight": (d_out, d_in), f"h.0.{name}.bias": (d_out,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def write(directory, config, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_shards(directory, config, tensors):
    """Two shards and their index, as large checkpoints come."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    shard_of = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(shard_of.values()):
        save_file({name: tensors[name] for name in tensors if shard_of[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return directory


# -- config.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "num_parameters"),
    [
        (GPT2, 124_439_808),
        (BLOOM_560M, 559_214_592),
        (GPTJ_6B, 6_050_882_784),
        (OPT_125M, 125_239_296),
        (LLAMA2_7B, 6_738_415_616),
        (LLAMA3_8B, 8_030_261_248),
    ],
    ids=["gpt2", "bloom-560m", "gpt-j-6b", "opt-125m", "llama-2-7b", "llama-3-8b"],
)
def test_published_configurations_give_the_published_number_of_parameters(settings, num_parameters):
    with torch.device("meta"):
        model = TransformerLM(config_from_hugging_face(settings))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_the_base_of_rope_is_read_in_both_spellings():
    old = config_from_hugging_face(LLAMA3_8B)
    new = dict(LLAMA3_8B, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    del new["rope_theta"], new["rope_scaling"]
    assert old.rope_theta == 500_000.0
    assert config_from_hugging_face(new) == old
    assert config_from_hugging_face(LLAMA2_7B).rope_theta == 10_000.0


def test_what_a_family_may_vary_is_kept():
    llama = config_from_hugging_face(LLAMA3_8B | {"attention_bias": True, "tie_word_embeddings": True})
    assert (llama.num_kv_heads, llama.d_ff, llama.norm_eps) == (8, 14_336, 1e-5)
    assert llama.attention_bias
    assert not llama.ffn_bias
    assert llama.tied_embeddings
    gpt2 = config_from_hugging_face(GPT2 | {"n_inner": 100, "activation_function": "gelu"})
    assert (gpt2.d_ff, gpt2.activation, gpt2.tied_embeddings) == (100, "gelu", True)
    opt = config_from_hugging_face(OPT_125M | {"enable_bias": False})
    assert (opt.attention_bias, opt.ffn_bias) == (False, False)
    assert config_from_hugging_face(BLOOM_560M).context_length == 2048
    assert config_from_hugging_face(BLOOM_560M | {"seq_length": 512}).context_length == 512


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        (GPT2, {"model_type": "mamba"}, "'mamba' is not supported; supported are gpt2, bloom"),
        (GPT2, {"model_type": None}, "None is not supported"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights = False"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
        (GPT2, {"activation_function": "tanh"}, "activation_function = 'tanh'"),
        (GPT2, {"n_layer": None}, "n_layer is missing"),
        (GPT2, {"n_head": "12"}, "n_head is '12' and should be a whole number"),
        (GPT2, {"n_head": 7}, "divisible"),
        (BLOOM_560M, {"apply_residual_connection_post_layernorm": True}, "post_layernorm = True"),
        (GPTJ_6B, {"rotary_dim": None}, "rotary_dim is missing"),
        (OPT_125M, {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        (OPT_125M, {"word_embed_proj_dim": 512}, "word_embed_proj_dim = 512"),
        (OPT_125M, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (OPT_125M, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (LLAMA3_8B, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type = 'llama3'"),
        (LLAMA3_8B, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        (LLAMA3_8B, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type = 'yarn'"),
        (LLAMA3_8B, {"head_dim": 64}, "head_dim = 64"),
        (LLAMA3_8B, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (LLAMA3_8B, {"num_attention_heads": 0}, "num_attention_heads is 0"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(settings, change, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        config_from_hugging_face(settings | change)
    assert "\n" not in str(error.value)


def test_every_family_has_a_reader_and_a_mapper():
    assert READERS.keys() == MAPPERS.keys()


# -- weights ------------------------------------------------------------------------------------------------


def test_gpt2_convolutions_are_transposed_and_the_fused_projection_is_cut():
    tensors, x = gpt2_tensors(), torch.randn(5, 6)
    state = state_from_hugging_face("gpt2", config_from_hugging_face(TINY_GPT2), dict(tensors))
    fused = x @ tensors["h.0.attn.c_attn.weight"] + tensors["h.0.attn.c_attn.bias"]
    for part, expected in zip("qkv", fused.split(6, dim=-1), strict=True):
        weight, bias = (state[f"layers.0.attn.{part}_proj.{kind}"] for kind in ("weight", "bias"))
        torch.testing.assert_close(x @ weight.T + bias, expected)
    hidden = x @ state["layers.0.ffn.w1.weight"].T
    torch.testing.assert_close(hidden, x @ tensors["h.0.mlp.c_fc.weight"])
    torch.testing.assert_close(
        hidden @ state["layers.0.ffn.w2.weight"].T, hidden @ tensors["h.0.mlp.c_proj.weight"]
    )


def test_bloom_heads_are_taken_out_of_the_fused_projection():
    tensors, x = bloom_tensors(), torch.randn(5, 6)
    state = state_from_hugging_face("bloom", config_from_hugging_face(TINY_BLOOM), dict(tensors))
    name = "h.0.self_attention.query_key_value"
    fused = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    per_head = fused.view(5, 3, 3, 2)  # position, head, q|k|v, channel
    for index, part in enumerate("qkv"):
        weight, bias = (state[f"layers.0.attn.{part}_proj.{kind}"] for kind in ("weight", "bias"))
        torch.testing.assert_close((x @ weight.T + bias).view(5, 3, 2), per_head[:, :, index])


@hypothesis.settings(max_examples=40)
@given(heads=st.integers(1, 4), pairs=st.integers(1, 5), seed=st.integers(0, 99))
def test_llama_queries_and_keys_give_the_scores_of_half_split_rope(heads, pairs, seed):
    """Rotating channel i with i + d_head/2, written out, against our rotation of the permuted rows."""
    torch.manual_seed(seed)
    d, d_head, seq = 2 * heads * pairs, 2 * pairs, 6
    config = ModelConfig(vocab_size=3, context_length=seq, d_model=d, num_layers=1, num_heads=heads, d_ff=4)
    theirs = {
        "embed_tokens.weight": (3, d), "norm.weight": (d,), "lm_head.weight": (3, d),
        "layers.0.input_layernorm.weight": (d,), "layers.0.post_attention_layernorm.weight": (d,),
        "layers.0.self_attn.v_proj.weight": (d, d), "layers.0.self_attn.o_proj.weight": (d, d),
        "layers.0.self_attn.q_proj.weight": (d, d), "layers.0.self_attn.k_proj.weight": (d, d),
        "layers.0.mlp.gate_proj.weight": (4, d), "layers.0.mlp.up_proj.weight": (4, d),
        "layers.0.mlp.down_proj.weight": (d, 4),
    }  # fmt: skip
    theirs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in theirs.items()}
    state = state_from_hugging_face("llama", config, dict(theirs))
    x = torch.randn(seq, d, dtype=torch.float64)
    cos, sin = (table.double() for table in rope_tables(seq, d_head, config.rope_theta))

    def split(weight):
        return (x @ weight.T).view(seq, heads, d_head).transpose(0, 1)

    def rotate_halves(t):
        first, second = t.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    expected, scores = (
        q @ k.mT
        for q, k in (
            [rotate_halves(split(theirs[f"layers.0.self_attn.{part}_proj.weight"])) for part in "qk"],
            [apply_rope(split(state[f"layers.0.attn.{part}_proj.weight"]), cos, sin) for part in "qk"],
        )
    )
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(
    ("settings", "tensors", "prefix"),
    [(TINY_GPT2, gpt2_tensors, "transformer."), (TINY_BLOOM, bloom_tensors, "transformer.")],
)
def test_a_prefix_and_stored_buffers_change_nothing(settings, tensors, prefix):
    bare = tensors()
    noisy = {prefix + name: tensor for name, tensor in bare.items()} | {
        prefix + "h.0.attn.bias": torch.ones(1, 1, 16, 16),
        prefix + "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
    }
    config, family = config_from_hugging_face(settings), settings["model_type"]
    expected, state = (state_from_hugging_face(family, config, named) for named in (bare, noisy))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_stored_copy_of_a_tied_head_is_accepted_and_another_matrix_is_not():
    config, tensors = config_from_hugging_face(TINY_GPT2), gpt2_tensors()
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    state = state_from_hugging_face("gpt2", config, tensors)
    assert state["lm_head.weight"] is state["token_embeddings.weight"]
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the token embedding"):
        state_from_hugging_face("gpt2", config, tensors)


def test_no_two_weights_share_memory():
    """Slices of a fused projection would: then none can be freed alone, and safetensors refuses to save."""
    for settings, tensors in ((TINY_GPT2, gpt2_tensors()), (TINY_BLOOM, bloom_tensors())):
        state = state_from_hugging_face(settings["model_type"], config_from_hugging_face(settings), tensors)
        del state["lm_head.weight"]  # the same tensor on purpose
        assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
        assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, "norm.weight is missing"),
        ({"model.extra.weight": torch.ones(2)}, "extra.weight is unknown"),
        ({"model.norm.weight": torch.ones(9)}, "norm.weight is [9], not [8]"),
        ({"lm_head.weight": torch.ones(11, 8, dtype=torch.int8)}, "lm_head.weight is torch.int8: quantised"),
        ({"lm_head.weight": None}, "lm_head.weight is missing"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, words):
    tensors = {name: value for name, value in (llama_tensors() | change).items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(words)):
        state_from_hugging_face("llama", config_from_hugging_face(TINY_LLAMA), tensors)


def test_many_problems_are_counted():
    with pytest.raises(ValueError, match=r"is missing and 17 more; copy") as error:
        state_from_hugging_face("llama", config_from_hugging_face(TINY_LLAMA), {})
    assert str(error.value).count("is missing") == 4


# -- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [write, write_shards])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_becomes_a_model_that_can_train(writer, dtype, tmp_path):
    tensors = llama_tensors(dtype)
    model = TransformerLM.from_checkpoint(str(writer(tmp_path / "model", TINY_LLAMA, tensors)))
    assert torch.equal(model.token_embeddings.weight, tensors["model.embed_tokens.weight"])
    assert torch.equal(model.layers[1].ffn.w2.weight, tensors["model.layers.1.mlp.down_proj.weight"])
    logits = model(torch.tensor([[1, 2, 3]]))
    assert logits.dtype == dtype
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype, name
        assert parameter.grad is not None, name
        assert math.isfinite(parameter.grad.float().norm()), name


def test_a_tied_model_stays_tied(tmp_path):
    model = TransformerLM.from_checkpoint(write(tmp_path / "model", TINY_GPT2, gpt2_tensors()))
    assert model.lm_head.weight is model.token_embeddings.weight


def expect_error(directory, *words):
    with pytest.raises(ValueError, match=re.escape(str(directory))) as error:
        load_pretrained(directory)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_files_are_named(tmp_path):
    expect_error(tmp_path / "nowhere", "is no directory", "config.json")
    (tmp_path / "model.safetensors").touch()
    expect_error(tmp_path / "model.safetensors", "is no directory")
    expect_error(tmp_path, "config.json cannot be read (No such file")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(TINY_LLAMA))
    expect_error(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json")
    (tmp_path / "pytorch_model.bin").touch()
    expect_error(tmp_path, "a pickle", "save_pretrained")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b""])
def test_a_damaged_config_is_reported(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    expect_error(tmp_path, "config.json")


def test_a_refused_config_names_its_file(tmp_path):
    write(tmp_path, TINY_LLAMA | {"head_dim": 3}, llama_tensors())
    expect_error(tmp_path, "config.json: head_dim = 3")


@hypothesis.settings(max_examples=25)
@given(st.data())
def test_a_file_cut_anywhere_is_reported(tmp_path_factory, data):
    directory = write(tmp_path_factory.mktemp("cut"), TINY_LLAMA, llama_tensors())
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    expect_error(directory, "model.safetensors cannot be read", "copy it again")


def test_incomplete_shards_are_reported(tmp_path):
    write_shards(tmp_path, TINY_LLAMA, llama_tensors())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    expect_error(tmp_path, "1 of 2 shards are missing, the first is model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    expect_error(tmp_path, "has no weight_map")


def test_weights_of_another_model_name_the_directory(tmp_path):
    write(tmp_path, TINY_LLAMA, gpt2_tensors())
    expect_error(tmp_path, "not those of config.json", "embed_tokens.weight is missing", "more")
