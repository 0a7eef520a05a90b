"""Which operation of layer norm overflows or loses digits: tables and plots from the records."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.figure import COLOURS, MARKERS, make_figure, mark, our_style, save
from cs_systems.tables import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("centred", "squares", "sum of squares", "normalised", "F.layer_norm")
_LARGEST_DRAWN, _NOT_FINITE_AT = 10.0, 100.0
"""A plot puts larger errors at the first, and what is inf or nan around the second."""
_MAX_PANELS = 6

Numbers = Mapping[str, Any]
"""A part of the metrics of a record."""


def tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """For each setting its operations; then whole norms of all settings, and the limits of each type."""
    result = [_operations_table(record) for record in records]
    return [*result, _norms_table(records), _limits_table(records)] if records else []


def summary(record: BenchmarkRecord) -> dict[str, Any]:
    """Error of the whole norms, and the operations with inf or nan."""
    metrics = record.metrics
    return {
        "errors": {norm["norm"]: norm["error"] for norm in metrics["norms"]},
        "not_finite": [step["name"] for step in metrics["operations"] if step["num_inf"] or step["num_nan"]],
        "limits": {limit["limit"]: limit["predicted"] for limit in metrics["limits"]},
    }


def _operations_table(record: BenchmarkRecord) -> Table:
    case = record.case
    name, largest = case["dtype"], record.metrics["largest"]
    rows = [
        {
            **step,
            "largest": _finite_or_word(step["largest"]),
            "happens": _happens(step, largest),
            "own_error": _error_cell(step["own_error"]),
            "total_error": _error_cell(step["total_error"]),
        }
        for step in record.metrics["operations"]
    ]
    columns = [
        Column("name", "Result", align="left"),
        Column("formula", "Operation", align="left"),
        Column("largest", f"Largest in {name}"),
        Column("exact_largest", "in fp64"),
        Column("own_error", "Error of the operation", format="{:.2g}".format),
        Column("total_error", "since the inputs", format="{:.2g}".format),
        Column("happens", "What happens", align="left"),
    ]
    setting = (
        f"mean {case['offset']:g}, std {case['scale']:g}, eps {case['eps']:g}, {case['d_model']} numbers"
    )
    title = f"Layer norm op by op in {name}: {setting}"
    return Table(title, columns, rows, [*_operation_notes(record), _origin([record])])


def _happens(step: Numbers, largest: float) -> str:
    """What became of the numbers of a result, in a few words."""
    size, parts = step["size"], []
    if step["num_inf"]:
        why = f" (beyond {largest:.5g})" if step["exact_largest"] > largest else ""
        parts.append(f"inf{_share(step['num_inf'], size)}{why}")
    if step["num_nan"]:
        parts.append(f"nan{_share(step['num_nan'], size)}")
    if step["num_lost"]:
        parts.append(f"0 for a number that is not{_share(step['num_lost'], size)}")
    return ", ".join(parts)


def _share(count: int, size: int) -> str:
    return "" if count == size else f": {count} of {size}"


def _operation_notes(record: BenchmarkRecord) -> list[str]:
    name, case = record.case["dtype"], record.case
    steps = {step["name"]: step for step in record.metrics["operations"]}
    notes = [
        "error: root mean square of the difference to fp64, over that of the fp64 result (of sum and mean, "
        "which may be 0: over d times and once that of x); of the operation: given the same inputs",
        f"sums are added one by one in {name}; eps is stored in {name}",
    ]
    bad = [step for step in steps.values() if step["num_inf"] or step["num_nan"]]
    known = [step for step in steps.values() if step["own_error"]]
    if bad:
        notes.append(f"{bad[0]['formula']}: the first to leave the range; what follows from it is worthless")
        if steps["normalised"] not in bad:
            notes.append(
                "1 / sqrt(inf) is 0: the result has neither inf nor nan, is wrong, and nothing tells"
            )
    elif known:
        worst = max(known, key=lambda step: step["own_error"])
        notes.append(f"the operation that loses most by itself: {worst['formula']}, {worst['own_error']:.2g}")
    inputs, ratio = steps["x"]["total_error"], math.hypot(case["offset"], case["scale"]) / case["scale"]
    if ratio > 3 and inputs:
        notes.append(
            f"cancellation: x - mean is {ratio:.3g} times smaller than x, whose rounding, {inputs:.2g} of "
            f"it, is {ratio * inputs:.2g} of the difference; no later operation brings the digits back"
        )
    return notes


def _norms_table(records: Sequence[BenchmarkRecord]) -> Table:
    rows = [
        {
            **norm,
            "scale": record.case["scale"],
            "offset": record.case["offset"],
            "low": record.case["dtype"],
            "largest": _finite_or_word(norm["largest"]),
            "error": _error_cell(norm["error"]),
        }
        for record in records
        for norm in record.metrics["norms"]
    ]
    columns = [
        Column("low", "Low", align="left"),
        Column("offset", "Mean", format="{:g}".format),
        Column("scale", "Std", format="{:g}".format),
        Column("norm", "Norm", align="left"),
        Column("dtype", "Returns", align="left"),
        Column("largest", "Largest"),
        Column("exact_largest", "in fp64"),
        Column("error", "Error", format="{:.2g}".format),
        Column("num_not_finite", "inf or nan"),
    ]
    notes = [
        "F.layer_norm and F.rms_norm: the low-precision input, statistics in fp32, and the result rounded",
        "fp32 input: what autocast on a GPU runs, as layer_norm is on its fp32 list; on a CPU it is not",
        "RMS norm subtracts no mean, so nothing cancels, but squares with the mean in them overflow earlier",
    ]
    return Table("Whole norms", columns, rows, [*notes, _origin(records)])


def _limits_table(records: Sequence[BenchmarkRecord]) -> Table:
    rows: dict[str, Numbers] = {}
    for record in records:
        for limit in record.metrics["limits"]:
            row = {**limit, "dtype": record.case["dtype"]}
            rows[repr(row)] = row  # the settings that share a type share its limits
    columns = [
        Column("dtype", "Type", align="left"),
        Column("limit", "Limit", align="left"),
        Column("predicted", "Predicted", format="{:.6g}".format),
        Column("found", "Found", format="{:.6g}".format),
        Column("rule", "From", align="left"),
    ]
    notes = [
        "for inputs with mean 0; found: by trying scales with these inputs, squared and added in the type"
    ]
    return Table("Where the range of a type ends", columns, list(rows.values()), [*notes, _origin(records)])


def draw(records: Sequence[BenchmarkRecord], folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Draw error against scale and against offset, a panel a type, as SVG and PNG.

    Returns:
        The files, and a sentence for what was not drawn.

    Raises:
        ValueError: when matplotlib is missing or a file cannot be written; the message says what to do.
    """
    files, remarks = [], []
    with our_style():
        for axis, other in (("scale", "offset"), ("offset", "scale")):
            panels = {_panel_title(record, other): record for record in records}
            shown = dict(list(panels.items())[:_MAX_PANELS])
            files += save(draw_sweep(shown, axis), folder, f"layer_norm_{axis}")
            if len(panels) > len(shown):
                remarks.append(f"layer_norm_{axis}: {len(panels) - len(shown)} more panels not drawn")
    return files, remarks


