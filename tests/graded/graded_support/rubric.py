"""Points: the problems of rubric.toml, and what the results of their tests come to."""

import math
import pathlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "pending", "not reached"]
"""Outcome of a test; a pending one was not run, because of this machine or of the rubric."""

HIDDEN_FOLDER = "hidden"


@dataclass(frozen=True)
class CodeProblem:
    """A problem with code that tests grade."""

    id: str
    title: str
    points: float
    section: int
    """Its place in writeup/code.md, from 1 on."""
    pending: str = ""
    """Why nobody's tests of it are run yet."""
    timeout_s: float = 60.0
    """Seconds that one of its tests may take."""
    not_allowed: tuple[str, ...] = ()
    """Functions of torch that would do the part itself; a call makes a remark, and costs no points."""


@dataclass(frozen=True)
class TestResult:
    """Outcome of one test."""

    __test__ = False

    id: str
    """Its node id, which begins with the path of its file."""
    status: Status
    message: str = ""
    """Why, in one line; empty when passed."""
    output: str = ""
    """The whole report of a failure."""
    duration_s: float = 0.0
    remarks: tuple[str, ...] = ()
    """What an instructor should look at, whatever the outcome."""

    @property
    def problem(self) -> str:
        """Id of the problem: tests of it stand in test_<id>.py."""
        return problem_of(self.id)

    @property
    def is_hidden(self) -> bool:
        """Whether students do not have this test."""
        return HIDDEN_FOLDER in pathlib.PurePosixPath(self.id.split("::")[0]).parts


@dataclass(frozen=True)
class Score:
    """Points of one problem: they add up to those of the problem."""

    problem: CodeProblem
    earned: float
    pending: float
    lost: float
    reasons: tuple[str, ...]
    """One line for each thing that went wrong or is pending, most frequent first."""


def read_rubric(path: pathlib.Path) -> tuple[CodeProblem, ...]:
    """The problems of a rubric file.

    Raises:
        ValueError: in one line, when the file is no rubric.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["problem"]
        problems = tuple(
            CodeProblem(section=i, **entry | {"not_allowed": tuple(entry.get("not_allowed", ()))})
            for i, entry in enumerate(entries, start=1)
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a rubric ({error}); compare it with the one you were given") from None
    for entry, problem in zip(entries, problems, strict=True):
        for name in ("id", "title", "pending"):
            if not isinstance(getattr(problem, name), str):
                raise ValueError(f"{path}: {problem.id} has {name} = {getattr(problem, name)!r}; give a text")
        if not isinstance(entry.get("not_allowed", []), list):
            raise ValueError(f"{path}: {problem.id} has not_allowed = {entry['not_allowed']!r}; give a list")
        if not _is_number(problem.points) or not 0 <= problem.points < math.inf:
            raise ValueError(f"{path}: {problem.id} has points = {problem.points!r}; give a number from 0 on")
        if not _is_number(problem.timeout_s) or not 0 < problem.timeout_s < math.inf:
            raise ValueError(
                f"{path}: {problem.id} has timeout_s = {problem.timeout_s!r}; give seconds above 0"
            )
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError(f"{path}: a problem stands there twice")
    _check_files(path, {problem.id for problem in problems})
    return problems


def _check_files(path: pathlib.Path, ids: set[str]) -> None:
    """Raise ValueError where tests beside the rubric have no problem: it may be misspelt there."""
    for file in sorted(path.parent.rglob("test_*.py")):
        if problem_of(file.name) not in ids:
            name = file.relative_to(path.parent).as_posix()
            raise ValueError(f"{path}: {name} is of no problem there; enter one, or rename the file")


def problem_of(node_id: str) -> str:
    """The problem that a test belongs to, by the name of its file."""
    return pathlib.PurePosixPath(node_id.split("::")[0]).stem.removeprefix("test_")


def score_problems(problems: Iterable[CodeProblem], results: Iterable[TestResult]) -> list[Score]:
    """The points of each problem that has results; its tests share its points equally."""
    by_problem: dict[str, list[TestResult]] = {}
    for result in results:
        by_problem.setdefault(result.problem, []).append(result)
    scores = []
    for problem in problems:
        tests = by_problem.get(problem.id, [])
        if tests:
            # Each by its own count: a difference would leave a trace of rounding where nothing was lost.
            earned, pending, lost = (
                problem.points * sum(test.status in statuses for test in tests) / len(tests)
                for statuses in (("passed",), ("pending",), ("failed", "not reached"))
            )
            all_reasons = [test.message for test in tests if test.status != "passed"]
            reasons = sorted(dict.fromkeys(all_reasons), key=lambda reason: -all_reasons.count(reason))
            scores.append(Score(problem, earned, pending, lost, tuple(reasons)))
    return scores


def points_table(scores: Iterable[Score], width: int = 140) -> list[str]:
    """Lines for a terminal: earned, pending and lost points of each problem and the first reason."""
    scores = list(scores)
    name_width = max([len("problem"), *(len(score.problem.id) for score in scores)])
    lines = [f"{'problem':<{name_width}}  points  earned  pending    lost  why"]
    for score in scores:
        why = score.reasons[0].removeprefix("NotImplementedError: ") if score.reasons else ""
        more = f" (and {len(score.reasons) - 1} more)" if len(score.reasons) > 1 else ""
        numbers = _numbers(score.problem.points, score.earned, score.pending, score.lost)
        line = f"{score.problem.id:<{name_width}}{numbers}  "
        room = max(30, width - len(line) - len(more))
        lines.append((line + (why if len(why) <= room else why[: room - 3] + "...") + more).rstrip())
    totals = [sum(getattr(score, name) for score in scores) for name in ("earned", "pending", "lost")]
    points = sum(score.problem.points for score in scores)
    lines.append(f"{'total':<{name_width}}{_numbers(points, *totals)}")
    return lines


def remark_lines(results: Iterable[TestResult]) -> list[str]:
    """One line for each remark in a problem."""
    lines = [f"remark: {result.problem}: {remark}" for result in results for remark in result.remarks]
    return list(dict.fromkeys(lines))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(points: float, earned: float, pending: float, lost: float) -> str:
    cells = (f"{points:>8.4g}", f"{earned:>8.4g}", f"{pending:>9.4g}", f"{lost:>8.4g}")
    return "".join(cells)
