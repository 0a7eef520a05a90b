"""The pytest plugin of the graded tests: markers, what is pending, and the closing table of points.

It is loaded by tests/conftest.py for `pytest tests/`, and by the grader, which also reads the journal: one
line of JSON when a test starts and one when it ends, so that a crash costs one test.
"""

import faulthandler
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from graded_support.fence import Fence
from graded_support.remarks import find_classes, watch
from graded_support.rubric import (
    CodeProblem,
    TestResult,
    points_table,
    problem_of,
    read_rubric,
    remark_lines,
    score_problems,
)
from graded_support.settings import put_back, read_settings
from graded_support.submission import SUBMISSION, use_submission

KIT = pathlib.Path(__file__).parents[1]
PENDING = "pending: "
"""How the reason of a skip begins that leaves points open, and the property of a report that says so.

A test that skips itself has failed.
"""
REMARK = "remark"
"""The property of a report that holds what an instructor should look at; it costs no points."""

if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
    # Without a GPU (Linux, or Windows' WSL), kernels run in Triton's interpreter. Triton decides when a
    # kernel is defined, so this must come before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Journal:
    """Lines of JSON to the grader, or nowhere. An address is a file descriptor, a colon, how lines begin."""

    def __init__(self, address: str = "") -> None:
        descriptor, _, self._mark = address.partition(":")
        self.descriptor = int(descriptor) if descriptor else None
        # Code that is graded may put something else in their place later.
        self._dumps, self._write, self._getpid = json.dumps, os.write, os.getpid
        self._process = os.getpid()

    def write(self, **event: Any) -> None:
        """Add one event, unless this is a process that the code under test has forked."""
        if self.descriptor is not None and self._getpid() == self._process:
            left = (
                f"\n{self._mark}{self._dumps(event)}\n".encode()
            )  # a line of its own, whatever else was written there
            while left:
                left = left[self._write(self.descriptor, left) :]