def draw_sweep(panels: dict[str, BenchmarkRecord], axis: str) -> "Figure":
    """Error of the operations since the inputs against `axis`, scale or offset, a panel for each record."""
    records = list(panels.values())
    marks = [mark(name, index) for index, name in enumerate(_LINES)]
    caption = (
        f"error since the fp64 inputs, relative; what is above {_LARGEST_DRAWN:g} is drawn there; "
        f"above the dashed line: inf or nan\n{cases.machine(records)}"
    )
    figure, axes = make_figure(f"Layer norm, op by op: error against {axis}", marks, caption, len(panels))
    for panel, (title, record) in zip(axes, panels.items(), strict=True):
        found = record.metrics["sweeps"][axis]
        for index, name in enumerate(_LINES):
            values, errors = found["values"], found["errors"][name]
            no_number = _NOT_FINITE_AT * 1.4 ** (2 - index)  # apart, so that none hides another
            heights = [no_number if error is None else min(error, _LARGEST_DRAWN) for error in errors]
            look = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.2}
            panel.plot(values, heights, **look)
        panel.axhline(2 * _LARGEST_DRAWN, color="#555555", linestyle="--", linewidth=0.8)
        panel.set_title(title)
        panel.set_xscale("log")
        panel.set_xlabel({"scale": "standard deviation", "offset": "mean"}[axis] + " of the inputs")
        panel.minorticks_off()
    axes[0].set_yscale("log")
    axes[0].minorticks_off()
    powers = [tick for tick in axes[0].get_yticks() if tick <= _LARGEST_DRAWN]
    axes[0].set_yticks(powers)
    axes[0].set_ylabel("relative error")
    return figure


def _panel_title(record: BenchmarkRecord, other: str) -> str:
    words = {"scale": "std", "offset": "mean"}
    case = record.case
    return f"{case['dtype']}, {words[other]} {case[other]:g}, eps {case['eps']:g}, {case['d_model']} numbers"


def _error_cell(error: float | None) -> float | Cell:
    return Cell(None, "-") if error is None else error


def _finite_or_word(number: float | str) -> float | Cell:
    return Cell(number, number) if isinstance(number, str) else number


def _origin(records: Sequence[BenchmarkRecord]) -> str:
    changed = any(record.provenance.dirty for record in records)
    return cases.machine(records) + (" (* the checkout had uncommitted changes)" if changed else "")
