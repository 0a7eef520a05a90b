"""Types under autocast: the course's answers, and three ways to find them that must agree."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cs_systems import device as devices
from cs_systems.device import DTYPES
from cs_systems.mixed_precision import autocast as module
from cs_systems.mixed_precision import autocast_subject
from cs_systems.mixed_precision.autocast import (
    check_config,
    differences,
    inspect_model,
    run_route,
    step_dtypes,
    toy_dtypes,
)
from cs_systems.mixed_precision.autocast_derive import FakeGpu, pretend_autocast
from cs_systems.mixed_precision.autocast_emulate import EmulatedAutocast, count_casts
from cs_systems.mixed_precision.autocast_observe import Observer
from cs_systems.mixed_precision.autocast_policy import CASTS, MOVES, RULES
from cs_systems.mixed_precision.autocast_subject import build_subject
from cs_systems.mixed_precision.settings import AutocastConfig
from cs_systems.mixed_precision.toy import LOSSES, ToyModel
from cs_systems.model.config import ModelConfig
from cs_systems.model.layers import FeedForward

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured, so nothing is derived")
COURSE = {"parameters": "fp32", "fc1": "fp16", "layer_norm": "fp32", "logits": "fp16", "gradients": "fp32"}
SHAPES = ("gpt2-mqa-1.1b", "bloom-1.3b", "gptj-6b", "opt-1.3b", "clm-60m")


@pytest.mark.parametrize(
    ("loss", "cuda", "cpu"),
    [
        ("cross-entropy", "fp32", "fp32"), ("mse", "fp32", "fp32"), ("upcast", "fp32", "fp32"),
        ("hand-written", "fp32", "fp16"), ("mean", "fp16", "fp16"),
    ],
)  # fmt: skip
def test_the_answers_of_the_course(loss, cuda, cpu):
    assert toy_dtypes("fp16", "cuda", loss) == COURSE | {"loss": cuda}
    assert toy_dtypes("fp16", "cpu", loss) == COURSE | {"layer_norm": "fp16", "loss": cpu}


def test_bf16_has_the_same_answers():
    expected = {key: dtype.replace("fp16", "bf16") for key, dtype in (COURSE | {"loss": "fp32"}).items()}
    assert toy_dtypes("bf16") == expected


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_types_of_a_step_are_those_of_the_inspection_on_the_same_processor(dtype):
    inspection = run_route(AutocastConfig(model="toy", dtype=dtype, policy="cpu"), "device")
    model = ToyModel(8, 3)
    found = step_dtypes(model, torch.randn(4, 8), torch.tensor([0, 1, 2, 0]), DTYPES[dtype])
    parameters = [name for name, _ in model.named_parameters()]
    expected = {"loss": inspection.dtype_of("loss", "loss")}
    expected |= {f"parameters.{name}": inspection.dtype_of("parameter", name) for name in parameters}
    expected |= {f"gradients.{name}": inspection.dtype_of("gradient", name) for name in parameters}
    expected |= {f"outputs.{name}": inspection.dtype_of("output", name) for name, _ in model.named_children()}
    assert found == {name: DTYPES[short] for name, short in expected.items()}


def test_types_of_a_step_name_nested_leaves_and_follow_the_parameters():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4, bias=False), nn.Sequential()), nn.Linear(4, 2, bias=False)
    )
    model[1].bfloat16()
    found = step_dtypes(model, torch.randn(3, 4), torch.tensor([0, 1, 0]), torch.bfloat16)
    fp32, bf16 = torch.float32, torch.bfloat16
    assert found == {
        "parameters.0.0.weight": fp32, "parameters.1.weight": bf16, "outputs.0.0": bf16, "outputs.0.1": bf16,
        "outputs.1": bf16, "loss": fp32, "gradients.0.0.weight": fp32, "gradients.1.weight": bf16,
    }  # fmt: skip


@pytest.mark.parametrize("classes", [2, 1])
def test_types_of_a_step_leave_the_model_as_it_was(classes):
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight.grad = before = torch.ones(2, 4)
    targets = torch.tensor([0, 2 - classes])  # a class that is not there raises
    try:
        step_dtypes(model, torch.randn(2, 4), 2 * targets, torch.bfloat16)
    except IndexError:
        assert classes == 1
    assert model[0].weight.grad is before
    assert torch.equal(before, torch.ones(2, 4))
    assert model[0].bias.grad is None
    assert not model[0]._forward_hooks


@no_gpu
def test_without_a_gpu_cuda_is_derived_and_says_so():
    config = AutocastConfig(model="toy")
    inspection = inspect_model(config)
    assert inspection.origin == "derived: fake tensors"
    assert inspection.notes[-1].startswith("the static table, emulated with a backward pass, gives the same")
    assert inspect_model(replace(config, policy="cpu")).origin == "measured on this CPU"


@no_gpu
def test_without_fake_tensors_the_table_takes_over(monkeypatch):
    derived = inspect_model(AutocastConfig(model="toy"))
    monkeypatch.setattr(module, "why_underivable", lambda: "fake tensors are gone")
    inspection = inspect_model(AutocastConfig(model="toy"))
    assert inspection.origin == "derived: static table"
    assert inspection.notes == ("fake tensors are gone: the static table of rules was used",)
    assert (inspection.entries, inspection.operations) == (derived.entries, derived.operations)


@no_gpu
def test_a_disagreement_of_the_two_derivations_is_told(monkeypatch):
    monkeypatch.setattr(
        "cs_systems.mixed_precision.autocast_emulate.find_kind", lambda op, policy: "unlisted"
    )
    (note,) = inspect_model(AutocastConfig(model="toy")).notes
    assert note.endswith("gives other types to fc1, relu, fc2, logits")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("model", "dtype"), [("toy", "fp16"), ("toy", "bf16"), ("tiny", "bf16")])
def test_fake_tensors_and_the_emulation_agree_tensor_by_tensor(model, dtype, loss):
    config = AutocastConfig(model=model, dtype=dtype, loss=loss)
    fake, emulated = run_route(config, "fake"), run_route(config, "emulated")
    assert fake.entries == emulated.entries
    assert fake.operations == emulated.operations


@pytest.mark.parametrize("model", SHAPES)
def test_fake_tensors_and_the_emulation_agree_on_every_kind_of_preset(model, monkeypatch):
    monkeypatch.setattr(autocast_subject, "FULL_WIDTH_PARAMETERS", 10**6)
    config = AutocastConfig(model=model, loss="hand-written")
    fake, emulated = run_route(config, "fake"), run_route(config, "emulated")
    assert fake.entries == emulated.entries
    assert fake.operations == emulated.operations
    assert {call.op for call in fake.operations} <= RULES.keys() | CASTS


@pytest.mark.parametrize(
    ("model", "loss"), [*(("toy", loss) for loss in LOSSES), ("tiny", "hand-written"), ("tiny", "upcast")]
)
def test_the_emulation_of_the_cpu_policy_is_what_the_cpu_does(model, loss):
    config = AutocastConfig(model=model, dtype="bf16", policy="cpu", loss=loss)
    real, emulated = run_route(config, "device"), run_route(config, "emulated")
    assert emulated.entries == real.entries
    assert emulated.operations == real.operations


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("model", ["toy", "tiny", "bloom-1.3b", "gptj-6b"])
def test_a_real_gpu_confirms_both_derivations(model, dtype):
    for loss in LOSSES:
        config = AutocastConfig(model=model, dtype=dtype, loss=loss)
        real, fake, emulated = (run_route(config, route) for route in ("device", "fake", "emulated"))
        assert real.origin.startswith("measured on ")
        assert real.entries == fake.entries == emulated.entries
        assert real.operations == fake.operations == emulated.operations


def test_emulated_values_and_gradients_are_those_of_the_cpu():
    found = []
    for autocast in (torch.autocast("cpu", torch.bfloat16), EmulatedAutocast("cpu", torch.bfloat16)):
        torch.manual_seed(0)
        model, x, targets = ToyModel(8, 3), torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        with autocast:
            loss = F.cross_entropy(model(x), targets)
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    for real, emulated in zip(*found, strict=True):
        assert torch.equal(real, emulated)


class CountCasts(TorchDispatchMode):
    """Counts copies from fp32 to bf16 below autocast."""

    casts = num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and output.dtype == torch.bfloat16:
            self.casts += 1
            self.num_bytes += 2 * output.numel()
        return output


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_casts_are_counted_as_torch_makes_them(kind, bias):
    """Two passes in one context: torch's linear casts its weight once, x @ weight.T in each."""
    config = ModelConfig(d_model=64, num_layers=1, ffn_bias=bias)
    layers = {
        "torch": lambda: nn.Sequential(nn.Linear(64, 32, bias=bias), nn.ReLU(), nn.Linear(32, 64, bias=bias)),
        "ours": lambda: FeedForward(config),
    }
    model, x = layers[kind](), torch.randn(1, 4, 64).requires_grad_().clone()  # as from a layer before
    real, emulated = CountCasts(), EmulatedAutocast("cpu", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), real:
        model(x), model(x)
    with emulated:
        model(x), model(x)
    count = emulated.count
    assert (count.weight_casts + count.activation_casts, count.weight_bytes + count.activation_bytes) == (
        real.casts, real.num_bytes,
    )  # fmt: skip
    matrices = {"torch": 2, "ours": 3}[kind]
    passes = {"torch": 1, "ours": 2}[kind]
    assert count.weight_casts == passes * matrices + bias * matrices


