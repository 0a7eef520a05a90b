"""What became of a number that was added many times: tables, sentences and a plot, from the records."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.figure import COLOURS, MARKERS, make_figure, mark, our_style, save
from cs_systems.tables import Cell, Column, Table, format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ONE_BY_ONE = "one by one"
_NOT_DRAWN = ("cast to", "torch.sum", "matmul")  # nearly the same as one that is drawn

Numbers = Mapping[str, Any]
"""The metrics of a record."""


def tables(records: Sequence[BenchmarkRecord]) -> list[Table]:
    """For each number and count: the plain sums, all methods, and the binades of each type."""
    result = []
    for group in _groups(records):
        result += [_plain_table(group), _methods_table(group), *(_binade_table(record) for record in group)]
    return result


def summary(record: BenchmarkRecord) -> dict[str, Any]:
    """The totals by method, and where the plain sum stalls."""
    plain = _plain(record.metrics)[0]
    return {
        "exact_sum": record.metrics["exact_sum"],
        "input_error": record.metrics["input_error"],
        "sums": {one["method"]: one["sum"] for one in record.metrics["methods"]},
        "stall_step": plain["stall_step"],
        "predicted_stall_step": plain["predicted_stall_step"],
    }


def _groups(records: Sequence[BenchmarkRecord]) -> list[list[BenchmarkRecord]]:
    """Records of the same number and count, each type once: the last measured."""
    groups: dict[tuple[float, int], dict[Any, BenchmarkRecord]] = {}
    for record in records:
        case = record.case
        group = groups.setdefault((case["value"], case["steps"]), {})
        group[case["dtypes"], case["seed"]] = record
    return [list(group.values()) for group in groups.values()]


def _plain(metrics: Numbers) -> list[Numbers]:
    """The methods that add one by one: in the type of the terms first, then in a wider one, twice."""
    return [one for one in metrics["methods"] if one["method"].startswith(_ONE_BY_ONE)]


def _title(record: BenchmarkRecord) -> str:
    return f"{record.case['value']:g} added {record.case['steps']:,} times"


def _plain_table(records: Sequence[BenchmarkRecord]) -> Table:
    rows, notes = [], []
    for record in records:
        name, metrics = record.case["dtypes"], record.metrics
        for one in _plain(metrics)[: 1 if name == "fp32" else None]:
            rows.append(_row(record, one))
        notes += _explain(name, record.case["steps"], metrics)
    columns = [
        Column("dtype", "Terms", align="left"),
        Column("accumulator", "Sum", align="left"),
        Column("spelled", "Spelled", align="left"),
        Column("sum", "Total", format=_as_printed),
        *_error_columns(),
    ]
    return Table(f"{_title(records[0])}, one by one", columns, rows, [*notes, _origin(records)])


def _methods_table(records: Sequence[BenchmarkRecord]) -> Table:
    rows = [_row(record, one) for record in records for one in record.metrics["methods"]]
    columns = [
        Column("dtype", "Terms", align="left"),
        Column("method", "Method", align="left"),
        Column("accumulator", "Sum in", align="left"),
        Column("sum", "Total", format=lambda total: format_number(total, 8)),
        *_error_columns(),
        Column("stall_step", "Stalls at", "addition", format="{:,}".format),
        Column("predicted_stall_step", "predicted", format=_large),
    ]
    return Table(
        f"{_title(records[0])}, in every way",
        columns,
        rows,
        [*_method_notes(records), cases.machine(records)],
    )


def _binade_table(record: BenchmarkRecord) -> Table:
    name, term = record.case["dtypes"], abs(record.metrics["term"])
    rows = [{**row, "off_by": row["becomes"] / term - 1} for row in record.metrics["binades"]]
    columns = [
        Column("low", "Sum from", format="{:.7g}".format),
        Column("high", "to", format="{:.7g}".format),
        Column("spacing", "Spacing", format="{:.7g}".format),
        Column("becomes", f"{_digits(name, term)} becomes", format=lambda number: _digits(name, number)),
        Column("off_by", "off by", format=lambda share: f"{_signed(100 * share)}%"),
        Column("num_additions", "Additions", format="{:,}".format),
        Column("error", "Error made here", format=_signed),
    ]
    title = f"{name} into {name}, {_title(record)}: what an addition becomes, by the size of the sum"
    return Table(title, columns, rows, [*_binade_notes(record), _origin([record])])


def _row(record: BenchmarkRecord, one: Numbers) -> dict[str, Any]:
    """A method as a row, with its error split in two."""
    spelled = "sum += term.to(sum.dtype)" if "cast" in one["method"] else "sum += term"
    row: dict[str, Any] = {
        "dtype": record.case["dtypes"],
        "spelled": spelled,
        "input_error": record.metrics["input_error"],
    }
    row |= {key: value for key, value in one.items() if key != "errors"}
    if one["sum"] is None:
        row["sum"] = Cell(None, "not run")
    elif isinstance(one["sum"], str):
        row["sum"] = Cell(one["sum"], one["sum"])
    if one["method"].startswith(_ONE_BY_ONE) and one["predicted_stall_step"] is None:
        row["predicted_stall_step"] = Cell(None, "overflows first")
    return row


def _error_columns() -> list[Column]:
    titles = {"error": "Error", "input_error": "of it input", "accumulation_error": "accumulation"}
    return [Column(key, title, format=_signed) for key, title in titles.items()]


def _explain(name: str, steps: int, metrics: Numbers) -> list[str]:
    """Why the plain sums of one type come out as they do, in sentences made from the numbers."""
    own, wide, cast = _plain(metrics)
    notes = [
        f"{name}, input rounding: the nearest number to the one asked for is {metrics['term']:.9g}, off by "
        f"{_signed(metrics['term_error'])}; before anything is added, {steps:,} such terms are off by "
        f"{_signed(metrics['input_error'])}"
    ]
    worst = _worst_binades(metrics)
    if own["accumulation_error"] is None:
        text = f"addition {metrics['overflow_step']:,} made infinity, {name} ends at {metrics['largest']:g}"
    elif not worst:
        text = "none, as every sum is a number of the format"
    else:
        becomes = "; ".join(
            f"from {row['low']:g} on numbers are {row['spacing']:.7g} apart, so each addition of "
            f"{abs(metrics['term']):.6g} becomes {_digits(name, row['becomes'])} ({row['num_additions']:,} "
            f"additions, {_signed(row['error'])})"
            for row in worst
        )
        what = "mostly this" if len(worst) == 1 else "the rest of large parts that cancel, such as these"
        text = f"{_signed(own['accumulation_error'])}, {what}: {becomes}"
    notes.append(f"{name} into {name}, accumulation rounding: {text}")
    if name != "fp32" and wide["accumulation_error"] is not None:
        same = (
            "changes nothing, as adding converts it anyway"
            if cast["sum"] == wide["sum"]
            else "changes the sum"
        )
        if abs(wide["accumulation_error"]) < abs(metrics["input_error"]):
            left = "input rounding is left, which no sum can undo"
        else:
            left = "not even this sum is wide enough for so many terms"
        notes.append(
            f"{name} into {wide['accumulator']}: accumulation rounding makes "
            f"{_signed(wide['accumulation_error'])}, {left}; a cast of each term {same}"
        )
    return notes


def _worst_binades(metrics: Numbers) -> list[Numbers]:
    """The binade whose additions are off by most, and the next to it off the other way if that matters."""
    rows = sorted(metrics["binades"], key=lambda row: -abs(row["error"]))
    if not rows or rows[0]["error"] == 0:
        return []
    other = [row for row in rows if row["error"] * rows[0]["error"] < 0]
    matters = [row for row in other[:1] if abs(row["error"]) >= abs(rows[0]["error"]) / 10]
    return sorted([rows[0], *matters], key=lambda row: row["low"])


def _binade_notes(record: BenchmarkRecord) -> list[str]:
    name, metrics = record.case["dtypes"], record.metrics
    digits = metrics["significand_bits"] - 1
    notes = [
        f"{name} has {digits + 1} significant bits: from 2^k to 2^(k+1) its numbers are 2^(k-{digits}) "
        "apart, and each sum is rounded to one of them; the first addition, to 0, is exact and not counted",
        _stall_sentence(record),
    ]
    errors = [row["error"] for row in metrics["binades"]]
    gained, lost = (sum(error for error in errors if error * sign > 0) for sign in (1, -1))
    if gained and lost and abs(gained + lost) < max(gained, -lost) / 2:
        notes.append(f"{_signed(gained)} and {_signed(lost)} cancel in part: a small error can be luck")
    predicted, observed = (_text(metrics[key]) for key in ("predicted_sum", "observed_sum"))
    if predicted == observed:
        agrees = "which torch gives too, bit for bit"
    else:
        agrees = f"but torch gave {observed}, so one of them is wrong"
    return [*notes, f"the rows follow from the format alone and end at {predicted}, {agrees}"]


def _stall_sentence(record: BenchmarkRecord) -> str:
    """Where the plain sum stops growing, and why there."""
    metrics, plain, term = record.metrics, _plain(record.metrics)[0], abs(record.metrics["term"])
    if metrics["stall_value"] is None:
        return f"it never stalls: the grid is fine enough up to {metrics['largest']:g}, then comes infinity"
    grid, when = metrics["stall_spacing"], plain["stall_step"] or plain["predicted_stall_step"]
    if 2 * term == grid:
        half = "exactly half of that, which is rounded to the even neighbour"
    else:
        half = "less than half of that"
    return (
        f"the sum {'stalls' if plain['stall_step'] else 'would stall'} at {metrics['stall_value']:g}: "
        f"addition {_large(when)} is the first to change nothing, as numbers are {grid:.7g} apart there and "
        f"{term:.6g} is {half}"
    )


def _method_notes(records: Sequence[BenchmarkRecord]) -> list[str]:
    block = next(one["method"] for one in records[0].metrics["methods"] if one["method"].startswith("blocks"))
    notes = [
        "of it input: what the terms are off by together; accumulation: what adding them made of it",
        "Kahan: what a rounding lost is added to the next term",
        "pairwise: sums of 2, 4, 8 ... terms; equal terms double exactly, so only odd ends are rounded here",
        f"{block}: each block in the type of the terms, the blocks into a wider sum, as FP8 kernels do",
        "torch.sum and the product of a GPU accumulate 16-bit terms in fp32 and round the total once",
    ]
    if any(one["sum"] is None for record in records for one in record.metrics["methods"]):
        notes.append(
            "not run: Python would have to do each addition by itself; the plot has the first of them"
        )
    for record in records:
        notes += _notes_of_type(record.case["dtypes"], record.case["steps"], record.metrics)
    return notes


def _notes_of_type(name: str, steps: int, metrics: Numbers) -> list[str]:
    notes, exact = [], f"{steps * metrics['term']:.7g}"
    if isinstance(metrics["nearest_sum"], float):
        best = [one["method"] for one in metrics["methods"] if one["sum"] == metrics["nearest_sum"]]
        notes.append(
            f"{name}: the terms add up to {exact}; the nearest {name} number, {metrics['nearest_sum']:.9g}, "
            f"was found by {', '.join(best) or 'no method'}"
        )
    chance = metrics["stochastic"]
    if chance["deviation"] is not None:
        notes.append(
            f"{name}, stochastic rounding is right on average: {chance['repeats']} seeds gave "
            f"{chance['mean']:.7g} with a standard deviation of {chance['deviation']:.2g}"
        )
    if name != "fp32" and metrics["kahan_stall_value"] is not None:
        notes.append(
            f"{name}, Kahan: the correction is itself a sum in {name} and stalls at "
            f"{metrics['stall_value']:g}, so the total does at {metrics['kahan_stall_value']:g}, where that "
            "is half the spacing"
        )
    return notes


def draw(records: Sequence[BenchmarkRecord], folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Draw error against number of additions, a panel a type, as SVG and PNG; one figure a number and count.

    Returns:
        The files, and a sentence for what was not drawn.

    Raises:
        ValueError: when matplotlib is missing or a file cannot be written; the message says what to do.
    """
    files, remarks = [], []
    groups = _groups(records)
    with our_style():
        for group in groups:
            title, case = _title(group[0]), group[0].case
            if case["steps"] == 1:
                remarks.append(f"{title}: not drawn, one addition makes no curve")
                continue
            name = "accumulation" if len(groups) == 1 else f"accumulation_{case['value']:g}_{case['steps']}"
            files += save(draw_errors(group), folder, name)
    return files, remarks


