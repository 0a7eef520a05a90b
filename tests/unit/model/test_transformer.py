"""The language model: wiring against a second implementation, causality, names, dtypes, compilation."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.model.apply import apply_attention
from cs_systems.model.attention import ATTENTION
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy
from cs_systems.model.transformer import TransformerLM
from cs_systems.optim import AdamW

VOCAB, CONTEXT = 19, 12

VARIANTS = {
    "course": {},
    "grouped heads": {"num_kv_heads": 2},
    "gpt-2": {
        "position": "learned", "norm": "layernorm", "activation": "gelu_tanh", "tied_embeddings": True,
        "attention_bias": True, "ffn_bias": True,
    },
    "multi-query": {"position": "learned", "num_kv_heads": 1, "activation": "gelu", "num_positions": 20},
    "opt": {"position": "learned", "position_offset": 2, "norm": "layernorm", "activation": "relu"},
    "bloom": {"position": "alibi", "embedding_norm": True, "norm": "layernorm", "tied_embeddings": True},
    "gpt-j": {
        "residual": "parallel", "rotary_dim": 2, "head_bias": True, "ffn_bias": True, "norm": "layernorm",
    },
    "odd one": {
        "position": "alibi", "residual": "parallel", "embedding_norm": True, "tied_embeddings": True,
        "head_bias": True, "num_heads": 3, "d_model": 12, "norm_eps": 0.1,
    },
}  # fmt: skip
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_position = pytest.mark.parametrize("position", ["rope", "learned", "alibi"])
# Not flash: the interpreter takes seconds a case; test_apply.py runs it in a model.
every_attention = pytest.mark.parametrize("attention", [name for name in ATTENTION if name != "flash"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than these tests take


def make_model(seed=0, attention="naive", random=True, **changes):
    """A small model; `random` moves every parameter off its initial value, so that none is inert."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 4,
        "d_ff": 20,
    }
    model = TransformerLM(ModelConfig(**(shape | changes)))
    apply_attention(model, attention)
    if random:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return model


def make_tokens(batch=2, seq=CONTEXT, vocab=VOCAB):
    return torch.randint(vocab, (batch, seq))


