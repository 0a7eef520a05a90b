"""Two plots a model: throughput and latency against batch size, a line for each engine and precision."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report.figure import (
    COLOURS,
    MARKERS,
    log_number_axis,
    log_time_axes,
    make_figure,
    mark,
    our_style,
    save,
)
from cs_systems.report.generation_rows import column_series, of_generation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLOTS = (
    ("throughput", "Throughput", "tokens_per_s", "tokens/s"),
    ("latency", "Latency of a generation", "latency_s", "seconds"),
)


def draw_generation(
    records: Sequence[BenchmarkRecord], folder: pathlib.Path
) -> tuple[list[pathlib.Path], list[str]]:
    """Draw the plots as SVG and PNG in `folder`; returns the files, and a sentence for what was not drawn.

    Raises:
        ValueError: when matplotlib is missing or a file cannot be written.
    """
    chosen = of_generation(records)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--plots {folder}: cannot create it ({error.strerror})") from None
    files, remarks = [], []
    with our_style():
        for model in dict.fromkeys(record.case["model"] for record in chosen):
            members = [record for record in chosen if record.case["model"] == model]
            series = column_series(members)
            if len({batch for points, _ in series.values() for batch in points}) < 2:
                remarks.append(f"{model}: not drawn, there is only one batch size")
                continue
            if len(series) > len(COLOURS):
                remarks.append(f"{model}: only {len(COLOURS)} of {len(series)} columns are drawn")
            for name, heading, key, unit in _PLOTS:
                figure = _draw(f"{heading}: {model}", series, key, unit, _caption(members))
                files += save(figure, folder, f"generation_{model}_{name}")
    return files, remarks


def _draw(heading: str, series: dict[str, Any], key: str, unit: str, caption: str) -> "Figure":
    drawn = list(series.items())[: len(COLOURS)]
    marks = [mark(name, index) for index, (name, _) in enumerate(drawn)]
    if any(first_oom for _, (_, first_oom) in drawn):
        marks.append(("hollow: next ran out of memory", "#555555", "o", True))
    figure, (panel,) = make_figure(heading, marks, caption, 1)
    batches = set()
    for index, (_, (points, first_oom)) in enumerate(drawn):
        sizes = sorted(points)
        values = [points[size][key] for size in sizes]
        panel.plot(sizes, values, color=COLOURS[index], marker=MARKERS[index], linewidth=1.2)
        if first_oom and sizes:
            panel.plot(sizes[-1:], values[-1:], MARKERS[index], color=COLOURS[index], markerfacecolor="white")
        batches |= set(sizes)
    log_time_axes([panel], unit)
    log_number_axis(panel, {size: str(size) for size in batches})
    panel.set_xlabel("batch size (sequences)")
    panel.set_ylabel(unit)
    return figure


def _caption(records: Sequence[BenchmarkRecord]) -> str:
    ok = [record for record in records if record.status == "ok"]
    where, case = ok[0].provenance, ok[0].case
    busy = ", contended" if any(record.metrics.get("contended") for record in ok) else ""
    return (
        f"{where.device}, {where.threads} threads, torch {where.versions['torch']}, commit {where.commit}; "
        f"{case['prompt_len']} prompt tokens, {case['new_tokens']} new{busy}"
    )
