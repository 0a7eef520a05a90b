"""Weights in 8 bits: one scale for each row (output channel), activations left as they are.

A step at a small batch reads every weight once and does little with it, so half the bytes is up to half the
time. With one scale a row, the matrix product runs on whole numbers and its result is scaled once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LARGEST = 127

COLUMNS_MULTIPLE = 16
"""torch's int8 product reads 16 weights at once; at the end of a row of another length it reads beyond it."""


def quantize_rows(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """Whole numbers from -127 to 127, and for each row the bf16 scale that gives the weights back.

    The scale is rounded to bf16 before it is used, so that its own rounding adds no error.

    Raises:
        ValueError: when the rows have a length that the int8 product cannot take.
    """
    if weight.shape[1] % COLUMNS_MULTIPLE:
        raise ValueError(
            f"int8 takes matrices whose rows are a multiple of {COLUMNS_MULTIPLE} long, not "
            f"{weight.shape[1]}; use a --d-model and --d-ff of that kind, or --precision bf16"
        )
    wide = weight.detach().float()
    scales = (wide.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    numbers = (wide / scales.float()[:, None]).round().clamp(-LARGEST, LARGEST)
    return numbers.to(torch.int8), scales


def dequantize_rows(
    numbers: Int8[Tensor, "*rows columns"], scales: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows columns"]:
    """The weights again, in the dtype of the scales."""
    return numbers.to(scales.dtype) * scales[..., None]


@dataclass(frozen=True)
class LogitError:
    """How far logits are from those of full precision."""

    relative_rms: float
    """Root mean square of the difference over that of the exact logits."""
    worst: float
    """Largest difference over the largest exact logit."""
    same_top_token: float
    """Share of positions where the most probable token is the same."""


def compare_logits(logits: Float[Tensor, "*batch vocab"], exact: Float[Tensor, "*batch vocab"]) -> LogitError:
    """Distance of logits from the exact ones, token by token of the same text (teacher-forced).

    Generated texts are no measure: after the first near tie that falls the other way, they have nothing in
    common.
    """
    logits, exact = logits.detach().double(), exact.detach().double()
    difference = logits - exact
    return LogitError(
        relative_rms=float(difference.norm() / exact.norm()),
        worst=float(difference.abs().max() / exact.abs().max()),
        same_top_token=float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
    )
