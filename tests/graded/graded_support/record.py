"""What is known of a grading run at any moment: the outcome of each test, and what it came from."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from graded_support.rubric import CodeProblem, Score, Status, TestResult, problem_of, score_problems

NOT_REACHED = "not reached"
MAX_OUTPUT = 4000
"""Characters of a report or of what a crashed test printed that are kept."""


@dataclass
class Record:
    """The results of one submission; complete from the first moment: what has not run is not reached."""

    problems: tuple[CodeProblem, ...]
    """Those that are graded."""
    about: dict[str, Any] = field(default_factory=dict)
    """Submission, tests, seed, versions, device: whatever tells this run from another."""
    results: dict[str, TestResult] = field(default_factory=dict)
    """By node id. A file whose tests are not known yet stands for them."""
    absent_note: str = ""
    """What is said of hidden tests where they are not."""
    remarks: list[str] = field(default_factory=list)
    """What a reader must know beyond the points."""
    tests_known: bool = False
    """Whether the results are of tests, and not of files; hidden tests may still be known as files."""
    changed: Callable[["Record"], None] = lambda record: None
    """Called after each change."""

    @property
    def is_complete(self) -> bool:
        """Whether each test has an outcome."""
        return all(result.status != NOT_REACHED for result in self.results.values())

    def expect_files(self, files: Iterable[str]) -> None:
        """Begin with the files of tests, by their path within the kit."""
        self.results = {name: TestResult(name, NOT_REACHED, NOT_REACHED) for name in files}
        self.changed(self)

    def expect_tests(self, tests: Iterable[str], *, hidden: bool = False) -> None:
        """Put tests in the place of the files that hold them; files without tests are dropped.

        Hidden tests are in a start of their own, after the others.
        """
        found = {name: TestResult(name, NOT_REACHED, NOT_REACHED) for name in tests}
        files = self.waiting(hidden=hidden)
        self.results = {name: result for name, result in self.results.items() if name not in files} | found
        self.tests_known = True
        self.changed(self)

    def cannot_read(self, file: str, output: str) -> None:
        """Say that the grader's own file of tests could not be read."""
        last = " ".join(clean(output).split("\n")[-1].split())
        words = f"the grader's own tests could not be read ({last}); this is no fault of the submission"
        self.results[file] = TestResult(file, NOT_REACHED, words, clean(output)[-MAX_OUTPUT:])
        self.changed(self)

    def finish(self, result: TestResult) -> None:
        """Keep the outcome of a test."""
        self.results[result.id] = result
        self.changed(self)

    def fail_all(self, message: str) -> None:
        """No test can run, for a reason that is the submission's: what the rubric has as pending stays so."""
        pending = {problem.id: problem.pending for problem in self.problems if problem.pending}
        for name in self.results:
            why = pending.get(problem_of(name), "")
            self.results[name] = TestResult(name, "pending" if why else "failed", why or message)
        self.remarks.append(message)
        self.changed(self)

    def keep_pending(self) -> None:
        """At the end: what the rubric has as pending has lost no points because it was not reached."""
        pending = {problem.id: problem.pending for problem in self.problems if problem.pending}
        for name, result in self.results.items():
            if result.message == NOT_REACHED and problem_of(name) in pending:
                self.results[name] = TestResult(name, "pending", pending[problem_of(name)])
        self.changed(self)

    def waiting(self, *, hidden: bool) -> list[str]:
        """Tests that can still be run, and files whose tests are not known yet."""
        left = [result for result in self.results.values() if result.status == NOT_REACHED]
        of_kind = [result for result in left if result.is_hidden == hidden]
        return [result.id for result in of_kind if "::" in result.id or result.message == NOT_REACHED]

    def done(self) -> list[str]:
        """Tests that have an outcome."""
        return [name for name, result in self.results.items() if result.status != NOT_REACHED]

    def scores(self, *, show_hidden: bool = True) -> list[Score]:
        """Points of each problem."""
        return score_problems(self.problems, self.shown(show_hidden=show_hidden))

    def shown(self, *, show_hidden: bool) -> list[TestResult]:
        """The results; of hidden tests only whether they passed, unless their details are to be shown."""
        results = []
        num_hidden: dict[str, int] = {}
        for result in self.results.values():
            if result.is_hidden and not show_hidden:
                num_hidden[result.problem] = num_hidden.get(result.problem, 0) + 1
                name = f"hidden/test_{result.problem}.py::hidden test {num_hidden[result.problem]}"
                why = "a hidden test failed" if result.status == "failed" else result.message
                result = TestResult(name, result.status, why, "", result.duration_s, result.remarks)
            results.append(result)
        return results

    def shares(self) -> dict[str, float]:
        """Points that one test of each problem is worth."""
        tests = [result.problem for result in self.results.values()]
        return {p.id: p.points / tests.count(p.id) for p in self.problems if p.id in tests}

    def hidden_note(self) -> str:
        """One sentence about tests that students do not have."""
        num_hidden = sum(result.is_hidden for result in self.results.values())
        if not num_hidden:
            return self.absent_note
        return f"{num_hidden} of the {len(self.results)} tests are hidden tests: students do not have them."


def read_result(test: str, told: Any, duration_s: float) -> TestResult:
    """The result of a test as the journal tells it; what is no result counts as a failure."""
    if not isinstance(told, dict) or told.get("status") not in get_args(Status):
        return TestResult(test, "failed", "the code under test disturbed the grader's journal")
    message, output = (clean(str(told.get(name, ""))) for name in ("message", "output"))
    remarks = told.get("remarks", ())
    remarks = tuple(clean(str(each)) for each in remarks) if isinstance(remarks, list | tuple) else ()
    message = " ".join(message.split())
    return TestResult(test, told["status"], message, output[-MAX_OUTPUT:], duration_s, remarks)


def without_paths(result: TestResult, folders: Iterable[str]) -> TestResult:
    """Without the temporary folders in which it ran."""
    message, output = result.message, result.output
    for folder in folders:
        message, output = message.replace(folder + "/", ""), output.replace(folder + "/", "")
    return replace(result, message=message, output=output)


def clean(text: str) -> str:
    """Text that any file, terminal and XML parser takes: no control characters, no halves of characters."""
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", plain)
