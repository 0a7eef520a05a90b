"""run_cross_entropy: the mean of log(sum_j exp(x_j)) - x_target over the batch."""

import math

import torch
from graded_support.compare import check_tensor, rounding_bound
from graded_support.model_checks import check_gradient, check_unchanged
from graded_support.model_truth import softmax

MEAN = "It is the mean of log(sum_j exp(x_j)) - x_target over the batch: one number, without axes."


def surprise(x, targets):
    """-log(softmax(x)[target]) of each row."""
    return torch.logsumexp(x, -1) - torch.stack([row[target] for row, target in zip(x, targets, strict=True)])


def check(adapters, inputs, targets, *, hint):
    """Compare with float64, and with other ends of the same computation."""
    x = inputs.double()
    each = surprise(x, targets)
    mistakes = {
        "the losses of the batch are added up and not averaged": each.sum(),
        "the sum is divided by batch and vocabulary": each.mean() / x.shape[-1],
        "the logarithm has base 2; the loss is in nats": each.mean() / math.log(2),
        "the sign is wrong": -each.mean(),
        "softmax is taken twice: the inputs are logits, and softmax belongs to the loss": (
            lambda: surprise(softmax(x, -1), targets).mean()
        ),
        "softmax is taken over the batch": lambda: surprise(x - torch.logsumexp(x, 0), targets).mean(),
        "the logarithm is missing": -softmax(x, -1)[torch.arange(len(x)), targets].mean(),
        "the sum of the exponentials is missing": -x[torch.arange(len(x)), targets].mean(),
        "it is the exponential of the loss, the perplexity": each.mean().clamp(max=80.0).exp(),
        "targets are counted from 1": surprise(x, targets - 1).mean(),
    }
    check_tensor(
        adapters.run_cross_entropy(inputs, targets),
        each.mean(),
        what="run_cross_entropy",
        # The sum of the exponentials, differences as large as the logits, and the mean over the batch.
        allowed=rounding_bound(torch.float32, x.shape[-1], 1.0)
        + rounding_bound(torch.float32, 3 + len(x), 2 * x.abs().amax(-1).mean()),
        dtype=torch.float32,
        mistakes=mistakes,
        hint=hint,
    )


def test_mean_over_the_batch(adapters):
    check(adapters, 2 * torch.randn(6, 9), torch.tensor([0, 8, 3, 3, 5, 1]), hint=MEAN)
    check(adapters, torch.randn(1, 4), torch.tensor([3]), hint=MEAN)


def test_logits_of_thousands(adapters):
    hint = (
        "exp(1000) is infinite and exp(-1000) is 0, whose logarithm is not finite: subtract the maximum of "
        "each row, and cancel logarithm and exponential on paper: only the logarithm of the sum remains."
    )
    far_apart = torch.tensor([[1000.0, 0.0, 0.0], [0.0, 3000.0, -3000.0]])
    check(adapters, far_apart, torch.tensor([0, 1]), hint=hint)
    check(adapters, far_apart, torch.tensor([1, 2]), hint=hint)
    check(adapters, torch.tensor([[1000.0, 999.0], [-2000.0, -2001.0]]), torch.tensor([1, 0]), hint=hint)


def test_logits_of_sixteen_bits_have_a_loss_in_fp32(adapters):
    hint = "Convert the logits to fp32 before anything else: their sum and logarithm need more than 16 bits."
    inputs, targets = 2 * torch.randn(5, 12), torch.tensor([11, 0, 4, 4, 7])
    check(adapters, inputs.bfloat16(), targets, hint=hint)
    check(adapters, inputs.half(), targets, hint=hint)


def test_gradient_is_softmax_minus_target(adapters):
    inputs, targets = 2 * torch.randn(5, 8), torch.tensor([7, 0, 2, 2, 4])
    x = inputs.double()
    chosen = torch.eye(8, dtype=torch.float64)[targets]
    size = (softmax(x, -1) + chosen) / 5
    argument = inputs.clone().requires_grad_()
    check_gradient(
        adapters.run_cross_entropy(argument, targets),
        argument,
        (softmax(x, -1) - chosen) / 5,
        torch.tensor(1.0),
        what="run_cross_entropy",
        # A sum of 8 exponentials, of differences as large as the logits, and the division by the batch.
        allowed=rounding_bound(torch.float32, 10, (1 + x.abs().amax(-1, keepdim=True)) * size),
        hint="If the value is right: expected is (softmax(inputs) - one-hot target) / batch.",
    )


def test_the_logits_stay_as_they_were(adapters):
    inputs = torch.randn(4, 6)
    before = inputs.clone()
    check(adapters, inputs, torch.tensor([0, 5, 2, 2]), hint=MEAN)
    check_unchanged(inputs, before, what="run_cross_entropy", name="inputs")