def test_the_whole_model_is_counted_without_memory():
    first, second = count_casts(AutocastConfig(model="small", dtype="bf16"))
    matrices = 12 * 7 + 1
    assert (first.weight_casts, second.weight_casts) == (matrices, matrices)
    assert first.weight_bytes == 2 * (128_625_408 - 10_000 * 768 - 25 * 768)  # all but embedding and norms
    toy, again = count_casts(AutocastConfig(model="toy"))
    assert (toy.weight_casts, again.weight_casts) == (2, 0)


def test_layer_norm_is_the_one_difference_of_the_toy_model():
    cuda, cpu, differing = differences(AutocastConfig(model="toy"))
    (difference,) = differing
    assert (difference.where, difference.what) == ("ln", "layer_norm")
    assert (difference.cuda, difference.cpu) == ("fp32", "fp16")
    assert cuda.dtype_of("output", "ln") != cpu.dtype_of("output", "ln")


def test_differences_of_our_model_are_in_its_softmax_alone():
    """The norms cast to fp32 themselves. Calls behind a cast that only CUDA needs are still compared."""
    _, _, differing = differences(AutocastConfig(model="tiny", dtype="bf16"))
    assert [(difference.where, difference.what) for difference in differing] == [
        (f"layers.{block}.attn", op) for block in range(2) for op in ("exp", "sum", "div")
    ]
    _, _, by_hand = differences(AutocastConfig(model="tiny", dtype="bf16", loss="hand-written"))
    in_loss = [difference.what for difference in by_hand if difference.where == "loss"]
    assert in_loss == ["exp", "sum", "div", "gather", "log", "mean", "neg"]


