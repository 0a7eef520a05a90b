"""Put kernels into an unchanged model from outside, and make the loss and the optimizer that go with them."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cs_systems.device import UnsupportedError
from cs_systems.kernels.launch import missing_for_triton
from cs_systems.model.attention import SelfAttention
from cs_systems.model.functional import cross_entropy
from cs_systems.model.layers import FeedForward, RMSNorm
from cs_systems.model.transformer import TransformerLM

MODEL_KERNELS = ("rmsnorm", "rope", "swiglu")
"""Kernels that take the place of a function inside a model."""

Outputs = Callable[[Tensor], Tensor]
"""From token ids (batch, seq) to logits or hidden states (batch, seq, ...)."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From those and the targets (batch, seq) to the mean loss."""


def apply_kernels(model: TransformerLM, names: Sequence[str]) -> None:
    """Let the parts of `model` called in `names` (of MODEL_KERNELS) run as Triton kernels from now on.

    Raises:
        ValueError: for an unknown name, or when the model has no such part.
        UnsupportedError: when Triton cannot run on the model's device; the message says what to do.
    """
    unknown = [name for name in names if name not in MODEL_KERNELS]
    if unknown:
        raise ValueError(f"no kernel {unknown[0]!r} for a part of a model; known: {', '.join(MODEL_KERNELS)}")
    if not names:
        return
    missing = missing_for_triton(next(model.parameters()).device.type)
    if missing:
        raise UnsupportedError(missing)
    from cs_systems.kernels.rmsnorm import rmsnorm  # needs Triton, so not before the check
    from cs_systems.kernels.rope import rope
    from cs_systems.kernels.swiglu import swiglu

    functions = {"rmsnorm": ("normalise", rmsnorm), "rope": ("rotate", rope), "swiglu": ("gate", swiglu)}
    for name in names:
        parts = parts_for(model, name)
        if not parts:
            raise ValueError(f"this model has no part that the kernel {name} could run; leave it out")
        for part in parts:
            setattr(part, *functions[name])


def parts_for(model: TransformerLM, name: str) -> list[nn.Module]:
    """The modules of `model` whose work the kernel called `name` can do."""
    modules = list(model.modules())
    if name == "rmsnorm":
        return [module for module in modules if isinstance(module, RMSNorm)]
    if name == "swiglu":
        return [module for module in modules if isinstance(module, FeedForward) and module.activation == name]
    rotates = model.config.position == "rope"
    return [module for module in modules if rotates and isinstance(module, SelfAttention)]


def make_loss(model: TransformerLM, kernel: str | None, compile: bool = False) -> tuple[Outputs, Criterion]:
    """The forward pass of `model` and the mean cross-entropy of its result, in plain PyTorch or as a kernel.

    None: plain PyTorch. "cross-entropy": a kernel that writes the gradient over the logits, which nobody else
    sees. "linear-cross-entropy": a kernel that starts from the hidden states and does the head's matrix
    product too, some tokens at a time, so that there are never all logits. With `compile` what gives hidden
    states is compiled here; a model that gives logits is for its owner to compile.
    """
    if kernel == "linear-cross-entropy":
        from cs_systems.kernels.linear_cross_entropy import linear_cross_entropy

        head = model.lm_head
        hidden_states = torch.compile(model.hidden_states) if compile else model.hidden_states
        return hidden_states, lambda hidden, ids: linear_cross_entropy(hidden, head.weight, ids, head.bias)
    if kernel == "cross-entropy":
        from cs_systems.kernels.cross_entropy import cross_entropy as fused_cross_entropy

        return model, functools.partial(fused_cross_entropy, overwrite_logits=True)
    return model, cross_entropy
