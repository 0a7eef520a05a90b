"""Our model against the Hugging Face model of the same weights: an oracle that shares no code with ours.

Each family is saved by transformers, read back by `from_checkpoint`, and compared in logits and in the
gradient of every parameter: in fp64, where only a wrong formula can differ, and in fp32 to rounding.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cs_systems.model.apply import apply_attention
from cs_systems.model.functional import cross_entropy
from cs_systems.model.hugging_face_weights import state_from_hugging_face
from cs_systems.model.transformer import TransformerLM

transformers = pytest.importorskip("transformers", reason="needs the oracle: pip install 'cs_systems[peers]'")

LLAMA = {
    "vocab_size": 53, "hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 24,
}  # fmt: skip
GPT2 = {"vocab_size": 47, "n_embd": 30, "n_layer": 2, "n_head": 5, "n_positions": 24}
GPTJ = GPT2 | {"n_embd": 40, "rotary_dim": 4}
BLOOM = {"vocab_size": 47, "hidden_size": 24, "n_layer": 2, "n_head": 6}  # 6 heads: ALiBi's second half
# Without a padding token: Hugging Face gives its embedding no gradient, which is no matter of the formulas.
OPT = {
    "vocab_size": 47, "hidden_size": 30, "ffn_dim": 41, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 24, "word_embed_proj_dim": 30, "pad_token_id": None,
}  # fmt: skip

CASES = {
    "llama": ("llama", LLAMA),
    "llama-gqa": ("llama", LLAMA | {"num_key_value_heads": 2, "rope_theta": 500_000.0}),
    "llama-mqa-tied": ("llama", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-biases": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-wide-untied": ("gpt2", GPT2 | {"n_inner": 41, "tie_word_embeddings": False}),
    "gpt2-erf": ("gpt2", GPT2 | {"activation_function": "gelu"}),
    "bloom": ("bloom", BLOOM),
    "gptj": ("gptj", GPTJ),
    "opt": ("opt", OPT),
    "opt-no-bias": ("opt", OPT | {"enable_bias": False, "tie_word_embeddings": False}),
}
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "bloom": ("BloomConfig", "BloomForCausalLM"),
    "gptj": ("GPTJConfig", "GPTJForCausalLM"),
    "opt": ("OPTConfig", "OPTForCausalLM"),
}


class Fp64Everywhere(TorchFunctionMode):
    """Where code asks for fp32 by name (norms, softmax, position tables), let it have fp64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(widen, args), **{name: widen(value) for name, value in (kwargs or {}).items()})


def build_peer(family, settings):
    """The Hugging Face model, without dropout, every parameter away from its special initial value."""
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    config = config_class(bos_token_id=0, eos_token_id=0, **settings)
    config._attn_implementation = "eager"  # the one that every family has
    peer = model_class(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return peer


def logits_and_gradients(model, logits_of, tokens):
    """Logits, and the gradient of the loss for each parameter of `model`, by name."""
    model.zero_grad()
    logits = logits_of(tokens[:, :-1])
    cross_entropy(logits, tokens[:, 1:]).backward()
    return {"logits": logits.detach()} | {name: weight.grad for name, weight in model.named_parameters()}


def run_all(family, settings, directory):
    """Results of the peer under our names, of ours with each attention function, and our configuration."""
    torch.manual_seed(1)
    peer = build_peer(family, settings)
    peer.save_pretrained(directory)
    ours = TransformerLM.from_checkpoint(directory)
    tokens = torch.randint(settings["vocab_size"], (2, 15))
    expected = logits_and_gradients(peer, lambda ids: peer(ids).logits, tokens)
    logits = {"logits": expected.pop("logits")}
    # A gradient belongs to its weight, so the mapping of the weights renames and permutes it too.
    expected = state_from_hugging_face(family, ours.config, expected) | logits
    if ours.config.tied_embeddings:
        del expected["lm_head.weight"]  # one parameter, listed once
    results = {}
    for attention in ("naive", "sdpa"):
        apply_attention(ours, attention)
        results[attention] = logits_and_gradients(ours, ours, tokens)
    return expected, results, ours.config


def errors(result, expected, config):
    """Distance of each tensor of `result` from that of `expected`, relative to the size of the latter."""
    assert result.keys() == expected.keys()
    sizes = {name: tensor.double().norm() for name, tensor in expected.items()}
    if config.position != "rope":
        # A bias on the keys adds one number to all scores of a query, which softmax ignores: its gradient is
        # zero, and what is left of it is rounding, to be measured by that of the bias on the queries.
        sizes |= {name: sizes[name.replace("k_proj", "q_proj")] for name in sizes if "k_proj.bias" in name}
    return {
        name: float((result[name].double() - expected[name].double()).norm() / sizes[name])
        for name in expected
    }


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_peer(case, tmp_path):
    torch.set_num_threads(1)  # the tensors are tiny
    expected32, results32, config = run_all(*CASES[case], tmp_path / "fp32")
    torch.set_default_dtype(torch.float64)
    with Fp64Everywhere():
        expected64, results64, _ = run_all(*CASES[case], tmp_path / "fp64")
    # BLOOM's own GELU has its constants cut to eight digits.
    same_formula = 5e-9 if case == "bloom" else 1e-12
    rounding = 40 * torch.finfo(torch.float32).eps  # of two models, through two blocks there and back
    for attention in ("naive", "sdpa"):
        worst64 = max_item(errors(results64[attention], expected64, config))
        assert worst64[1] < same_formula, (attention, worst64)
        worst32 = max_item(errors(results32[attention], expected32, config))
        assert worst32[1] < rounding, (attention, worst32)


def max_item(errors_by_name):
    return max(errors_by_name.items(), key=lambda item: item[1])
