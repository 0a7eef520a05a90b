"""Small models of every kind, and a stand-in for torch.compile that traces and does not generate code."""

import pytest
import torch

from cs_systems.model.config import ModelConfig
from cs_systems.model.transformer import TransformerLM

GPT2 = {
    "position": "learned", "norm": "layernorm", "activation": "gelu_tanh", "attention_bias": True,
    "ffn_bias": True, "tied_embeddings": True,
}  # fmt: skip
VARIANTS = {
    "llama": {},
    "llama-gqa": {"num_kv_heads": 2},
    "llama-mqa-tied": {"num_kv_heads": 1, "tied_embeddings": True},
    "gpt2": GPT2,
    "gpt2-mqa": GPT2 | {"num_kv_heads": 1},
    "bloom": GPT2 | {"position": "alibi", "embedding_norm": True},
    "bloom-gqa": GPT2 | {"position": "alibi", "num_kv_heads": 2, "activation": "gelu"},
    "gptj": {
        "norm": "layernorm", "activation": "gelu_tanh", "residual": "parallel", "rotary_dim": 4,
        "ffn_bias": True, "head_bias": True,
    },
    "opt": GPT2 | {"activation": "relu", "position_offset": 2, "num_positions": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_model():
    """A model of the variant called `name`; every parameter is away from its special initial value."""

    def make(name, **changes):
        shape = {"vocab_size": 53, "context_length": 40, "d_model": 32, "num_layers": 2, "num_heads": 4}
        config = ModelConfig(**(shape | {"d_ff": 48} | VARIANTS[name] | changes))
        torch.manual_seed(5)
        model = TransformerLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def traced_compile(monkeypatch, no_shape_checks):
    """torch.compile as far as the graph, which then runs operation by operation: no code is generated."""
    compile = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda step, *, fullgraph, dynamic, options: compile(
            step, backend="eager", fullgraph=fullgraph, dynamic=dynamic
        ),
    )
