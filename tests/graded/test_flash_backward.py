"""The backward pass of FlashAttention-2: dq, dk and dv of both implementations, from q, k, v, o and L.

Backward may be written in PyTorch, compiled or not, or in Triton. Sizes are powers of two, from 16 on.
"""

import dataclasses

import pytest
import torch
from graded_support.attention_checks import IMPLEMENTATIONS, check_backward, device_of
from graded_support.attention_truth import make_inputs


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Which of the two, and where it runs."""
    return request.param, device_of(request.param, request.node)


def test_gradients_when_every_query_sees_every_key(adapters, implementation):
    kind, device = implementation
    check_backward(adapters, kind, make_inputs(2, 128, 128, 16, False, device=device))


def test_gradients_of_causal_attention(adapters, implementation):
    kind, device = implementation
    check_backward(adapters, kind, make_inputs(2, 128, 128, 16, True, device=device))


def test_gradients_when_queries_and_keys_differ_in_number(adapters, implementation):
    kind, device = implementation
    check_backward(adapters, kind, make_inputs(2, 64, 128, 32, False, device=device))
    check_backward(adapters, kind, make_inputs(2, 128, 64, 32, True, device=device))


def test_gradients_of_large_scores(adapters, implementation):
    kind, device = implementation
    inputs = make_inputs(2, 128, 128, 16, True, device=device)
    # Scores of about 100, whose exponentials fp32 cannot hold: only exp(S - L) is small.
    inputs.q[..., 0], inputs.k[..., 0] = 8, 50
    check_backward(adapters, kind, inputs)


def test_the_gradient_that_arrives_may_have_any_strides(adapters, implementation):
    kind, device = implementation
    inputs = make_inputs(2, 128, 128, 16, False, device=device)
    transposed = inputs.do.mT.contiguous().mT
    of_a_sum = torch.ones((), device=device).expand(inputs.do.shape)  # what o.sum().backward() sends
    for do in (transposed, of_a_sum):
        check_backward(adapters, kind, dataclasses.replace(inputs, do=do))
