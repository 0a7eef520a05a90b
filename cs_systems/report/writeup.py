"""The write-up: a student's answers with tables and plots of their own records, as Markdown, HTML and PDF.

The student's text is passed on as it is and never looked into; only its blocks are replaced: a measured block
by what a view shows of the records, an answer block by a table of the answers.
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cs_systems.bench.measured import Measured, read_measured
from cs_systems.grading.blocks import AnswerBlock, Answers, MeasuredBlock
from cs_systems.grading.problems import PROBLEMS
from cs_systems.report.document import Images, read_title, write_atomically
from cs_systems.report.document_html import render_html
from cs_systems.report.document_pdf import render_pdf
from cs_systems.report.record_view import MissingMeasurement, Shown
from cs_systems.report.views import find_view
from cs_systems.tables import Column, Table

FIGURES = "figures"
"""Folder of the plots within that of the document."""
NAME = "writeup"

_MARKUP = re.compile(r"([\\`*_\[\]<|$&~])")
_OPENS_A_BLOCK = re.compile(r"^(\d*)([#>=]|[+-](?=[\s+-]|$)|(?<=\d)[.)](?=\s|$))")
"""What would open a heading, a quotation or a list at the start of a line."""


@dataclass(frozen=True)
class BuildResult:
    """What was written, and what a student has to hear."""

    files: list[pathlib.Path]
    missing: list[MissingMeasurement]
    problems: list[str]


@dataclass
class MarkdownDocument:
    """The write-up with its blocks filled in."""

    text: str
    missing: list[MissingMeasurement]
    problems: list[str]


def build(
    answers: Answers, records: pathlib.Path, folder: pathlib.Path, verdicts: Table | None = None
) -> BuildResult:
    """Write `writeup.md`, `.html` and `.pdf` to `folder`, from the answers and the records of a folder.

    Args:
        answers: the write-up; its images may lie beside it.
        records: folder of the records, with the recordings in its folder `profile`.
        folder: of the document and its figures; created when it is not there.
        verdicts: what a check said about the answers, to be added at the end.

    A package that is missing costs the format that needs it; a document of an earlier build is then removed.

    Raises:
        ValueError: in one line, when `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot create it ({error.strerror}); choose another folder") from None
    measured = read_measured(records)
    document = build_markdown(answers, measured, folder, verdicts)
    problems = [*measured.problems, *document.problems]
    files = [folder / f"{NAME}.md"]
    write_atomically(files[0], document.text.encode())
    images = Images(folder, pathlib.Path(answers.name).parent)
    title = read_title(document.text)
    for suffix, render in (("html", render_html), ("pdf", render_pdf)):
        path = folder / f"{NAME}.{suffix}"
        try:
            data = render(document.text, title, images)
        except ValueError as error:
            path.unlink(missing_ok=True)
            problems.append(f"{path.name} was not written: {error}")
            continue
        write_atomically(path, data)
        files.append(path)
    return BuildResult(files, document.missing, list(dict.fromkeys([*problems, *images.problems])))


def build_markdown(
    answers: Answers, measured: Measured, folder: pathlib.Path, verdicts: Table | None = None
) -> MarkdownDocument:
    """The Markdown, its plots drawn into `folder/figures`, and what is missing or went wrong."""
    document = MarkdownDocument("", [], [])
    parts = []
    for piece in answers.pieces:
        if isinstance(piece, MeasuredBlock):
            parts.append(_apart(_fill(piece, answers.name, measured, folder, document)))
        elif isinstance(piece, AnswerBlock):
            parts.append(_apart(_answer_lines(piece)))
        else:
            parts.append(piece.source)
    if verdicts is not None:
        parts.append(_apart(["## Check of the answers", "", *table_lines(verdicts, [])]))
    text = "".join(parts).rstrip() + "\n"
    document.text = text.encode("utf-8", "replace").decode()  # names in a trace can hold half a character
    return document


def table_lines(table: Table, origins: Sequence[str], commands: Sequence[str] = ()) -> list[str]:
    """A table in Markdown: its title above, notes and where it comes from below."""
    columns = [column for column in table.columns if not column.raw_only]
    rows = [[column.show(row.get(column.key)) for column in columns] for row in table.rows]
    notes = [f"- {escape(note)}" for note in (*table.notes, *origins)]
    notes += [f"- measured by {code(command)}" for command in commands]
    return [
        *([f"**{escape(table.title)}**", ""] if table.title else []),
        _row([column.heading for column in columns]),
        "|" + "|".join(":--" if column.align == "left" else "--:" for column in columns) + "|",
        *map(_row, rows),
        *(["", *notes] if notes else []),
    ]


def escape(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return _OPENS_A_BLOCK.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", " ".join(plain.split())))


def code(text: str) -> str:
    """Text on one line as code, whatever backticks it holds."""
    line = " ".join(text.split())
    longest = max(map(len, re.findall("`+", line)), default=0)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{'`' * (longest + 1)}{padding}{line}{padding}{'`' * (longest + 1)}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def _apart(lines: Sequence[str]) -> str:
    """Lines in the place of a block, with an empty line on either side."""
    return "\n" + "\n".join(lines) + "\n\n"


def _fill(
    block: MeasuredBlock, name: str, measured: Measured, folder: pathlib.Path, document: MarkdownDocument
) -> list[str]:
    try:
        view = find_view(block.show)
        shown = view.show(measured, block.where, folder / FIGURES / _stem(block))
    except ValueError as error:
        document.problems.append(f"{name}, line {block.line}: {error}")
        return [f"> **This block shows nothing**: {escape(str(error))}"]
    document.missing += [each for each in shown.missing if each not in document.missing]
    document.problems += shown.problems
    return _shown_lines(shown, folder)


def _shown_lines(shown: Shown, folder: pathlib.Path) -> list[str]:
    lines = []
    for index, table in enumerate(shown.tables):
        is_last = index == len(shown.tables) - 1
        below = ([*shown.origins, *shown.remarks], shown.commands) if is_last else (shown.origins, ())
        lines += [*table_lines(table, *below), ""]
    for figure in shown.figures:
        link = pathlib.Path(os.path.relpath(figure.path, folder)).as_posix()
        lines += [f"![{escape(figure.title)}]({link})", ""]
    for missing in shown.missing:
        what = f"{missing.view}, {missing.of}" if missing.of else missing.view
        lines += [f"> **Not measured yet**: {escape(what)}. Run {code(missing.command)}", ""]
    return lines


def _stem(block: MeasuredBlock) -> str:
    """Folder of the plots of a block: blocks that show different records must not share one."""
    where = "-".join(f"{name}-{value}" for name, value in sorted(block.where.items()))
    return re.sub(r"[^\w.-]+", "_", f"{block.show}-{where}".strip("-"))


def _answer_lines(block: AnswerBlock) -> list[str]:
    asked = _questions().get(block.id, {})
    columns = [
        Column(key, title, align="left")
        for key, title in (("key", "Item"), ("what", "Asked"), ("answer", "Answer"))
    ]
    rows = []
    for key in dict.fromkeys([*asked, *block.values]):
        value = block.values.get(key, "")
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append({"key": key, "what": asked.get(key), "answer": text.strip() or "not answered"})
    return table_lines(Table("", columns, rows), []) if rows else []


def _questions() -> Mapping[str, Mapping[str, str]]:
    """What each line of the blocks asks, by part."""
    return {
        part.id: {item.key: item.what for item in part.items}
        for problem in PROBLEMS
        for part in problem.parts
    }
