"""What the kit sees while a kernel's function runs, and what a submission cannot change for itself."""

import os
import types

import pytest
import torch
from graded_support import kernel_calls
from graded_support.watching import LargestTensor, is_work, same_without_kernels, watched

X = torch.arange(1.0, 13).view(3, 4)


@torch.library.custom_op("kernel_watch::hidden", mutates_args=())
def hidden(x: torch.Tensor) -> torch.Tensor:
    """An operation of its own that has PyTorch do the work."""
    return x @ x.T


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda: X @ X.T, "aten::mm"),
        (lambda: torch.einsum("ij,kj->ik", X, X), "aten::bmm"),
        (lambda: X.softmax(1), "aten::_softmax"),
        (lambda: X.clone().exp_(), "aten::exp_"),
        (lambda: X.logsumexp(1), "aten::logsumexp"),
        (lambda: torch.linalg.vector_norm(X), "aten::linalg_vector_norm"),
        (lambda: X.max(), "aten::max"),
        (lambda: X * X, "aten::mul"),
        (lambda: hidden(X), "aten::matmul"),
    ],
)
def test_work_of_pytorch_is_named(compute, name):
    with watched() as seen:
        compute()
    assert name in seen.operations
    assert seen.kernels == []


def test_attention_of_pytorch_is_work():
    q = torch.randn(1, 2, 16, 8)
    with watched() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert any("attention" in name or name == "aten::bmm" for name in seen.operations)


def test_bookkeeping_is_no_work():
    with watched() as seen:
        x = torch.empty_like(X).copy_(X).half().T.contiguous().expand(2, 4, 3).reshape(-1, 3)
        torch.zeros(3), x.new_full((3,), 0.5), x * 0.5, x.double() / 2, x > 0, torch.cat([x, x])
        torch.where(torch.arange(4)[:, None] >= torch.arange(4), 0.0, 1.0)
        torch.equal(x, x)
    assert seen.operations == []
    assert not any(map(is_work, ("expand", "add", "sub", "maximum", "exponential", "normal", "view")))


def test_what_autotune_tries_out_is_one_launch_and_no_work():
    triton = pytest.importorskip("triton")

    def bench(call, quantiles):
        (X @ X.T).sum()
        call()
        return [1.0]

    configs = [triton.Config({"WIDTH": width}) for width in (1, 2)]

    @triton.autotune(configs, key=[], do_bench=bench)
    @triton.jit
    def nothing(x, WIDTH: triton.language.constexpr):
        pass

    with watched() as seen, LargestTensor():
        nothing[(1,)](X)
        nothing[(1,)](X)
    assert (seen.kernels, seen.operations) == (["nothing", "nothing"], [])


def test_a_result_that_no_kernel_made_is_found_out():
    def by_numpy():
        return torch.from_numpy(X.numpy() @ X.numpy().T)

    assert same_without_kernels(lambda: (by_numpy(),), (by_numpy(),))
    # New memory may hold the numbers of an earlier call; here it holds nan.
    assert not same_without_kernels(lambda: (torch.empty(3),), (torch.empty(3).zero_(),))
    assert not same_without_kernels(lambda: (1 / 0,), (X,))


def test_a_submission_cannot_say_that_no_kernel_runs_here(monkeypatch):
    test = types.SimpleNamespace(user_properties=[])
    before = kernel_calls.triton_device(test)
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "0")
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: before == "cpu")
    assert kernel_calls.triton_device(test) == before
    assert test.user_properties == []
