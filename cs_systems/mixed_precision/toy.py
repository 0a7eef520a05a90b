"""The toy model of the course, the losses that can stand under autocast, and what either is run with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from cs_systems.model.functional import cross_entropy

D_HIDDEN = 10
"""Width of the toy model, as in the course."""


class ToyModel(nn.Module):
    """Linear, ReLU, layer norm, linear: one module for each thing that autocast does."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_in, D_HIDDEN, bias=False)
        self.relu = nn.ReLU()
        self.ln = nn.LayerNorm(D_HIDDEN)
        self.fc2 = nn.Linear(D_HIDDEN, d_out, bias=False)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Logits."""
        return self.fc2(self.ln(self.relu(self.fc1(x))))


LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From logits (..., classes) and targets to a number."""


def hand_written_loss(
    logits: Float[Tensor, "*batch classes"], targets: Int[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Cross-entropy as it is first written down: softmax from exp and sum, then -log of the right one.

    Nothing is cast, so it runs in whatever types autocast chooses for each operation.
    """
    # BEGIN SOLUTION cross_entropy
    exponentials = torch.exp(logits - torch.amax(logits, -1, keepdim=True))
    probabilities = exponentials / torch.sum(exponentials, -1, keepdim=True)
    return -torch.log(probabilities.gather(-1, targets.unsqueeze(-1))).mean()
    # END SOLUTION


LOSSES: dict[str, LossFunction] = {
    "cross-entropy": lambda logits, targets: F.cross_entropy(logits.flatten(0, -2), targets.flatten()),
    "hand-written": hand_written_loss,
    "upcast": cross_entropy,
    "mean": lambda logits, targets: logits.mean(),
    "mse": F.mse_loss,
}
"""Loss by the name used in flags and tables."""


def make_targets(loss: str, logits_shape: tuple[int, ...], device: torch.device) -> Shaped[Tensor, "..."]:
    """Targets of `loss` for logits of that shape: fp32 numbers for mse, class 0 everywhere for the others."""
    if loss == "mse":
        return torch.zeros(logits_shape, device=device)
    return torch.zeros(logits_shape[:-1], dtype=torch.int64, device=device)
