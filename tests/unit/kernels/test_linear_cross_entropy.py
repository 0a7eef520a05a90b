"""The last layer and the loss in one function, against PyTorch's in fp64; how much of the logits exists."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference
from cs_systems.model.functional import cross_entropy

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def module(device):
    from cs_systems.kernels import linear_cross_entropy

    return linear_cross_entropy


@pytest.fixture(scope="module")
def linear_cross_entropy(module):
    return module.linear_cross_entropy


def oracle(hidden, weight, targets, bias=None):
    return F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, -2), targets.flatten().long())


def eager(hidden, weight, targets, bias=None):
    return cross_entropy(F.linear(hidden, weight, bias), targets)


def make(device, *batch, d=12, vocab=50, dtype=torch.float32, with_bias=False):
    shapes = (*batch, d), (vocab, d), (vocab,)
    hidden, weight, bias = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return hidden, weight, torch.randint(vocab, batch, device=device), bias if with_bias else None


def run(function, hidden, weight, targets, bias=None, factor=3.0):
    """Loss, and the gradients of factor * loss by hidden, weight and bias."""
    hidden, weight, bias = (
        None if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias)
    )
    loss = function(hidden, weight, targets, bias)
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    return loss.detach(), *torch.autograd.grad(loss, inputs, torch.full_like(loss, factor))


def wide(*tensors):
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 800, 2**29], ids=["each token", "a few tokens", "all tokens"])
def test_values_and_gradients(
    module, device, assert_as_accurate, poisoned, monkeypatch, dtype, with_bias, chunk_bytes
):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    inputs = make(device, 3, 7, dtype=dtype, with_bias=with_bias)
    ours = run(module.linear_cross_entropy, *inputs)
    truth, plain = run(oracle, *wide(*inputs)), run(eager, *inputs)
    assert ours[0].dtype == torch.float32
    assert all(gradient.dtype == dtype for gradient in ours[1:])
    for result, true, low in zip(ours, truth, plain, strict=True):
        assert_as_accurate(result, true, low)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    tokens=st.integers(1, 30), d=st.integers(1, 20), vocab=st.integers(1, 90), step=st.integers(1, 2),
    chunk_bytes=st.integers(600, 10000), with_bias=st.booleans(),
)  # fmt: skip
def test_any_shape_and_stride(module, device, tokens, d, vocab, step, chunk_bytes, with_bias):
    hidden = torch.randn(d, tokens * step, device=device)[:, ::step].T
    weight = torch.randn(d, vocab, device=device).T
    bias = torch.randn(vocab, device=device) if with_bias else None
    targets = torch.randint(vocab, (tokens * step,), device=device)[::step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        ours = run(module.linear_cross_entropy, hidden, weight, targets, bias)
    torch.testing.assert_close(ours, run(oracle, hidden, weight, targets, bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "most", "lengths"),
    [(10, 10, [10]), (11, 10, [6, 5]), (5, 2, [2, 2, 1]), (3, 0, [1, 1, 1])],
)
def test_chunks_are_few_and_even(module, monkeypatch, num_tokens, most, lengths):
    monkeypatch.setattr(module, "CHUNK_BYTES", most * 8)
    chunks = module._chunks(num_tokens, bytes_per_token=8)
    assert [index for chunk in chunks for index in range(num_tokens)[chunk]] == list(range(num_tokens))
    assert [chunk.stop - chunk.start for chunk in chunks] == lengths


class Tensors(TorchDispatchMode):
    """Shapes of all that operations return, and how many matrix products there were."""

    def __init__(self):
        super().__init__()
        self.shapes, self.num_products = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            if torch.is_tensor(result):
                self.shapes.add(tuple(result.shape))
        self.num_products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return results


@pytest.mark.parametrize("with_gradient", [True, False])
def test_only_a_chunk_of_logits_exists_at_a_time(module, device, monkeypatch, with_gradient):
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 50 * 4)
    hidden, weight, targets, _ = make(device, 20, d=3)
    with Tensors() as seen, torch.set_grad_enabled(with_gradient):
        loss = module.linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    assert max(rows for rows, columns in (s for s in seen.shapes if len(s) == 2) if columns == 50) == 5
    assert seen.num_products == (3 * 4 if with_gradient else 4)
    assert loss.requires_grad == with_gradient
    torch.testing.assert_close(loss, oracle(hidden, weight, targets))


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_weight_gradients_of_the_chunks_add_up_in_fp32(module, device, monkeypatch, dtype, large):
    """In 16 bits half of `large` would not change when a half is added, however often."""
    hidden, weight = (
        torch.ones(17, 1, device=device, dtype=dtype),
        torch.zeros(2, 1, device=device, dtype=dtype),
    )
    hidden[0] = large
    targets = torch.zeros(17, dtype=torch.int64, device=device)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    _, _, dweight = run(module.linear_cross_entropy, hidden, weight, targets, factor=17.0)
    assert dweight.flatten().tolist() == [-large / 2 - 8, large / 2 + 8]


def test_bias_gradients_add_up_in_fp32_under_autocast(linear_cross_entropy, device):
    """256.5 has too many digits for bf16."""
    hidden, weight, bias = (torch.zeros(shape, device=device) for shape in ((513, 1), (2, 1), (2,)))
    targets = torch.zeros(513, dtype=torch.int64, device=device)
    with torch.autocast(device, torch.bfloat16):
        *_, dbias = run(linear_cross_entropy, hidden, weight, targets, bias, factor=513.0)
    assert dbias.tolist() == [-256.5, 256.5]


def test_small_probabilities_do_not_vanish_in_fp16(linear_cross_entropy, device):
    hidden, weight, targets, bias = make(device, 4096, vocab=16, dtype=torch.float16, with_bias=True)
    weight, hidden = weight * 0, hidden * 0 + 1
    bias = bias * 0
    bias[3] = -9.0
    targets[targets == 3] = 4
    inputs, factor = (hidden, weight, targets, bias), 2.0**14
    ours = run(linear_cross_entropy, *inputs, factor=factor)[2:]
    for result, true in zip(ours, run(oracle, *wide(*inputs), factor=factor)[2:], strict=True):
        torch.testing.assert_close(result[3].double(), true[3], rtol=1e-2, atol=0)


@pytest.mark.parametrize("with_bias", [False, True])
def test_autocast(linear_cross_entropy, device, assert_as_accurate, with_bias):
    inputs = make(device, 3, 7, with_bias=with_bias)
    truth = run(oracle, *wide(*inputs))
    with torch.autocast(device, torch.bfloat16):
        ours, plain = run(linear_cross_entropy, *inputs), run(eager, *inputs)
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(*inputs), ours[0])
    assert all(result.dtype == torch.float32 for result in ours)
    assert (ours[1] - truth[1]).abs().max() > 1e-4, "computed in fp32"
    for result, true, low in zip(ours, truth, plain, strict=True):
        assert_as_accurate(result, true, low)


def test_two_runs_agree_to_the_last_bit(linear_cross_entropy, device):
    inputs = make(device, 30, dtype=torch.bfloat16, with_bias=True)
    assert all(map(torch.equal, run(linear_cross_entropy, *inputs), run(linear_cross_entropy, *inputs)))


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_the_function(module, device, monkeypatch, with_bias):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 5 * 8)
    hidden, weight, targets, bias = wide(*make(device, 4, d=2, vocab=5, with_bias=with_bias))
    inputs = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
    assert torch.autograd.gradcheck(lambda h, w, *b: module.linear_cross_entropy(h, w, targets, *b), inputs)


def test_a_second_backward_repeats_and_a_second_derivative_is_refused(linear_cross_entropy, device):
    hidden, weight, targets, _ = make(device, 5)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    first, second = (torch.autograd.grad(2 * loss, hidden, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *second)
    (gradient,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(linear_cross_entropy, device, frozen):
    hidden, weight, targets, bias = make(device, 5, with_bias=True)
    inputs = [hidden, weight, bias]
    for x in inputs[:frozen] + inputs[frozen + 1 :]:
        x.requires_grad_()
    linear_cross_entropy(hidden, weight, targets, bias).backward()
    truth = run(oracle, hidden, weight, targets, bias, factor=1.0)[1:]
    for i, (x, true) in enumerate(zip(inputs, truth, strict=True)):
        if i == frozen:
            assert x.grad is None
        else:
            torch.testing.assert_close(x.grad, true)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it itself
@pytest.mark.parametrize("with_bias", [False, True])
def test_compiled_into_one_graph(linear_cross_entropy, device, no_shape_checks, with_bias):
    inputs = make(device, 3, 4, dtype=torch.bfloat16, with_bias=with_bias)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(compiled, *inputs), run(linear_cross_entropy, *inputs)))
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), linear_cross_entropy(*inputs))


def test_operators_are_what_torch_expects(module, device, no_shape_checks):
    for with_bias in (False, True):
        hidden, weight, targets, bias = make(device, 5, dtype=torch.bfloat16, with_bias=with_bias)
        for name in ("linear_cross_entropy_losses", "linear_cross_entropy_losses_and_gradients"):
            torch.library.opcheck(getattr(module, name).custom_op, (hidden, weight, bias, targets))


def test_checkpointed(linear_cross_entropy, device):
    hidden, weight, targets, _ = make(device, 6)
    leaf = hidden.clone().requires_grad_()
    checkpoint(linear_cross_entropy, leaf, weight, targets, use_reentrant=False).backward()
    torch.testing.assert_close(leaf.grad, run(oracle, hidden, weight, targets, factor=1.0)[1])


def test_no_tokens_give_nan(linear_cross_entropy, device):
    hidden, weight, targets, _ = make(device, 0)
    loss = linear_cross_entropy(hidden, weight.requires_grad_(), targets)
    assert loss.isnan()
    loss.backward()
    assert weight.grad.shape == weight.shape


def test_the_reference_is_the_same_function(device):
    inputs = make(device, 2, 5, with_bias=True)
    torch.testing.assert_close(run(reference.linear_cross_entropy, *inputs), run(oracle, *inputs))


def test_wrong_arguments_are_refused(linear_cross_entropy, device, no_shape_checks):
    hidden, weight, targets, _ = make(device, 4)
    with pytest.raises(ValueError, match=r"integers of shape \(4,\)"):
        linear_cross_entropy(hidden, weight, targets[:3])
    with pytest.raises(UnsupportedError, match="one device"):
        linear_cross_entropy(hidden, weight.to("meta"), targets)
    if device == "cpu":
        with pytest.raises(IndexError, match="from 0 to 49"):
            linear_cross_entropy(hidden, weight, targets + 50)
