"""Truths about profiles: kernels, classes of work, attention in parts, peaks of memory.

The block chooses the run by model and context length; of several that fit the newest counts. On a machine
without a GPU the operators of the CPU stand where the kernels would. What a profile says has no spread: an
answer may differ from it by the 5 % of rounding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.measured import PROFILES, nothing_measured
from cs_systems.estimator.parameters import parameter_shapes
from cs_systems.grading.evidence import ProfiledRun
from cs_systems.grading.items import NotMeasuredError, Truth
from cs_systems.grading.truths.question import Finder, Question, misspelt_model, under, whole_number
from cs_systems.grading.truths.records import rounded
from cs_systems.model.presets import ALIASES
from cs_systems.tracing.attention_table import FINAL, SCORES, SOFTMAX
from cs_systems.tracing.attribute import paths, phase_of
from cs_systems.tracing.classify import op_class, shown_name

_NAMES = {"context_length": "seq_len"}
"""What facts of a run call a setting."""
_SOFTMAX_FLOPS = 5
"""Of one score: compare, subtract, exp, add, divide."""


@dataclass(frozen=True)
class Wanted:
    """The profile that a part is about."""

    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the question fixes; the others of `PLAIN` stay as they are there."""
    memory: bool = False
    """Whether allocations must have been recorded."""


CHOSEN = ("model", "context_length")
"""Facts that the student chooses in the block."""
PLAIN = {"mode": "train-step", "precision": "fp32", "attention": "naive", "checkpoint_blocks": 0}
"""What profiling/run.py records when nothing else is said."""
SWEEP = "0,1,2,3,4,6"
"""Sizes of a checkpoint for a question that compares them: a run of any size fits."""
STEP = Wanted()


def runs(question: Question, wanted: Wanted) -> list[ProfiledRun]:
    """The profiles that fit, newest first.

    Raises:
        NotMeasuredError: in one line with the command, when there is none.
    """
    chosen = chosen_facts(question)
    facts = {_NAMES.get(key, key): value for key, value in {**chosen, **PLAIN, **wanted.fixed}.items()}
    found = [
        run
        for run in reversed(question.evidence.runs)
        if all(value == SWEEP or _equal(getattr(run.facts, key), value) for key, value in facts.items())
    ]
    fitting = [run for run in found if run.has_memory == wanted.memory]
    if not wanted.memory:  # better than nothing, though recording allocations takes time
        fitting = fitting or found
    if not fitting:
        raise NotMeasuredError(not_recorded(question, wanted, {**chosen, **wanted.fixed}))
    return fitting


def chosen_facts(question: Question) -> dict[str, Any]:
    """What the block chooses the run by."""
    return {key: question.chosen(key) for key in CHOSEN if question.chosen(key) is not None}


def not_recorded(question: Question, wanted: Wanted, settings: Mapping[str, Any]) -> str:
    """One line for a profile that is not there, with the command that records it."""
    evidence = question.evidence
    if evidence.is_empty:
        return nothing_measured(evidence.folder)
    case = ", ".join(f"{key} {value}" for key, value in settings.items()) or "a step"
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in settings.items())
    folder = evidence.folder / PROFILES
    return (
        f"no profile of {case}{' with its allocations' if wanted.memory else ''} in {folder}; record it: "
        f"python profiling/run.py {'--memory ' if wanted.memory else ''}{flags} --output-dir {folder}"
    )


def _equal(fact: Any, value: Any) -> bool:
    if isinstance(fact, int):
        return fact == whole_number(value)
    return fact in (str(value).strip(), ALIASES.get(str(value).strip()))


def selector(wanted: Wanted) -> Finder:
    """Finder for a line that says which profile the block is about: right where there is one."""

    def find(question: Question) -> Truth:
        value = question.chosen(question.key)
        if question.key == "model" and (misspelt := misspelt_model(value)):
            return Truth("", hint=misspelt)
        runs(question, wanted)
        return Truth(str(value) if question.key == "model" else float(whole_number(value) or 0))

    return find


