"""Attention functions and checkpointing change what a model costs, not what it computes."""

import functools

import pytest
import torch

from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.apply import apply_attention, apply_checkpointing, run_checkpointed
from cs_systems.model.attention import ATTENTION, SelfAttention, naive_attention
from cs_systems.model.config import ModelConfig
from cs_systems.model.functional import cross_entropy
from cs_systems.model.transformer import TransformerBlock, TransformerLM, run_in_order

POSITIONS = ["rope", "learned", "alibi"]
NEEDS_TRITON = pytest.mark.skipif(bool(missing_for_triton("cpu")), reason=str(missing_for_triton("cpu")))
every_attention = pytest.mark.parametrize(
    "attention", [pytest.param(name, marks=NEEDS_TRITON if name == "flash" else ()) for name in ATTENTION]
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than these tests take


def make_model(position="rope", num_layers=4):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=17, context_length=12, d_model=16, num_layers=num_layers, num_heads=4, num_kv_heads=2,
        position=position,
    )  # fmt: skip
    return TransformerLM(config)


def run(model):
    """Logits and all gradients of one step on fixed tokens."""
    tokens = torch.randint(17, (2, 12), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    logits = model(tokens)
    cross_entropy(logits, tokens).backward()
    return logits.detach(), [weight.grad.clone() for weight in model.parameters()]


def saved_bytes(model):
    """Bytes kept for backward, by storage, parameters aside."""
    parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(2, 12, dtype=torch.long))
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters)


def num_block_runs(model):
    """How often a block runs in one forward and backward pass."""
    runs = []
    handles = [
        module.register_forward_pre_hook(lambda *_: runs.append(1))
        for module in model.modules()
        if isinstance(module, TransformerBlock)
    ]
    run(model)
    for handle in handles:
        handle.remove()
    return len(runs)


def assert_same(result, expected, **tolerance):
    torch.testing.assert_close(result[0], expected[0], **tolerance)
    for gradient, other in zip(result[1], expected[1], strict=True):
        torch.testing.assert_close(gradient, other, **tolerance)


@every_attention
@pytest.mark.parametrize("position", POSITIONS)
def test_another_attention_function_gives_the_same_logits_and_gradients(position, attention):
    model = make_model(position)
    expected = run(model)
    names = set(model.state_dict())
    apply_attention(model, attention)
    assert_same(run(model), expected, rtol=1e-4, atol=1e-6)
    assert set(model.state_dict()) == names
    apply_attention(model, "naive")
    assert_same(run(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ATTENTION)
def test_every_layer_uses_the_function_applied(name):
    model = make_model()
    layers = [module for module in model.modules() if isinstance(module, SelfAttention)]
    assert [layer.attention for layer in layers] == [naive_attention] * 4  # the simple one is the default
    apply_attention(model, name)
    assert [layer.attention for layer in layers] == [ATTENTION[name]] * 4


@pytest.mark.parametrize("attention", ["sdpa", "flash-torch"])
def test_fused_attention_keeps_no_scores(attention):
    model = make_model()
    naive = saved_bytes(model)
    apply_attention(model, attention)
    scores = 2 * 4 * 12 * 12 * 4  # batch, heads, queries, keys, fp32
    assert saved_bytes(model) <= naive - 2 * 4 * scores + 4 * 2000  # two a layer; row statistics instead


def test_an_unknown_attention_function_is_answered_with_the_known_ones():
    known = "naive, sdpa, flash-torch, flash"
    with pytest.raises(ValueError, match=f"--attention sdap is unknown; known: {known}"):
        apply_attention(make_model(), "sdap")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("blocks_per_checkpoint", [1, 2, 3, 4, 9])
def test_checkpointing_changes_no_bit_of_logits_or_gradients(position, blocks_per_checkpoint):
    model = make_model(position)
    expected = run(model)
    apply_checkpointing(model, blocks_per_checkpoint)
    assert_same(run(model), expected, rtol=0, atol=0)


@every_attention
def test_checkpointing_keeps_fewer_bytes(attention):
    model = make_model()
    apply_attention(model, attention)
    everything = saved_bytes(model)
    per_group = {}
    for blocks in (1, 2, 4):
        apply_checkpointing(model, blocks)
        per_group[blocks] = saved_bytes(model)
    assert per_group[1] < everything / 3
    residual_stream = 2 * 12 * 16 * 4
    assert per_group[1] - per_group[2] == 2 * residual_stream  # four inputs kept, or two
    assert per_group[2] - per_group[4] == residual_stream


def test_checkpointing_runs_every_block_twice_and_can_be_undone():
    model = make_model()
    assert num_block_runs(model) == 4
    everything = saved_bytes(model)
    for blocks in (1, 3):
        apply_checkpointing(model, blocks)
        assert num_block_runs(model) == 8
    apply_checkpointing(model, 0)
    assert num_block_runs(model) == 4
    assert saved_bytes(model) == everything


def test_checkpointing_without_a_graph_runs_every_block_once():
    model = make_model()
    tokens = torch.zeros(1, 5, dtype=torch.long)
    expected = model(tokens)
    apply_checkpointing(model, 2)
    with torch.no_grad():
        assert torch.equal(model(tokens), expected)


def test_checkpointing_under_autocast_recomputes_in_the_same_precision():
    results = []
    for blocks in (0, 2):
        model = make_model()
        apply_checkpointing(model, blocks)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(model))
    assert_same(*results, rtol=0, atol=0)


@pytest.mark.parametrize("blocks_per_checkpoint", [1, 2, 3, 7])
@pytest.mark.parametrize("others", [(), (torch.tensor(2.0),), (torch.tensor(2.0), None)])
def test_any_callables_are_blocks_and_get_whatever_else_is_given(others, blocks_per_checkpoint):
    factors = [torch.tensor(factor, requires_grad=True) for factor in (3.0, 5.0, 7.0)]

    def make_block(factor):
        return lambda x, *rest: factor * x * (rest[0] if rest else 1)

    results = []
    for run_blocks in (
        run_in_order,
        functools.partial(run_checkpointed, blocks_per_checkpoint=blocks_per_checkpoint),
    ):
        x = torch.tensor(1.0, requires_grad=True)
        result = run_blocks([make_block(factor) for factor in factors], x, *others)
        results.append((result.item(), *torch.autograd.grad(result, [x, *factors])))
    scale = 8 if others else 1
    assert results[0] == results[1] == (105 * scale, 105 * scale, 35 * scale, 21 * scale, 15 * scale)


def test_a_negative_group_size_is_refused():
    with pytest.raises(ValueError, match=r"--checkpoint-blocks -1 must be 0 \(off\) or more"):
        apply_checkpointing(make_model(), -1)


def test_a_checkpointed_model_compiles(no_shape_checks):
    model = make_model(num_layers=2)
    apply_checkpointing(model, 1)
    expected = run(model)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert_same(run(model), expected, rtol=1e-4, atol=1e-6)