def draw_errors(records: Sequence[BenchmarkRecord]) -> "Figure":
    """Error against number of additions, a line a method and a panel a type."""
    drawn = {record.case["dtypes"]: _drawn(record.metrics) for record in records}
    names = list(drawn[records[0].case["dtypes"]])
    caption = (
        "error: distance from the exact sum; the wider sum begins with input rounding alone, which all share"
    )
    figure, axes = make_figure(
        f"Error of a sum: {_title(records[0])}",
        [mark(name, index) for index, name in enumerate(names)],
        f"{caption}\n{cases.machine(records)}",
        len(records),
    )
    for panel, record in zip(axes, records, strict=True):
        numbers = record.metrics["num_additions"]
        for index, one in enumerate(drawn[record.case["dtypes"]].values()):
            errors = [
                abs(error) if error else math.nan for error in one["errors"]
            ]  # an exact sum is no point
            look = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.2}
            panel.plot(numbers, errors, markevery=(2 * index, 12), **look)
        panel.set_title(record.case["dtypes"])
        panel.set_xscale("log")
        panel.set_xlabel("additions (number)")
        panel.minorticks_off()
    axes[0].set_yscale("log")
    axes[0].set_ylabel("absolute error")
    return figure


def _drawn(metrics: Numbers) -> dict[str, Numbers]:
    """The methods that get a line, by the name that holds for all types."""
    lines = [one for one in metrics["methods"] if not any(word in one["method"] for word in _NOT_DRAWN)]
    return {"one by one, wider sum" if " into " in one["method"] else one["method"]: one for one in lines}


def _origin(records: Sequence[BenchmarkRecord]) -> str:
    changed = any(record.provenance.dirty for record in records)
    return cases.machine(records) + (" (* the checkout had uncommitted changes)" if changed else "")


def _digits(name: str, number: float) -> str:
    """A number of a format with as many digits as tell it from its neighbours."""
    return f"{number:.9g}" if name == "fp32" else f"{number:.7g}"


def _as_printed(total: float) -> str:
    """As torch prints it: four decimals, unless the number is very large or small."""
    return f"{total:.4f}" if 1e-3 <= abs(total) < 1e6 else f"{total:.4e}"


def _signed(error: float) -> str:
    return "0" if error == 0 else f"{error:+.3g}"


def _text(total: float | str) -> str:
    return total if isinstance(total, str) else f"{total:.9g}"


def _large(count: int) -> str:
    return f"{count:,}" if count < 1e9 else f"{count:.1e}"