def own(wanted: Wanted, measure: Callable[[ProfiledRun], float], hint: str = "") -> Finder:
    """Finder for a number of the student's profile."""

    def find(question: Question) -> Truth:
        value = float(measure(runs(question, wanted)[0]))
        return Truth(value, *rounded(value, value), hint=hint)

    return find


def _row(rows: Sequence[Mapping[str, Any]], **values: str) -> Mapping[str, Any]:
    """The row of a table that has these values.

    Raises:
        NotMeasuredError: when the profile has nothing of it.
    """
    for row in rows:
        if all(row.get(key) == value for key, value in values.items()):
            return row
    what = ", ".join(values.values()) or "forward"
    raise NotMeasuredError(
        f"the profile shows no {what}: record it with python profiling/run.py, which names it"
    )


def _forward_by_profiler(run: ProfiledRun) -> float:
    return _row(run.forward)["profiler_ns"] / 1e9


def _forward_by_timer(run: ProfiledRun) -> float:
    if "forward" not in run.facts.timer_s:
        raise NotMeasuredError("this profile was recorded without a timed run: record it again")
    return run.facts.timer_s["forward"]


def _agreement(question: Question) -> Truth:
    run = runs(question, STEP)[0]
    ratio = _forward_by_profiler(run) / _forward_by_timer(run)
    word = "close" if 0.9 <= ratio <= 1.1 else "profiler longer" if ratio > 1 else "timer longer"
    return Truth(word, hint="divide your two numbers")


def _top(run: ProfiledRun, phase: str) -> Mapping[str, Any]:
    return _row(run.top_kernels, phase=phase)


def _top_name(phase: str) -> Finder:
    def find(question: Question) -> Truth:
        hint = f"the first row of the table of {phase}: the greatest total, not the greatest average"
        return Truth(_top(runs(question, STEP)[0], phase)["name"], hint=hint)

    return find


def _calls(question: Question) -> Truth:
    calls = _top(runs(question, STEP)[0], "forward")["calls_per_pass"]
    hint = "the column Calls a pass; the column Instances counts the calls of all passes"
    return Truth(calls, calls - 0.5, calls + 0.5, hint=hint)


def _is_same_kernel(question: Question) -> Truth:
    run = runs(question, STEP)[0]
    same = _top(run, "forward")["name"] == _top(run, "backward")["name"]
    hint = "compare the two tables; a range closed on the main thread does not see the kernels of backward"
    return Truth("yes" if same else "no", hint=hint)


def _num_gemms(question: Question) -> Truth:
    config = question.model()
    matrices = [name for name, shape in parameter_shapes(config).items() if len(shape) == 2]
    products = 2 * config.num_layers + sum("embeddings" not in name for name in matrices)
    why = {
        f"{products - 1}": "the head is a matrix product too",
        f"{products - 2 * config.num_layers}": "attention has two products of activations",
        f"{products - config.num_layers}": "SwiGLU has three matrices",
        f"{products + 1}": "the embedding looks rows up: that is no product",
    }
    return Truth(
        float(products), why=why, hint="count the products of one block, then those outside the blocks"
    )


def _other_kernels(run: ProfiledRun) -> Counter:
    """Time of each kernel of forward that is no matrix product, in ns."""
    times: Counter = Counter()
    for kernel, path in zip(run.trace.kernels, paths(run.trace), strict=True):
        if kernel.kind != "copy" and phase_of(path) == "forward" and op_class(kernel) != "matmul":
            times[shown_name(kernel)] += kernel.busy_ns
    if not times:
        raise NotMeasuredError("the profile shows no range forward: record it with python profiling/run.py")
    return times


def _other_kernel(question: Question) -> Truth:
    name, _ = _other_kernels(runs(question, STEP)[0]).most_common(1)[0]
    return Truth(
        name, hint="of the kernels of forward that multiply no matrices, the one with the greatest total"
    )


