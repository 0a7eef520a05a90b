"""get_flashattention_autograd_function_triton: how fast it is, on a GPU, beside the formula in PyTorch."""

import secrets
import statistics

import pytest
import torch
from graded_support.compare import fail
from graded_support.timed_calls import GPU_SHAPE, RejectedError, Shape, prepare, race

TIMES_AS_FAST = 2.0
"""What FlashAttention must gain at least on 16 heads of 16,384 positions. The formula writes and reads every
score several times, forward and backward; a kernel keeps them on the chip and skips those that are hidden."""
CALLS = 10


@pytest.fixture(scope="session")
def plan():
    """Decided before the adapters are imported, unless the tests of another problem came first."""
    return prepare(Shape(**GPU_SHAPE, device=torch.device("cuda")), seed=secrets.randbits(63), calls=CALLS)


@pytest.mark.gpu
def test_forward_and_backward_are_faster_than_the_formula(plan, adapters):
    try:
        result = race(plan, adapters.get_flashattention_autograd_function_triton(), "triton")
    except RejectedError as error:
        fail(f"flash attention was not timed: {error}")
    seconds = {name: statistics.median(values) for name, values in result["samples_s"].items()}
    times_as_fast = seconds["formula"] / seconds["forward-backward"]
    if times_as_fast < TIMES_AS_FAST:
        fail(
            f"forward and backward took {1e3 * seconds['forward-backward']:.3g} ms, the formula in PyTorch "
            f"{1e3 * seconds['formula']:.3g} ms: {times_as_fast:.2f} times as fast; expected at least "
            f"{TIMES_AS_FAST:g}. What helps most: larger tiles, products in bf16 with sums in fp32, skipping "
            "tiles that causality hides, and Triton kernels for backward too."
        )
