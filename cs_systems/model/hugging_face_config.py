"""What a Hugging Face config.json says, as a `ModelConfig`: GPT-2, BLOOM, GPT-J, OPT and Llama.

What a family can do and `ModelConfig` cannot is refused by name, never ignored: a model that is built anyway
would give plausible nonsense. Settings that change nothing but training or speed (dropout, initialisation,
caches, token ids) are not read. Nothing here imports torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cs_systems.model.config import Activation, ModelConfig

Json = Mapping[str, Any]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_GATED: dict[str, Activation] = {"silu": "swiglu", "swish": "swiglu"}


def config_from_hugging_face(config: Json) -> ModelConfig:
    """Our configuration of the model that the contents of a config.json describe.

    Raises:
        ValueError: for an unknown family, a missing key, or a variant that `ModelConfig` cannot express.
    """
    model_type = config.get("model_type")
    if model_type not in READERS:
        raise ValueError(f"model_type {model_type!r} is not supported; supported are {', '.join(READERS)}")
    return READERS[model_type](config)


def read_gpt2(config: Json) -> ModelConfig:
    """GPT-2: learned positions, LayerNorm before each part, biases everywhere, tied head."""
    _refuse(config, "scale_attn_weights", True)
    _refuse(config, "scale_attn_by_inverse_layer_idx", False)
    _refuse(config, "add_cross_attention", False)
    d_model = _count(config, "n_embd", "hidden_size")
    return ModelConfig(
        vocab_size=_count(config, "vocab_size"),
        context_length=_count(config, "n_positions", "max_position_embeddings"),
        d_model=d_model,
        num_layers=_count(config, "n_layer", "num_hidden_layers"),
        num_heads=_count(config, "n_head", "num_attention_heads"),
        d_ff=config.get("n_inner") or 4 * d_model,
        norm="layernorm",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config, "activation_function", "gelu_new", _ACTIVATIONS),
        position="learned",
        tied_embeddings=config.get("tie_word_embeddings", True),
        attention_bias=True,
        ffn_bias=True,
    )


def read_bloom(config: Json) -> ModelConfig:
    """BLOOM: ALiBi, a norm on the embedding, biases everywhere, tied head.

    ALiBi has no longest sequence and most files name none; without `seq_length` it is the 2048 of training.
    """
    _refuse(config, "apply_residual_connection_post_layernorm", False)
    return ModelConfig(
        vocab_size=_count(config, "vocab_size"),
        context_length=config.get("seq_length") or 2048,
        d_model=_count(config, "hidden_size", "n_embed"),
        num_layers=_count(config, "n_layer", "num_hidden_layers"),
        num_heads=_count(config, "n_head", "num_attention_heads"),
        norm="layernorm",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation="gelu_tanh",
        position="alibi",
        embedding_norm=True,
        tied_embeddings=config.get("tie_word_embeddings", True),
        attention_bias=True,
        ffn_bias=True,
    )


def read_gptj(config: Json) -> ModelConfig:
    """GPT-J: RoPE on the leading `rotary_dim` channels of a head, parallel residual, a bias on the logits."""
    d_model = _count(config, "n_embd", "hidden_size")
    return ModelConfig(
        vocab_size=_count(config, "vocab_size"),
        context_length=_count(config, "n_positions", "max_position_embeddings"),
        d_model=d_model,
        num_layers=_count(config, "n_layer", "num_hidden_layers"),
        num_heads=_count(config, "n_head", "num_attention_heads"),
        d_ff=config.get("n_inner") or 4 * d_model,
        norm="layernorm",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config, "activation_function", "gelu_new", _ACTIVATIONS),
        position="rope",
        rotary_dim=_count(config, "rotary_dim"),
        residual="parallel",
        tied_embeddings=config.get("tie_word_embeddings", False),
        ffn_bias=True,
        head_bias=True,
    )


def read_opt(config: Json) -> ModelConfig:
    """OPT: learned positions with two unused rows in front, ReLU, biases, tied head.

    opt-350m alone has its norms after each part and embeddings narrower than the model: refused.
    """
    d_model, bias = _count(config, "hidden_size"), config.get("enable_bias", True)
    _refuse(config, "do_layer_norm_before", True)
    _refuse(config, "word_embed_proj_dim", d_model)
    _refuse(config, "layer_norm_elementwise_affine", True)
    _refuse(config, "_remove_final_layer_norm", False)
    return ModelConfig(
        vocab_size=_count(config, "vocab_size"),
        context_length=_count(config, "max_position_embeddings"),
        d_model=d_model,
        num_layers=_count(config, "num_hidden_layers"),
        num_heads=_count(config, "num_attention_heads"),
        d_ff=_count(config, "ffn_dim"),
        norm="layernorm",
        activation=_activation(config, "activation_function", "relu", _ACTIVATIONS),
        position="learned",
        position_offset=2,
        tied_embeddings=config.get("tie_word_embeddings", True),
        attention_bias=bias,
        ffn_bias=bias,
    )


def read_llama(config: Json) -> ModelConfig:
    """Llama up to 3.0: RoPE, RMSNorm, SwiGLU, grouped key heads, biases where the file asks for them.

    The base of RoPE stands in `rope_theta` or, since transformers 5, in `rope_parameters`. Stretched
    wavelengths (Llama 3.1 and later) are refused.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse({"rope_type": rope.get("rope_type", rope.get("type", "default"))}, "rope_type", "default")
    d_model, num_heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    _refuse(config, "head_dim", d_model // num_heads)
    return ModelConfig(
        vocab_size=_count(config, "vocab_size"),
        context_length=_count(config, "max_position_embeddings", "max_sequence_length"),
        d_model=d_model,
        num_layers=_count(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        d_ff=_count(config, "intermediate_size"),
        norm="rmsnorm",
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=_activation(config, "hidden_act", "silu", _GATED),
        position="rope",
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000),
        tied_embeddings=config.get("tie_word_embeddings", False),
        attention_bias=config.get("attention_bias", False),
        ffn_bias=config.get("mlp_bias", False),
    )


READERS: dict[str, Callable[[Json], ModelConfig]] = {
    "gpt2": read_gpt2,
    "bloom": read_bloom,
    "gptj": read_gptj,
    "opt": read_opt,
    "llama": read_llama,
}
"""The function that reads the configuration of each `model_type`."""


def _count(config: Json, *names: str) -> int:
    """The whole number under the first of `names` that is there: some keys have an old and a new spelling."""
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if value is None:
        raise ValueError(f"{names[0]} is missing; copy the file again from where the weights came from")
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{names[0]} is {value!r} and should be a whole number from 1; copy the file again")
    return value


def _refuse(config: Json, name: str, supported: Any) -> None:
    """Refuse a switch set to what our model has no field for; absent and null mean the usual value."""
    value = supported if config.get(name) is None else config[name]
    if value != supported:
        raise ValueError(
            f"{name} = {value!r} is a variant that this model cannot express; "
            f"choose a checkpoint with {supported!r}"
        )


def _activation(config: Json, name: str, default: str, known: Mapping[str, Activation]) -> Activation:
    value = config.get(name) or default
    if value not in known:
        raise ValueError(
            f"{name} = {value!r} is an activation that this model does not have in this family; "
            f"choose a checkpoint with one of {', '.join(known)}"
        )
    return known[value]