def _other_share(run: ProfiledRun) -> float:
    total_ns = _row(run.classes, phase="forward")["total_ns"]
    return _other_kernels(run).most_common(1)[0][1] / total_ns


def _class_ns(run: ProfiledRun, phase: str, name: str) -> float:
    cell = _row(run.classes, phase=phase).get(f"{name}_ns")
    return 0.0 if cell is None else cell.value


def _matmul_share(phase: str) -> Callable[[ProfiledRun], float]:
    def measure(run: ProfiledRun) -> float:
        return _class_ns(run, phase, "matmul") / _row(run.classes, phase=phase)["total_ns"]

    return measure


def _change_of_share(question: Question) -> Truth:
    run = runs(question, STEP)[0]
    grown = _matmul_share("total")(run) - _matmul_share("forward")(run)
    word = "same" if abs(grown) < 0.01 else "rises" if grown > 0 else "falls"
    hint = "subtract your two shares; backward must be in the whole step, or the answer means nothing"
    return Truth(word, hint=hint)


def _order_of_classes(question: Question) -> Truth:
    run = runs(question, STEP)[0]
    times = {name: _class_ns(run, "total", name) for name in ("matmul", "elementwise", "reduction")}
    return _descending(times, "the last row of Work by class")


def _order_of_phases(question: Question) -> Truth:
    rows = runs(question, STEP)[0].classes
    times = {phase: _row(rows, phase=phase)["total_ns"] for phase in ("forward", "backward", "optimizer")}
    return _descending(times, "the column Work of Work by class")


def _descending(times: Mapping[str, float], where: str) -> Truth:
    return Truth(tuple(sorted(times, key=times.__getitem__, reverse=True)), hint=f"look at {where}")


def _softmax_over_products(run: ProfiledRun) -> float:
    rows = run.attention
    softmax, scores, final = (
        _row(rows, **{"pass": "forward", "part": part}) for part in (SOFTMAX, SCORES, FINAL)
    )
    products_ns = scores["matmul_ns"] + final["matmul_ns"]
    if not products_ns:
        raise NotMeasuredError(
            "no product of attention was found in the profile: record it with naive attention"
        )
    return softmax["busy_ns"] / products_ns


def _softmax_flops(question: Question) -> Truth:
    d_head = question.model().d_head
    products = 2 * 2 * d_head  # two products of 2 d_head operations for each score
    return Truth(
        _SOFTMAX_FLOPS / products,
        why={
            f"{_SOFTMAX_FLOPS / (2 * d_head)}": "two products: scores, and weighted values",
            f"{products / _SOFTMAX_FLOPS}": "the other way round: softmax over the products",
        },
        hint="count operations for one score: five in softmax, and 2 d_head in each of the products",
    )


_CHOOSES = dict.fromkeys(CHOSEN, selector(STEP))

FINDERS: dict[str, Finder] = {
    **under(
        "nsys_profile.a",
        {
            **_CHOOSES,
            "profiler_forward": own(STEP, _forward_by_profiler),
            "timer_forward": own(STEP, _forward_by_timer),
            "agreement": _agreement,
        },
    ),
    **under(
        "nsys_profile.b",
        {
            **_CHOOSES,
            "top_forward": _top_name("forward"),
            "calls": _calls,
            "same_in_backward": _is_same_kernel,
            "num_gemms": _num_gemms,
        },
    ),
    **under(
        "nsys_profile.c",
        {**_CHOOSES, "other_kernel": _other_kernel, "other_share": own(STEP, _other_share)},
    ),
    **under(
        "nsys_profile.d",
        {
            **_CHOOSES,
            "matmul_in_forward": own(STEP, _matmul_share("forward")),
            "matmul_in_step": own(STEP, _matmul_share("total")),
            "change": _change_of_share,
            "classes": _order_of_classes,
            "phases": _order_of_phases,
        },
    ),
    **under(
        "nsys_profile.e",
        {
            **_CHOOSES,
            "time_ratio": own(STEP, _softmax_over_products),
            "flops_ratio": _softmax_flops,
        },
    ),
}
