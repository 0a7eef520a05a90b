"""Autocast rebuilt from the table: it casts where the table says so, on any device, with gradients.

It shows CUDA's types where neither a GPU nor fake tensors are to be had, and it counts the casts, which torch
does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cs_systems.device import DTYPES
from cs_systems.mixed_precision.autocast_policy import find_kind, plain_name
from cs_systems.mixed_precision.autocast_subject import build_full_subject
from cs_systems.mixed_precision.settings import AutocastConfig
from cs_systems.mixed_precision.toy import LOSSES


@dataclass
class CastCount:
    """Copies in the lower precision that autocast makes."""

    weight_casts: int = 0
    weight_bytes: int = 0
    activation_casts: int = 0
    activation_bytes: int = 0


class EmulatedAutocast(TorchFunctionMode):
    """A context that acts as autocast with `policy` (cuda or cpu) does.

    The copy of a parameter is kept until the context ends and serves every operation that takes the parameter
    itself. Anything else, a transposed parameter too, is cast again for each operation, as torch does it.
    """

    def __init__(self, policy: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.count = CastCount()
        self._policy = policy
        self._dtype = dtype
        self._copies: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast the inputs as the table says, then run the operation."""
        kwargs = kwargs or {}
        kind = find_kind(plain_name(getattr(function, "__name__", "")), self._policy)
        if kind == "unlisted":
            return function(*args, **kwargs)
        wide = kind == "fp32" or (kind == "widest" and torch.float32 in _float_types((args, kwargs)))
        target = torch.float32 if wide else self._dtype
        return function(*self._cast(args, target), **self._cast(kwargs, target))

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._cast(part, dtype) for part in value)
        if isinstance(value, dict):
            return {name: self._cast(part, dtype) for name, part in value.items()}
        if not isinstance(value, Tensor) or not _can_be_cast(value) or value.dtype == dtype:
            return value
        return value.to(dtype) if dtype == torch.float32 else self._copy(value)

    def _copy(self, tensor: Tensor) -> Tensor:
        """The tensor in the lower precision: counted, and kept where torch would keep it."""
        if tensor in self._copies:
            return self._copies[tensor]
        copy = tensor.to(self._dtype)
        num_bytes = copy.numel() * copy.element_size()
        if _is_weight(tensor):
            self.count.weight_casts += 1
            self.count.weight_bytes += num_bytes
        else:
            self.count.activation_casts += 1
            self.count.activation_bytes += num_bytes
        if tensor.is_leaf and tensor.requires_grad:
            self._copies[tensor] = copy
        return copy


def count_casts(config: AutocastConfig, num_forwards: int = 2) -> list[CastCount]:
    """Casts to the lower precision in each of some forward passes of the whole model, in one context.

    One sequence of the model's context length each. Counted with the table of rules, without memory.

    Raises:
        ValueError: for an unknown model.
    """
    subject = build_full_subject(config.model, config.loss)
    counts = []
    with EmulatedAutocast(config.policy, DTYPES[config.dtype]) as emulated:
        for _ in range(num_forwards):
            emulated.count = CastCount()
            LOSSES[config.loss](subject.model(subject.inputs), subject.targets)
            counts.append(emulated.count)
    return counts


def _can_be_cast(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def _is_weight(tensor: Tensor) -> bool:
    """Whether it is a parameter or a view of one, for example its transpose."""
    base = tensor if tensor._base is None else tensor._base
    return base.is_leaf and base.requires_grad


def _float_types(value: Any) -> set[torch.dtype]:
    if isinstance(value, Tensor):
        return {value.dtype} if _can_be_cast(value) else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return {dtype for part in parts for dtype in _float_types(part)}
