"""run_gradient_clipping: one factor for all gradients, in place."""

import math

import torch
from graded_support.compare import check_tensor, fail, rounding_bound
from torch import nn

SHAPES = ((4, 5), (7,), (2, 3, 3))


def make_parameters(*gradients):
    """Parameters with these gradients; None is no gradient."""
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros((2,) if gradient is None else gradient.shape))
        parameter.grad = None if gradient is None else gradient.clone()
        parameters.append(parameter)
    return parameters


def total_norm(gradients):
    return math.sqrt(math.fsum(x * x for gradient in gradients for x in gradient.double().flatten().tolist()))


def check(parameters, gradients, factor, mistakes):
    """Compare each gradient with what it was times `factor`; a mistake is another factor for each of them."""
    num_values = sum(gradient.numel() for gradient in gradients)
    for i, (parameter, before) in enumerate(zip(parameters, gradients, strict=True)):
        wide = before.double()
        check_tensor(
            parameter.grad,
            wide * factor,
            what=f"gradient {i} after run_gradient_clipping",
            # The norm is the root of a sum of all squares: as many roundings at most, and a few for the rest.
            allowed=rounding_bound(torch.float32, num_values + 4, (wide * factor).abs()),
            dtype=torch.float32,
            mistakes={words: wide * factors[i] for words, factors in mistakes.items()},
            hint="Every gradient is multiplied by max_l2_norm / (norm + 1e-6), with one norm of all of them.",
        )


def test_one_norm_of_all_gradients_scales_each_of_them(adapters):
    gradients = [torch.randn(shape) * 3 for shape in SHAPES]
    parameters = make_parameters(*gradients)
    adapters.run_gradient_clipping(parameters, 1.0)
    norm, norms = total_norm(gradients), [total_norm([gradient]) for gradient in gradients]
    num_values = sum(gradient.numel() for gradient in gradients)
    mistakes = {
        "nothing is changed at all": [1.0] * 3,
        "every gradient is scaled by its own norm; there is one, of all together": [1 / n for n in norms],
        "the norms of the tensors are added; their squares are, and the root is taken": [1 / sum(norms)] * 3,
        "the root of the sum of squares is missing": [1 / norm**2] * 3,
        "the largest of the norms is taken": [1 / max(norms)] * 3,
        "the mean of the squares is taken, not their sum": [math.sqrt(num_values) / norm] * 3,
    }
    check(parameters, gradients, 1.0 / (norm + 1e-6), mistakes)


def test_small_gradients_stay_as_they_are(adapters):
    gradients = [torch.randn(shape) * 0.01 for shape in SHAPES]
    norm = total_norm(gradients)
    parameters = make_parameters(*gradients)
    adapters.run_gradient_clipping(parameters, 1.0)
    mistakes = {"gradients are always scaled to the norm, also up: the factor is at most 1": [1 / norm] * 3}
    check(parameters, gradients, 1.0, mistakes)
    for parameter, before in zip(parameters, gradients, strict=True):
        if not torch.equal(parameter.grad, before):
            fail("gradients below max_l2_norm were changed in their last bits: multiply by 1, or not at all")
    # The same gradients are too large for a smaller bound: nothing was done to them for the right reason.
    adapters.run_gradient_clipping(parameters, norm / 4)
    check(parameters, gradients, norm / 4 / (norm + 1e-6), {"nothing is ever changed": [1.0] * 3})


def test_a_millionth_is_added_to_the_norm(adapters):
    """Seen where gradients are tiny."""
    gradients = [torch.tensor([3e-6, 4e-6])]
    parameters = make_parameters(*gradients)
    adapters.run_gradient_clipping(parameters, 1e-6)
    mistakes = {
        "the 1e-6 that is added to the norm is missing": [1e-6 / 5e-6],
        "1e-6 is added under the root; it is added to the norm": [1e-6 / math.sqrt(25e-12 + 1e-6)],
        "nothing is changed": [1.0],
    }
    check(parameters, gradients, 1e-6 / (5e-6 + 1e-6), mistakes)


def test_gradients_are_changed_in_place(adapters):
    parameters = make_parameters(torch.tensor([3.0, 4.0]))
    gradient = parameters[0].grad
    adapters.run_gradient_clipping(parameters, 1.0)
    if torch.equal(gradient, torch.tensor([3.0, 4.0])):
        fail(
            "the tensor in .grad was not changed: multiply it in place (mul_), so that whoever else holds it "
            "sees the clipped values"
        )
    check(parameters, [torch.tensor([3.0, 4.0])], 1 / 5.000001, {})
    if parameters[0].grad.requires_grad:
        fail("the clipped gradient is part of a graph: clip under torch.no_grad()")


def test_parameters_may_be_an_iterator_with_some_that_have_no_gradient(adapters):
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor([12.0, 0.0])]
    parameters = make_parameters(*gradients[:2], None, gradients[2])
    adapters.run_gradient_clipping(iter(parameters), 1.0)
    if parameters[2].grad is not None:
        fail(
            "a parameter without a gradient got one; it is passed over: others look at whether .grad is None"
        )
    mistakes = {
        "the parameters are iterated over twice, and an iterator is empty then: make a list": [1.0] * 3,
        "clipping ends at the first parameter without a gradient": [1 / 5, 1 / 5, 1.0],
    }
    check([*parameters[:2], parameters[3]], gradients, 1 / 13.000001, mistakes)
