"""Greedy tokens against Hugging Face's `generate` with the same weights, family by family, in fp32."""

import pytest
import torch

from cs_systems.inference.decoding import SimpleDecoder
from cs_systems.inference.engine import generate
from cs_systems.inference.packed import PackedDecoder
from cs_systems.inference.settings import DecoderConfig, GenerationConfig
from cs_systems.model.transformer import TransformerLM

transformers = pytest.importorskip("transformers", reason="needs the oracle: pip install 'cs_systems[peers]'")

GPT2 = {"vocab_size": 47, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
LLAMA = {
    "vocab_size": 53, "hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 40,
}  # fmt: skip
CASES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "bloom": ("BloomConfig", "BloomForCausalLM", {
        "vocab_size": 47, "hidden_size": 24, "n_layer": 2, "n_head": 6, "seq_length": 40,
    }),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", GPT2 | {"rotary_dim": 4}),
    "opt": ("OPTConfig", "OPTForCausalLM", {
        "vocab_size": 47, "hidden_size": 30, "ffn_dim": 41, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": 40, "word_embed_proj_dim": 30,
    }),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "llama-gqa": ("LlamaConfig", "LlamaForCausalLM", LLAMA | {"num_key_value_heads": 2}),
}  # fmt: skip
NUM_NEW = 12


def build_peer(config_class, model_class, values):
    """The peer with large random matrices: an untrained model says the same token whatever the code does."""
    config = getattr(transformers, config_class)(bos_token_id=0, eos_token_id=0, pad_token_id=1, **values)
    peer = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            is_matrix = parameter.dim() == 2 and parameter.shape[0] != values["vocab_size"]
            parameter.add_((0.6 if is_matrix else 0.1) * torch.randn_like(parameter))
    peer.generation_config.eos_token_id = None
    return peer


def peer_tokens(peer, prompts):
    """What `generate` adds to prompts padded on the left."""
    seq = max(map(len, prompts))
    ids = torch.tensor([[1] * (seq - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (seq - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = peer.generate(ids, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False)
    return out[:, seq:].tolist()


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_the_peer(case, tmp_path):
    peer = build_peer(*CASES[case])
    peer.save_pretrained(tmp_path)
    model = TransformerLM.from_checkpoint(tmp_path)
    prompts = [torch.randint(2, 47, (length,)).tolist() for length in (9, 9, 4, 1)]
    alone = [peer_tokens(peer, [prompt])[0] for prompt in prompts]
    assert len({token for row in alone for token in row}) > 6  # or the comparison would prove little
    assert peer_tokens(peer, prompts) == alone
    config = GenerationConfig(max_new_tokens=NUM_NEW)
    layouts = [DecoderConfig(precision="fp32", expected_batch_size=size) for size in (1, 4)]
    for decoder in (SimpleDecoder(model), *(PackedDecoder(model, layout) for layout in layouts)):
        assert generate(decoder, prompts, config) == alone
        assert [generate(decoder, [prompt], config)[0] for prompt in prompts] == alone