def test_rules_name_the_operation_that_decided():
    inspection = run_route(AutocastConfig(model="tiny"), "emulated")
    rules = {entry.name: entry.rule for entry in inspection.entries if entry.kind in ("output", "loss")}
    assert rules["layers.0.attn.q_proj"] == rules["layers.0.attn"] == "matmul: lower precision"
    assert rules["layers.1"] == "add: not listed, promotes"
    assert rules["loss"] == "cross_entropy: fp32"
    biased = run_route(AutocastConfig(model="opt-1.3b"), "emulated")
    (rule,) = [entry.rule for entry in biased.entries if entry.name == "layers.0.attn.q_proj"]
    assert rule == "addmm: lower precision"  # though a view of its result comes out
    casts = [call for call in inspection.operations if call.op in CASTS]
    assert {call.rule for call in casts} == {"cast in the model"}
    assert not {call.op for call in inspection.operations} & MOVES


def test_a_torch_that_does_otherwise_is_not_explained_away():
    observer = Observer("cuda")
    with observer:  # no autocast at all
        torch.eye(2, dtype=torch.float16).exp()
        torch.eye(2) @ torch.eye(2)
    assert [call.rule for call in observer.operations] == [
        "fp32 in the table, yet fp16 came out", "lower precision in the table, yet fp32 came out",
    ]  # fmt: skip


