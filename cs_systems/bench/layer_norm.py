"""The layer-norm experiment: its operations one by one in a low precision; one record for each setting."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.device import DTYPES, choose_device
from cs_systems.mixed_precision.formats import FORMATS, Format, round_to, stall_value
from cs_systems.mixed_precision.layer_norm import (
    Step,
    add_up,
    compare_norms,
    find_scale,
    overflow_bound,
    relative_error,
    sweep,
    take_apart,
    underflow_bound,
    unit_inputs,
)
from cs_systems.mixed_precision.settings import LayerNormConfig

_SCALES = [2.0**power for power in range(-14, 13)]
_OFFSETS = [2.0**power for power in range(-4, 13)]


def check_all(configs: Sequence[LayerNormConfig]) -> None:
    """Nothing to add to what each configuration checks by itself."""


def num_steps(config: LayerNormConfig) -> int:
    """How often `run_case` will tell of a step."""
    return 1


def run_case(
    config: LayerNormConfig, command: str, on_step: Callable[[str], object]
) -> tuple[BenchmarkRecord | None, bool]:
    """The record of one setting, and whether Ctrl-C ended it, in which case there is none."""
    device = choose_device("auto")
    provenance = collect_provenance(command, device)
    try:
        metrics = measure(config, device)
    except KeyboardInterrupt:
        return None, True
    on_step("operations")
    return BenchmarkRecord(
        config.EXPERIMENT, dataclasses.asdict(config), "ok", provenance, metrics=metrics
    ), False


def measure(config: LayerNormConfig, device: torch.device) -> dict[str, Any]:
    """All that tables and plots show; numbers that are not finite are words or None."""
    dtype, format, eps = DTYPES[config.dtype], FORMATS[config.dtype], config.eps
    z = unit_inputs(config.d_model, config.seed).to(device)
    x = config.offset + config.scale * z
    norms = compare_norms(x, eps, dtype)
    scales, offsets = (
        torch.tensor(values, device=device).double()[:, None] for values in (_SCALES, _OFFSETS)
    )
    return {
        "largest": float(format.largest),
        "operations": [_describe(step) for step in take_apart(x, eps, dtype)],
        "norms": [_describe_norm(name, low, exact) for name, (low, exact) in norms.items()],
        "limits": [*_limits_of_scale(z, dtype, format), *_limits_of_eps(eps, format)],
        "sweeps": {
            "scale": {"values": _SCALES, "errors": sweep(config.offset + scales * z, eps, dtype)},
            "offset": {"values": _OFFSETS, "errors": sweep(offsets + config.scale * z, eps, dtype)},
        },
    }


def _describe(step: Step) -> dict[str, Any]:
    numbers = {"largest": _word(step.largest), "exact_largest": _word(step.exact_largest)}
    return dataclasses.asdict(step) | numbers


def _describe_norm(name: str, low: Tensor, exact: Tensor) -> dict[str, Any]:
    names = {dtype: text for text, dtype in DTYPES.items()}
    return {
        "norm": name,
        "dtype": names[low.dtype],
        "largest": _word(low.abs().max().item()),
        "exact_largest": _word(exact.abs().max().item()),
        "error": relative_error(low, exact)[0],
        "size": low.numel(),
        "num_not_finite": int((~low.isfinite()).sum()),
    }


def _limits_of_scale(
    z: Float64[Tensor, " d_model"], dtype: torch.dtype, format: Format
) -> list[dict[str, Any]]:
    """From and below which scale squares of inputs with mean 0 leave the format, by formula and by trying."""

    def squares(scale: float) -> Tensor:
        low = (scale * z).to(dtype)
        return low * low

    largest, length = z.abs().max().item(), math.sqrt(z.square().sum().item())
    top = overflow_bound(format)
    bottom = underflow_bound(format)
    low, high = bottom / largest / 4, 4 * top
    return [
        {
            "limit": "a square overflows from scale",
            "rule": f"{top:.6g} / {largest:.4g}, the largest input at scale 1",
            "predicted": top / largest,
            "found": find_scale(lambda scale: not squares(scale).isfinite().all(), low, high),
        },
        {
            "limit": "their sum overflows from scale",
            "rule": f"{top:.6g} / sqrt({len(z)}), if the sum were exact",
            "predicted": top / length,
            "found": find_scale(lambda scale: not add_up(squares(scale)).isfinite().all(), low, high),
        },
        {
            "limit": "all squares are 0 up to scale",
            "rule": f"{bottom:.4g} / {largest:.4g}",
            "predicted": bottom / largest,
            "found": find_scale(lambda scale: bool(squares(scale).any()), low, high),
        },
    ]


def _limits_of_eps(eps: float, format: Format) -> list[dict[str, Any]]:
    rounded = round_to(Fraction(eps), format)
    if rounded == 0:
        rule = f"below half of the smallest number, {float(format.smallest_subnormal):.3g}: rsqrt(0) is inf"
        return [{"limit": f"eps {eps:g} is stored as", "rule": rule, "predicted": 0.0, "found": None}]
    small = rounded < format.smallest_normal
    digits = int(rounded / format.smallest_subnormal).bit_length() if small else format.significand_bits
    kind = f"subnormal (below {float(format.smallest_normal):.3g}), " if small else ""
    vanishes = stall_value(rounded, format)
    return [
        {
            "limit": f"eps {eps:g} is stored as",
            "rule": f"{kind}{digits} of {format.significand_bits} bits",
            "predicted": float(rounded),
            "found": None,
        },
        {
            "limit": "eps changes nothing from variance",
            "rule": "half the spacing is eps or more there",
            "predicted": None if vanishes is None else float(vanishes),
            "found": None,
        },
    ]


def _word(number: float) -> float | str:
    """A number that JSON can hold; "inf" or "nan" for others."""
    return number if math.isfinite(number) else str(number)
