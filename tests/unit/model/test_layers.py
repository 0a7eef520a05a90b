"""Linear, Embedding, the norms and the feed-forward layer against torch.nn.functional."""

import math

import pytest
import torch
import torch.nn.functional as F

from cs_systems.model.config import ModelConfig
from cs_systems.model.layers import Embedding, FeedForward, LayerNorm, Linear, RMSNorm, init_normal, make_norm

LEADING = [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than these tests take


def scramble(module):
    """Give every parameter random values, so that a weight of one or a bias of zero hides nothing."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    return module


def config_of(**changes):
    return ModelConfig(**({"d_model": 6, "d_ff": 10, "num_heads": 1} | changes))


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_torchs_over_any_leading_axes(leading, bias, dtype):
    linear = scramble(Linear(5, 7, bias)).to(dtype)
    x = torch.randn(*leading, 5).to(dtype)
    y = linear(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, F.linear(x, linear.weight, linear.bias))


def test_linear_gradients_are_torchs():
    linear = scramble(Linear(5, 7, bias=True))
    x = torch.randn(2, 3, 5, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)
    ours = torch.autograd.grad(linear(x).square().sum(), inputs)
    theirs = torch.autograd.grad(F.linear(x, linear.weight, linear.bias).square().sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_linear_takes_a_transposed_input():
    linear, x = scramble(Linear(5, 7, bias=True)), torch.randn(5, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


def test_linear_has_no_bias_unless_asked():
    assert [name for name, _ in Linear(2, 3).named_parameters()] == ["weight"]
    assert {name: weight.shape for name, weight in Linear(2, 3, bias=True).named_parameters()} == {
        "weight": (3, 2),
        "bias": (3,),
    }


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_embedding_looks_rows_up(leading, dtype):
    table, ids = Embedding(9, 4), torch.randint(9, leading).to(dtype)
    assert torch.equal(table(ids), table.weight[ids.long()])


def test_the_gradient_of_a_row_adds_up_over_its_uses():
    table = Embedding(4, 2)
    table(torch.tensor([1, 3, 1])).sum().backward()
    assert table.weight.grad[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0]


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_rmsnorm_is_torchs(leading, dtype, scale):
    norm = scramble(RMSNorm(6, eps=1e-3)).to(dtype)
    x = (scale * torch.randn(*leading, 6)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    exact = F.rms_norm(x.double(), (6,), norm.weight.double(), eps=1e-3)
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_layernorm_is_torchs(leading, dtype, scale):
    norm = scramble(LayerNorm(6, eps=1e-3)).to(dtype)
    x = (scale * (torch.randn(*leading, 6) + 0.5)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    exact = F.layer_norm(x.double(), (6,), norm.weight.double(), norm.bias.double(), eps=1e-3)
    eps = torch.finfo(dtype).eps  # of the product; the bias may cancel it, hence also absolute
    torch.testing.assert_close(y.double(), exact, rtol=4 * eps, atol=8 * eps)


@pytest.mark.parametrize("cls", [RMSNorm, LayerNorm])
def test_norms_differentiate(cls):
    norm = scramble(cls(5, eps=1e-2)).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, *_: norm(t), (x, *norm.parameters()))


@pytest.mark.parametrize("cls", [RMSNorm, LayerNorm])
def test_norms_of_zero_are_finite_because_of_eps(cls):
    norm, x = cls(5), torch.zeros(2, 5, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 5))
    assert x.grad.isfinite().all()


def test_norms_are_computed_in_fp32_whatever_the_input():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # 300**2 is beyond fp16
    assert torch.equal(RMSNorm(64).half()(x), torch.ones_like(x))
    x[0, ::2] = -300.0
    assert torch.equal(LayerNorm(64).half()(x), x / 300)
    # fp16 activations meet fp32 weights under autocast: the input's dtype comes out
    assert RMSNorm(64)(x).dtype == LayerNorm(64)(x).dtype == torch.float16


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("relu", F.relu),
    ],
)
def test_a_plain_feed_forward_layer(leading, bias, activation, function):
    ffn = scramble(FeedForward(config_of(activation=activation, ffn_bias=bias)))
    x = torch.randn(*leading, 6)
    hidden = function(F.linear(x, ffn.w1.weight, ffn.w1.bias))
    torch.testing.assert_close(ffn(x), F.linear(hidden, ffn.w2.weight, ffn.w2.bias))
    assert not hasattr(ffn, "w3")


@pytest.mark.parametrize("bias", [False, True])
def test_a_swiglu_layer_gates_w3_with_the_silu_of_w1(bias):
    ffn = scramble(FeedForward(config_of(activation="swiglu", ffn_bias=bias)))
    x = torch.randn(2, 3, 6)
    gate = F.silu(F.linear(x, ffn.w1.weight, ffn.w1.bias))
    hidden = gate * F.linear(x, ffn.w3.weight, ffn.w3.bias)
    torch.testing.assert_close(ffn(x), F.linear(hidden, ffn.w2.weight, ffn.w2.bias))
    assert {name: tuple(weight.shape) for name, weight in ffn.named_parameters() if "weight" in name} == {
        "w1.weight": (10, 6),
        "w2.weight": (6, 10),
        "w3.weight": (10, 6),
    }


def test_the_config_chooses_the_norm_and_its_eps():
    norm = make_norm(config_of(norm="layernorm", norm_eps=0.5))
    assert (type(norm), norm.eps, norm.weight.shape) == (LayerNorm, 0.5, (6,))
    assert type(make_norm(config_of(norm="rmsnorm"))) is RMSNorm


def test_weights_start_normal_and_cut_at_three_deviations():
    # Moving what lies beyond three deviations to the edge leaves 0.9975 of the deviation, and shows there.
    linear = Linear(300, 500)
    std = math.sqrt(2 / 800)
    assert linear.weight.std().item() == pytest.approx(0.9975 * std, rel=0.01)
    assert linear.weight.mean().item() == pytest.approx(0.0, abs=0.02 * std)
    assert linear.weight.abs().max().item() == pytest.approx(3 * std)
    inside = (linear.weight.abs() < std).float().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.005)
    assert torch.equal(Linear(3, 4, bias=True).bias, torch.zeros(4))
    table = Embedding(400, 300)
    assert table.weight.std().item() == pytest.approx(0.9975, rel=0.01)
    assert table.weight.abs().max().item() == pytest.approx(3.0)
    assert Embedding(400, 300, std=0.1).weight.std().item() == pytest.approx(0.09975, rel=0.01)


def test_norms_start_as_pure_normalisation():
    assert torch.equal(RMSNorm(4).weight, torch.ones(4))
    assert torch.equal(LayerNorm(4).weight, torch.ones(4))
    assert torch.equal(LayerNorm(4).bias, torch.zeros(4))


def test_initialisation_needs_no_memory_on_the_meta_device_and_leaves_no_graph():
    weight = torch.empty(10, 10, device="meta")
    init_normal(weight, 1.0)
    assert weight.is_meta
    parameter = Linear(3, 4).weight
    assert parameter.is_leaf
    assert parameter.requires_grad
