"""Checks a whole write-up: a verdict for each item and each piece of prose, and a table of the problems."""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cs_systems.grading.blocks import AnswerBlock, Answers
from cs_systems.grading.check import check_item, check_prose
from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import Item, NotMeasuredError, OwnNumber, Part, Problem, Truth, Verdict
from cs_systems.grading.truths.find import find_truth
from cs_systems.tables import Cell, Column, Table

PROSE = "prose"
"""Key of the verdict about the sentences of a part."""
OPEN = ("missing", "not measured")
"""Statuses that are not wrong, only not done."""


def check_answers(answers: Answers, evidence: Evidence, problems: Sequence[Problem]) -> list[Verdict]:
    """A verdict for each item and each prose of `problems`, in their order; what is blank is `missing`.

    Ids and keys that no problem has are `unreadable`, at the end: they are mostly typing errors.
    """
    parts = [part for problem in problems for part in problem.parts]
    verdicts = []
    for part in parts:
        block = answers.find(part.id)
        values = block.values if block else {}
        for item in part.items:
            verdicts.append(
                check_item(part.id, item, values.get(item.key), _truth(part, item, values, evidence))
            )
        if part.prose is not None:
            verdicts.append(check_prose(part, block.prose if block else ""))
    return verdicts + _unknown(answers.blocks, parts)


def _truth(part: Part, item: Item, values: Mapping[str, Any], evidence: Evidence) -> Truth | NotMeasuredError:
    if values.get(item.key) in (None, ""):
        return NotMeasuredError("it is not answered")  # and nothing needs to be derived
    try:
        return find_truth(part.id, item.key, values, evidence)
    except NotMeasuredError as error:
        return error


def _unknown(blocks: Iterable[AnswerBlock], parts: Sequence[Part]) -> list[Verdict]:
    known = {part.id: [item.key for item in part.items] for part in parts}
    verdicts = []
    for block in blocks:
        if block.id not in known:
            message = f"id {_unknown_name(block.id, known)} (line {block.line})"
            verdicts.append(Verdict(block.id, "id", "unreadable", message))
            continue
        for key in block.values:
            if key not in known[block.id]:
                message = f"{_unknown_name(key, known[block.id])} (block in line {block.line})"
                verdicts.append(Verdict(block.id, key, "unreadable", message))
    return verdicts


def _unknown_name(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"{name[:60]!r} is not asked" + (f"; did you mean {near[0]}?" if near else "")


def messages(verdicts: Iterable[Verdict]) -> list[str]:
    """One line for each item that is not right, and one a part for all of it that is not answered."""
    lines = []
    for part, group in itertools.groupby(verdicts, key=lambda verdict: verdict.part):
        members = list(group)
        said = [each for each in members if each.status not in ("right", "missing", "not measured")]
        lines += [f"{part}: {each.message}" for each in said]
        unmeasured = dict.fromkeys(each.message for each in members if each.status == "not measured")
        lines += [f"{part}: {message}" for message in unmeasured]
        if blank := [each.key for each in members if each.status == "missing"]:
            lines.append(f"{part}: not answered yet: {', '.join(blank)}")
    return lines


def verdict_table(verdicts: Sequence[Verdict], problems: Sequence[Problem]) -> Table:
    """Problems with points, items right of those asked, prose, numbers of one's own, and the verdict.

    A problem is `wrong` when one of its items is, `open` while something is missing or cannot be checked, and
    `right` when all of it is right.
    """
    rows = [_row(problem, verdicts) for problem in problems]
    done = [row for row in rows if row["verdict"] == "right"]
    total = {"problem": "total", "points": sum(row["points"] for row in rows)}
    for key in ("items", "prose", "fresh"):
        right, asked = (sum(row[name] for row in rows) for name in (f"{key}_right", f"{key}_asked"))
        total |= {f"{key}_right": right, f"{key}_asked": asked, key: _of(right, asked)}
    points_right = sum(row["points"] for row in done)
    columns = [
        Column("problem", "Problem", align="left"),
        Column("points", "Points"),
        *(
            column
            for key, title in (("items", "Items right"), ("prose", "Prose"), ("fresh", "Own numbers fresh"))
            for column in (
                Column(key, title),
                Column(f"{key}_right", f"{title}, number", raw_only=True),
                Column(f"{key}_asked", f"{title}, asked", raw_only=True),
            )
        ),
        Column("verdict", "Verdict", align="left"),
    ]
    notes = [
        f"all right: {len(done)} of {len(rows)} problems, {points_right} of {total['points']} points",
        "points are of the whole problem, its code included, which tests check; sentences are only counted",
        "own numbers are fresh when they agree with the newest record of their case",
    ]
    known = {part.id for problem in problems for part in problem.parts}
    if strangers := sum(verdict.part not in known for verdict in verdicts):
        notes.append(f"{strangers} blocks have an id that no problem has")
    return Table("Write-up", columns, [*rows, total], notes)


def _row(problem: Problem, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    ids = {part.id for part in problem.parts}
    asked = {(part.id, item.key): item for part in problem.parts for item in part.items}
    own = {key for key, item in asked.items() if isinstance(item, OwnNumber)}
    mine = [verdict for verdict in verdicts if verdict.part in ids]
    groups = {
        "items": [verdict for verdict in mine if (verdict.part, verdict.key) in asked],
        "prose": [verdict for verdict in mine if verdict.key == PROSE],
        "fresh": [verdict for verdict in mine if (verdict.part, verdict.key) in own],
    }
    row: dict[str, Any] = {"problem": problem.id, "points": problem.points}
    for key, group in groups.items():
        right = sum(verdict.status == "right" for verdict in group)
        row |= {f"{key}_right": right, f"{key}_asked": len(group), key: _of(right, len(group))}
    return row | {"verdict": _verdict(mine)}


def _of(right: int, asked: int) -> Cell | None:
    return Cell(right / asked, f"{right} / {asked}") if asked else None


def _verdict(verdicts: Iterable[Verdict]) -> str:
    statuses = {verdict.status for verdict in verdicts}
    if statuses - {"right", *OPEN}:
        return "wrong"
    return "right" if statuses == {"right"} else "open"
