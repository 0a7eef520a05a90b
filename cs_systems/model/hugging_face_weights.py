"""Weights of Hugging Face models under our names: what is transposed, split or permuted for each family.

The functions are pure, from tensors to tensors, and serve files and models in memory alike.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from cs_systems.model.config import ModelConfig

State = dict[str, Tensor]

_PREFIX = re.compile(r"^(transformer\.|model\.)?(decoder\.)?")
_BUFFER = re.compile(r"(^|\.)(self_)?attn\.(bias|masked_bias|rotary_emb\.inv_freq|embed_positions)$")
"""Masks and position tables that older versions stored beside the parameters; both sides compute them."""

_SHOWN = 4


def state_from_hugging_face(model_type: str, config: ModelConfig, tensors: Mapping[str, Tensor]) -> State:
    """The state dict of `TransformerLM(config)` from the tensors of a Hugging Face model of that family.

    Names may carry the prefix of the model around the body (`transformer.`, `model.`, `model.decoder.`) or
    not: published files differ. Dtypes are kept. A tied head is returned under both its names, as one tensor.

    Raises:
        ValueError: naming the tensors that are missing, unknown, mis-shaped or no floating-point numbers.
    """
    named = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items() if not _BUFFER.search(name)}
    weights = Weights(named)
    state = MAPPERS[model_type](weights, config)
    if config.tied_embeddings:
        state["lm_head.weight"] = state["token_embeddings.weight"]
        weights.drop_copy("lm_head.weight", state["lm_head.weight"])
    else:
        state |= weights.affine("lm_head", "lm_head", config.vocab_size, config.d_model, bias=False)
    if config.head_bias:
        state["lm_head.bias"] = weights.take("lm_head.bias", config.vocab_size)
    weights.check()
    return state


@dataclass
class Weights:
    """Tensors of a checkpoint, handed out once each; collects what is wrong, to name it all in one error."""

    tensors: State
    problems: list[str] = field(default_factory=list)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor called `name`, or a stand-in of the right shape after noting the problem."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            self.problems.append(f"{name} is missing")
        elif not tensor.is_floating_point():
            self.problems.append(f"{name} is {tensor.dtype}: quantised weights are not read")
        elif tensor.shape != shape:
            self.problems.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        else:
            return tensor
        return torch.empty(shape, device="meta")

    def affine(self, ours: str, theirs: str, *shape: int, bias: bool = True) -> State:
        """A weight of `shape` and, with `bias`, one bias per row, under our name."""
        state = {f"{ours}.weight": self.take(f"{theirs}.weight", *shape)}
        return state | {f"{ours}.bias": self.take(f"{theirs}.bias", shape[0])} if bias else state

    def drop_copy(self, name: str, original: Tensor) -> None:
        """Forget `name` if it is there and equals `original`; note a problem if it differs."""
        copy = self.tensors.pop(name, original)
        if not original.is_meta and not torch.equal(copy, original):
            self.problems.append(f"{name} is not the token embedding, though tie_word_embeddings is true")

    def check(self) -> None:
        """Raise a ValueError that names the first problems and counts the rest."""
        problems = self.problems + [f"{name} is unknown" for name in self.tensors]
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ValueError(
                f"the weights are not those of config.json: {', '.join(problems[:_SHOWN])}{more}; "
                f"copy both from the same checkpoint of a language model"
            )


def map_gpt2(weights: Weights, config: ModelConfig) -> State:
    """GPT-2 stores projections as Conv1D, (d_in, d_out): transposed here. c_attn is q, k, v side by side."""
    d, d_ff = config.d_model, config.d_ff
    state = {
        "token_embeddings.weight": weights.take("wte.weight", config.vocab_size, d),
        "position_embeddings.weight": weights.take("wpe.weight", config.num_positions, d),
    }
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"h.{i}"
        state |= weights.affine(f"{ours}.ln1", f"{theirs}.ln_1", d)
        state |= weights.affine(f"{ours}.ln2", f"{theirs}.ln_2", d)
        columns = weights.take(f"{theirs}.attn.c_attn.weight", d, 3 * d).chunk(3, dim=1)
        biases = weights.take(f"{theirs}.attn.c_attn.bias", 3 * d).chunk(3)
        for part, weight, bias in zip("qkv", columns, biases, strict=True):
            state[f"{ours}.attn.{part}_proj.weight"] = weight.T.contiguous()
            state[f"{ours}.attn.{part}_proj.bias"] = (
                bias.clone()
            )  # a slice would share memory with the others
        for name, conv, d_in, d_out in (
            ("attn.output_proj", "attn.c_proj", d, d),
            ("ffn.w1", "mlp.c_fc", d, d_ff),
            ("ffn.w2", "mlp.c_proj", d_ff, d),
        ):
            state[f"{ours}.{name}.weight"] = weights.take(
                f"{theirs}.{conv}.weight", d_in, d_out
            ).T.contiguous()
            state[f"{ours}.{name}.bias"] = weights.take(f"{theirs}.{conv}.bias", d_out)
    return state | weights.affine("ln_final", "ln_f", d)


def map_bloom(weights: Weights, config: ModelConfig) -> State:
    """BLOOM interleaves q, k, v per head, rows of query_key_value being (head, q|k|v, d_head): undone."""
    d, d_ff = config.d_model, config.d_ff
    state = {"token_embeddings.weight": weights.take("word_embeddings.weight", config.vocab_size, d)}
    state |= weights.affine("embedding_norm", "word_embeddings_layernorm", d)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"h.{i}"
        state |= weights.affine(f"{ours}.ln1", f"{theirs}.input_layernorm", d)
        state |= weights.affine(f"{ours}.ln2", f"{theirs}.post_attention_layernorm", d)
        fused = weights.affine("fused", f"{theirs}.self_attention.query_key_value", 3 * d, d)
        for kind in ("weight", "bias"):
            rows = rearrange(
                fused[f"fused.{kind}"], "(h qkv d) ... -> qkv (h d) ...", qkv=3, h=config.num_heads
            )
            for part, tensor in zip("qkv", rows, strict=True):
                state[f"{ours}.attn.{part}_proj.{kind}"] = tensor.clone()
        state |= weights.affine(f"{ours}.attn.output_proj", f"{theirs}.self_attention.dense", d, d)
        state |= weights.affine(f"{ours}.ffn.w1", f"{theirs}.mlp.dense_h_to_4h", d_ff, d)
        state |= weights.affine(f"{ours}.ffn.w2", f"{theirs}.mlp.dense_4h_to_h", d, d_ff)
    return state | weights.affine("ln_final", "ln_f", d)


def map_gptj(weights: Weights, config: ModelConfig) -> State:
    """GPT-J rotates neighbouring channels (2i, 2i+1) as we do: every tensor is taken as it is."""
    d, d_ff = config.d_model, config.d_ff
    state = {"token_embeddings.weight": weights.take("wte.weight", config.vocab_size, d)}
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"h.{i}"
        state |= weights.affine(f"{ours}.ln1", f"{theirs}.ln_1", d)
        for name, other in _projections("out_proj"):
            state |= weights.affine(f"{ours}.attn.{name}", f"{theirs}.attn.{other}", d, d, bias=False)
        state |= weights.affine(f"{ours}.ffn.w1", f"{theirs}.mlp.fc_in", d_ff, d)
        state |= weights.affine(f"{ours}.ffn.w2", f"{theirs}.mlp.fc_out", d, d_ff)
    return state | weights.affine("ln_final", "ln_f", d)


def map_opt(weights: Weights, config: ModelConfig) -> State:
    """OPT's tensors are taken as they are; what it calls `final_layer_norm` within a layer is our ln2."""
    d, d_ff, bias = config.d_model, config.d_ff, config.ffn_bias
    rows = config.num_positions + config.position_offset
    state = {
        "token_embeddings.weight": weights.take("embed_tokens.weight", config.vocab_size, d),
        "position_embeddings.weight": weights.take("embed_positions.weight", rows, d),
    }
    for i in range(config.num_layers):
        ours = theirs = f"layers.{i}"
        state |= weights.affine(f"{ours}.ln1", f"{theirs}.self_attn_layer_norm", d)
        state |= weights.affine(f"{ours}.ln2", f"{theirs}.final_layer_norm", d)
        for name, other in _projections("out_proj"):
            state |= weights.affine(f"{ours}.attn.{name}", f"{theirs}.self_attn.{other}", d, d, bias=bias)
        state |= weights.affine(f"{ours}.ffn.w1", f"{theirs}.fc1", d_ff, d, bias=bias)
        state |= weights.affine(f"{ours}.ffn.w2", f"{theirs}.fc2", d, d_ff, bias=bias)
    return state | weights.affine("ln_final", "final_layer_norm", d)


