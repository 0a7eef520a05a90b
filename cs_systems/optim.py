"""AdamW from scratch, gradient clipping by norm, and the cosine learning-rate schedule."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

Loss = torch.Tensor | float


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), in the form torch.optim.AdamW uses.

    For step t and gradient g: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    w = (1 - lr * decay) w - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps).
    State is two tensors a parameter, in the dtype of the parameter, made in the first step.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr {lr} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be at least 0 and below 1")
        if eps < 0 or weight_decay < 0:
            raise ValueError(f"eps {eps} and weight_decay {weight_decay} must not be negative")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns what `closure` returned."""
        # BEGIN SOLUTION adamw
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                mean, mean_square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(weight.grad, 1 - beta1)
                mean_square.mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                correction1 = 1 - beta1 ** state["step"]
                correction2 = 1 - beta2 ** state["step"]
                denominator = mean_square.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.addcdiv_(mean, denominator, value=-group["lr"] / correction1)
        return loss
        # END SOLUTION


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_l2_norm: float) -> float:
    """Scale all gradients in place by min(1, max_l2_norm / (norm + 1e-6)); returns the norm before.

    The norm is over all gradients together, in fp32. Parameters without a gradient are passed over.
    """
    # BEGIN SOLUTION gradient_clipping
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
    factor = (max_l2_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device))
    return float(norm)
    # END SOLUTION


def cosine_learning_rate(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, cosine_steps: int
) -> float:
    """Linear from 0 over `warmup_steps`, half a cosine to `min_lr` at step `cosine_steps`, then `min_lr`."""
    # BEGIN SOLUTION learning_rate_schedule
    if step < warmup_steps:
        return max_lr * step / warmup_steps
    if step >= cosine_steps:
        return min_lr
    progress = (step - warmup_steps) / (cosine_steps - warmup_steps)
    return min_lr + 0.5 * (max_lr - min_lr) * (1 + math.cos(math.pi * progress))
    # END SOLUTION
