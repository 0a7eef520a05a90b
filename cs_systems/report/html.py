"""A trace and its tables as one HTML page that opens from a file: no server, no network, no other file.

The looks of the page and its script are in `page.html`; what it shows is decided here and in `charts`. Names
come from whatever was profiled: jinja2 escapes them, the data of the charts is JSON without a `<`, and the
page forbids itself to load anything.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from cs_systems.report.charts import Charts, clean, name_of_work
from cs_systems.tables import Cell, Table, format_bytes, format_seconds
from cs_systems.tracing.trace import RunFacts, Trace

_ROW_HEIGHT, _AXIS_HEIGHT = 18, 22  # pixels of the timeline; the script gets both
_FILTER_FROM = 12  # rows of a table that make a filter worth its place
_STAY_LAST = ("(unattributed)", "total")
"""How the rows begin that stay below the others however a table is sorted."""


def render_page(trace: Trace, tables: Sequence[Table], facts: RunFacts | None, title: str) -> str:
    """The page as text; write it as UTF-8.

    Args:
        trace: what the timeline and the memory chart show.
        tables: shown in this order under the charts, with the values and notes that they have.
        facts: what was run, for the header; None when nobody stored it.
        title: heading of the page.
    """
    charts = Charts(trace)
    data = json.dumps(charts.data(), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    num_rows = sum(1 + len(lane["levels"]) for lane in charts.lanes)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=clean(title),
        facts=[(name, clean(value)) for name, value in _header(trace, facts, charts.length_ns)],
        problems=[clean(problem) for problem in (*trace.meta.get("problems", ()), *charts.remarks)],
        legend=charts.legend(),
        timeline_hint=_timeline_hint(trace),
        timeline_height=num_rows * _ROW_HEIGHT + _AXIS_HEIGHT if num_rows else 0,
        row_height=_ROW_HEIGHT,
        axis_height=_AXIS_HEIGHT,
        memory=charts.peaks(),
        tables=[_table_view(table) for table in tables],
        data=Markup(data),
    )


def _header(trace: Trace, facts: RunFacts | None, length_ns: int) -> list[tuple[str, str]]:
    """What was run and recorded, as names and values; the long ones come last."""
    run = {"device": trace.meta.get("device", "unknown")} if facts is None else dataclasses.asdict(facts)
    apart = ("command", "timer_s", "base_bytes", "predicted_bytes", "other_load_percent")
    rows = {name.replace("_", " "): value for name, value in run.items() if name not in apart}
    if facts is not None and facts.predicted_bytes:
        rows["parameters and state"] = format_bytes(facts.base_bytes)
        rows["predicted peak memory"] = format_bytes(max(facts.predicted_bytes.values()))
    for name, seconds in run.get("timer_s", {}).items():
        rows[f"{name.replace('_', ' ')}, not profiled"] = format_seconds(seconds)
    rows |= {
        "tool": trace.meta.get("tool", "unknown"),
        "recorded": format_seconds(length_ns / 1e9),
        "ranges": f"{len(trace.ranges):,}",
        name_of_work(trace): f"{len(trace.kernels):,}",
        "memory events": f"{len(trace.memory):,}",
    }
    long = {"command": run.get("command"), "file": trace.meta.get("path")}
    rows |= {name: value for name, value in long.items() if value}
    return [(name, str(value)) for name, value in rows.items()]


def _timeline_hint(trace: Trace) -> str:
    above = "Read it downwards: ranges name the part of the step, the rows under them show the work done. "
    if name_of_work(trace) == "operators":
        return above + "Look for the widest operators at the bottom of each stack: the time is spent there."
    return above + (
        "Look for gaps between kernels, where the device waits, and for kernels that lag behind the range "
        "that launched them; what is narrower than a pixel is drawn one pixel wide, so zoom in before you "
        "call a row full."
    )


def _table_view(table: Table) -> dict[str, Any]:
    """A table as the template wants it: cells with their text, alignment and the number to sort by."""
    columns = [column for column in table.columns if not column.raw_only]
    rows = [
        [
            (clean(column.show(row.get(column.key))), column.align, _number(row.get(column.key)))
            for column in columns
        ]
        for row in table.rows
    ]
    num_sorted = len(rows)
    while num_sorted and rows[num_sorted - 1][0][0].lower().startswith(_STAY_LAST):
        num_sorted -= 1
    return {
        "title": clean(table.title),
        "columns": [(clean(column.heading), column.align) for column in columns],
        "rows": [{"cells": cells, "last": index >= num_sorted} for index, cells in enumerate(rows)],
        "notes": [clean(note) for note in table.notes],
        "filter": len(rows) >= _FILTER_FROM,
    }


def _number(value: Any) -> int | float | None:
    value = value.value if isinstance(value, Cell) else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None