def map_llama(weights: Weights, config: ModelConfig) -> State:
    """Llama rotates channel i of a head with i + d_head / 2, we rotate 2i with 2i + 1: rows of q and k move.

    The same permutation of q and k within each head leaves their products, the attention scores, as they are.
    """
    d, d_ff, d_kv, bias = config.d_model, config.d_ff, config.num_kv_heads * config.d_head, config.ffn_bias
    d_out = {"q_proj": d, "k_proj": d_kv, "v_proj": d_kv, "output_proj": d}
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    state = {"token_embeddings.weight": weights.take("embed_tokens.weight", config.vocab_size, d)}
    for i in range(config.num_layers):
        ours = theirs = f"layers.{i}"
        state |= weights.affine(f"{ours}.ln1", f"{theirs}.input_layernorm", d, bias=False)
        state |= weights.affine(f"{ours}.ln2", f"{theirs}.post_attention_layernorm", d, bias=False)
        for name, other in _projections("o_proj"):
            projection = weights.affine(
                f"{ours}.attn.{name}",
                f"{theirs}.self_attn.{other}",
                d_out[name],
                d,
                bias=config.attention_bias,
            )
            if name in heads:
                projection = {
                    key: rearrange(rows, "(h half pair) ... -> (h pair half) ...", half=2, h=heads[name])
                    for key, rows in projection.items()
                }
            state |= projection
        state |= weights.affine(f"{ours}.ffn.w1", f"{theirs}.mlp.gate_proj", d_ff, d, bias=bias)
        state |= weights.affine(f"{ours}.ffn.w2", f"{theirs}.mlp.down_proj", d, d_ff, bias=bias)
        state |= weights.affine(f"{ours}.ffn.w3", f"{theirs}.mlp.up_proj", d_ff, d, bias=bias)
    return state | weights.affine("ln_final", "norm", d, bias=False)


MAPPERS: dict[str, Callable[[Weights, ModelConfig], State]] = {
    "gpt2": map_gpt2,
    "bloom": map_bloom,
    "gptj": map_gptj,
    "opt": map_opt,
    "llama": map_llama,
}
"""The function that maps the weights of each `model_type`; the head is the same for all."""


def _projections(output: str) -> list[tuple[str, str]]:
    """Our and their names of the four attention projections; families differ in the last."""
    return [("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("output_proj", output)]
