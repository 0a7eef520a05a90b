"""The first kernel: sum_j x_ij w_j of each row in Triton, with gradients of both."""

import pytest
import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.kernel_calls import apply, gradients, triton_device
from graded_support.row_kernels import LAYOUTS, as_if_contiguous

WHAT = "the weighted sum"
MASKS = "Rows and columns beyond the end must be masked: loads with other=0, and stores."


@pytest.fixture
def device(request):
    """Where kernels run."""
    return triton_device(request.node)


def forward(adapters, x, weight):
    function = adapters.get_weighted_sum_autograd_function_triton()
    return apply(function, x, weight, what=WHAT, in_triton=True)


def check_values(adapters, x, weight, hint=MASKS):
    """Values of one call, in float64 and beside the known mistakes."""
    actual = forward(adapters, x, weight)
    wide, wide_weight = x.double(), weight.double()
    products = wide * wide_weight
    in_memory = as_if_contiguous(x)
    by_one = torch.as_strided(weight, weight.shape, (1,)).double()
    # Added up in fp32, and rounded once to the type of x. The products of the 16-bit test are exact.
    allowed = rounding_bound(torch.float32, x.shape[1], products.abs().sum(1))
    allowed += rounding_bound(x.dtype, 1, products.sum(1).abs())
    check_tensor(
        actual,
        products.sum(1),
        what=f"{WHAT} of {tuple(x.shape)} with strides {x.stride()}",
        allowed=allowed,
        dtype=x.dtype,
        mistakes={
            "the weights are left out": wide.sum(1),
            "it is divided by the number of columns": products.mean(1),
            "the strides of x are not used, as if its rows lay one after the other": (
                in_memory * wide_weight
            ).sum(1),
            "the stride of the weight is not used": (wide * by_one).sum(1),
        }
        | {
            f"only the first {tile} columns are added up: loop over tiles of columns": products[:, :tile].sum(
                1
            )
            for tile in (16, 32, 64, 128, 256, 512, 1024)
            if tile < x.shape[1]
        },
        hint=hint,
    )


def test_rows_and_columns_that_fill_no_tile(adapters, device):
    for rows, columns in ((1, 17), (37, 100), (16, 64), (33, 20)):
        check_values(adapters, torch.randn(rows, columns, device=device), torch.randn(columns, device=device))


def test_more_columns_than_a_tile_has(adapters, device):
    check_values(adapters, torch.randn(20, 3000, device=device), torch.randn(3000, device=device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(adapters, device, layout):
    x = LAYOUTS[layout](torch.randn(40, 60, device=device))
    weight = torch.randn(2 * x.shape[1], device=device)[::2]
    check_values(adapters, x, weight)


def test_half_precision_is_added_up_in_fp32(adapters, device):
    # The sum passes 96,000, which fp16 does not have, and ends near 0.
    x, weight = torch.ones(20, 3000, device=device).half(), torch.full((3000,), 64.0, device=device).half()
    weight[1500:] = -64
    x[:, -1] = torch.arange(20, device=device)
    check_values(adapters, x, weight, hint="Add up in fp32: a sum in fp16 is infinite from 65,520 on.")


def test_gradients(adapters, device):
    for rows, columns in ((63, 100), (20, 1500)):
        x = torch.randn(rows, columns, device=device, requires_grad=True)
        weight = torch.randn(columns, device=device, requires_grad=True)
        check_gradients(adapters, x, weight, torch.randn(rows, device=device))


def test_gradients_where_strides_are_unusual(adapters, device):
    x = torch.randn(60, 40, device=device).T.requires_grad_()
    weight = torch.randn(120, device=device)[::2].requires_grad_()
    check_gradients(adapters, x, weight, torch.randn(80, device=device)[::2])
    check_gradients(adapters, x, weight, torch.ones((), device=device).expand(40))  # that of y.sum()


def check_gradients(adapters, x, weight, dy):
    y = forward(adapters, x, weight)
    # The partial sums of the programs may be added up by PyTorch.
    dx, dweight = gradients(y, [x, weight], dy, what=WHAT, in_triton=True, may=["aten::sum"])
    wide, wide_weight, wide_dy = x.detach().double(), weight.detach().double(), dy.double()
    what = f"of {WHAT} of {tuple(x.shape)}, strides {x.stride()}, dy with stride {dy.stride()}"
    check_tensor(
        dx,
        wide_dy[:, None] * wide_weight,
        what=f"the gradient of x {what}",
        allowed=rounding_bound(torch.float32, 1, (wide_dy[:, None] * wide_weight).abs()),
        dtype=torch.float32,
        mistakes={
            "the gradient that arrives is taken for all ones": wide_weight.expand(x.shape),
            "it is the gradient of the weights, element by element: dx_ij = dy_i * weight_j": wide_dy[:, None]
            * wide,
        },
        hint="dx_ij = dy_i * weight_j.",
    )
    products = wide * wide_dy[:, None]
    check_tensor(
        dweight,
        products.sum(0),
        what=f"the gradient of the weight {what}",
        allowed=rounding_bound(torch.float32, x.shape[0], products.abs().sum(0)),
        dtype=torch.float32,
        mistakes={
            "the gradient that arrives is taken for all ones": wide.sum(0),
            "it is averaged over the rows instead of added up": products.mean(0),
        }
        | {
            f"only the {which} program's rows count (tiles of {tile} rows); add up all": products[part].sum(0)
            for tile in (1, 4, 8, 16, 32)
            for which, part in (
                ("first", slice(tile)),
                ("last", slice((x.shape[0] - 1) // tile * tile, None)),
            )
            if tile < x.shape[0]
        },
        hint="dweight_j = sum_i dy_i x_ij, over the rows of all programs.",
    )
