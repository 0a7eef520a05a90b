"""AdamW in float64, written from the formulas, with the mistakes that people make in it as switches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def adamw(
    weight: Tensor,
    gradients: Sequence[Tensor],
    *,
    lr: float | Sequence[float] = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    eps_is_corrected: bool = True,
    is_corrected: bool = True,
    keeps_state: bool = True,
    eps_under_root: bool = False,
    takes_root: bool = True,
    decay: str = "decoupled",
    first_step: int = 1,
    steps_per_step: int = 1,
) -> Tensor:
    """The weight after one step for each gradient: Loshchilov and Hutter 2019, algorithm 2, as torch has it.

    Args:
        weight: before the first step.
        gradients: of each step.
        lr: of all steps, or of each.
        betas: of the two averages.
        eps: is added to the root.
        weight_decay: times lr, the part of the weight that is taken away in each step.
        eps_is_corrected: False where the bias corrections are part of the rate; that is right as well.
        is_corrected: False leaves the bias corrections out.
        keeps_state: False starts the averages, and the number of the step, anew in each step.
        eps_under_root: True adds eps to the average of the squares.
        takes_root: False divides by the average of the squares.
        decay: "decoupled", "in the gradient" (L2), "without the rate", "after the step" or "none".
        first_step: number of the first step.
        steps_per_step: how far it is counted from one step to the next.
    """
    weight = weight.double()
    mean = square = torch.zeros_like(weight)
    number = first_step
    rates = [lr] * len(gradients) if isinstance(lr, int | float) else lr
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient.double() + (weight_decay * weight if decay == "in the gradient" else 0.0)
        if not keeps_state:
            mean, square, number = torch.zeros_like(weight), torch.zeros_like(weight), first_step
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        correction1 = 1 - betas[0] ** number if is_corrected else 1.0
        correction2 = 1 - betas[1] ** number if is_corrected else 1.0
        before = weight
        if decay in ("decoupled", "without the rate"):
            weight = weight - (rate if decay == "decoupled" else 1.0) * weight_decay * before
        # Where the corrections are part of the rate, eps is added to the root of the uncorrected average.
        added = eps if eps_is_corrected else eps / math.sqrt(correction2)
        size = square / correction2
        if takes_root:
            size = (size + added).sqrt() if eps_under_root else size.sqrt() + added
        weight = weight - rate * (mean / correction1) / size
        if decay == "after the step":
            weight = weight - rate * weight_decay * weight
        number += steps_per_step
    return weight
