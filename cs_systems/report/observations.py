"""What a careful reader should notice in the samples: said only when the samples show it."""

import statistics
from collections.abc import Sequence

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report.cases import labels, passes_of
from cs_systems.tables import format_number, format_seconds
from cs_systems.timing.stats import Samples

SLOW_FIRST_STEP = 1.5
"""A first step at least this many times the median of the rest is worth a sentence."""
WIDE_SPREAD = 0.2
"""Interquartile range over median beyond which a case is too noisy to be compared."""
OTHER_LOAD_CORES = 0.25
"""Cores' worth of other work that makes a timing suspect."""
FEW_SAMPLES = 5
"""With fewer samples a side no test can tell two cases apart at the level of one percent."""
BACKWARD_RATIO = (1.6, 2.6)
"""Backward over forward that counts as the expected 2."""


def observations(records: Sequence[BenchmarkRecord]) -> list[str]:
    """One sentence for each thing worth noticing in the records, most important first."""
    named = list(zip(labels(records), records, strict=True)) if records else []
    with_samples = [(name, record) for name, record in named if record.samples_s]
    return [
        *_cut_short(with_samples),
        *_slow_first_steps(with_samples),
        *_wide_spreads(with_samples),
        *_other_load(with_samples),
        *_few_samples(with_samples),
        *_backward_ratios(with_samples),
    ]


Named = list[tuple[str, BenchmarkRecord]]


def _cut_short(named: Named) -> list[str]:
    cut = []
    for name, record in named:
        done, asked = len(next(iter(record.samples_s.values()))), record.case.get("steps", 0)
        if done < asked:
            cut.append(f"{name} ({done} of {asked})")
    return [f"fewer steps than asked for: {'; '.join(cut)}"] if cut else []


def _slow_first_steps(named: Named) -> list[str]:
    found = []
    for name, record in named:
        if record.case.get("warmup_steps") != 0:
            continue
        first_over_rest = {
            step: values[0] / statistics.median(values[1:])
            for step, values in record.samples_s.items()
            if len(values) > 2 and statistics.median(values[1:]) > 0
        }
        slow = {step: ratio for step, ratio in first_over_rest.items() if ratio >= SLOW_FIRST_STEP}
        if slow:
            ratios = ", ".join(f"{format_number(ratio, 2)}x ({step})" for step, ratio in slow.items())
            found.append(
                f"{name}: the first step, not warmed up, took {ratios} the median of the rest; "
                "judge by the median, not by Avg and Std"
            )
    return found


def _wide_spreads(named: Named) -> list[str]:
    wide = []
    for name, record in named:
        for step, values in record.samples_s.items():
            samples = Samples.from_values(values)
            spread = samples.iqr / samples.median if samples.median > 0 else 0.0
            if samples.num >= FEW_SAMPLES and spread > WIDE_SPREAD:
                wide.append((spread, f"{name} {step} {spread:.0%}"))
    if not wide:
        return []
    worst = [text for _, text in sorted(wide, reverse=True)[:3]]
    more = f" and {len(wide) - 3} more" if len(wide) > 3 else ""
    return [f"spread too wide to compare, IQR over {WIDE_SPREAD:.0%} of the median: {'; '.join(worst)}{more}"]


def _other_load(named: Named) -> list[str]:
    loads = [(name, record.metrics.get("other_load_cores") or 0.0) for name, record in named]
    busy = [f"{name} ({load:.2f} cores)" for name, load in loads if load > OTHER_LOAD_CORES]
    return [f"other programs ran beside {'; '.join(busy)}: times may be too long"] if busy else []


def _few_samples(named: Named) -> list[str]:
    few = [name for name, record in named if min(map(len, record.samples_s.values())) < FEW_SAMPLES]
    if not few:
        return []
    who = "every case" if len(few) == len(named) > 1 else "; ".join(few)
    return [f"fewer than {FEW_SAMPLES} samples, too few samples to compare: {who}"]


def _backward_ratios(named: Named) -> list[str]:
    """Each product y = x w of forward needs two in backward, for x and for w; recomputing adds one."""
    expected, unexpected = [], []
    for name, record in named:
        if not {"forward", "backward"} <= set(passes_of(record)) & set(record.samples_s):
            continue
        forward, backward = (Samples.from_values(record.samples_s[step]) for step in ("forward", "backward"))
        if forward.median == 0 or forward.num < FEW_SAMPLES:
            continue
        ratio = backward.median / forward.median
        usual = 3 if record.case.get("checkpoint_blocks") else 2
        low, high = (bound * usual / 2 for bound in BACKWARD_RATIO)
        if low <= ratio <= high:
            expected.append((ratio, usual))
            continue
        times = f"{format_seconds(backward.median)} against {format_seconds(forward.median)}"
        unexpected.append(f"{name}: backward / forward is {ratio:.2f} ({times}), about {usual} is expected")
    lines = []
    for usual, why in ((2, "two matrix products for each of forward"), (3, "one more to recompute forward")):
        ratios = [ratio for ratio, of in expected if of == usual]
        if ratios:
            span = " to ".join(dict.fromkeys((f"{min(ratios):.2f}", f"{max(ratios):.2f}")))
            lines.append(f"backward / forward is {span}, as expected (about {usual}: {why})")
    return [*unexpected, *lines]
