"""Wrong kernels that work along rows: the weighted sum and softmax. They launch a right one as well."""

import torch
from torch.autograd import Function

from mutants.mutant import Mutant


def as_rows_of_memory(x):
    """x as a kernel sees it that does not use its strides."""
    return torch.as_strided(x, x.shape, (x.shape[1], 1)).clone()


def launches(name, function):
    """An autograd.Function that launches the reference's kernel, and returns something else.

    The mistake is a function of x and weight, or of x; PyTorch differentiates it.
    """

    def get():
        from cs_systems.kernels.softmax import softmax_forward
        from cs_systems.kernels.weighted_sum import WeightedSum

        class MutantRows(Function):
            @staticmethod
            def forward(ctx, x, *weight):
                ctx.save_for_backward(x, *weight)
                launch(x, *weight)
                return function(x, *weight)

            @staticmethod
            def backward(ctx, dy):
                launch(*ctx.saved_tensors)
                with torch.enable_grad():
                    leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
                    return torch.autograd.grad(function(*leaves), leaves, dy, allow_unused=True)

        def launch(x, *weight):
            if weight:
                WeightedSum.apply(x[:1, :1].clone(), weight[0][:1].clone())
            else:
                softmax_forward(x[:1, :1].clone())

        return MutantRows

    return {f"get_{name}_autograd_function_triton": get}


class OtherGradient(Function):
    """The value of `function`, and the gradients that `backward` says."""

    @staticmethod
    def forward(ctx, function, backward, *inputs):
        ctx.save_for_backward(*inputs)
        ctx.rule = backward
        return function(*inputs)

    @staticmethod
    def backward(ctx, dy):
        return None, None, *ctx.rule(dy, *ctx.saved_tensors)


def sums(name, says, function, backward=None):
    def differentiable(x, weight):
        return function(x, weight) if backward is None else OtherGradient.apply(function, backward, x, weight)

    return Mutant("weighted_sum", name, launches("weighted_sum", differentiable), says)


def weighted_sum(x, weight):
    return (x.float() * weight.float()).sum(1).to(x.dtype)


def in_fp16(x, weight):
    total = torch.zeros(x.shape[0], dtype=x.dtype)
    for start in range(0, x.shape[1], 16):
        total = total + (x[:, start : start + 16] * weight[start : start + 16]).sum(1)
    return total


def changes_x(x, weight):
    y = weighted_sum(x, weight)
    x.data.mul_(2)
    return y


WEIGHTED_SUM = [
    sums("no-weights", "the weights are left out", lambda x, weight: x.sum(1)),
    sums("one-tile", "only the first 64 columns", lambda x, weight: (x * weight)[:, :64].sum(1)),
    sums(
        "no-strides",
        "the strides of x are not used",
        lambda x, weight: (as_rows_of_memory(x) * weight).sum(1),
    ),
    sums("sum-in-fp16", "Add up in fp32", in_fp16),
    sums("changes-its-input", "changed its argument 1", changes_x),
    sums(
        "dweight-of-one-program",
        "only the last program's rows count \\(tiles of 16",
        weighted_sum,
        lambda dy, x, w: (dy[:, None] * w, (dy[:, None] * x)[(len(x) - 1) // 16 * 16 :].sum(0)),
    ),
    sums(
        "arriving-gradient-ignored",
        "taken for all ones",
        weighted_sum,
        lambda dy, x, w: (w.expand(x.shape), x.sum(0)),
    ),
    sums(
        "dweight-missing",
        "returned None for argument 2",
        weighted_sum,
        lambda dy, x, w: (dy[:, None] * w, None),
    ),
    Mutant(
        "weighted_sum",
        "pytorch",
        {
            "get_weighted_sum_autograd_function_triton": lambda: type(
                "Sum", (Function,), {"forward": staticmethod(lambda ctx, x, weight: weighted_sum(x, weight))}
            )
        },
        "no Triton kernel was launched",
    ),
]


def softmaxes(name, says, function, backward=None):
    def differentiable(x):
        return function(x) if backward is None else OtherGradient.apply(function, backward, x)

    return Mutant("softmax_kernel", name, launches("softmax", differentiable), says)


def without_maximum(x):
    exponentials = x.exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def padded_with_zeros(x):
    num_padded = (1 << (x.shape[1] - 1).bit_length()) - x.shape[1]
    return torch.cat([x, x.new_zeros(len(x), num_padded)], 1).softmax(1)[:, : x.shape[1]]


def softmax_in_fp16(x):
    total = torch.zeros(len(x), 1, dtype=x.dtype)
    exponentials = (x - x.amax(1, keepdim=True)).exp()
    for start in range(0, x.shape[1], 1024):
        total = total + exponentials[:, start : start + 1024].sum(1, keepdim=True)
    return exponentials / total


def first_tile(x):
    return (x - x.amax(1, keepdim=True)).exp() / (x - x.amax(1, keepdim=True)).exp()[:, :1024].sum(
        1, keepdim=True
    )


def two_kernels():
    from cs_systems.kernels.softmax import Softmax, softmax_forward

    class TwoKernels(Softmax):
        @staticmethod
        def forward(ctx, x):
            softmax_forward(x)
            return Softmax.forward(ctx, x)

    return TwoKernels


SOFTMAX = [
    softmaxes("softmax-other-axis", "softmax runs over a column", lambda x: x.softmax(0)),
    softmaxes("softmax-no-maximum", "is not subtracted before exp", without_maximum),
    softmaxes("softmax-padding-counts", "load them as -inf", padded_with_zeros),
    softmaxes("softmax-one-tile", "only the first 1024 columns", first_tile),
    softmaxes(
        "softmax-no-strides", "the strides of x are not used", lambda x: as_rows_of_memory(x).softmax(1)
    ),
    softmaxes("softmax-sum-in-fp16", "convert to fp32", softmax_in_fp16),
    softmaxes(
        "softmax-only-the-diagonal",
        "only the diagonal",
        lambda x: x.softmax(1),
        lambda dy, x: (x.softmax(1) * (1 - x.softmax(1)) * dy,),
    ),
    softmaxes(
        "softmax-no-sum-in-backward",
        "the other outputs of the row are forgotten",
        lambda x: x.softmax(1),
        lambda dy, x: (x.softmax(1) * dy,),
    ),
    Mutant(
        "softmax_kernel",
        "two-kernels",
        {"get_softmax_autograd_function_triton": two_kernels},
        "launched 2 kernels",
    ),
    Mutant(
        "softmax_kernel",
        "instance-for-class",
        {"get_softmax_autograd_function_triton": lambda: torch.softmax},
        "expected the class",
    ),
]

MUTANTS = WEIGHTED_SUM + SOFTMAX
