"""The forward pass of FlashAttention-2, in PyTorch and in Triton: result, L, and that it works by tiles.

Sizes are powers of two, from 16 on, as the course promises.
"""

import dataclasses
import sys

import pytest
import torch
from graded_support.attention_checks import IMPLEMENTATIONS, check_forward, check_result, device_of, forward
from graded_support.attention_mistakes import log_sum_exp_mistakes
from graded_support.attention_truth import make_inputs, true_log_sum_exp
from graded_support.compare import check_tensor, fail
from graded_support.watching import LargestTensor


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Which of the two, and where it runs."""
    return request.param, device_of(request.param, request.node)


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot look through jaxtyping's checks, where the graded package has them switched on."""
    jaxtyping = sys.modules.get("jaxtyping")
    if jaxtyping is None:
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def check(adapters, implementation, *sizes, dtype=torch.float32):
    """The result for random numbers of these sizes."""
    kind, device = implementation
    check_forward(adapters, kind, make_inputs(*sizes, dtype=dtype, device=device))


def test_every_query_sees_every_key(adapters, implementation):
    check(adapters, implementation, 2, 128, 128, 16, False)


def test_a_causal_query_sees_no_later_key(adapters, implementation):
    check(adapters, implementation, 2, 128, 128, 16, True)


def test_queries_and_keys_differ_in_number(adapters, implementation):
    for is_causal in (False, True):
        check(adapters, implementation, 2, 128, 64, 32, is_causal)
        check(adapters, implementation, 2, 64, 128, 32, is_causal)


def test_the_widest_head(adapters, implementation):
    check(adapters, implementation, 1, 32, 32, 128, True)


def test_large_scores_that_rise_and_fall_from_tile_to_tile(adapters, implementation):
    kind, device = implementation
    inputs = make_inputs(2, 64, 256, 16, False, device=device)
    # The first channel alone makes scores of 100 to 108, whose exponentials fp32 cannot hold: 8 * k_0 / 4.
    inputs.q[..., 0] = 8
    inputs.k[..., 0] = 50 + torch.linspace(0, 4, 256, device=device).round(decimals=1)
    check_forward(adapters, kind, inputs)
    check_forward(adapters, kind, dataclasses.replace(inputs, k=inputs.k.flip(1), v=inputs.v.flip(1)))


def test_half_precision_comes_out_as_it_went_in(adapters, implementation):
    # Triton's interpreter multiplies the bits of bf16 as if they were integers; a GPU does not.
    dtype = torch.float16 if implementation == ("triton", "cpu") else torch.bfloat16
    check(adapters, implementation, 2, 64, 64, 16, False, dtype=dtype)


def test_one_number_a_query_is_kept_for_backward(adapters, implementation):
    kind, device = implementation
    for is_causal in (False, True):
        inputs = make_inputs(2, 64, 128, 16, is_causal, device=device)
        o = forward(adapters, kind, inputs)
        if not isinstance(o, torch.Tensor) or o.grad_fn is None:
            fail(f"o of {kind} has no grad_fn: it did not come out of the autograd.Function")
        saved = [tensor for tensor in o.grad_fn.saved_tensors if isinstance(tensor, torch.Tensor)]
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in saved) or "nothing"
        of_shape = [tensor for tensor in saved if tensor.shape == inputs.q.shape[:2]]
        if len(of_shape) != 1:
            shape = tuple(inputs.q.shape[:2])
            fail(
                f"{kind} keeps {len(of_shape)} tensors of shape (batch, queries) = {shape}; expected exactly "
                f"one, L, in ctx.save_for_backward. It keeps: {shapes}"
            )
        for name, tensor in {"q": inputs.q, "k": inputs.k, "v": inputs.v, "o": o.detach()}.items():
            if not any(kept.shape == tensor.shape and torch.equal(kept, tensor) for kept in saved):
                fail(f"{kind} does not keep {name} with ctx.save_for_backward. It keeps: {shapes}")
        truth = true_log_sum_exp(inputs)
        check_tensor(
            of_shape[0],
            truth.values,
            what=f"L of {kind} (is_causal={is_causal})",
            allowed=truth.allowed,
            dtype=torch.float32,
            mistakes=log_sum_exp_mistakes(inputs),
            hint=(
                "L = m + log(l): the natural logarithm of the sum of the exponentials of the scaled scores. "
                "If o is wrong too, mend that first."
            ),
        )


def test_no_array_of_all_scores_is_made(adapters, implementation):
    kind, device = implementation
    inputs = make_inputs(1, 256, 256, 16, False, device=device)
    forward(adapters, kind, inputs)  # autotune tries out tiles in the first call
    with LargestTensor() as largest:
        o = forward(adapters, kind, inputs)
    if largest.num_elements >= 256 * 256:
        fail(
            "the whole score matrix was built, that is no tiling: for 256 queries and 256 keys "
            f"{largest.where}. Loop over tiles of queries, and in it over tiles of keys, and keep the scores "
            "of one tile only"
        )
    check_result(o, inputs, f"o of {kind}")


def test_torch_compile_takes_it(adapters, no_shape_checks):
    inputs = make_inputs(1, 64, 64, 16, True)
    function = adapters.get_flashattention_autograd_function_pytorch()
    torch.compiler.reset()
    # What follows the tracing (C++ for a CPU) is not the student's work, and takes longest: it is left out.
    compiled = torch.compile(function.apply, backend="eager")
    check_result(compiled(inputs.q, inputs.k, inputs.v, True), inputs, "o of torch.compile(pytorch.apply)")
