"""True numbers of the student's own: which record a question is about, and how near an answer must come.

The block chooses (`model`, `context_length`, ...), the question fixes the rest, and of the records that fit
the one with the most warm-up counts, of several such the newest. Where two cases are compared, both must have
been measured alike: with the same warm-up and number of steps, as in one row of a table. What the same case
said at an earlier time makes an answer stale rather than wrong.

Accepted is the 95 % confidence interval of the median, from its order statistics (for ten samples the second
to the ninth, for fewer than six all of them), wider by 5 %, which is the most that rounding to two digits
moves a number. A ratio is that of the two medians in the records, within 5 %.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.measured import nothing_measured
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.grading.items import NotMeasuredError, Truth
from cs_systems.grading.truths.question import Finder, Question, misspelt_model, whole_number
from cs_systems.model.presets import ALIASES

ROUNDING = 0.05
"""Rounding to two digits moves a number by at most this fraction."""
CONFIDENCE = 0.95

_IS_A_COUNT = ("context_length", "seq_len", "d_head", "num_heads", "batch_size")

Measure = Callable[[Sequence[BenchmarkRecord]], tuple[float, float, float]]
"""Value, least and greatest accepted value, from one record for each of the cases that are compared."""


@dataclass(frozen=True)
class Wanted:
    """The records that a part is about."""

    experiment: str
    """Of the records: training_step or attention."""
    chosen: tuple[str, ...]
    """Settings that the student chooses in the block."""
    passes: tuple[str, ...]
    """Passes that must have been timed."""
    command: str
    """Measures the case, after `python`; flags of what is chosen and fixed are added."""
    plain: Mapping[str, Any]
    """Settings at which the command leaves them; a tuple lists several that are allowed."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the question fixes otherwise."""

    def having(self, **settings: Any) -> "Wanted":
        """The same with more settings fixed."""
        return dataclasses.replace(self, fixed={**self.fixed, **settings})


def selector(wanted: Wanted) -> Finder:
    """Finder for a line that says which case the block is about: right where there is such a record."""

    def find(question: Question) -> Truth:
        value = question.chosen(question.key)
        if question.key == "model" and (misspelt := misspelt_model(value)):
            return Truth("", hint=misspelt)
        newest_first(question, wanted)
        return Truth(float(whole_number(value) or 0) if question.key in _IS_A_COUNT else str(value))

    return find


def own(wanted: Wanted, measure: Measure, *others: Mapping[str, Any]) -> Finder:
    """Finder for a number of the student's own.

    Args:
        wanted: the case that the question is about.
        measure: turns one record of this case, and one of each of the `others`, into a number.
        others: settings by which further cases differ from the first.
    """

    def find(question: Question) -> Truth:
        histories = _compared(question, wanted, others) if others else [newest_first(question, wanted)]
        value, low, high = measure([history[0] for history in histories])
        return Truth(value, low, high, older=_older(histories, measure))

    return find


def _compared(
    question: Question, wanted: Wanted, others: Sequence[Mapping[str, Any]]
) -> list[list[BenchmarkRecord]]:
    """For the case and each of the others its measurements, newest first, those that were measured alike."""
    varied = {key for changes in others for key in changes}
    alike: dict[str, list[list[BenchmarkRecord]]] = {}
    for index, changes in enumerate(({}, *others)):
        for record in _complete(question, wanted, changes):
            rest = {key: value for key, value in record.case.items() if key not in varied}
            key = json.dumps([rest, record.provenance.device], sort_keys=True)
            alike.setdefault(key, [[] for _ in range(1 + len(others))])[index].append(record)
    groups = [group for group in alike.values() if all(group)]
    if not groups:
        return [newest_first(question, wanted, changes) for changes in ({}, *others)]
    best = max(groups, key=lambda group: max(map(_rank, group[0])))
    return [sorted(records, key=_rank, reverse=True) for records in best]


def _older(
    histories: Sequence[Sequence[BenchmarkRecord]], measure: Measure
) -> tuple[tuple[float, float, str], ...]:
    """What the number was before the last measurements of the cases, before those before them, and so on."""
    found = []
    for age in range(1, max(map(len, histories))):
        records = [history[min(age, len(history) - 1)] for history in histories]
        _, low, high = measure(records)
        found.append((low, high, max(str(record.provenance.time_utc) for record in records)[:10]))
    return tuple(found)


def newest_first(
    question: Question, wanted: Wanted, changes: Mapping[str, Any] | None = None
) -> list[BenchmarkRecord]:
    """All measurements of the case that a block is about; the first is the one that counts.

    Raises:
        NotMeasuredError: in one line with the command, when there is none.
    """
    complete = _complete(question, wanted, changes or {})
    best = max(complete, key=_rank)
    same = [record for record in complete if _same_case(record, best)]
    return sorted(same, key=_rank, reverse=True)


