"""Truths about number formats: they are found by adding, multiplying and running the toy model."""

import functools
from collections.abc import Mapping
from fractions import Fraction

from cs_systems.grading.items import Truth
from cs_systems.grading.truths.question import Finder, Question, under

STEPS, VALUE = 1000, Fraction(1, 100)

_DTYPE_WHY: Mapping[str, Mapping[str, str]] = {
    "parameters": {
        "fp16": "autocast casts copies of the weights for each product, not the parameters themselves"
    },
    "fc1": {
        "fp32": "the weights are stored so, but a linear layer is on the list of what runs in lower precision"
    },
    "layer_norm": {
        "fp16": "true under CPU autocast, which is what a laptop shows; a GPU has a longer list of exceptions"
    },
    "logits": {"fp32": "what comes in is of that type, but a linear layer casts its input and its weight"},
    "loss": {
        "fp16": "the logits are of that type, but cross-entropy is on the list of what needs full precision"
    },
    "gradients": {
        "fp16": "products in backward run so, but a gradient that arrives has the type of its parameter"
    },
}
_DTYPE_HINT = (
    "print the types under torch.autocast on a GPU, or run python -m cs_systems.mixed_precision autocast"
)


@functools.cache
def _toy_dtypes(dtype: str, loss: str) -> Mapping[str, str]:
    from cs_systems.mixed_precision.autocast import toy_dtypes  # torch takes seconds to import

    return toy_dtypes(dtype, "cuda", loss)


def _dtype(key: str, dtype: str = "fp16", loss: str = "cross-entropy") -> Finder:
    def find(question: Question) -> Truth:
        return Truth(_toy_dtypes(dtype, loss)[key], why=_why_dtype(question.key), hint=_DTYPE_HINT)

    return find


def _why_dtype(key: str) -> Mapping[str, str]:
    if key == "loss_mean":
        return {"fp32": "cross-entropy is on a list, a mean is on none: it keeps the type of its input"}
    if key == "layer_norm_bf16":
        return {"bf16": "bf16 does not overflow, but its sums lose digits too: one list serves both types"}
    return _DTYPE_WHY[key]


@functools.cache
def _sums() -> Mapping[str, float]:
    from cs_systems.mixed_precision.accumulation import course_sums

    return {
        {"fp32": "fp32", "fp16": "fp16", "fp16 into fp32": "mixed", "fp16 cast, into fp32": "mixed_cast"}[
            name
        ]: total
        for name, total in course_sums().items()
    } | {"bf16": _sum_of_bf16()}


def _sum_of_bf16() -> float:
    import torch

    total = torch.tensor(0, dtype=torch.bfloat16)
    for _ in range(STEPS):
        total += torch.tensor(float(VALUE), dtype=torch.bfloat16)
    return total.item()


def _sum(question: Question) -> Truth:
    why = {
        "10": "no binary format holds 0.01, and sums are rounded: give all digits that the loop prints",
    }
    if question.key == "bf16":
        why["9.9531"] = "that is fp16, whose significand has three bits more"
    return Truth(_sums()[question.key], why=why, hint="run the loop and give all digits that it prints")


def error_of_terms(total: float, dtype: str) -> tuple[Fraction, Fraction]:
    """How far a sum is off because of its terms, and because of the additions, exactly."""
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    terms = STEPS * Fraction(torch.tensor(float(VALUE), dtype=types[dtype]).item())
    return abs(terms - STEPS * VALUE), abs(Fraction(total) - terms)


def _source_of_error(name: str, dtype: str) -> Finder:
    def find(question: Question) -> Truth:
        terms, additions = error_of_terms(_sums()[name], dtype)
        return Truth(
            "terms" if terms > additions else "additions",
            hint="what would exact additions of the rounded 0.01 give? Compare that with 10 and with the sum",
        )

    return find


def first_power_that_overflows(dtype: str) -> float:
    """The least power of two whose square is infinite, found by squaring."""
    import torch

    x = torch.tensor(1.0, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    while not (x * x).isinf():
        x = 2 * x
    return x.item()


def _overflow(dtype: str) -> Finder:
    def find(question: Question) -> Truth:
        why = {
            "fp16": {"65504": "that is the largest number; asked is what is too large to square"},
            "bf16": {
                f"{first_power_that_overflows('fp16'):.0f}": "of as many bits more are exponent",
            },
        }[dtype]
        return Truth(
            first_power_that_overflows(dtype), why=why, hint="how many bits has the exponent? Try it in torch"
        )

    return find


FINDERS: dict[str, Finder] = {
    **under(
        "mixed_precision_accumulation.a",
        {
            **dict.fromkeys(("fp32", "fp16", "mixed", "mixed_cast", "bf16"), _sum),
            "error_of_fp16": _source_of_error("fp16", "fp16"),
            "error_of_mixed": _source_of_error("mixed", "fp16"),
        },
    ),
    **under(
        "benchmarking_mixed_precision.a",
        {
            **{key: _dtype(key) for key in _DTYPE_WHY},
            "loss_mean": _dtype("loss", loss="mean"),
        },
    ),
    **under(
        "benchmarking_mixed_precision.b",
        {
            "layer_norm_bf16": _dtype("layer_norm", dtype="bf16"),
            "overflow_fp16": _overflow("fp16"),
            "overflow_bf16": _overflow("bf16"),
        },
    ),
}
