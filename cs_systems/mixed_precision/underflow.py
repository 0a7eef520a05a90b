"""What a precision does to the numbers of one training step: gradients that become 0, updates that vanish.

Whether a gradient is 0 because it is, or because the number format ends there, is seen only beside the same
gradient in fp32. That costs a second forward and backward in fp32 (and one in the precision itself, so that
the training step stays as it is), which is why it is measured in some steps and not in all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

FP16_SMALLEST_NORMAL = 2.0**-14
"""Below it the exponent of fp16 is used up, and every halving costs a binary digit."""
FP16_SMALLEST = 2.0**-24
"""The smallest number of fp16 above 0; half of it and less is rounded to 0."""

Weights = Mapping[str, Tensor]
LossOf = Callable[[Weights], tuple[Float[Tensor, ""], Float[Tensor, "*shape"]]]
"""From weights by name to the loss of one batch, and the logits that it was computed from."""


@dataclass(frozen=True)
class Underflow:
    """What a precision does to the gradient of one batch. Shares are of the elements not 0 in fp32."""

    zeroed_logit_fraction: float
    """Elements of the gradient of the logits, where backward begins, that are 0 in the precision."""
    zeroed_fraction: float
    """Elements of the gradient of the weights, where it ends, that are 0 in the precision."""
    below_fp16_fraction: float
    """Those of the weights whose gradient in fp32 is smaller than any number of fp16 above 0."""
    below_fp16_normal_fraction: float
    """Those of the weights whose gradient in fp32 is smaller than the smallest normal number of fp16."""
    gradient_error: float | None
    """Length of the error of the gradient of the weights over its length; None when it overflowed."""


def measure_underflow(model: nn.Module, loss: LossOf, fp32_loss: LossOf, scale: float) -> Underflow:
    """Compare the gradients of `scale` * `loss` with those of `fp32_loss`, at the weights of `model`.

    Nothing of the model is changed, its .grad included.
    """
    low_logits, low = _gradients(loss, dict(model.named_parameters()), scale)
    wide = {name: weight.detach().float().requires_grad_() for name, weight in model.named_parameters()}
    exact_logits, exact = _gradients(fp32_loss, wide, 1.0)
    error = float((low.double() / scale - exact).norm() / exact.norm())
    return Underflow(
        _share(low_logits == 0, exact_logits),
        _share(low == 0, exact),
        _share(exact.abs() < FP16_SMALLEST, exact),
        _share(exact.abs() < FP16_SMALLEST_NORMAL, exact),
        error if math.isfinite(error) else None,
    )


def _gradients(
    loss_of: LossOf, weights: Weights, scale: float
) -> tuple[Float[Tensor, " logits"], Float[Tensor, " weights"]]:
    """Gradients with respect to the logits and to all weights, each in one row, times `scale`."""
    loss, logits = loss_of(weights)
    of_logits, *of_weights = torch.autograd.grad(loss * scale, [logits, *weights.values()])
    return of_logits.flatten(), torch.cat([gradient.flatten() for gradient in of_weights])


def _share(which: Bool[Tensor, " elements"], exact: Float[Tensor, " elements"]) -> float:
    there = exact != 0
    return int((there & which).sum()) / max(1, int(there.sum()))


def lost_update_fraction(before: Weights, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Share of the weights that an optimizer step should have moved and that stayed as they were `before`.

    Adam moves a weight whose mean gradient is not 0. The weight stays when the step is less than half the
    distance to the next number of its type: 1/512 to 1/256 of the weight in bf16, 65,536 times less in fp32.
    """
    lost = due = 0
    for name, weight in model.named_parameters():
        moves = optimizer.state[weight]["exp_avg"] != 0
        lost += int((moves & (weight == before[name])).sum())
        due += int(moves.sum())
    return lost / max(1, due)
