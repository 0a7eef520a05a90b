"""Cross-entropy of hidden @ weight.T without the logits: the last layer and the loss in one function.

The logits are by far the largest tensor of a model with a large vocabulary: 65,536 tokens of 151,936 classes
are 20 GB in bf16, and their gradient as much again. Here they exist for a chunk of tokens at a time, in one
buffer of at most 512 MiB. All three matrix products are done on a chunk while it is there:

    logits = hidden @ weight.T        the buffer
    dlogits = softmax - onehot        over the logits in place, by the kernel of `cross_entropy.py`
    dhidden = dlogits @ weight        the rows of this chunk
    dweight += dlogits.T @ hidden     added up in fp32

So forward does the work of backward, which only multiplies by the gradient of the loss. It moves the logits
five times, 10 bytes for a bf16 logit: written by the product, read and written by the kernel, read by the two
other products; eager moves the same and what cross-entropy takes besides (see `cross_entropy.py`), in tensors
of their full size. In exchange, dweight is read and written once a chunk.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_systems.kernels.cross_entropy import check_targets, scale, scale_variant, write_losses
from cs_systems.kernels.launch import Variant, as_rows, ceil_div, check_runnable, operator

CHUNK_BYTES = 2**29
"""Most bytes of logits at a time. Short chunks are slow: each reads and writes all of dweight once more."""


def _chunks(num_tokens: int, bytes_per_token: int) -> list[slice]:
    """Slices of tokens of about the same length, as few as fit."""
    most = max(1, CHUNK_BYTES // bytes_per_token)
    length = ceil_div(num_tokens, ceil_div(num_tokens, most))
    return [slice(start, min(start + length, num_tokens)) for start in range(0, num_tokens, length)]


def _logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """hidden @ weight.T + bias, written to the first rows of the buffer."""
    logits = buffer[: hidden.shape[0]]
    if bias is None:
        return torch.mm(hidden, weight.T, out=logits)
    return torch.addmm(bias, hidden, weight.T, out=logits)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return torch.empty(hidden.shape[0], dtype=_wide(hidden.dtype), device=hidden.device)


@operator("linear_cross_entropy_losses", fake=_losses)
def linear_cross_entropy_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Loss of each token, for hidden (tokens, d) and weight (vocab, d)."""
    losses = _losses(hidden, weight, bias, targets)
    chunks = _chunks(hidden.shape[0], weight.shape[0] * weight.element_size())
    buffer = torch.empty(chunks[0].stop, weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    for chunk in chunks:
        logits = _logits_of(hidden[chunk], weight, bias, buffer)
        write_losses(logits, targets[chunk], losses[chunk], None, 1)
    return losses


def _losses_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide, device = _wide(hidden.dtype), hidden.device
    return (
        _losses(hidden, weight, bias, targets),
        torch.empty(hidden.shape, dtype=hidden.dtype, device=device),
        torch.empty(weight.shape, dtype=wide, device=device),
        torch.empty(0 if bias is None else weight.shape[0], dtype=wide, device=device),
    )


@operator("linear_cross_entropy_losses_and_gradients", fake=_losses_and_gradients)
def linear_cross_entropy_losses_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each token; gradients of their sum by hidden, weight and bias, the last two in fp32."""
    losses, dhidden, dweight, dbias = _losses_and_gradients(hidden, weight, bias, targets)
    dweight.zero_()
    dbias.zero_()
    chunks = _chunks(hidden.shape[0], weight.shape[0] * weight.element_size())
    buffer = torch.empty(chunks[0].stop, weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    for chunk in chunks:
        logits = _logits_of(hidden[chunk], weight, bias, buffer)
        # The mean is taken in backward: a part of a probability over all tokens can be 0 in fp16.
        write_losses(logits, targets[chunk], losses[chunk], logits, 1)
        torch.mm(logits, weight, out=dhidden[chunk])
        if dweight.dtype == hidden.dtype:
            dweight.addmm_(logits.T, hidden[chunk])
        else:
            dweight.add_(torch.mm(logits.T, hidden[chunk]))
        if bias is not None:
            dbias.add_(logits.sum(0, dtype=dbias.dtype))
    return losses, dhidden, dweight, dbias


class LinearCrossEntropy(torch.autograd.Function):
    """Mean loss of the tokens; forward keeps the gradients of the sum of losses, backward multiplies them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, dtype):
        """(tokens, d), (vocab, d), (vocab,) or None and (tokens,) to a scalar; matrix products in `dtype`."""
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        hidden, weight, bias = (None if x is None else x.to(dtype) for x in (hidden, weight, bias))
        losses, *gradients = linear_cross_entropy_losses_and_gradients(hidden, weight, bias, targets)
        ctx.save_for_backward(*gradients)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        """Each gradient in the dtype of its tensor."""
        gradients = ctx.saved_tensors  # asked for once: a checkpoint gives them away
        num_tokens = gradients[0].shape[0]
        scaled = [
            None if dtype is None else scale(gradient, dloss, num_tokens, dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "vocab d"],
    targets: Int[Tensor, "*batch"],
    bias: Float[Tensor, " vocab"] | None = None,
) -> Float[Tensor, ""]:
    """`cross_entropy(hidden @ weight.T + bias, targets)` with the logits of only some tokens in memory.

    The matrix products are in the dtype of `hidden`, or in that of autocast, and each gradient in the dtype
    of its tensor. All gradients are computed, also those of frozen tensors; without a gradient, none.

    Raises:
        UnsupportedError: when Triton cannot run on these tensors; the message says what to do.
    """
    parameters = (hidden, weight) if bias is None else (hidden, weight, bias)
    check_runnable(*parameters)
    check_targets(targets, hidden.shape[:-1], hidden.device)
    device_type = hidden.device.type
    autocast = torch.is_autocast_enabled(device_type) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
    if targets.numel() == 0:
        return torch.stack([x.sum(dtype=_wide(dtype)) for x in parameters]).sum() * torch.nan
    rows, targets = as_rows(hidden), targets.reshape(-1)
    if torch.is_grad_enabled() and any(x.requires_grad for x in parameters):
        return LinearCrossEntropy.apply(rows, weight, bias, targets, dtype)
    bias = None if bias is None else bias.to(dtype)
    return linear_cross_entropy_losses(rows.to(dtype), weight.to(dtype), bias, targets).mean()


def variants() -> list[Variant]:
    """Gradients multiplied and stored in another type; the other kernels are those of `cross_entropy`."""
    found = []
    for dtype in ("bf16", "fp16"):
        for stored, wanted in ((dtype, "fp32"), ("fp32", dtype)):
            types = {"x_ptr": f"*{stored}", "y_ptr": f"*{wanted}", "factor_ptr": "*fp32", "divisor": "fp32"}
            found.append(scale_variant(f"{stored} to {wanted}", types, in_place=False))
    return found
