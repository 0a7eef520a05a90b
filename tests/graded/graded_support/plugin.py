"""The pytest plugin of the graded tests: markers, what is pending, and the closing table of points.

It is loaded by tests/conftest.py for `pytest tests/`, and by the grader, which also reads the journal: one line of
JSON when a test starts and one when it ends, so that a crash costs one test.
"""

import json
import os
import pathlib
from typing import Any

import pytest

from graded_support.rubric import (
    CodeProblem,
    TestResult,
    points_table,
    problem_of,
    read_rubric,
    score_problems,
)
from graded_support.submission import SUBMISSION, use_submission

KIT = pathlib.Path(__file__).parents[1]
PENDING = "pending: "
"""How the reason of a skip begins that leaves the points open; a test that skips itself has failed."""

if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
    # Without a GPU (Linux, or Windows' WSL), kernels run in Triton's interpreter. Triton decides when a
    # kernel is defined, so this must come before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Journal:
    """Lines of JSON to the file descriptor of the grader, or nowhere."""

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor

    def write(self, **event: Any) -> None:
        """Add one event."""
        if self.descriptor is not None:
            os.write(self.descriptor, (json.dumps(event) + "\n").encode())


class GradedTests:
    """Collects the results of tests under the folder of the graded tests."""

    def __init__(self, problems: tuple[CodeProblem, ...], journal: Journal) -> None:
        self.problems = {problem.id: problem for problem in problems}
        self.journal = journal
        self.results: dict[str, TestResult] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark each test with its problem, and skip what is pending."""
        for item in items:
            if not item.path.is_relative_to(KIT):
                continue
            problem = self.problems.get(problem_of(item.nodeid))
            if problem is None:
                raise pytest.UsageError(f"{item.path.name}: no such problem in {KIT / 'rubric.toml'}")
            item.add_marker(getattr(pytest.mark, f"problem_{problem.id}"))
            if problem.pending and not os.environ.get("CS_SYSTEMS_RUN_PENDING"):
                item.add_marker(pytest.mark.skip(reason=PENDING + problem.pending))
        graded = [item for item in items if item.path.is_relative_to(KIT)]
        self.journal.write(event="collected", tests=[item.nodeid for item in graded])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell the grader which test is to blame if nothing more is heard."""
        self.journal.write(event="started", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome: of the test itself, of its set-up if that failed, of its end if that failed."""
        if not _is_graded(report):
            return
        before = self.results.get(report.nodeid)
        result = _result(report)
        if result is not None and (before is None or before.status == "passed"):
            self.results[report.nodeid] = result
        if report.when == "teardown":
            kept = self.results[report.nodeid]
            self.journal.write(event="ended", test=report.nodeid, result=vars(kept))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The table of points, when graded tests ran."""
        scores = score_problems(self.problems.values(), self.results.values())
        if scores:
            terminalreporter.section("points")
            for line in points_table(scores, terminalreporter._tw.fullwidth):
                terminalreporter.line(line)
            hidden = _count_hidden()
            if hidden:
                terminalreporter.line(hidden)


def _is_graded(report: pytest.TestReport) -> bool:
    return any(name.startswith("problem_") for name in report.keywords)


def _result(report: pytest.TestReport) -> TestResult | None:
    """What this phase of a test says about it, or None when it says nothing."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if report.when == "setup" and reason.startswith(PENDING):
            return TestResult(report.nodeid, "pending", reason.removeprefix(PENDING))
        return TestResult(report.nodeid, "failed", f"the test was skipped by what it tests ({reason})")
    if report.failed:
        text = report.longreprtext
        return TestResult(report.nodeid, "failed", first_line(report), text[-4000:], report.duration)
    if report.when == "call":
        if getattr(report, "wasxfail", None) is not None:
            return TestResult(report.nodeid, "failed", "the test was marked as expected to fail")
        return TestResult(report.nodeid, "passed", duration_s=report.duration)
    return None


def first_line(report: pytest.TestReport) -> str:
    """The reason of a failure in one line: the message of the exception, with its type where that helps."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no message")
    return line.removeprefix("Failed: ")


def _count_hidden() -> str:
    """What to say of tests that are not here; the handout's maker writes their number into this file."""
    note = KIT / "hidden.txt"
    return note.read_text().strip() if note.is_file() else ""


def pytest_configure(config: pytest.Config) -> None:
    """Set up when pytest starts: once, in the controller and in each worker."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device; pending where there is none")
    problems = read_rubric(KIT / "rubric.toml")
    for problem in problems:
        config.addinivalue_line("markers", f"problem_{problem.id}: {problem.title} ({problem.points} points)")
    if submission := os.environ.get(SUBMISSION):
        use_submission(submission)
    descriptor = os.environ.pop("CS_SYSTEMS_JOURNAL", None)
    journal = Journal(int(descriptor) if descriptor else None)
    config.pluginmanager.register(GradedTests(problems, journal), "graded_tests")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave points open for what cannot run on this machine."""
    if item.path.is_relative_to(KIT) and item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip(PENDING + "needs an NVIDIA GPU")
