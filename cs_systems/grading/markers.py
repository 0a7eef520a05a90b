"""Markers in our sources: what they enclose is not for students.

    # BEGIN SOLUTION rope      what solves a problem; in a function a NotImplementedError takes its place
    # END SOLUTION
    # BEGIN INSTRUCTOR         what names modules that students do not get; nothing takes its place
    # END INSTRUCTOR

A marker is a comment on a line of its own, blocks do not nest, and both markers of a block are indented
alike. Whatever looks like a marker and is none is an error: a misspelt one would hand out a solution.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_MARKER = re.compile(
    r"(?P<indent> *)# (?P<edge>BEGIN|END) (?P<kind>SOLUTION|INSTRUCTOR)(?: (?P<problem>\w+))?"
)
_LIKE_A_MARKER = re.compile(r"#\s*(?:BEGIN\b|END\b|(?i:(?:begin|end)\s+(?:solution|instructor)))")


class MarkerError(ValueError):
    """What is wrong with a marker, in one line with file and line."""


@dataclass(frozen=True)
class Block:
    """Lines between two markers; lines are counted from 1."""

    problem: str | None
    """Id of the problem that they solve; None for what is the instructor's."""
    begin: int
    """Line of the first marker."""
    end: int
    """Line of the last one."""
    indent: int
    lines: tuple[str, ...]
    """What stands between."""


def find_blocks(text: str, name: str, problems: Mapping[str, int]) -> list[Block]:
    """The blocks of a file in order.

    Args:
        text: of the file.
        name: of the file, as errors call it; Python is read as such.
        problems: section of each problem that may be named.

    Raises:
        MarkerError: when a marker is nested, alone, misspelt or misplaced, or no problem is named so.
    """
    if not _LIKE_A_MARKER.search(text):
        return []
    lines = text.splitlines()
    comments = _comments(text, name) if name.endswith(".py") else None
    blocks: list[Block] = []
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines, start=1):
        if not _LIKE_A_MARKER.search(line):
            continue
        marker = _read_marker(line, f"{name}:{number}", problems, comments is None or number in comments)
        if marker["edge"] == "BEGIN":
            if opened is not None:
                raise MarkerError(
                    f"{name}:{number}: a block in the block of line {opened[0]}; close that first"
                )
            if marker["kind"] == "SOLUTION" and comments is None:
                raise MarkerError(f"{name}:{number}: solutions are Python; use # BEGIN INSTRUCTOR here")
            opened = number, marker
            continue
        if opened is None:
            raise MarkerError(f"{name}:{number}: an END without a BEGIN")
        begin, first = opened
        opened = None
        if (first["kind"], first["indent"]) != (marker["kind"], marker["indent"]):
            raise MarkerError(
                f"{name}:{number}: differs in kind or indentation from its BEGIN in line {begin}"
            )
        between = tuple(lines[begin : number - 1])
        if not any(each.strip() for each in between):
            raise MarkerError(f"{name}:{begin}: nothing stands in this block")
        if not all(each.startswith(first["indent"]) for each in between if each.strip()):
            raise MarkerError(f"{name}:{begin}: a line of this block is indented less than its markers")
        blocks.append(Block(first["problem"], begin, number, len(first["indent"]), between))
    if opened is not None:
        raise MarkerError(f"{name}:{opened[0]}: this block is never closed")
    return blocks


def strip_blocks(text: str, name: str, problems: Mapping[str, int]) -> str:
    """The text without its blocks; a solution inside a function is replaced by a NotImplementedError.

    Arguments and errors are those of `find_blocks`.
    """
    blocks = find_blocks(text, name, problems)
    if not blocks:
        return text
    if not name.endswith(".py"):
        return "".join(_without(text, blocks, []))
    scopes = _scopes(_parse(text, f"{name}: this is not Python"))
    stripped = "".join(_without(text, blocks, [_replacement(block, scopes, problems) for block in blocks]))
    _parse(stripped, f"{name}: without its blocks this is not Python")
    return stripped


def missing(problem: str) -> str:
    """How the message begins that stands in place of a solution."""
    return f"problem {problem} is not written yet"


def _read_marker(line: str, place: str, problems: Mapping[str, int], is_comment: bool) -> re.Match[str]:
    marker = _MARKER.fullmatch(line)
    if marker is None:
        raise MarkerError(
            f"{place}: {line.strip()!r} is no marker; a line has # BEGIN SOLUTION name or the like"
        )
    if not is_comment:
        raise MarkerError(f"{place}: a marker inside a string")
    wants_problem = (marker["edge"], marker["kind"]) == ("BEGIN", "SOLUTION")
    if wants_problem != (marker["problem"] is not None):
        what = "the problem is missing" if wants_problem else f"{marker['problem']!r} does not belong here"
        raise MarkerError(f"{place}: {what} after {marker['edge']} {marker['kind']}")
    if wants_problem and marker["problem"] not in problems:
        raise MarkerError(f"{place}: there is no problem {marker['problem']!r} in the rubric")
    return marker


def _comments(text: str, name: str) -> set[int]:
    """Lines with a comment."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError) as error:
        raise MarkerError(f"{name}: not Python ({error.args[0]})") from None
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def _parse(text: str, otherwise: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise MarkerError(f"{otherwise} (line {error.lineno}: {error.msg})") from None


Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _scopes(tree: ast.Module) -> list[Scope]:
    """Functions and classes, inner ones behind those around them."""
    return sorted(
        (node for node in ast.walk(tree) if isinstance(node, Scope)),
        key=lambda node: (node.lineno, -_end(node)),
    )


def _end(node: Scope) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _replacement(block: Block, scopes: Sequence[Scope], problems: Mapping[str, int]) -> str:
    """What takes the place of a block: nothing, or in a function one statement."""
    around = [
        node for node in scopes if node.lineno < block.begin <= _end(node) and node.col_offset < block.indent
    ]
    if block.problem is None or not around or isinstance(around[-1], ast.ClassDef):
        return ""
    message = f"{missing(block.problem)}: section {problems[block.problem]} of writeup/code.md"
    return f'{" " * block.indent}raise NotImplementedError("{message}")\n'


def _without(text: str, blocks: Sequence[Block], replacements: Sequence[str]) -> Iterator[str]:
    lines = text.splitlines(keepends=True)
    done = 0
    for index, block in enumerate(blocks):
        yield from lines[done : block.begin - 1]
        yield replacements[index] if replacements else ""
        done = block.end
    yield from lines[done:]
