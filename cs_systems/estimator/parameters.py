"""Parameters of a model: exact counts from the configuration alone, in the names the model uses."""

import math

from cs_systems.model.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Shape of every parameter by its name, in the order of `TransformerLM(config).named_parameters()`.

    With L layers, width d, feed-forward width f, key width k = d * num_kv_heads / num_heads, vocabulary V:
    attention 2 d^2 + 2 d k, feed-forward 3 d f (swiglu) or 2 d f, a norm d (rmsnorm) or 2 d (layernorm),
    embedding V d, head V d unless tied to the embedding.
    """
    shapes: Shapes = {"token_embeddings.weight": (config.vocab_size, config.d_model)}
    if config.position == "learned":
        rows = config.num_positions + config.position_offset
        shapes["position_embeddings.weight"] = (rows, config.d_model)
    if config.embedding_norm:
        shapes |= _norm("embedding_norm", config)
    for layer in range(config.num_layers):
        shapes |= _block(f"layers.{layer}", config)
    shapes |= _norm("ln_final", config)
    head = _linear("lm_head", config.d_model, config.vocab_size, config.head_bias)
    if config.tied_embeddings:
        del head["lm_head.weight"]
    return shapes | head


def parameter_groups(config: ModelConfig) -> dict[str, int]:
    """Number of parameters by part of the model; the parts sum to the whole."""
    groups: dict[str, int] = dict.fromkeys(("embeddings", "attention", "feed_forward", "norms", "head"), 0)
    for name, shape in parameter_shapes(config).items():
        groups[_group(name)] += math.prod(shape)
    return groups


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters, a tied head counted once."""
    return sum(parameter_groups(config).values())


def largest_parameter(config: ModelConfig) -> int:
    """Number of values in the largest single parameter."""
    return max(map(math.prod, parameter_shapes(config).values()))


def _group(name: str) -> str:
    if "embeddings" in name:
        return "embeddings"
    if ".attn." in name:
        return "attention"
    if ".ffn." in name:
        return "feed_forward"
    return "head" if name.startswith("lm_head") else "norms"


def _block(prefix: str, config: ModelConfig) -> Shapes:
    d_model, d_kv = config.d_model, config.num_kv_heads * config.d_head
    shapes = _norm(f"{prefix}.ln1", config)
    for name, d_out in (("q_proj", d_model), ("k_proj", d_kv), ("v_proj", d_kv), ("output_proj", d_model)):
        shapes |= _linear(f"{prefix}.attn.{name}", d_model, d_out, config.attention_bias)
    if config.residual == "sequential":
        shapes |= _norm(f"{prefix}.ln2", config)
    shapes |= _linear(f"{prefix}.ffn.w1", d_model, config.d_ff, config.ffn_bias)
    shapes |= _linear(f"{prefix}.ffn.w2", config.d_ff, d_model, config.ffn_bias)
    if config.activation == "swiglu":
        shapes |= _linear(f"{prefix}.ffn.w3", d_model, config.d_ff, config.ffn_bias)
    return shapes


def _linear(prefix: str, d_in: int, d_out: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{prefix}.weight": (d_out, d_in)}
    return weight | {f"{prefix}.bias": (d_out,)} if bias else weight


def _norm(prefix: str, config: ModelConfig) -> Shapes:
    weight: Shapes = {f"{prefix}.weight": (config.d_model,)}
    return weight | {f"{prefix}.bias": (config.d_model,)} if config.norm == "layernorm" else weight
