"""Softmax of each row as one Triton kernel forward and one backward."""

import pytest
import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.kernel_calls import gradients, triton_device
from graded_support.row_kernels import LAYOUTS, check_softmax, run_softmax, softmax_error


@pytest.fixture
def device(request):
    """Where kernels run."""
    return triton_device(request.node)


def test_rows_whose_length_is_no_power_of_two(adapters, device):
    for shape in ((5, 100), (37, 16), (3, 1)):
        check_softmax(adapters, torch.randn(shape, device=device) - 1)


def test_logits_too_large_for_exp(adapters, device):
    check_softmax(adapters, torch.randn(4, 60, device=device) * 10 + 1000)
    check_softmax(adapters, torch.randn(4, 60, device=device) * 10 - 1000)


def test_rows_longer_than_a_tile_may_be(adapters, device):
    check_softmax(adapters, torch.randn(2, 40_000, device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(adapters, device, layout):
    check_softmax(adapters, LAYOUTS[layout](torch.randn(24, 40, device=device)))


def test_half_precision_is_computed_in_fp32(adapters, device):
    check_softmax(adapters, torch.randn(30, 100, device=device).half())
    # The sum of 80,000 exponentials of nearly equal logits is over 75,000, and fp16 ends at 65,504.
    check_softmax(adapters, (torch.rand(1, 80_000, device=device) / 16).half())


def test_gradient(adapters, device):
    for shape, layout in (((5, 100), None), ((40, 40), "transposed"), ((2, 20_000), None)):
        x = torch.randn(shape, device=device, requires_grad=True)
        dy = torch.randn(shape, device=device)
        dy = dy if layout is None else LAYOUTS[layout](dy.T if layout == "transposed" else dy)
        (actual,) = gradients(run_softmax(adapters, x), [x], dy, what="the softmax kernel", in_triton=True)
        check_gradient(actual, x, dy)


def test_one_kernel_forward_and_one_backward(adapters, device):
    for launches in (None, 1):  # autotune tries out tiles in the first call
        x = torch.randn(4, 50, device=device, requires_grad=True)
        dy = torch.randn(4, 50, device=device)
        y = run_softmax(adapters, x, launches=launches)
        (actual,) = gradients(y, [x], dy, what="the softmax kernel", in_triton=True, launches=launches)
    check_gradient(actual, x, dy)


def check_gradient(actual, x, dy):
    y, dy = x.detach().double().softmax(1), dy.double()
    mean = (y * dy).sum(1, keepdim=True)
    # y is off by forward's error, and the sum of as many products as there are columns is off by its own.
    error = softmax_error(x.detach().double(), y)
    size = (y * dy.abs()).sum(1, keepdim=True)
    allowed = error * (dy - mean).abs() + y * ((error * dy.abs()).sum(1, keepdim=True))
    allowed += rounding_bound(torch.float32, 1, y * (x.shape[1] * size + 2 * dy.abs()))
    check_tensor(
        actual,
        y * (dy - mean),
        what=f"the gradient of softmax of {tuple(x.shape)}, dy with strides {dy.stride()}",
        allowed=allowed,
        dtype=torch.float32,
        mistakes={
            "the other outputs of the row are forgotten: it is y * (dy - sum(y * dy))": y * dy,
            "only the diagonal y * (1 - y) is used: each input changes all outputs of its row": y
            * (1 - y)
            * dy,
            "dy - sum(y * dy) is not multiplied by y": dy - mean,
            "sum(y * dy) is added instead of subtracted": y * (dy + mean),
            "sum(dy) is subtracted instead of sum(y * dy)": y * (dy - dy.sum(1, keepdim=True)),
            "the gradient that arrives is taken for all ones": torch.zeros_like(y),
        },
        hint="dx = y * (dy - sum(y * dy)), where the sum goes over the row.",
    )
