"""Reads a student's write-up: Markdown with `answer` blocks to check and `measured` blocks to fill in.

The document is cut into pieces that join to the same text again, so that the build can replace a block and
leave everything else as it was typed. What is a block follows CommonMark: a fence of three or more backticks
or tildes, indented by at most three spaces, closed by one at least as long. Blocks of other languages and
HTML comments are opaque: an `answer` fence inside them is only text.
"""

import itertools
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

NEW_COMMAND = "make writeup-new"
"""What a student types to get a skeleton to fill in."""

Value = str | int | float | list[str]
"""What a line of an answer block can hold."""

Setting = bool | str | int | float | list[bool | str | int | float]
"""What a line of a measured block can hold."""

_LINE = re.compile(
    r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+"
)  # str.splitlines would also cut at U+2028 and form feeds
_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}(?=[^`]*$)|~{3,})[ \t]*(?P<info>.*)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_COMMENT_OPENS = re.compile(r" {0,3}<!--")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)")
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class PlainText:
    """Everything between two blocks, as it was typed."""

    source: str
    line: int
    """Number of its first line in the file, from 1."""


@dataclass(frozen=True)
class AnswerBlock:
    """The checkable core of one part, and the prose behind it."""

    id: str
    """Part that it answers: benchmarking_script.b."""
    values: Mapping[str, Value]
    """The other lines of the block; an empty text was not answered."""
    prose: str
    """Text behind the block up to the next heading or answer block, without comments and measured blocks."""
    source: str
    """The block as it was typed, fences included."""
    line: int
    """Number of the line that opens it, from 1."""


@dataclass(frozen=True)
class MeasuredBlock:
    """A place where the build puts a table or a figure of the student's records."""

    show: str
    """Name of the view."""
    where: Mapping[str, Setting]
    """Settings of a case that must match: one value, or a list of those allowed."""
    source: str
    line: int


Piece = PlainText | AnswerBlock | MeasuredBlock


@dataclass(frozen=True)
class Answers:
    """A write-up, cut into pieces whose sources join to the text of the file (without a byte-order mark)."""

    name: str
    """The file, for messages."""
    pieces: tuple[Piece, ...]

    @property
    def blocks(self) -> tuple[AnswerBlock, ...]:
        """The answer blocks in document order; no two have the same id."""
        return tuple(piece for piece in self.pieces if isinstance(piece, AnswerBlock))

    @property
    def measured(self) -> tuple[MeasuredBlock, ...]:
        """The measured blocks in document order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, MeasuredBlock))

    def find(self, part_id: str) -> AnswerBlock | None:
        """The answer block of a part, None when there is none."""
        return next((block for block in self.blocks if block.id == part_id), None)


def read_answers(path: pathlib.Path) -> Answers:
    """Read and parse a write-up.

    Raises:
        ValueError: in one line, when the file cannot be read, is empty or not UTF-8, or as `parse_answers`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {NEW_COMMAND} creates one to fill in") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name the Markdown file in it") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot read ({error.strerror})") from None
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte {error.start} of the file is not UTF-8; save the file as UTF-8"
        raise ValueError(f"{path}, line {line}: {what}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; delete it, then {NEW_COMMAND} creates one to fill in")
    return parse_answers(text, str(path))


def parse_answers(text: str, name: str) -> Answers:
    """Cut a write-up into pieces. `name` stands for the file in messages.

    Raises:
        ValueError: in one line that names file and line: a block or comment that is never closed, TOML that
            cannot be read, a block without its id or view, an id given twice, a value that is no text, number
            or list of texts.
    """
    lines = _LINE.findall(text)
    spans = list(_find_spans(lines, name))
    pieces: list[Piece] = []
    first_lines: dict[str, int] = {}
    plain_start = 0
    for number, span in enumerate(spans):
        if span.kind not in ("answer", "measured"):
            continue
        if span.start > plain_start:
            pieces.append(PlainText("".join(lines[plain_start : span.start]), plain_start + 1))
        plain_start = span.stop
        source, line = "".join(lines[span.start : span.stop]), span.start + 1
        values = _read_values(lines, span, name)
        if span.kind == "measured":
            show = _take_text(values, "show", 'a view, for example show = "timing"', span, name)
            pieces.append(MeasuredBlock(show, values, source, line))
            continue
        part_id = _take_text(values, "id", 'the part, for example id = "benchmarking_script.b"', span, name)
        if part_id in first_lines:
            _fail(
                name, line, f"{part_id} was answered in line {first_lines[part_id]} already; keep one block"
            )
        first_lines[part_id] = line
        pieces.append(AnswerBlock(part_id, values, _prose(lines, spans[number + 1 :]), source, line))
    if plain_start < len(lines):
        pieces.append(PlainText("".join(lines[plain_start:]), plain_start + 1))
    return Answers(name, tuple(pieces))


@dataclass(frozen=True)
class _Span:
    """Lines `start` to `stop` (from 0, the last exclusive) that are one kind of thing."""

    kind: str
    """text, heading, comment, code, answer or measured."""
    start: int
    stop: int


def _find_spans(lines: Sequence[str], name: str) -> Iterator[_Span]:
    start = 0
    while start < len(lines):
        line = lines[start].rstrip("\r\n")
        if found := _FENCE.match(line):
            language = (found["info"].split() or [""])[0].lower()
            kind = language if language in ("answer", "measured") else "code"
            stop = _end_of_fence(lines, start, found["mark"], kind, name)
        elif _COMMENT_OPENS.match(line):
            kind, stop = "comment", _end_of_comment(lines, start, name)
        else:
            kind, stop = "heading" if _HEADING.match(line) else "text", start + 1
        yield _Span(kind, start, stop)
        start = stop


def _end_of_fence(lines: Sequence[str], start: int, mark: str, kind: str, name: str) -> int:
    """The line behind the closing fence."""
    closing = re.compile(rf" {{0,3}}{re.escape(mark[0])}{{{len(mark)},}}[ \t]*")
    for number in range(start + 1, len(lines)):
        line = lines[number].rstrip("\r\n")
        if closing.fullmatch(line):
            return number + 1
        inner = _FENCE.match(line)
        if kind != "code" and inner and inner["info"]:  # nobody's answer holds a block: its end was forgotten
            _fail_unclosed(name, start, mark, kind, f"before another block opens in line {number + 1}")
    _fail_unclosed(name, start, mark, kind, "to the end of the file")


def _fail_unclosed(name: str, start: int, mark: str, kind: str, until: str) -> NoReturn:
    what = "code" if kind == "code" else kind
    _fail(
        name, start + 1, f"the {what} block that opens here is not closed {until}; end it with a line {mark}"
    )


def _end_of_comment(lines: Sequence[str], start: int, name: str) -> int:
    for number in range(start, len(lines)):
        if "-->" in lines[number]:
            return number + 1
    _fail(
        name, start + 1, "the comment that opens here is not closed, so all that follows is hidden; write -->"
    )


def _read_values(lines: Sequence[str], span: _Span, name: str) -> dict[str, Any]:
    body = [line.rstrip("\r\n") for line in lines[span.start + 1 : span.stop - 1]]
    try:
        values = tomllib.loads("".join(line + "\n" for line in body))
    except RecursionError:
        _fail(name, span.start + 1, "brackets are nested too deeply in this block")
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        _fail_toml(body, span, name, str(error))
    lists = "list of texts" if span.kind == "answer" else "list of them"
    for key, value in values.items():
        if not (_is_answer(value) if span.kind == "answer" else _is_setting(value)):
            named = re.compile(rf"[\s\['\"]*{re.escape(key)}(?![\w-])")
            line = next((n for n, text in enumerate(body) if named.match(text)), 0)
            _fail(name, span.start + 2 + line, f"{key} must be a text in quotes, a number or a {lists}")
    return values


def _fail_toml(body: Sequence[str], span: _Span, name: str, reason: str) -> NoReturn:
    found = _TOML_LINE.search(reason)
    reason = _TOML_LINE.sub("", reason).removesuffix(" (at end of document)").split(";")[0]
    if "overwrite" in reason:
        reason = "its key stands here twice"
    if not found or int(found[1]) > len(body):
        _fail(name, span.start + 1, f"cannot read this block ({reason}); every text needs its closing quote")
    number = int(found[1])
    shown = body[number - 1].strip()[:_SHOWN_CHARACTERS]
    advice = 'write key = "text", key = 12.5 or key = ["a", "b"]'
    _fail(name, span.start + 1 + number, f"cannot read {shown!r} ({reason}); {advice}")


def _is_answer(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(entry, str) for entry in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_setting(value: object) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(isinstance(entry, str | int | float) for entry in entries)


def _take_text(values: dict[str, Any], key: str, advice: str, span: _Span, name: str) -> str:
    """Remove and return a text that a block must have."""
    value = values.pop(key, None)
    if not isinstance(value, str) or not value.strip():
        _fail(name, span.start + 1, f"this {span.kind} block has no {key}; write {advice}")
    return value.strip()


def _prose(lines: Sequence[str], behind: Sequence[_Span]) -> str:
    spans = itertools.takewhile(lambda span: span.kind not in ("heading", "answer"), behind)
    kept = [span for span in spans if span.kind != "measured"]
    texts = []
    for is_code, group in itertools.groupby(kept, lambda span: span.kind == "code"):
        text = "".join(line for span in group for line in lines[span.start : span.stop])
        texts.append(text if is_code else _COMMENT.sub("", text))
    return "\n".join(line.rstrip() for line in re.split(r"\r\n|\r|\n", "".join(texts))).strip()


def _fail(name: str, line: int, what: str) -> NoReturn:
    raise ValueError(f"{name}, line {line}: {what}")
