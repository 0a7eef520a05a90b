"""Which operators autocast runs in the low type and which in fp32; a CPU and a GPU do not agree."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Autocast:
    """The rules of `torch.autocast` for the operators of the model; all others take their inputs as they are."""

    low: str
    """The low type: bf16 or fp16."""
    lower: frozenset[str]
    """Operators that cast their inputs to the low type."""
    widen: frozenset[str] = frozenset()
    """Operators that cast their inputs to fp32."""
    promote: frozenset[str] = frozenset()
    """Operators that cast their inputs to the widest type among them."""


def autocast_rules(precision: str, device_type: str) -> Autocast | None:
    """The rules for --precision on a device; None for fp32 and tf32, which need no casts.

    From ATen/autocast_mode.h. A CPU leaves exp, sum, rsqrt, ... in the low type.
    """
    if precision not in ("bf16", "fp16"):
        return None
    lower = frozenset({"matmul", "addmm", "scaled_dot_product_attention"})
    if device_type == "cpu":
        return Autocast(precision, lower)
    return Autocast(
        precision,
        lower,
        widen=frozenset({"exp", "log", "pow", "rsqrt", "sum"}),
        promote=frozenset({"addcmul"}),
    )