def reference_logits(model, tokens):
    """The model once more, in double precision, from the state dict and PyTorch's functions."""
    config = model.config
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    position = torch.arange(tokens.shape[1], dtype=torch.float64)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        weight, size = state[f"{name}.weight"], (config.d_model,)
        if config.norm == "rmsnorm":
            return F.rms_norm(x, size, weight, config.norm_eps)
        return F.layer_norm(x, size, weight, state[f"{name}.bias"], config.norm_eps)

    def turn(x):
        if config.position != "rope":
            return x
        dim = config.rotary_dim
        angles = position[:, None] * config.rope_theta ** (
            -torch.arange(0, dim, 2, dtype=torch.float64) / dim
        )
        pairs = torch.view_as_complex(x[..., :dim].unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., dim:]], -1)

    def attend(x, name):
        def heads(projection, count):
            return linear(x, f"{name}.{projection}").unflatten(-1, (count, -1)).transpose(1, 2)

        q, k = turn(heads("q_proj", config.num_heads)), turn(heads("k_proj", config.num_kv_heads))
        v = heads("v_proj", config.num_kv_heads)
        k, v = (t.repeat_interleave(config.num_heads // config.num_kv_heads, dim=1) for t in (k, v))
        mask = torch.full((len(position), len(position)), -math.inf, dtype=torch.float64).triu(1)
        if config.position == "alibi":
            slopes = {4: [1 / 4, 1 / 16, 1 / 64, 1 / 256], 3: [1 / 16, 1 / 256, 1 / 4]}[config.num_heads]
            slopes = torch.tensor(slopes, dtype=torch.float64)
            mask = mask + slopes[:, None, None] * (position[None, :] - position[:, None]).tril()
        return linear(
            F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2), f"{name}.output_proj"
        )

    def feed_forward(x, name):
        hidden = linear(x, f"{name}.w1")
        match config.activation:
            case "swiglu":
                hidden = F.silu(hidden) * linear(x, f"{name}.w3")
            case "relu":
                hidden = F.relu(hidden)
            case kind:
                hidden = F.gelu(hidden, approximate="tanh" if kind == "gelu_tanh" else "none")
        return linear(hidden, f"{name}.w2")

    x = F.embedding(tokens, state["token_embeddings.weight"])
    if config.position == "learned":
        x = x + state["position_embeddings.weight"][config.position_offset :][: tokens.shape[1]]
    if config.embedding_norm:
        x = norm(x, "embedding_norm")
    for i in range(config.num_layers):
        name = f"layers.{i}"
        normed = norm(x, f"{name}.ln1")
        if config.residual == "parallel":
            x = x + attend(normed, f"{name}.attn") + feed_forward(normed, f"{name}.ffn")
        else:
            x = x + attend(normed, f"{name}.attn")
            x = x + feed_forward(norm(x, f"{name}.ln2"), f"{name}.ffn")
    return linear(norm(x, "ln_final"), "lm_head")


@every_variant
@every_attention
def test_every_variant_is_a_second_implementation_of_it(variant, attention):
    model, tokens = make_model(attention=attention, **VARIANTS[variant]), make_tokens()
    torch.testing.assert_close(model(tokens).double(), reference_logits(model, tokens), rtol=1e-4, atol=1e-4)
    wide = model.double()  # the tables were made in fp32, hence not 1e-12
    torch.testing.assert_close(wide(tokens), reference_logits(model, tokens), rtol=1e-5, atol=1e-5)


# --- causality --------------------------------------------------------------------------------------------


@every_position
@every_attention
@pytest.mark.parametrize("residual", ["sequential", "parallel"])
@pytest.mark.parametrize("target", [0, 5, CONTEXT - 1])
def test_the_loss_at_a_position_depends_on_no_later_token_and_on_every_earlier_one(
    position, attention, residual, target
):
    model = make_model(position=position, attention=attention, residual=residual)
    embedded = []
    model.token_embeddings.register_forward_hook(lambda module, args, out: embedded.append(out))
    loss = cross_entropy(model(make_tokens())[:, target], torch.tensor([1, 2]))
    (gradient,) = torch.autograd.grad(loss, embedded[0])
    assert torch.equal(gradient[:, target + 1 :], torch.zeros_like(gradient[:, target + 1 :]))
    assert (gradient[:, : target + 1].abs().amax(-1) > 0).all()


@every_position
@every_attention
def test_changing_a_later_token_changes_no_earlier_logit_at_all(position, attention):
    model = make_model(position=position, attention=attention)
    tokens = make_tokens()
    with torch.no_grad():
        model.token_embeddings.weight[3] *= 1e4  # an outlier
        tokens[tokens == 3] = 4
        before = model(tokens)
        tokens[:, 7] = 3
        after = model(tokens)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


shapes = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "num_heads": st.sampled_from([2, 4]),
        "num_kv_heads": st.sampled_from([1, 2]),
        "d_ff": st.integers(1, 20),
        "norm": st.sampled_from(["rmsnorm", "layernorm"]),
        "activation": st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu"]),
        "position": st.sampled_from(["rope", "learned", "alibi"]),
        "rotary_dim": st.sampled_from([2, 4]),
        "position_offset": st.sampled_from([0, 2]),
        "residual": st.sampled_from(["sequential", "parallel"]),
        "embedding_norm": st.booleans(),
        "tied_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "ffn_bias": st.booleans(),
        "head_bias": st.booleans(),
        "attention": st.sampled_from(["naive", "sdpa"]),
    }
)


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(1, CONTEXT - 1), st.integers(0, 1000))
def test_the_logits_of_a_prefix_are_the_first_logits_of_the_whole(changes, length, seed):
    model = make_model(seed, **changes)
    tokens = make_tokens(batch=1)
    with torch.no_grad():
        whole, prefix = model(tokens), model(tokens[:, :length])
    assert whole.isfinite().all()
    torch.testing.assert_close(whole[:, :length], prefix, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(shapes, st.permutations([0, 1, 2]))
def test_sequences_of_a_batch_do_not_see_each_other(changes, order):
    model = make_model(**changes)
    tokens = make_tokens(batch=3)
    with torch.no_grad():
        together = model(tokens)
        torch.testing.assert_close(model(tokens[order]), together[order], rtol=1e-4, atol=1e-4)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


# --- positions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["course", "gpt-j", "gpt-2", "opt"])
def test_explicit_positions_that_count_up_are_the_default(variant):
    model, tokens = make_model(**VARIANTS[variant]), make_tokens()
    counting = torch.arange(CONTEXT)
    torch.testing.assert_close(model(tokens, counting[None]), model(tokens))
    torch.testing.assert_close(model(tokens, counting.expand(2, -1)), model(tokens))


@every_attention
def test_rotary_logits_do_not_change_when_all_positions_move(attention):
    model, tokens = make_model(attention=attention), make_tokens(seq=6)
    positions = torch.stack([torch.arange(6) + 2, torch.arange(6) + 6])
    torch.testing.assert_close(model(tokens, positions), model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_positions_are_taken_per_sequence(position):
    model, tokens = make_model(position=position), make_tokens(seq=3)
    positions = torch.tensor([[0, 1, 2], [0, 4, 9]])
    together = model(tokens, positions)
    for row in range(2):
        alone = model(tokens[row : row + 1], positions[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[1], model(tokens)[1], atol=1e-3)


@every_position
def test_order_matters(position):
    model, tokens = make_model(position=position), torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    logits = model(tokens)
    assert not torch.allclose(logits[0, -1], logits[1, -1], atol=1e-3)


@every_position
def test_a_sequence_over_the_context_length_is_refused_with_advice(position):
    model = make_model(position=position)
    with pytest.raises(ValueError, match="13 tokens is over context_length 12; shorten it or build"):
        model(make_tokens(seq=13))
    assert model(make_tokens(seq=CONTEXT)).shape == (2, CONTEXT, VOCAB)
    assert model(make_tokens(seq=1)).shape == (2, 1, VOCAB)


@every_variant
def test_an_empty_batch_has_empty_logits(variant):
    assert make_model(**VARIANTS[variant])(make_tokens(batch=0)).shape == (0, CONTEXT, VOCAB)


# --- names and storage ------------------------------------------------------------------------------------


def test_the_state_dict_has_the_names_of_the_course():
    block = [
        "ln1.weight", "attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight",
        "attn.output_proj.weight", "ln2.weight", "ffn.w1.weight", "ffn.w2.weight", "ffn.w3.weight",
    ]  # fmt: skip
    expected = {"token_embeddings.weight", "ln_final.weight", "lm_head.weight"}
    expected |= {f"layers.{i}.{name}" for i in range(2) for name in block}
    model = make_model()
    assert set(model.state_dict()) == expected
    assert {name for name, _ in model.named_parameters()} == expected
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["layers.0.ffn.w1.weight"] == (20, 16)  # (out, in)
    assert shapes["token_embeddings.weight"] == shapes["lm_head.weight"] == (VOCAB, 16)


def test_variants_add_and_leave_out_names():
    def names(variant):
        return set(make_model(**VARIANTS[variant]).state_dict())

    assert {"position_embeddings.weight", "ln_final.bias", "layers.1.attn.k_proj.bias"} <= names("gpt-2")
    assert {"embedding_norm.weight", "embedding_norm.bias"} <= names("bloom")
    gptj = names("gpt-j")
    assert {"lm_head.bias", "layers.0.ffn.w3.bias"} <= gptj
    assert not any("ln2" in name or "attn.q_proj.bias" in name for name in gptj)
    assert not any("w3" in name for name in names("opt"))
    assert not any("rope" in name or "alibi" in name for variant in VARIANTS for name in names(variant))


@every_variant
def test_a_state_dict_loads_strictly_and_gives_the_same_logits(variant):
    model, other = (make_model(seed, **VARIANTS[variant]) for seed in (1, 2))
    tokens = make_tokens()
    assert not torch.allclose(model(tokens), other(tokens), atol=1e-2)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize("variant", ["gpt-2", "odd one"])
def test_a_tied_head_shares_storage_and_gradient(variant):
    model, tokens = make_model(**VARIANTS[variant]), make_tokens()
    assert model.lm_head.weight is model.token_embeddings.weight
    assert sum("lm_head.weight" in name for name, _ in model.named_parameters()) == 0
    cross_entropy(model(tokens), tokens).backward()
    total = model.token_embeddings.weight.grad
    unused = torch.ones(VOCAB, dtype=torch.bool)
    unused[tokens.unique()] = False
    assert (total[unused] != 0).any(-1).all()  # a row that is never looked up learns through the head
    model.to(torch.float64)
    assert model.lm_head.weight is model.token_embeddings.weight


def test_an_untied_head_is_a_tensor_of_its_own():
    model = make_model()
    assert model.lm_head.weight.data_ptr() != model.token_embeddings.weight.data_ptr()


@every_variant
def test_every_parameter_is_trained(variant):
    model, tokens = make_model(**VARIANTS[variant]), make_tokens()
    cross_entropy(model(tokens), tokens.roll(-1, 1)).backward()
    assert all(weight.grad is not None and (weight.grad != 0).any() for weight in model.parameters())


def test_the_seed_decides_the_weights():
    first, same, other = (make_model(seed, random=False).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@every_variant
def test_an_untrained_model_is_about_as_good_as_guessing(variant):
    model = make_model(
        random=False, **(VARIANTS[variant] | {"vocab_size": 1000, "d_model": 48, "num_layers": 3})
    )
    loss = cross_entropy(model(make_tokens(8, vocab=1000)), make_tokens(8, vocab=1000))
    assert loss.item() == pytest.approx(math.log(1000), abs=1.0)


@every_position
def test_a_model_learns_to_repeat_the_previous_token(position):
    model = make_model(random=False, position=position)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(100):
        tokens = make_tokens(16)
        loss = cross_entropy(model(tokens)[:, 1:], tokens[:, :-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(VOCAB)  # without position it stays at guessing


# --- dtypes, modes, compilation ---------------------------------------------------------------------------


@every_variant
@every_attention
def test_bf16_parameters_give_bf16_logits_near_those_of_fp32(variant, attention):
    model, tokens = make_model(attention=attention, random=False, **VARIANTS[variant]), make_tokens()
    wide = model(tokens)
    narrow = model.to(torch.bfloat16)(tokens)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() < 0.03 * wide.norm()


@every_variant
@every_attention
def test_autocast_computes_in_bf16_and_keeps_fp32_gradients(variant, attention):
    model, tokens = make_model(attention=attention, random=False, **VARIANTS[variant]), make_tokens()
    wide = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
        loss = cross_entropy(logits, tokens)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert (logits.float() - wide).norm() < 0.03 * wide.norm()
    loss.backward()
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_the_logits_are_the_same(mode):
    model, tokens = make_model(), make_tokens()
    with mode():
        logits = model(tokens)
    assert not logits.requires_grad
    assert torch.equal(logits, model(tokens))


def test_tokens_may_be_int32():
    model, tokens = make_model(), make_tokens()
    assert torch.equal(model(tokens.int()), model(tokens))


@pytest.mark.parametrize(
    ("variant", "attention", "backend"),
    [
        ("course", "naive", "aot_eager"),
        ("gpt-j", "sdpa", "eager"),
        ("gpt-2", "naive", "eager"),
        ("bloom", "sdpa", "eager"),
    ],
)
def test_the_whole_model_compiles_into_one_graph(no_shape_checks, variant, attention, backend):
    model = make_model(attention=attention, num_layers=1, **VARIANTS[variant])
    tokens = make_tokens()
    logits = torch.compile(model, fullgraph=True, backend=backend)(tokens)
    eager = model(tokens)
    torch.testing.assert_close(logits, eager, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(cross_entropy(out, tokens), list(model.parameters())) for out in (logits, eager)
    ]
    for compiled, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-5)
