"""Plots of the training-step experiment: warm-up, time against model size, time against context length."""

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.figure import (
    COLOURS,
    MARKERS,
    Mark,
    log_number_axis,
    log_time_axes,
    make_figure,
    mark,
    our_style,
    save,
    time_unit,
)
from cs_systems.tables import format_count
from cs_systems.timing.stats import Samples, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PASSES = ("forward", "backward", "optimizer_step", "forward_backward", "train_step")
_MAX_CASES = len(COLOURS)
_MAX_PANELS = 6

Drawn = tuple["Figure | None", list[str]]
"""A figure, and why it is missing or incomplete."""


def draw_plots(
    records: Sequence[BenchmarkRecord], folder: pathlib.Path
) -> tuple[list[pathlib.Path], list[str]]:
    """Draw each plot that the records have more than one point for, as SVG and PNG in `folder`.

    Returns:
        The files written, and a sentence for everything that was not drawn.

    Raises:
        ValueError: when matplotlib is missing or a file cannot be written; the message says what to do.
    """
    chosen, remarks = cases.of_training_step(records)
    latest, again = cases.last_ok(chosen)
    measured = [record for record in latest.values() if record.samples_s]
    remarks += again
    num_rest = len({record.key for record in chosen} - set(latest))
    if num_rest:
        remarks.append(f"{num_rest} cases without a complete measurement are not drawn")
    files = []
    with our_style():
        for name, draw in (
            ("warmup", draw_warmup), ("model_size", draw_model_size), ("context_length", draw_context_length),
        ):  # fmt: skip
            figure, why = draw(measured)
            remarks += [f"{name}: {text}" for text in why]
            files += save(figure, folder, name) if figure else []
    return files, remarks


def draw_warmup(records: Sequence[BenchmarkRecord]) -> Drawn:
    """Time of each step since the start of the process, a panel for each pass; hollow marks are warm-up."""
    several = [record for record in records if any(len(_all_steps(record, name)) > 1 for name in _PASSES)]
    if not several:
        return None, ["not drawn, no case has more than one step"]
    names = cases.labels(several)[:_MAX_CASES]
    drawn = several[:_MAX_CASES]
    passes = [name for name in _PASSES[:3] if any(_all_steps(record, name) for record in drawn)]
    unit, factor = time_unit(
        max(time_s for name in passes for record in drawn for time_s in _all_steps(record, name))
    )
    marks = [mark(name, index) for index, name in enumerate(names)]
    if any(record.warmup_samples_s for record in drawn):
        marks.append(("hollow: warm-up", "#555555", "o", True))
    figure, axes = make_figure("Each step of a process, from its first", marks, _caption(drawn), len(passes))
    for panel, name in zip(axes, passes, strict=True):
        for index, record in enumerate(drawn):
            colour, marker = COLOURS[index], MARKERS[index]
            times = [time_s * factor for time_s in _all_steps(record, name)]
            aside = (index - (len(drawn) - 1) / 2) * 0.08  # equal times would hide each other
            steps = [step + aside for step in range(1, len(times) + 1)]
            warm = len(record.warmup_samples_s.get(name, []))
            panel.plot(steps, times, color=colour, linewidth=1, alpha=0.6)
            panel.plot(steps[:warm], times[:warm], marker, color=colour, markerfacecolor="white")
            panel.plot(steps[warm:], times[warm:], marker, color=colour)
        panel.set_title(name)
        panel.set_xlabel("step (number)")
        panel.locator_params(axis="x", integer=True)
    log_time_axes(axes, unit)
    hidden = len(several) - len(drawn)
    return figure, [f"{hidden} more cases not drawn, a plot holds {_MAX_CASES}"] if hidden else []


def draw_model_size(records: Sequence[BenchmarkRecord]) -> Drawn:
    """Median time against number of parameters, a panel for each way in which the models were run."""
    known = [record for record in records if record.metrics.get("num_parameters")]
    return _draw_scaling(
        known,
        "Time of a step against model size",
        "model and its parameters (number)",
        lambda record: record.metrics["num_parameters"],
        lambda record: f"{record.case['model']}, {format_count(record.metrics['num_parameters'])}",
        cases.workload_settings,
    )


