"""What a block keeps for backward, found in the graph: as autograd sees it, and as the formula says."""

import gc

import pytest
import torch
from torch import nn

from cs_systems.bench.saved_tensors import measure_saved, saved_by_operation, saved_table
from cs_systems.bench.training import build_model
from cs_systems.bench.workload import Case, WorkloadConfig
from cs_systems.device import autocast
from cs_systems.model.apply import apply_attention
from cs_systems.model.config import ModelConfig
from cs_systems.model.transformer import TransformerBlock
from cs_systems.timing.timer import TimingConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=50, context_length=8, d_model=32, num_layers=2, num_heads=2)
BATCH = 3
WORKLOADS = [
    {"attention": attention, "precision": precision}
    for attention in ("naive", "sdpa", "flash-torch")
    for precision in ("fp32", "bf16")
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_case(config=CONFIG, **workload):
    return Case("toy", config, WorkloadConfig(batch_size=BATCH, **workload), TimingConfig())


def bytes_seen_by_hooks(case):
    """Bytes of the storages that autograd hands to its hooks while one block runs, parameters left out."""
    model = build_model(case.model, case.workload.param_dtype, CPU)
    apply_attention(model, case.workload.attention)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    x = torch.randn(BATCH, case.model.context_length, case.model.d_model, requires_grad=True)
    rotation = model._rotation(case.model.context_length, None)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(CPU, case.workload.precision),
    ):
        model.layers[0](x, rotation, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: "-".join(workload.values()))
def test_the_graph_holds_what_autograd_saved_and_the_formula_says_the_same(workload):
    case = make_case(**workload)
    found = sum(saved.num_bytes for saved in measure_saved(case, CPU))
    assert found == bytes_seen_by_hooks(case)
    assert f"the formula says {found} bytes, +0 to what was found" in saved_table(case, CPU).notes


@pytest.mark.parametrize(
    "variant",
    [
        {"position": "alibi"},
        {"position": "learned", "norm": "layernorm", "activation": "gelu_tanh", "ffn_bias": True},
        {"residual": "parallel", "num_kv_heads": 1},
    ],
    ids=["alibi", "gpt2", "parallel"],
)
def test_other_models_keep_what_the_formula_says(variant):
    notes = saved_table(make_case(CONFIG.replace(**variant)), CPU).notes
    assert notes[-1].endswith("+0 to what was found")


@pytest.mark.parametrize("attention", ["naive", "flash-torch"])
def test_of_a_checkpointed_block_its_input_alone_is_kept(attention):
    (kept,) = measure_saved(make_case(attention=attention, checkpoint_blocks=1), CPU)
    assert (kept.operation, kept.shape, kept.num_bytes) == ("input of the block", (BATCH, 8, 32), 3072)
    notes = saved_table(make_case(checkpoint_blocks=1), CPU).notes
    assert notes[-1] == "the formula says 3072 bytes, +0 to what was found"


def saved_when_a_block_does(action):
    """What a checkpointed block keeps, when `action` runs at its start."""

    def at_start(module, inputs):
        if isinstance(module, TransformerBlock):
            action()

    with nn.modules.module.register_module_forward_pre_hook(at_start):
        return measure_saved(make_case(checkpoint_blocks=1), CPU)


def test_what_a_checkpointed_block_leaves_alive_besides_is_told():
    left = []
    saved = saved_when_a_block_does(lambda: left.append(torch.zeros(10)))
    assert [(kept.operation, kept.num_bytes) for kept in saved[1:]] == [("besides", 40)]


def test_what_only_waits_for_the_garbage_collector_is_not_kept():
    def leave_a_cycle():
        cycle = [torch.zeros(10)]
        cycle.append(cycle)

    gc.disable()
    try:
        assert len(saved_when_a_block_does(leave_a_cycle)) == 1
    finally:
        gc.enable()


def test_a_storage_is_counted_once_and_what_is_left_out_is_not_counted():
    x, weight = torch.ones(4, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    y = x.exp()  # kept by exp and by the product
    output = (y * weight).sigmoid()
    weights = {weight.untyped_storage().data_ptr()}
    assert sorted(saved.operation for saved in saved_by_operation(output, weights)) == ["Mul", "Sigmoid"]
    largest_first = saved_by_operation(torch.cat([output, output]).relu(), weights)
    assert (largest_first[0].operation, largest_first[0].num_bytes) == ("Relu", 128)
    assert len(largest_first) == 3


def test_a_view_keeps_its_whole_storage():
    y = torch.ones(10, requires_grad=True).exp()
    (saved,) = saved_by_operation(y[8:] * y[8:], set())
    assert (saved.operation, saved.shape, saved.num_bytes) == ("Mul", (2,), 40)


def test_tensors_of_an_own_function_are_found():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x * 2)
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    (saved,) = saved_by_operation(Twice.apply(torch.ones(5, requires_grad=True)), set())
    assert (saved.operation, saved.shape, saved.dtype, saved.num_bytes) == ("Twice", (5,), "float32", 20)


@pytest.mark.parametrize("top", [1, 3, 1000])
def test_rows_and_shares_add_up_to_the_total(top):
    case = make_case()
    saved = measure_saved(case, CPU)
    *rows, total = saved_table(case, CPU, top).rows
    assert len(rows) == min(top + 1, len(saved))
    assert total["operation"] == "total"
    assert sum(row["num_bytes"] for row in rows) == total["num_bytes"] == sum(s.num_bytes for s in saved)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert total["share"] == 1
    sizes = [row["num_bytes"] for row in rows[:top]]
    assert sizes == sorted(sizes, reverse=True)
    assert (rows[-1]["operation"] == f"({len(saved) - top} others)") == (top < len(saved))


def test_of_a_compiled_block_no_formula_is_told(monkeypatch):
    """The compiler takes half a minute, so here it is one that does nothing."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    table = saved_table(make_case(compile=True), CPU)
    assert "TransformerBlock" in compiled
    assert table.title.endswith("compiled")
    assert "no formula" in table.notes[-1]
    assert not any("the formula says" in note for note in table.notes)


def test_the_title_says_how_the_block_was_run():
    title = saved_table(make_case(precision="bf16", attention="sdpa", checkpoint_blocks=1), CPU).title
    assert title.endswith("toy, batch 3 x 8 tokens, bf16, sdpa attention, checkpointed")
