"""The softmax kernel for sizes and numbers that are not in the handout."""

import pytest
import torch
from graded_support.kernel_calls import triton_device
from graded_support.row_kernels import check_softmax


@pytest.fixture
def device(request):
    """Where kernels run."""
    return triton_device(request.node)


def test_sizes_that_nobody_knows(adapters, device, secret_seed):
    generator = torch.Generator().manual_seed(secret_seed)
    for most in (30, 300, 3000):
        rows, columns = (int(torch.randint(1, limit, (), generator=generator)) for limit in (40, most))
        logits = 5 * torch.randn(rows, columns + 3, generator=generator) - 3
        check_softmax(adapters, logits.to(device)[:, 3:])
