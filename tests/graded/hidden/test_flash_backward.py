"""The backward pass of FlashAttention-2 for sizes and numbers that are not in the handout."""

import pytest
from graded_support.attention_checks import IMPLEMENTATIONS, check_backward, device_of, make_secret_inputs


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Which of the two, and where it runs."""
    return request.param, device_of(request.param, request.node)


def test_sizes_that_nobody_knows(adapters, implementation, secret_seed):
    kind, device = implementation
    for number in range(4, 8):
        check_backward(adapters, kind, make_secret_inputs(secret_seed, number, device=device))
