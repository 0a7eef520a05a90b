"""A record of a grading run as text: for a terminal, for Gradescope, as JSON, Markdown or JUnit's XML.

Points in every format: the tests of a problem share its points equally. A test that has not run because of
the machine or the rubric (pending) leaves its points open. A student's total must not fall for what nobody
could run, and must not rise either: on Gradescope such a test has score 0 of 0, says so, and names its points
in extra_data. The instructor who grades it later, on a machine with a GPU, uploads the new results.json. A
test that was not reached has 0 of its points.

Hidden tests: Gradescope gets their details with visibility `after_published`, and itself withholds the total
while a test is hidden. Every other format says only how many passed, unless details are asked for. The seed
that they draw from is on Gradescope's pages, which students read, only when details are asked for.
"""

import json
import textwrap
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from graded_support.record import NOT_REACHED, Record
from graded_support.rubric import Score, TestResult, points_table, remark_lines

NUM_REASONS = 3
"""Failures of one problem that a table lists."""
DIGITS = 6
"""Digits of points after the comma: a third of a point three times is one point when a page adds them up."""


def render_table(record: Record, *, show_hidden: bool, width: int = 110) -> str:
    """The points of each problem, why some are lost, and what to know beyond."""
    scores = record.scores(show_hidden=show_hidden)
    lines = points_table(scores, max(140, width))
    reasons = [line for score in scores for line in _reasons(record, score, show_hidden)]
    reasons += remark_lines(record.results.values())
    if reasons:
        lines.append("")
        for line in reasons:
            lines += textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False)
    lines += ["", *_remarks(record)]
    return "\n".join(lines).rstrip() + "\n"


