"""The simple decoder against the model that has no cache, and one sequence against many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.inference.decoding import SimpleDecoder
from cs_systems.inference.prompts import make_batch
from cs_systems.kernels.apply import apply_kernels
from cs_systems.model.config import ModelConfig
from cs_systems.model.transformer import TransformerLM

NAMES = [
    *("llama", "llama-gqa", "llama-mqa-tied", "gpt2", "gpt2-mqa", "bloom", "bloom-gqa", "gptj", "opt"),
]
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def feed(decoder, prompts, following):
    """Logits (steps + 1, batch, vocab) after the prompts and after each of the tokens (steps, batch)."""
    num_new = len(following)
    batch = make_batch(prompts, decoder.config, num_new, decoder.device)
    cache = decoder.new_cache(len(prompts), batch.token_ids.shape[1] + num_new)
    logits = [decoder.prefill(batch, cache)]
    logits += [decoder.decode_step(torch.tensor(tokens), cache) for tokens in following]
    return torch.stack(logits)


@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_are_those_of_the_whole_sequence(name, make_model):
    model = make_model(name)
    tokens = torch.randint(53, (2, 9))
    cached = feed(SimpleDecoder(model), tokens[:, :5].tolist(), tokens[:, 5:].T.tolist())
    torch.testing.assert_close(cached.transpose(0, 1), model(tokens)[:, 4:].detach(), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_its_sequences_one_by_one(name, make_model):
    decoder = SimpleDecoder(make_model(name))
    prompts, following = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]], [[7, 8, 9], [10, 11, 12]]
    together = feed(decoder, prompts, following)
    for row, prompt in enumerate(prompts):
        alone = feed(decoder, [prompt], [[tokens[row]] for tokens in following])
        torch.testing.assert_close(together[:, row], alone[:, 0], **CLOSE)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), num_new=st.integers(0, 4),
    position=st.sampled_from(["rope", "learned", "alibi"]), kv_heads=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_any_padded_batch_is_the_model_without_a_cache(lengths, num_new, position, kv_heads):
    torch.manual_seed(sum(lengths) + num_new)
    config = ModelConfig(
        vocab_size=11, context_length=12, d_model=8, num_layers=1, num_heads=4, num_kv_heads=kv_heads,
        d_ff=8, position=position,
    )  # fmt: skip
    model = TransformerLM(config)
    rows = [torch.randint(11, (length + num_new,)) for length in lengths]
    prompts = [row[: len(row) - num_new].tolist() for row in rows]
    following = [[int(row[len(row) - num_new + step]) for row in rows] for step in range(num_new)]
    cached = feed(SimpleDecoder(model), prompts, following)
    for i, row in enumerate(rows):
        expected = model(row[None])[0, -num_new - 1 :].detach()
        torch.testing.assert_close(cached[:, i], expected, **CLOSE)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_key_heads_are_a_model_with_each_head_repeated(kv_heads, make_model):
    shared = make_model("llama", num_kv_heads=kv_heads)
    expanded = make_model("llama")
    state = shared.state_dict()
    for name, weight in state.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.unflatten(0, (kv_heads, -1))
            state[name] = heads.repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)
    expanded.load_state_dict(state)
    prompts, following = [[3, 1, 4], [2, 7]], [[7, 8], [10, 11]]
    results = [feed(SimpleDecoder(model), prompts, following) for model in (shared, expanded)]
    torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("name", ["llama-gqa", "bloom"])
def test_half_precision_is_close(dtype, bound, name, make_model):
    tokens = [[3, 1, 4], [2]], [[7, 8], [10, 11]]
    exact = feed(SimpleDecoder(make_model(name)), *tokens)
    decoder = SimpleDecoder(make_model(name).to(dtype))
    assert decoder.new_cache(1, 4).layers[0].values.dtype == dtype
    rough = feed(decoder, *tokens)
    assert (rough - exact).norm() < bound * exact.norm()


def test_kernels_put_into_the_model_run_in_the_decoder(make_model):
    pytest.importorskip("triton", reason="Triton exists on Linux only")
    tokens = [[3, 1, 4], [2]], [[7, 8]]
    expected = feed(SimpleDecoder(make_model("llama")), *tokens)
    model = make_model("llama")
    apply_kernels(model, ("rmsnorm", "rope", "swiglu"))
    torch.testing.assert_close(feed(SimpleDecoder(model), *tokens), expected, **CLOSE)