class GradedTests:
    """Collects the results of tests under the folder of the graded tests."""

    def __init__(
        self,
        problems: tuple[CodeProblem, ...],
        journal: Journal,
        done: frozenset[str] = frozenset(),
        submission: str = "",
    ) -> None:
        self.problems = {problem.id: problem for problem in problems}
        self.journal = journal
        self.done = done
        self.folder = submission or str(KIT.parents[1])
        self.fence = Fence(submission)
        self.results: dict[str, TestResult] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark each test with its problem, and skip what is pending.

        Whether there is a GPU is asked here, once, before any adapters are imported, and only for a test
        that needs one.
        """
        items[:] = [item for item in items if item.nodeid not in self.done]
        why_no_gpu: str | None = None
        for item in items:
            if not item.path.is_relative_to(KIT):
                continue
            problem = self.problems.get(problem_of(item.nodeid))
            if problem is None:
                raise pytest.UsageError(f"{item.path.name}: no such problem in {KIT / 'rubric.toml'}")
            item.add_marker(getattr(pytest.mark, f"problem_{problem.id}"))
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # what libraries warn of is not graded
            if problem.pending and not os.environ.get("CS_SYSTEMS_RUN_PENDING"):
                _leave_open(item, problem.pending)
                item.add_marker(pytest.mark.skip(reason=PENDING + problem.pending))
            elif item.get_closest_marker("gpu"):
                why_no_gpu = _why_no_gpu() if why_no_gpu is None else why_no_gpu
                if why_no_gpu:
                    _leave_open(item, why_no_gpu)
                    item.add_marker(pytest.mark.skip(reason=PENDING + why_no_gpu))
        graded = [item for item in items if item.path.is_relative_to(KIT)]
        self.journal.write(event="collected", tests=[item.nodeid for item in graded])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        """From here on the tests' own functions stay what they are."""
        self.fence.begin()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What the adapters set for the whole process when they are imported holds for no test."""
        __tracebackhide__ = True
        if fixturedef.argname != "adapters":
            return (yield)
        before = read_settings()
        try:
            return (yield)
        finally:
            put_back(before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Fail a test that passed by the tests' own answers, or that would spoil the tests after it."""
        __tracebackhide__ = True
        if not item.path.is_relative_to(KIT):
            return (yield)
        names = self.problems[problem_of(item.nodeid)].not_allowed
        remarks: list[str] = []
        before = read_settings()
        try:
            with watch(names, self.folder, remarks):
                result = yield
        finally:
            changed = put_back(before)
            adapters = getattr(item, "funcargs", {}).get("adapters")
            remarks += find_classes(names, adapters.classes) if names and adapters else []
            item.user_properties += [(REMARK, remark) for remark in remarks]
        if words := self.fence.find() or changed:
            raise _Failed(words, pytrace=False)
        return result

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file of tests that cannot be read is the grader's failure, and nobody else's."""
        if report.failed:
            self.journal.write(event="uncollected", file=report.nodeid, output=report.longreprtext[-4000:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell the grader which test is to blame if nothing more is heard."""
        self.journal.write(event="started", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome: of the test itself, of its set-up if that failed, of its end if that failed."""
        if _has_crashed(report):
            self.results[report.nodeid] = TestResult(report.nodeid, "failed", CRASHED, report.longreprtext)
        if not _is_graded(report):
            return
        before = self.results.get(report.nodeid)
        result = _result(report)
        if result is not None and (before is None or before.status == "passed"):
            self.results[report.nodeid] = result
        if report.when == "teardown":
            kept = self.results[report.nodeid]
            remarks = tuple(str(words) for name, words in report.user_properties if name == REMARK)
            kept = self.results[report.nodeid] = replace(kept, remarks=remarks)
            self.journal.write(event="ended", test=report.nodeid, result=vars(kept))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The table of points, when graded tests ran."""
        scores = score_problems(self.problems.values(), self.results.values())
        if scores:
            terminalreporter.section("points")
            for line in points_table(scores, max(140, terminalreporter._tw.fullwidth)):
                terminalreporter.line(line)
            for line in remark_lines(self.results.values()):
                terminalreporter.line(line)
            hidden = _count_hidden()
            if hidden:
                terminalreporter.line(hidden)


class UnderGrader:
    """What the grader's own runs of pytest do beyond those that a person starts."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        faulthandler.register(signal.SIGUSR2)  # the grader asks where a test is before it ends it
        journal.write(event="begun", pid=os.getpid(), versions=_versions())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        """Say which device there is; only tests that need torch have imported it."""
        torch = sys.modules.get("torch")
        if torch is not None:
            has_gpu = torch.cuda.is_available()
            self.journal.write(event="device", name=torch.cuda.get_device_name() if has_gpu else "cpu")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """Tell the grader while the adapters are imported: a crash there would be the same in each test."""
        __tracebackhide__ = True
        if fixturedef.argname != "adapters":
            return (yield)
        self.journal.write(event="importing")
        try:
            return (yield)
        finally:
            self.journal.write(event="imported")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        """What would end pytest is the failure of one test."""
        __tracebackhide__ = True
        return (yield from _stay())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        """The same."""
        __tracebackhide__ = True
        return (yield from _stay())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        """The same."""
        __tracebackhide__ = True
        return (yield from _stay())


CRASHED = "the process crashed in this test: does a kernel load or store outside of a tensor?"
_STOPS = (KeyboardInterrupt, SystemExit, pytest.exit.Exception)
_Failed = pytest.fail.Exception


def _stay() -> Generator[None, Any, Any]:
    """Let a hook run; what it raises to end the whole run becomes the failure of the test."""
    __tracebackhide__ = True
    try:
        return (yield)
    except _STOPS as error:
        name = "pytest.exit" if isinstance(error, pytest.exit.Exception) else type(error).__name__
        raise _Failed(f"the code raised {name} ({error}) instead of returning") from error


def _versions() -> dict[str, str]:
    """Versions of what decides about results; an absent package has none."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "pytest"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _has_crashed(report: pytest.TestReport) -> bool:
    """Whether pytest-xdist reports that a graded test took its whole process down."""
    return report.when == "???" and KIT.name in pathlib.PurePosixPath(report.nodeid.split("::")[0]).parts


def _is_graded(report: pytest.TestReport) -> bool:
    return any(name.startswith("problem_") for name in report.keywords)


def _result(report: pytest.TestReport) -> TestResult | None:
    """What this phase of a test says about it, or None when it says nothing."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if (expected := getattr(report, "wasxfail", None)) is not None:
            words = str(expected).removeprefix("reason: ")  # which older versions of pytest write
            reason = f"pytest.xfail, {words}"
        left_open = dict(report.user_properties).get(PENDING)
        if report.when == "setup" and left_open:
            return TestResult(report.nodeid, "pending", str(left_open))
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
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    if lines[0].startswith('File "'):  # a SyntaxError says what is wrong after the line that is
        return f"{lines[-1]} ({lines[0]})"
    return lines[0].removeprefix("Failed: ")


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
    submission = os.environ.get(SUBMISSION, "")
    if submission:
        use_submission(submission)
    journal = Journal(os.environ.pop("CS_SYSTEMS_JOURNAL", ""))
    done = json.loads(os.environ.pop("CS_SYSTEMS_DONE", "[]"))
    config.pluginmanager.register(GradedTests(problems, journal, frozenset(done), submission), "graded_tests")
    if journal.descriptor is not None:
        config.pluginmanager.register(UnderGrader(journal), "under_grader")


def _why_no_gpu() -> str:
    """Why a test that needs a GPU cannot run on this machine; empty when it can."""
    import torch

    return "" if torch.cuda.is_available() else "needs an NVIDIA GPU"


def _leave_open(item: pytest.Item, why: str) -> None:
    """Let the points of a test be neither earned nor lost; its report says so, also to another process."""
    item.user_properties.append((PENDING, why))
