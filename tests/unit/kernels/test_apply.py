"""Kernels put into a whole model change no number beyond rounding, and say clearly where they cannot run."""

import itertools

import pytest
import torch

from cs_systems.device import UnsupportedError
from cs_systems.kernels.apply import MODEL_KERNELS, apply_kernels, make_loss, parts_for
from cs_systems.model.apply import apply_attention, apply_checkpointing
from cs_systems.model.config import ModelConfig
from cs_systems.model.transformer import TransformerLM

CONFIG = ModelConfig(vocab_size=19, context_length=8, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1)
GPT2 = CONFIG.replace(norm="layernorm", activation="gelu", position="learned", num_kv_heads=2)


def make_model(device, config=CONFIG):
    torch.manual_seed(0)
    return TransformerLM(config).to(device)


def run(model, loss_kernel=None, precision=None):
    """Loss and gradients of one step on fixed tokens."""
    device = model.lm_head.weight.device
    tokens = torch.randint(19, (2, 8), generator=torch.Generator().manual_seed(1)).to(device)
    model.zero_grad()
    with torch.autocast(device.type, precision, enabled=precision is not None):
        outputs, criterion = make_loss(model, loss_kernel)
        loss = criterion(outputs(tokens), tokens.roll(-1, 1))
    loss.backward()
    return loss.detach(), *(weight.grad.clone() for weight in model.parameters())


SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(MODEL_KERNELS, size)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_logits_and_gradients_stay_what_they_were(device, names):
    model = make_model(device)
    expected, keys = run(model), list(model.state_dict())
    apply_kernels(model, names)
    assert list(model.state_dict()) == keys
    for result, plain in zip(run(model), expected, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_kernel", ["cross-entropy", "linear-cross-entropy"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_loss_as_a_kernel(device, loss_kernel, precision):
    model = make_model(device, CONFIG.replace(head_bias=True, tied_embeddings=precision is None))
    for result, plain in zip(run(model, loss_kernel, precision), run(model, None, precision), strict=True):
        tolerance = 1e-5 if precision is None else 0.02 * plain.abs().max().item() + 1e-4
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=tolerance)


def test_everything_together_with_checkpointing_and_flash_attention(device):
    model = make_model(device)
    expected = run(model)
    apply_attention(model, "flash")
    apply_kernels(model, MODEL_KERNELS)
    apply_checkpointing(model, 1)
    for result, plain in zip(run(model, "cross-entropy"), expected, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it itself
def test_everything_together_compiles_into_one_graph(device, no_shape_checks):
    model = make_model(device, CONFIG.replace(num_layers=1))
    expected = run(model)
    apply_attention(model, "flash")
    apply_kernels(model, MODEL_KERNELS)
    tokens = torch.randint(19, (2, 8), generator=torch.Generator().manual_seed(1)).to(device)
    model.zero_grad()
    model.compile(fullgraph=True, backend="aot_eager")  # the code generator behind it would take a minute
    outputs, criterion = make_loss(model, "cross-entropy")
    loss = criterion(outputs(tokens), tokens.roll(-1, 1))
    loss.backward()
    results = loss.detach(), *(weight.grad for weight in model.parameters())
    for result, plain in zip(results, expected, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODEL_KERNELS)
def test_a_model_without_the_part_is_an_error(device, name):
    model = make_model(device, GPT2)
    assert parts_for(model, name) == []
    with pytest.raises(ValueError, match=f"no part that the kernel {name} could run"):
        apply_kernels(model, [name])


def test_an_unknown_kernel_is_answered_with_the_known_ones(device):
    with pytest.raises(ValueError, match=r"'rmsnrom'.*rmsnorm, rope, swiglu"):
        apply_kernels(make_model(device), ["rmsnrom"])


def test_without_gpu_and_interpreter_one_line_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnsupportedError, match="set TRITON_INTERPRET=1"):
        apply_kernels(make_model("cpu"), ["rope"])
    apply_kernels(make_model("cpu"), [])  # nothing asked for, nothing needed