def render_markdown(record: Record, *, show_hidden: bool) -> str:
    """The same as a page."""
    scores = record.scores(show_hidden=show_hidden)
    rows = [
        f"| {s.problem.id} | {_number(s.problem.points)} | {_number(s.earned)} | {_number(s.pending)} | "
        f"{_number(s.lost)} |"
        for s in scores
    ]
    total = totals(scores)
    rows.append("| total | " + " | ".join(_number(total[name]) for name in _TOTALS) + " |")
    reasons = [line for score in scores for line in _reasons(record, score, show_hidden)]
    remarked = remark_lines(record.results.values())
    parts = [
        "# Points",
        "| problem | points | earned | pending | lost |\n|:--|--:|--:|--:|--:|\n" + "\n".join(rows),
        "## Why" if reasons else "",
        "\n".join(f"- {_escape(line)}" for line in reasons),
        "## For the instructor" if remarked else "",
        "\n".join(f"- {_escape(line)}" for line in remarked),
        "\n".join(f"- {_escape(line)}" for line in _remarks(record)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_json(record: Record, *, show_hidden: bool) -> str:
    """Everything, for other programs."""
    shares = record.shares()
    scores = record.scores(show_hidden=show_hidden)
    problems = [
        {
            "id": score.problem.id,
            "section": score.problem.section,
            "title": score.problem.title,
            **{name: _round(getattr(score, name)) for name in ("earned", "pending", "lost")},
            "points": score.problem.points,
            "reasons": list(score.reasons),
        }
        for score in scores
    ]
    tests = [
        {
            "id": result.id,
            "problem": result.problem,
            "status": result.status,
            "points": _round(shares[result.problem]),
            "message": result.message,
            "output": result.output,
            "remarks": list(result.remarks),
            "duration_s": round(result.duration_s, 3),
            "hidden": result.is_hidden,
        }
        for result in record.shown(show_hidden=show_hidden)
    ]
    body = {
        "format": "cs_systems grading 1",
        "complete": record.is_complete,
        "total": totals(scores),
        "problems": problems,
        "tests": tests,
        "num_hidden_tests": sum(test["hidden"] for test in tests),
        "remarks": [*record.remarks, *remark_lines(record.results.values())],
        **record.about,
    }
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def render_gradescope(record: Record, *, show_hidden: bool) -> str:
    """The results.json of Gradescope's autograder; the module says what pending and hidden tests become."""
    shares = record.shares()
    sections = {problem.id: problem.section for problem in record.problems}
    numbers: dict[str, int] = {}
    tests = []
    for result in record.shown(show_hidden=True):
        numbers[result.problem] = number = numbers.get(result.problem, 0) + 1
        visibility = "after_published" if result.is_hidden and not show_hidden else "visible"
        tests.append(
            _gradescope_test(result, shares[result.problem])
            | {"number": f"{sections[result.problem]}.{number}", "visibility": visibility}
        )
    total = totals(record.scores())
    about = {key: value for key, value in record.about.items() if show_hidden or key != "seed"}
    body = {
        "score": total["earned"],
        "execution_time": round(record.about.get("duration_s", 0.0)),
        "output": "\n".join(_remarks(record, show_seed=show_hidden)),
        "output_format": "text",
        "test_output_format": "text",
        "test_name_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "tests": tests,
        "extra_data": {"total": total, "complete": record.is_complete, **about},
    }
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def render_junit(record: Record, *, show_hidden: bool) -> str:
    """XML as JUnit writes it: a suite a problem; pending is skipped, not reached an error."""
    results = record.shown(show_hidden=show_hidden)
    root = ElementTree.Element("testsuites", _counts(results), name="graded tests")
    for problem in record.problems:
        of_problem = [result for result in results if result.problem == problem.id]
        if not of_problem:
            continue
        suite = ElementTree.SubElement(root, "testsuite", _counts(of_problem), name=problem.id)
        for result in of_problem:
            case = ElementTree.SubElement(suite, "testcase", classname=problem.id, name=_test_name(result))
            case.set("time", f"{result.duration_s:.3f}")
            if result.status != "passed":
                detail = ElementTree.SubElement(case, _JUNIT[result.status], message=result.message)
                detail.text = result.output
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


FORMATS: dict[str, Callable[..., str]] = {
    "table": render_table,
    "gradescope": render_gradescope,
    "json": render_json,
    "md": render_markdown,
    "junit": render_junit,
}


def totals(scores: list[Score]) -> dict[str, float]:
    """Points of all problems: what there was to earn, and what came of it."""
    sums = {name: _round(sum(getattr(score, name) for score in scores)) for name in _TOTALS[1:]}
    return {"points": _round(sum(score.problem.points for score in scores))} | sums


_TOTALS = ("points", "earned", "pending", "lost")
_JUNIT = {"failed": "failure", "pending": "skipped", NOT_REACHED: "error"}


def _gradescope_test(result: TestResult, share: float) -> dict[str, Any]:
    is_pending = result.status == "pending"
    test: dict[str, Any] = {
        "name": f"{result.problem}: {_test_name(result)}" + (" (pending)" if is_pending else ""),
        "score": _round(share) if result.status == "passed" else 0.0,
        "max_score": 0.0 if is_pending else _round(share),
        "output": _explain(result),
        "tags": [result.problem],
        "extra_data": {"status": result.status, "duration_s": round(result.duration_s, 3)},
    }
    if is_pending:  # neither of Gradescope's two words for a status is true of it
        test["output"] = f"Not run: {result.message}. Its {_number(share)} points are open, not lost."
        test["extra_data"]["pending_points"] = _round(share)
    else:
        test["status"] = "passed" if result.status == "passed" else "failed"
    return test


def _explain(result: TestResult) -> str:
    """The reason and the whole report, which may begin with the reason, and the remarks."""
    report = result.output.strip()
    message = "" if report.startswith(result.message) else result.message
    remarks = "\n".join(f"remark: {remark}" for remark in result.remarks)
    return "\n\n".join(part for part in (message, report, remarks) if part)


def _reasons(record: Record, score: Score, show_hidden: bool) -> list[str]:
    """Some lines for what went wrong in a problem: each reason once, with the tests that it is about."""
    tests_of: dict[str, list[str]] = {}
    for result in record.shown(show_hidden=show_hidden):
        if result.problem == score.problem.id and result.status in ("failed", NOT_REACHED):
            tests_of.setdefault(result.message, []).append(_test_name(result))
    lines = []
    for reason, tests in list(tests_of.items())[:NUM_REASONS]:
        names = ", ".join(tests) if len(tests) <= 2 else f"{len(tests)} tests"
        lines.append(f"{score.problem.id}, {names}: {reason}")
    if len(tests_of) > NUM_REASONS:
        lines.append(f"{score.problem.id}: {len(tests_of) - NUM_REASONS} further reasons")
    return lines


def _remarks(record: Record, *, show_seed: bool = True) -> list[str]:
    """What a reader must know beyond the points, and where they come from."""
    num_left = sum(result.status == NOT_REACHED for result in record.results.values())
    left = [f"{num_left} of {len(record.results)} tests were not reached."] if num_left else []
    hidden = record.hidden_note()
    versions = record.about.get("versions", {})
    words = [f"{name} {version}" for name, version in versions.items()]
    device = [record.about["device"]] if "device" in record.about else []
    seed = [f"seed {record.about['seed']}"] if show_seed and "seed" in record.about else []
    kit = [f"tests {record.about['kit_sha256'][:12]}"] if "kit_sha256" in record.about else []
    origin = ", ".join([*words, *device, *seed, *kit])
    remarks = [remark[:1].upper() + remark[1:].rstrip(".") + "." for remark in record.remarks]
    return [*remarks, *left, *([hidden] if hidden else []), *([f"Graded with {origin}."] if origin else [])]


def _counts(results: list[TestResult]) -> dict[str, str]:
    """Attributes of a JUnit suite."""
    counts = {"tests": len(results)}
    for status, name in (("failed", "failures"), (NOT_REACHED, "errors"), ("pending", "skipped")):
        counts[name] = sum(result.status == status for result in results)
    time = {"time": f"{sum(result.duration_s for result in results):.3f}"}
    return {name: str(count) for name, count in counts.items()} | time


def _test_name(result: TestResult) -> str:
    """The name of the test function with its parameters; hidden ones say that they are."""
    name = result.id.partition("::")[2] or "all tests"
    return f"hidden: {name}" if result.is_hidden and not name.startswith("hidden") else name


def _round(points: float) -> float:
    return round(points, DIGITS)


def _number(points: float) -> str:
    return f"{points:.4g}"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_<>[]|#":
        text = text.replace(mark, "\\" + mark)
    return text