def _complete(question: Question, wanted: Wanted, changes: Mapping[str, Any]) -> list[BenchmarkRecord]:
    """The records of all cases that a block may be about; raises as `newest_first` does."""
    fixed = {**wanted.fixed, **changes}
    answered = {key: question.chosen(key) for key in wanted.chosen if key not in fixed}
    chosen = {key: value for key, value in answered.items() if value is not None}
    records = [record for record in question.evidence.records if record.experiment == wanted.experiment]
    fitting = [record for record in records if _fits(record, chosen, {**wanted.plain, **fixed})]
    complete = [record for record in fitting if record.status == "ok" and _has_passes(record, wanted.passes)]
    if not complete:
        raise NotMeasuredError(_not_measured(question, wanted, fitting, chosen, fixed))
    return complete


def _fits(record: BenchmarkRecord, chosen: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    """Whether a record is of the case; where one is from before a setting existed, it had the default."""
    case = record.case
    return all(_equal(case.get(key), value) for key, value in chosen.items()) and all(
        key not in case or case[key] in (value if isinstance(value, tuple) else (value,))
        for key, value in fixed.items()
    )


def _equal(setting: Any, answer: Any) -> bool:
    if isinstance(setting, int):
        return setting == whole_number(answer)
    answer = str(answer).strip()
    return str(setting) in (answer, ALIASES.get(answer))


def _has_passes(record: BenchmarkRecord, passes: Sequence[str]) -> bool:
    return all(record.samples_s.get(name) for name in passes)


def _rank(record: BenchmarkRecord) -> tuple[bool, float, str]:
    """All steps that were asked for, the most warm-up, the newest."""
    asked, warmup = record.case.get("steps"), record.case.get("warmup_steps")
    done = min(map(len, record.samples_s.values()), default=0)
    is_complete = not isinstance(asked, int) or done >= asked
    return is_complete, warmup if isinstance(warmup, int | float) else 0, str(record.provenance.time_utc)


def _same_case(a: BenchmarkRecord, b: BenchmarkRecord) -> bool:
    """Whether two records are of one case; how long it might have taken is no part of it."""
    cases = [{key: value for key, value in record.case.items() if key != "max_seconds"} for record in (a, b)]
    return cases[0] == cases[1] and a.provenance.device == b.provenance.device


def _not_measured(
    question: Question,
    wanted: Wanted,
    fitting: Sequence[BenchmarkRecord],
    chosen: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> str:
    evidence = question.evidence
    if not evidence.records:
        return nothing_measured(evidence.folder)
    settings = {**chosen, **fixed}
    case = ", ".join(f"{key} {_shown(value)}" for key, value in settings.items()) or wanted.experiment
    ended = [record for record in fitting if record.status != "ok"]
    if ended:
        last = ended[-1]
        return (
            f"the record of {case} is {last.status} ({last.reason or 'no reason given'}): choose another case"
        )
    flags = " ".join(f"--{key.replace('_', '-')} {_shown(value)}" for key, value in settings.items())
    output = evidence.folder / f"{wanted.experiment}.jsonl"
    return (
        f"no record of {case} in {evidence.folder}; measure it: "
        f"python {wanted.command} {flags} --output {output} --resume"
    )


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def median_of(name: str, number: int = 0) -> Measure:
    """The median of one pass of one of the records."""

    def measure(records: Sequence[BenchmarkRecord]) -> tuple[float, float, float]:
        samples = records[number].samples_s[name]
        low, high = median_interval(samples)
        return statistics.median(samples), *rounded(low, high)

    return measure


def metric(name: str) -> Measure:
    """A metric of the first record that has no samples, such as bytes."""

    def measure(records: Sequence[BenchmarkRecord]) -> tuple[float, float, float]:
        value = records[0].metrics.get(name)
        if not isinstance(value, int | float):
            raise NotMeasuredError(f"the record does not say {name}: it was not measured there")
        return float(value), *rounded(value, value)

    return measure


def ratio_of(over: tuple[int, str], under: tuple[int, str]) -> Measure:
    """The ratio of two medians, each named by the number of its record and its pass."""

    def measure(records: Sequence[BenchmarkRecord]) -> tuple[float, float, float]:
        above, below = (records[number].samples_s[name] for number, name in (over, under))
        if min(below) <= 0:
            raise NotMeasuredError("a sample of 0 s cannot be divided by: measure this case again")
        value = statistics.median(above) / statistics.median(below)
        return value, *rounded(value, value)

    return measure


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Confidence interval of the median from order statistics; with few samples their whole range.

    The k-th smallest and the k-th largest of n samples enclose the median unless fewer than k of them fall on
    one side of it, which the binomial distribution with probability 1/2 says: David and Nagaraja 2003, Order
    Statistics, section 7.1. The largest such k is taken.
    """
    ordered, n = sorted(samples), len(samples)
    k, outside = 1, 2 / 2**n
    while k < n / 2 and outside + 2 * math.comb(n, k) / 2**n <= 1 - confidence:
        outside += 2 * math.comb(n, k) / 2**n
        k += 1
    return ordered[k - 1], ordered[n - k]


def rounded(low: float, high: float) -> tuple[float, float]:
    """An interval, wide enough for an answer that was rounded to two digits."""
    return min(low * (1 - ROUNDING), low * (1 + ROUNDING)), max(high * (1 - ROUNDING), high * (1 + ROUNDING))
