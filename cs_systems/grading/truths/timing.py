"""Truths about times of training steps: medians, warm-up, precision, compilation."""

import dataclasses
import statistics
from collections.abc import Sequence

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.estimator.flops import forward_flops
from cs_systems.estimator.parameters import num_parameters
from cs_systems.grading.items import NotMeasuredError, Truth
from cs_systems.grading.truths.question import Finder, Question, under
from cs_systems.grading.truths.records import (
    Wanted,
    median_of,
    newest_first,
    own,
    ratio_of,
    rounded,
    selector,
)

_PLAIN = {
    "param_dtype": "fp32",
    "attention": "naive",
    "kernels": "off",
    "compile": False,
    "checkpoint_blocks": 0,
    "mode": ("train-step", "forward-backward"),
    "precision": "fp32",
}
_CHOSEN = ("model", "context_length", "batch_size")
STEP = Wanted("training_step", _CHOSEN, ("forward", "backward"), "benchmark.py", _PLAIN)
"""A step in fp32, nothing switched on."""
WHOLE_STEP = dataclasses.replace(STEP, passes=("forward", "train_step"))

_BF16 = {"precision": "bf16"}

EFFECTS = {"none": 0.02, "small": 0.1, "large": 1.0}
"""By how much of itself a mean grows at most to be called so; beyond is `huge`."""


def _num_parameters(question: Question) -> Truth:
    config = question.model()
    fewer = num_parameters(config) - config.vocab_size * config.d_model
    third = config.num_layers * config.d_model * config.d_ff
    return Truth(
        float(num_parameters(config)),
        why={
            f"{fewer}": "the head has a matrix of its own: it is not tied to the embedding",
            f"{num_parameters(config) - third}": "SwiGLU has three matrices, not two",
        },
        hint="embedding, head, and per block four attention matrices, three feed-forward matrices, two norms",
    )


def _forward_flops(question: Question) -> Truth:
    batch_size, seq_len = question.count("batch_size"), question.count("context_length")
    flops = forward_flops(question.model(), batch_size, seq_len)
    return Truth(
        float(flops),
        why={
            f"{flops // 2}": "a multiply-add counts as two operations",
            f"{3 * flops}": "that is forward and backward; the question asks for forward",
        },
        hint="2 m n k for each product of m x k and k x n, attention's two products and the head included; "
        "hidden scores count too",
    )


def _mean_of_forward(records: Sequence[BenchmarkRecord]) -> tuple[float, float, float]:
    mean = statistics.fmean(records[0].samples_s["forward"])
    return mean, *rounded(mean, mean)


def _spread_of_forward(records: Sequence[BenchmarkRecord]) -> tuple[float, float, float]:
    """The standard deviation, divided by n or by n - 1: both are in use."""
    samples = records[0].samples_s["forward"]
    if len(samples) < 2:
        raise NotMeasuredError("one step has no spread: measure with --steps 10")
    sample = statistics.stdev(samples)
    return sample, *rounded(statistics.pstdev(samples), sample)


def _without_and_with_warmup(question: Question) -> tuple[Sequence[float], Sequence[float]]:
    cold = newest_first(question, STEP.having(warmup_steps=0))[0]
    warm = newest_first(question, STEP)[0]
    if not warm.case.get("warmup_steps"):
        newest_first(question, STEP.having(warmup_steps=5))  # says how to measure it
    return cold.samples_s["forward"], warm.samples_s["forward"]


def _effect_of_warmup(question: Question) -> Truth:
    cold, warm = _without_and_with_warmup(question)
    grown = statistics.fmean(cold) / statistics.fmean(warm) - 1
    effect = next((word for word, limit in EFFECTS.items() if grown <= limit), "huge")
    hint = "divide the mean of forward without warm-up by the mean with it: your own records have both"
    return Truth(effect, hint=hint)


def _where_is_the_excess(question: Question) -> Truth:
    cold, warm = _without_and_with_warmup(question)
    middle = statistics.median(cold)
    excess = [max(0.0, sample - middle) for sample in cold]
    is_first = excess[0] == max(excess) and excess[0] > sum(excess) / 2
    same = statistics.fmean(cold) <= (1 + EFFECTS["none"]) * statistics.fmean(warm)  # nothing to place
    return Truth(
        "first" if is_first else "spread",
        also=("first", "spread") if same else (),
        hint="look at the single steps, or compare maximum, median and mean without warm-up",
    )


def _bf16_and_fp32(over: int, name: str) -> Finder:
    return own(STEP, ratio_of((over, name), (1 - over, name)), _BF16)


FINDERS: dict[str, Finder] = {
    **under(
        "benchmarking_script.a",
        {
            **dict.fromkeys(_CHOSEN, selector(STEP)),
            "num_parameters": _num_parameters,
            "forward_flops": _forward_flops,
        },
    ),
    **under(
        "benchmarking_script.b",
        {
            **dict.fromkeys(_CHOSEN, selector(STEP)),
            "forward_median": own(STEP, median_of("forward")),
            "backward_median": own(STEP, median_of("backward")),
            "backward_over_forward": own(STEP, ratio_of((0, "backward"), (0, "forward"))),
            "forward_std": own(STEP, _spread_of_forward),
        },
    ),
    **under(
        "benchmarking_script.c",
        {
            **dict.fromkeys(_CHOSEN, selector(STEP)),
            "forward_mean": own(STEP.having(warmup_steps=0), _mean_of_forward),
            "effect": _effect_of_warmup,
            "where": _where_is_the_excess,
        },
    ),
    **under(
        "benchmarking_mixed_precision.c",
        {
            **dict.fromkeys(_CHOSEN, selector(STEP)),
            "forward_fp32": own(STEP, median_of("forward"), _BF16),
            "forward_bf16": own(STEP, median_of("forward", 1), _BF16),
            "forward_speedup": _bf16_and_fp32(0, "forward"),
            "backward_speedup": _bf16_and_fp32(0, "backward"),
        },
    ),
    **under(
        "torch_compile.b",
        {
            **dict.fromkeys(_CHOSEN, selector(WHOLE_STEP)),
            "forward_speedup": own(WHOLE_STEP, ratio_of((0, "forward"), (1, "forward")), {"compile": True}),
            "step_speedup": own(
                WHOLE_STEP, ratio_of((0, "train_step"), (1, "train_step")), {"compile": True}
            ),
        },
    ),
}
