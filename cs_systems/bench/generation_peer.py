"""The config.json of the Hugging Face model that has a given shape, where a family has one. No torch here."""

from typing import Any

from cs_systems.model.config import ModelConfig
from cs_systems.model.hugging_face_config import config_from_hugging_face


def peer_settings(config: ModelConfig) -> dict[str, Any] | None:
    """Settings of the Hugging Face model that is `config`, number for number; None when no family is.

    Every family that might be it is tried, and its settings are read back: only an equal one counts.
    """
    for settings in (_gpt2(config), _bloom(config), _gptj(config), _opt(config), _llama(config)):
        everything = settings | {"vocab_size": config.vocab_size, "bos_token_id": 0, "eos_token_id": 0}
        if _reads_as(everything, config):
            return everything
    return None


def _reads_as(settings: dict[str, Any], config: ModelConfig) -> bool:
    try:
        read = config_from_hugging_face(settings)
    except ValueError:
        return False
    unused = {"rope_theta": config.rope_theta} if config.position != "rope" else {}
    if config.position != "rope":
        unused["rotary_dim"] = config.rotary_dim
    if config.position != "learned":
        unused["num_positions"] = config.num_positions
    return read.replace(**unused) == config


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "n_embd": config.d_model, "n_inner": config.d_ff,
        "n_layer": config.num_layers, "n_head": config.num_heads, "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_eps, "tie_word_embeddings": config.tied_embeddings,
        "pad_token_id": 0,
    }  # fmt: skip


def _bloom(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "bloom", "hidden_size": config.d_model, "n_layer": config.num_layers,
        "n_head": config.num_heads, "seq_length": config.context_length,
        "layer_norm_epsilon": config.norm_eps, "tie_word_embeddings": config.tied_embeddings,
    }  # fmt: skip


def _gptj(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gptj", "n_embd": config.d_model, "n_inner": config.d_ff,
        "n_layer": config.num_layers, "n_head": config.num_heads, "n_positions": config.context_length,
        "rotary_dim": config.rotary_dim, "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
    }  # fmt: skip


def _opt(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "opt", "hidden_size": config.d_model, "ffn_dim": config.d_ff,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.context_length, "word_embed_proj_dim": config.d_model,
        "tie_word_embeddings": config.tied_embeddings, "enable_bias": config.attention_bias,
    }  # fmt: skip


def _llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": config.d_model, "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.attention_bias, "mlp_bias": config.ffn_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }  # fmt: skip