@pytest.mark.parametrize(("model", "blocks"), [("opt-1.3b", 24), ("gptj-6b", 28)])
def test_large_presets_are_run_with_two_narrow_blocks_of_the_same_operations(model, blocks, monkeypatch):
    narrow = run_route(AutocastConfig(model=model), "emulated")
    assert narrow.notes == (
        f"2 of {blocks} blocks were run: all are alike",
        "its layers were run narrow: types do not depend on widths",
    )
    monkeypatch.setattr(autocast_subject, "FULL_WIDTH_PARAMETERS", 10**12)
    wide = run_route(AutocastConfig(model=model), "emulated")
    assert (wide.entries, wide.operations) == (narrow.entries, narrow.operations)


@pytest.mark.parametrize("name", ["bloom-176b", "gptj-6b", "clm-60m", "gpt-175b"])
def test_a_subject_of_a_large_preset_is_small(name):
    subject = build_subject(name, "cross-entropy", torch.device("meta"))
    assert sum(parameter.numel() for parameter in subject.model.parameters()) < 50_000_000


def test_bad_input_is_told_in_one_line(monkeypatch):
    with pytest.raises(
        ValueError, match=r"--model tinny is no preset; did you mean tiny\? \(or --model toy\)"
    ):
        check_config(AutocastConfig(model="tinny"))

    def refuse(device, precision):
        raise devices.UnsupportedError("no")

    monkeypatch.setattr(module, "check_precision", refuse)
    with pytest.raises(ValueError, match=r"--dtype bf16: .* has no arithmetic for it; use --dtype fp16"):
        check_config(AutocastConfig(dtype="bf16"))


def test_the_emulation_takes_the_widest_type_where_the_gpu_does():
    low = DTYPES["fp16"]
    a, b = torch.ones(2, dtype=low), torch.ones(2)
    with EmulatedAutocast("cuda", low):
        assert torch.addcmul(a, a, a).dtype == low
        assert torch.addcmul(b, a, b).dtype == torch.float32
        assert torch.dot(a, b).dtype == torch.float32  # without autocast an error
    with EmulatedAutocast("cpu", low):
        assert torch.cat([a, b]).dtype == torch.float32
        assert (b.double() @ b.double()).dtype == torch.float64  # autocast leaves fp64 alone


STEPS = {
    "matmul": lambda x, w: x @ w, "exp": lambda x, w: x.exp(), "softmax": lambda x, w: F.softmax(x, -1),
    "relu": lambda x, w: F.relu(x), "mul": lambda x, w: x * w, "square": lambda x, w: x.square(),
    "cat": lambda x, w: torch.cat([x, w])[:4], "mean": lambda x, w: x - x.mean(-1, keepdim=True),
    "sum": lambda x, w: x / x.sum(-1, keepdim=True), "inverse": lambda x, w: 1 / x,
    "addcmul": lambda x, w: torch.addcmul(w, x, w), "layer_norm": lambda x, w: F.layer_norm(x, (4,)),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[None], x[None], w[None])[0],
    "cast": lambda x, w: x.to(w.dtype), "transpose": lambda x, w: x.T,
}  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8), st.sampled_from(["fp16", "bf16"]))
def test_the_emulation_follows_torch_through_any_chain_of_operations(steps, dtype):
    def run(x, w):
        found = []
        for step in steps:
            x = STEPS[step](x, w)
            found.append(x.dtype)
        return found

    with FakeGpu() as gpu, pretend_autocast("cuda", DTYPES[dtype]):
        real = run(*(gpu.fake(torch.empty(4, 4, device="meta")) for _ in range(2)))
    with EmulatedAutocast("cuda", DTYPES[dtype]):
        assert run(*(torch.empty(4, 4, device="meta") for _ in range(2))) == real
