"""Tables for people and for programs: one `Table`, rendered as text, Markdown, LaTeX, CSV or JSON.

People get rounded values under headings with units; programs get every digit under keys that end in their
unit (`median_s`). A value that is not known is None: blank for people, empty in CSV, null in JSON, never 0.
"""

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Style = Literal["table", "md", "csv", "json", "latex"]

_NOTE_WIDTH = 100
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_MARKDOWN = {character: "\\" + character for character in "\\|*<"}


def format_number(value: int | float, digits: int = 4) -> str:
    """A number with `digits` significant digits; digits before the decimal point are never rounded away."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.partition("e")[2])  # taken after rounding: 9.9999 counts as 10
    return scientific if exponent < -4 else f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_value(value: Any) -> str:
    """Any value as a short text: None is blank, a switch on or off, a float has four significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_number(value) if isinstance(value, float) else str(value)


def format_count(count: int) -> str:
    """A large count with its decimal suffix: 128625408 is '128.6M'."""
    for power, suffix in ((9, "B"), (6, "M"), (3, "K")):
        if count >= 0.99995 * 10**power:  # 999950 would round to '1000.K'
            return format_number(count / 10**power) + suffix
    return str(count)


def format_percent(fraction: int | float) -> str:
    """A fraction as a percentage: 0.1234 is '12.3%'."""
    return f"{100 * fraction:.1f}%"


def format_bytes(num_bytes: int | float) -> str:
    """Bytes in binary units, one decimal: 46385646797 is '43.2 GiB'."""
    size = float(num_bytes)
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if abs(size) < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} PiB"


def format_seconds(seconds: int | float) -> str:
    """A duration in the unit that suits it, three digits: '843 us', '12.3 ms', '1.50 s', '2 min 5 s'."""
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995:
            return f"{format_number(seconds * factor, 3)} {unit}"
    return f"{format_number(seconds * 1e9, 3)} ns"


@dataclass(frozen=True)
class Cell:
    """A value that people should see as something else: `Cell(None, "skipped")`, `Cell(4, "4/10")`."""

    value: Any
    text: str


@dataclass(frozen=True)
class Column:
    """One column. `key` names it for programs and in the rows, with the unit at its end."""

    key: str
    title: str
    unit: str | None = None
    """Shown in parentheses behind the title."""
    align: Literal["left", "right"] = "right"
    format: Callable[[Any], str] = format_value
    """Turns a value that is not None into text for people."""
    raw_only: bool = False
    """Leave the column out for people; CSV and JSON have it."""

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def show(self, value: Any) -> str:
        """The text of one cell, on one line."""
        text = value.text if isinstance(value, Cell) else "" if value is None else self.format(value)
        return _one_line(text)


@dataclass(frozen=True)
class Table:
    """Rows are mappings from column keys to values; a key that is missing counts as None."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = field(default_factory=list)


def render_table(table: Table, style: Style) -> str:
    """The table as text, without a newline at the end."""
    renderers = {
        "table": _render_text,
        "md": _render_markdown,
        "csv": _render_csv,
        "json": lambda table: json.dumps(table_as_json(table), allow_nan=False, indent=2),
        "latex": _render_latex,
    }
    return renderers[style](table)


def table_as_json(table: Table) -> dict[str, Any]:
    """Title, rows and notes as JSON values, for a document that holds more than one table."""
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, values, strict=True)) for values in _raw_rows(table)]
    return {"title": table.title, "rows": rows, "notes": list(table.notes)}


def _shown(table: Table) -> tuple[list[Column], list[list[str]]]:
    columns = [column for column in table.columns if not column.raw_only]
    return columns, [[column.show(row.get(column.key)) for column in columns] for row in table.rows]


def _raw_rows(table: Table) -> list[list[Any]]:
    cells = [[row.get(column.key) for column in table.columns] for row in table.rows]
    return [[cell.value if isinstance(cell, Cell) else cell for cell in row] for row in cells]


def _render_text(table: Table) -> str:
    columns, rows = _shown(table)
    headings = [column.heading for column in columns]
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column.align == "left" else cell.rjust(width)
            for column, cell, width in zip(columns, cells, widths, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    notes = [textwrap.fill(note, max(_NOTE_WIDTH, len(rule)), subsequent_indent="  ") for note in table.notes]
    return "\n".join([table.title, line(headings), rule, *map(line, rows), *notes])


def _render_markdown(table: Table) -> str:
    columns, rows = _shown(table)

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(_escape(cell, _MARKDOWN) for cell in cells)} |"

    rule = "|".join(":--" if column.align == "left" else "--:" for column in columns)
    notes = [f"- {_escape(_one_line(note), _MARKDOWN)}" for note in table.notes]
    lines = [f"**{_escape(table.title, _MARKDOWN)}**", "", line([column.heading for column in columns])]
    return "\n".join([*lines, f"|{rule}|", *map(line, rows), *([""] if notes else []), *notes])


def _render_latex(table: Table) -> str:
    columns, rows = _shown(table)

    def line(cells: list[str]) -> str:
        return " & ".join(_escape(cell, _LATEX) for cell in cells) + r" \\"

    layout = "".join(column.align[0] for column in columns)
    heading = [r"\hline", line([column.heading for column in columns]), r"\hline"]
    opening = [f"% {_one_line(table.title)}", rf"\begin{{tabular}}{{{layout}}}"]
    closing = [r"\hline", r"\end{tabular}", *(f"% {_one_line(note)}" for note in table.notes)]
    return "\n".join([*opening, *heading, *map(line, rows), *closing])


def _render_csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.key for column in table.columns)
    writer.writerows(_raw_rows(table))
    return text.getvalue().removesuffix("\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escape(text: str, replacements: Mapping[str, str]) -> str:
    return "".join(replacements.get(character, character) for character in text)
