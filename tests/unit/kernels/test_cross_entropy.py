"""Cross-entropy against PyTorch's in fp64, and what must raise once the logits are overwritten."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from cs_systems.device import UnsupportedError
from cs_systems.kernels import reference
from cs_systems.model.functional import cross_entropy as eager

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def module(device):
    from cs_systems.kernels import cross_entropy

    return cross_entropy


@pytest.fixture(scope="module")
def cross_entropy(module):
    return module.cross_entropy


def oracle(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def make(device, *shape, dtype=torch.float32, scale=1.0):
    logits = (torch.randn(shape, device=device) * scale).to(dtype)
    return logits, torch.randint(shape[-1], shape[:-1], device=device)


def run(function, logits, targets, factor=3.0, **options):
    """Loss, and the gradient of factor * loss by logits that are the result of an operation."""
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf * 1, targets, **options)
    return loss.detach(), *torch.autograd.grad(loss, leaf, torch.full_like(loss, factor))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 7), (5, 64), (3, 1000), (2, 32768), (2, 32769), (1, 65537)])
def test_values_and_gradients(cross_entropy, device, assert_as_accurate, poisoned, dtype, overwrite, shape):
    logits, targets = make(device, *shape, dtype=dtype)
    ours = run(cross_entropy, logits, targets, overwrite_logits=overwrite)
    truth = run(oracle, logits.double(), targets)
    plain = run(eager, logits, targets)
    assert (ours[0].dtype, ours[1].dtype) == (torch.float32, dtype)
    for result, true, low in zip(ours, truth, plain, strict=True):
        assert_as_accurate(result, true, low)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    rows=st.integers(1, 40), vocab=st.integers(1, 300), step=st.integers(1, 3), overwrite=st.booleans(),
    integer=st.sampled_from([torch.int32, torch.int64]), factor=st.sampled_from([1.0, 0.25, 0.0]),
)  # fmt: skip
def test_any_shape_and_stride(cross_entropy, device, rows, vocab, step, overwrite, integer, factor):
    logits = torch.randn(vocab * 2, rows * step, device=device)[::2, ::step].T
    targets = torch.randint(vocab, (rows * step,), device=device, dtype=integer)[::step]
    ours = run(cross_entropy, logits, targets, factor, overwrite_logits=overwrite)
    truth = run(oracle, logits, targets, factor)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overwrite", [False, True])
def test_long_rows_of_any_stride(cross_entropy, device, overwrite):
    logits, targets = (
        torch.randn(33000, 6, device=device)[:, ::2].T,
        torch.randint(33000, (3,), device=device),
    )
    ours = run(cross_entropy, logits, targets, overwrite_logits=overwrite)
    torch.testing.assert_close(ours, run(oracle, logits, targets))


@pytest.mark.parametrize("vocab", [1000, 33000])
def test_gradients_in_bf16_are_rounded_to_nearest(cross_entropy, device, vocab):
    """Cut off instead, half of them would differ."""
    logits, targets = make(device, 2, vocab, dtype=torch.bfloat16)
    _, ours = run(cross_entropy, logits, targets, factor=1.0)
    _, truth = run(oracle, logits.double(), targets, factor=1.0)
    assert (ours == truth.bfloat16()).float().mean() > 0.99


@pytest.mark.parametrize("vocab", [50, 33000])
def test_extreme_values(cross_entropy, device, vocab):
    logits, targets = make(device, 7, vocab)
    targets[:] = 1
    logits[0] *= 1e4
    logits[1] = 5.0
    logits[2, 0] = -torch.inf
    logits[3] *= 1e-30
    logits[4] *= 1e30
    logits[5] += 1e4
    logits[6, 1] = 40.0  # certain: its loss is nearly 0
    for row in range(7):
        ours = run(cross_entropy, logits[row : row + 1], targets[row : row + 1])
        truth = run(oracle, logits[row : row + 1].double(), targets[row : row + 1])
        torch.testing.assert_close(ours, truth, rtol=2e-5, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("vocab", [50, 33000])
def test_an_impossible_target_has_infinite_loss_and_a_row_of_minus_infinity_nan(cross_entropy, device, vocab):
    logits, targets = make(device, 3, vocab)
    logits[1, targets[1]] = -torch.inf
    assert cross_entropy(logits, targets) == torch.inf
    logits[1] = -torch.inf
    loss, gradient = run(cross_entropy, logits, targets)
    assert loss.isnan()
    assert gradient.isnan().any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("vocab", [50, 33000])
def test_nan_stays_in_its_row(cross_entropy, device, vocab, overwrite):
    logits, targets = make(device, 9, vocab)
    logits[4, vocab // 2] = torch.nan
    loss, gradient = run(cross_entropy, logits, targets, overwrite_logits=overwrite)
    assert loss.isnan()
    assert gradient[4].isnan().all()
    assert not gradient[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any()


@pytest.mark.parametrize("wrong", [-1, 10, -100])
def test_a_target_outside_the_vocabulary_is_refused(cross_entropy, device, wrong):
    logits, targets = make(device, 4, 10)
    targets[2] = wrong
    if device == "cpu":
        with pytest.raises(IndexError, match="from 0 to 9"):
            cross_entropy(logits, targets)
    else:
        assert cross_entropy(logits, targets).isnan()


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("wrong", [-1, 10, 2**32 + 3])
def test_the_kernels_answer_nan_to_a_wrong_target(module, device, online, wrong):
    """What happens on a GPU, where the host does not look at the targets."""
    import triton.language as tl

    logits, targets = make(device, 3, 10)
    targets[1] = wrong
    losses, gradient = torch.zeros(3, device=device), torch.zeros(3, 10, device=device)
    constants = {"WITH_GRADIENT": True, "ACC": tl.float32}
    tensors = (logits, targets, losses, gradient)
    if online:
        module.cross_entropy_online_kernel[(3,)](*tensors, 10, 10, 1, 3.0, COLUMNS=16, **constants)
    else:
        module.cross_entropy_kernel[(1,)](*tensors, 3, 10, 10, 1, 3.0, ROWS=4, COLUMNS=16, **constants)
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, True, False]


def test_shift_and_permutation_of_classes_change_nothing(cross_entropy, device):
    logits, targets = make(device, 6, 100)
    order = torch.randperm(100, device=device)
    loss = cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(logits + 100, targets), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross_entropy(logits[:, order], order.argsort()[targets]), loss)


@pytest.mark.parametrize("vocab", [300, 33000])
def test_two_runs_agree_to_the_last_bit(cross_entropy, device, vocab):
    logits, targets = make(device, 2, vocab, dtype=torch.bfloat16)
    first, second, third = (
        run(cross_entropy, logits, targets, overwrite_logits=overwrite) for overwrite in (False, False, True)
    )
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, third))


def test_without_a_gradient_nothing_is_written(cross_entropy, device):
    logits, targets = make(device, 4, 30)
    before = logits.clone()
    leaf = logits.requires_grad_()
    result = leaf * 1
    with torch.no_grad():
        loss = cross_entropy(result, targets, overwrite_logits=True)
    constant = cross_entropy(result.detach(), targets, overwrite_logits=True)
    assert torch.equal(result, before)
    for value in (loss, constant):
        assert not value.requires_grad
        torch.testing.assert_close(value, oracle(before, targets))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_lies_where_the_logits_were(cross_entropy, device, dtype):
    logits, targets = make(device, 2, 3, 40, dtype=dtype)
    truth = run(oracle, logits.double(), targets, 1.0)[1]
    result = logits.requires_grad_().clone()
    memory = result.detach()
    loss = cross_entropy(result, targets, overwrite_logits=True)
    (gradient,) = torch.autograd.grad(loss * 4, logits)
    torch.testing.assert_close(gradient, 4 * truth, rtol=1e-2, atol=1e-6, check_dtype=False)
    assert gradient.data_ptr() == memory.data_ptr()
    assert not gradient.requires_grad


@pytest.mark.parametrize("kind", ["leaf", "view", "transposed", "retaining"])
def test_what_others_may_read_is_not_overwritten(cross_entropy, device, kind):
    logits, targets = make(device, 6, 6)
    leaf = logits.requires_grad_()
    result = {"leaf": leaf, "view": (leaf * 1).view(6, 6), "transposed": (leaf.T * 1).T}.get(kind, leaf * 1)
    if kind == "retaining":
        result.retain_grad()
    before = result.detach().clone()
    loss = cross_entropy(result, targets, overwrite_logits=True)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(result, before)
    torch.testing.assert_close(gradient, run(oracle, leaf, targets, 1.0)[1])


def test_an_operation_that_kept_the_logits_raises(cross_entropy, device):
    leaf, targets = make(device, 4, 9)
    logits = leaf.requires_grad_().tanh()  # its derivative is computed from its result
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cross_entropy(logits, targets, overwrite_logits=True).backward()
    logits = leaf * 1
    penalty = logits.square().mean()
    loss = cross_entropy(logits, targets, overwrite_logits=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + penalty).backward()


def test_a_gradient_for_overwritten_logits_raises(cross_entropy, device):
    leaf, targets = make(device, 4, 9)
    logits = leaf.requires_grad_() * 1
    loss = cross_entropy(logits, targets, overwrite_logits=True)
    with pytest.raises(RuntimeError, match="used after cross_entropy had overwritten them"):
        (loss + logits.logsumexp(-1).mean()).backward()


def test_logits_changed_before_backward_raise(cross_entropy, device):
    leaf, targets = make(device, 4, 9)
    logits = leaf.requires_grad_() * 1
    loss = cross_entropy(logits, targets, overwrite_logits=True)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_repeats_or_raises(cross_entropy, device):
    leaf, targets = make(device, 4, 9)
    leaf.requires_grad_()
    loss = cross_entropy(leaf * 1, targets)
    first, second = (torch.autograd.grad(2 * loss, leaf, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *second)
    loss = cross_entropy(leaf * 1, targets, overwrite_logits=True)
    torch.autograd.grad(2 * loss, leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(2 * loss, leaf)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_derivative_is_refused(cross_entropy, device, overwrite):
    leaf, targets = make(device, 4, 9)
    loss = cross_entropy(leaf.requires_grad_() * 1, targets, overwrite_logits=overwrite)
    (gradient,) = torch.autograd.grad(loss.square(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_factor_of_one_writes_nothing(module, device, monkeypatch):
    if device == "cuda":
        pytest.skip("the interpreter's stores are counted")
    from triton.runtime.interpreter import interpreter_builder

    stores, store = [], interpreter_builder.create_masked_store
    monkeypatch.setattr(
        interpreter_builder, "create_masked_store", lambda *args: (stores.append(1), store(*args))[1]
    )
    leaf, targets = make(device, 4, 9)
    for factor, in_backward in ((1.0, False), (2.0, True)):
        loss = module.cross_entropy(leaf.requires_grad_() * 1, targets, overwrite_logits=True)
        assert stores
        stores.clear()
        torch.autograd.grad(loss * factor, leaf)
        assert bool(stores) == in_backward


@pytest.mark.parametrize("overwrite", [False, True])
def test_small_probabilities_do_not_vanish_in_fp16(cross_entropy, device, overwrite):
    """As the factor of a gradient scaler intends: p / num_tokens alone would be 0 in fp16."""
    logits, targets = make(device, 4096, 16, dtype=torch.float16, scale=0.1)
    logits[:, 3] = -9.0
    targets[targets == 3] = 4
    scale = 2.0**14
    _, ours = run(cross_entropy, logits, targets, scale, overwrite_logits=overwrite)
    truth = run(oracle, logits.double(), targets, scale)[1]
    torch.testing.assert_close(ours[:, 3].double(), truth[:, 3], rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(4, 9), (1, 33000)])
def test_gradients_are_those_of_the_function(cross_entropy, device, shape):
    if device == "cuda":
        pytest.skip("fp64 runs in the interpreter only")
    logits, targets = make(device, *shape)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits, fast_mode=True)
    for overwrite in (False, True):
        ours = run(cross_entropy, logits, targets, overwrite_logits=overwrite)
        torch.testing.assert_close(ours, run(oracle, logits, targets), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch does it itself
@pytest.mark.parametrize("overwrite", [False, True])
def test_compiled_into_one_graph(cross_entropy, device, no_shape_checks, overwrite):
    logits, targets = make(device, 3, 4, 50, dtype=torch.bfloat16)

    def loss_of(logits, targets):
        return cross_entropy(logits * 1, targets, overwrite_logits=overwrite)

    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    expected, leaf = run(cross_entropy, logits, targets), logits.clone().requires_grad_()
    loss = compiled(leaf, targets)
    (gradient,) = torch.autograd.grad(loss * 3, leaf)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    with torch.no_grad():
        assert torch.equal(compiled(logits, targets), expected[0])


def test_operators_are_what_torch_expects(module, device, no_shape_checks):
    logits, targets = make(device, 5, 20)
    for name, arguments in (
        ("cross_entropy_losses", (logits, targets)),
        ("cross_entropy_losses_and_gradient", (logits, targets, 5)),
        ("scale", (logits, torch.tensor(3.0, device=device), 5, torch.bfloat16)),
    ):
        torch.library.opcheck(getattr(module, name).custom_op, arguments)


@pytest.mark.parametrize("overwrite", [False, True])
def test_autocast(cross_entropy, device, overwrite):
    hidden, weight = (torch.randn(6, 8, device=device, requires_grad=True) for _ in range(2))
    targets = torch.arange(6, device=device)
    gradients = []
    for function in (lambda *args: cross_entropy(*args, overwrite_logits=overwrite), eager):
        with torch.autocast(device, torch.bfloat16):
            loss = function(hidden @ weight.T, targets)
            assert loss.dtype == torch.float32
            gradients.append(torch.autograd.grad(loss, (hidden, weight)))
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(cross_entropy, device, reentrant):
    logits, targets = make(device, 6, 20)

    def loss_of(logits, targets):
        return cross_entropy(logits * 1, targets, overwrite_logits=True)

    leaf = logits.clone().requires_grad_()
    checkpoint(loss_of, leaf, targets, use_reentrant=reentrant).backward()
    torch.testing.assert_close(leaf.grad, run(oracle, logits, targets, 1.0)[1])


def test_no_tokens_give_nan_as_eager_does(cross_entropy, device):
    logits = torch.randn(0, 7, device=device, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64, device=device)
    for function in (cross_entropy, eager):
        loss = function(logits, targets)
        assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.shape == (0, 7)


def test_the_reference_is_the_same_function(device):
    logits, targets = make(device, 2, 5, 20)
    torch.testing.assert_close(run(reference.cross_entropy, logits, targets), run(oracle, logits, targets))


def test_wrong_arguments_are_refused(cross_entropy, device, no_shape_checks):
    logits, targets = make(device, 4, 10)
    with pytest.raises(ValueError, match=r"integers of shape \(4,\)"):
        cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match="float32"):
        cross_entropy(logits, targets.float())
    with pytest.raises(UnsupportedError, match="one device"):
        cross_entropy(logits, targets.to("meta"))
    with pytest.raises(UnsupportedError, match="int64"):
        cross_entropy(logits.long(), targets)
