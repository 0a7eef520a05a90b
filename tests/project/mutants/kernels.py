"""Wrong kernels that work along rows: the weighted sum and softmax.

What such a kernel would write is computed by PyTorch while Triton's interpreter runs a kernel of one line.
"""

import functools

import torch
from torch.autograd import Function

from mutants.mutant import Mutant


def as_rows_of_memory(x):
    """x as a kernel sees it that does not use its strides."""
    return torch.as_strided(x, x.shape, (x.shape[1], 1)).clone()


JOBS = []
"""What the next launch does."""


def do_the_next_job():
    JOBS.pop()()


@functools.cache
def make_kernel():
    import triton  # late, as it finds out then whether it interprets

    @triton.jit
    def kernel(x):
        do_the_next_job()

    return kernel


def launch(job, x):
    JOBS[:] = [job]
    make_kernel()[(1,)](x)


def in_a_kernel(job, x):
    """What `job()` returns, computed by a launch; an error where launches are skipped."""
    results = []
    launch(lambda: results.append(job()), x)
    return results.pop()


def beside_a_kernel(job, x):
    """What `job()` returns, after the launch of a kernel that does nothing."""
    launch(lambda: None, x)
    return job()


def launches(name, function, runs=in_a_kernel):
    """The adapter of an autograd.Function with the values of `function`; PyTorch differentiates it.

    The mistake is a function of x and weight, or of x.
    """

    class MutantRows(Function):
        @staticmethod
        def forward(ctx, x, *weight):
            ctx.save_for_backward(x, *weight)
            return runs(lambda: function(x, *weight), x)

        @staticmethod
        def backward(ctx, dy):
            def differentiate():
                with torch.enable_grad():
                    leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
                    return torch.autograd.grad(function(*leaves), leaves, dy, allow_unused=True)

            return runs(differentiate, dy)

    return {f"get_{name}_autograd_function_triton": lambda: MutantRows}


def returns_nothing(make_result, runs):
    """An autograd.Function whose result is `make_result(its first argument)`, and zeros its gradients."""

    class Nothing(Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.like = [torch.zeros_like(x) if isinstance(x, torch.Tensor) else None for x in inputs]
            return runs(lambda: make_result(inputs[0]), inputs[0])

        @staticmethod
        def backward(ctx, dy):
            return runs(lambda: tuple(ctx.like), dy)

    return Nothing


def nothing(name, make_result):
    """The adapter for that, with a kernel that writes it."""
    return {f"get_{name}_autograd_function_triton": lambda: returns_nothing(make_result, in_a_kernel)}


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


def sum_in_numpy(x, weight):
    return torch.from_numpy(x.numpy() @ weight.numpy())


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
        "pytorch-beside-a-kernel",
        launches("weighted_sum", weighted_sum, beside_a_kernel),
        "computed by PyTorch \\(aten::mul\\)",
    ),
    Mutant(
        "weighted_sum",
        "numpy-beside-a-kernel",
        launches("weighted_sum", sum_in_numpy, beside_a_kernel),
        "kernels do not run: they have no part",
    ),
    Mutant("weighted_sum", "returns-none", nothing("weighted_sum", lambda x: None), "a torch.Tensor"),
    Mutant(
        "weighted_sum", "returns-zeros", nothing("weighted_sum", lambda x: x.new_zeros(len(x))), "are off"
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


def backward_in_pytorch():
    from cs_systems.kernels.softmax import Softmax

    class Backward(Softmax):
        @staticmethod
        def backward(ctx, dy):
            (y,) = ctx.saved_tensors
            return beside_a_kernel(lambda: y * (dy - (y * dy).sum(1, keepdim=True)), dy)

    return Backward


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
        "softmax-beside-a-kernel",
        launches("softmax", lambda x: x.softmax(1), beside_a_kernel),
        "computed by PyTorch \\(aten::_softmax\\)",
    ),
    Mutant(
        "softmax_kernel",
        "backward-beside-a-kernel",
        {"get_softmax_autograd_function_triton": backward_in_pytorch},
        "backward of the softmax kernel: something was computed by PyTorch",
    ),
    Mutant("softmax_kernel", "returns-none", nothing("softmax", lambda x: None), "a torch.Tensor"),
    Mutant("softmax_kernel", "returns-zeros", nothing("softmax", torch.zeros_like), "are off"),
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