def draw_context_length(records: Sequence[BenchmarkRecord]) -> Drawn:
    """Median time against context length, a panel for each model and way in which it was run."""

    def way(record: BenchmarkRecord) -> dict[str, Any]:
        skipped = ("context_length", "num_positions")  # the second follows the first
        return {name: value for name, value in cases.settings(record).items() if name not in skipped}

    return _draw_scaling(
        records,
        "Time of a step against context length",
        "context length (tokens)",
        lambda record: record.case["context_length"],
        lambda record: str(record.case["context_length"]),
        way,
    )


def _draw_scaling(
    records: Sequence[BenchmarkRecord],
    heading: str,
    x_label: str,
    x_of: Callable[[BenchmarkRecord], int],
    x_name: Callable[[BenchmarkRecord], str],
    way: Callable[[BenchmarkRecord], dict[str, Any]],
) -> Drawn:
    """Median time of each pass against `x_of`, one panel for the records that agree in `way`."""
    groups: dict[str, list[BenchmarkRecord]] = {}
    for record in sorted(records, key=x_of):
        groups.setdefault(repr(way(record)), []).append(record)
    several = [group for group in groups.values() if x_of(group[0]) < x_of(group[-1])]
    if not several:
        return None, ["not drawn, no two cases differ in it and agree in everything else"]
    panels = several[:_MAX_PANELS]
    drawn = [record for group in panels for record in group]
    unit, factor = time_unit(max(max(values) for record in drawn for values in record.samples_s.values()))
    caption = _caption(drawn, "median, bars: middle half; ")
    figure, axes = make_figure(heading, _marks_of_passes(drawn), caption, len(panels))
    titles = _panel_titles([way(group[0]) for group in panels])
    for panel, group, text in zip(axes, panels, titles, strict=True):
        for index, name in enumerate(_PASSES):
            points = {x_of(record): record.samples_s[name] for record in group if name in record.samples_s}
            if points:
                _draw_medians(panel, index, factor, points)
        log_number_axis(panel, {x_of(record): x_name(record) for record in group})
        panel.set_xlabel(x_label)
        panel.set_title(text)
    log_time_axes(axes, unit)
    hidden = len(several) - len(panels)
    return figure, [f"{hidden} more panels not drawn, a plot holds {_MAX_PANELS}"] if hidden else []


def _draw_medians(panel: "Axes", index: int, factor: float, points: dict[int, list[float]]) -> None:
    samples = [Samples.from_values([value * factor for value in values]) for values in points.values()]
    medians = [one.median for one in samples]
    below = [one.median - quantile(one.values, 0.25) for one in samples]
    above = [quantile(one.values, 0.75) - one.median for one in samples]
    look = {"color": COLOURS[index], "marker": MARKERS[index], "linewidth": 1.4, "capsize": 3}
    panel.errorbar(list(points), medians, (below, above), **look)


def _marks_of_passes(records: Sequence[BenchmarkRecord]) -> list[Mark]:
    present = {name for record in records for name in record.samples_s}
    return [mark(name, index) for index, name in enumerate(_PASSES) if name in present]


def _panel_titles(ways: list[dict[str, Any]]) -> list[str]:
    """What each panel has of its own, in words; empty when there is one panel."""
    telling = [name for name in ways[0] if len({repr(way.get(name)) for way in ways}) > 1]
    if "model" in telling:  # the label stands for the shape
        telling = [name for name in telling if name == "model" or name in cases.WORKLOAD]
    return [", ".join(cases.phrase(name, way.get(name)) for name in telling) for way in ways]


def _all_steps(record: BenchmarkRecord, name: str) -> list[float]:
    return [*record.warmup_samples_s.get(name, []), *record.samples_s.get(name, [])]


def _caption(records: Sequence[BenchmarkRecord], meaning: str = "") -> str:
    return f"{meaning}{cases.conditions(records)}\n{cases.machine(records)}"
