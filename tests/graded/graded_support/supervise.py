"""Run the graded tests on a submission that may hang or crash, until each test has an outcome.

pytest runs in a process of its own and tells through a pipe which test begins and ends. When that process
ends, hangs or takes too much memory, the test that was running has failed, everything that descends from the
process is killed, and pytest starts again for the tests that are left, in fresh copies of the submission and
of the tests.

What this bounds, and what it does not. Bounded: time (a test, and the whole run), memory, the size of a file,
processes that are left behind, files in the working folder, the home folder and the temporary folder, and
what a submission can do to pytest by accident or by mischief of the ordinary kind: its own pytest.ini,
conftest.py or sitecustomize.py, packages named like those of the grader, sys.exit, a closed standard output,
a deleted test. A test fails when a module of the submission imports the tests' own answers
(`graded_support`), when a function of the tests was replaced and stayed so, and when the code left torch's
settings changed, which are put back. Hidden tests and their seed are in a start of pytest of their own, after
the others: what the others print cannot tell of them.

Not bounded: code that is out to cheat. It runs in the process that judges it, as the same user: it can import
answers by a name that it puts together, by exec or after a look at the frame that called it, replace a
function and put it back, write verdicts into the journal, read hidden tests while they run, or where the
grader itself lies, write files elsewhere, use the network, and kill the grader. Whoever grades code that is
not trusted runs the grader in a container, as Gradescope does, and reads what earned the points. Functions
that writeup/code.md rules out make remarks (see `remarks`), which the results show.
"""

import json
import os
import re
import signal
import site
import sys
import time
from dataclasses import dataclass
from typing import Any

from graded_support.pipes import Pipe, ready
from graded_support.processes import Family, describe_exit, exit_code, memory_bytes, send, start
from graded_support.record import MAX_OUTPUT, NOT_REACHED, Record, clean, read_result, without_paths
from graded_support.rubric import TestResult, problem_of
from graded_support.submission import ADAPTERS, SUBMISSION
from graded_support.workspace import Workspace

POLL_S = 0.1
IMPORT_TIMEOUT_S = 120.0
"""Seconds for importing the adapters: torch comes from a slow disk the first time."""
START_TIMEOUT_S = 300.0
"""Seconds until the first test begins, and between two tests: the grader's own work."""
TRACEBACK_S = 0.3
"""Seconds in which a process that hangs may say where it is."""
MAX_PROCESSES = 500

KEPT_VARIABLES = re.compile(
    "PATH|LANG|LC_.*|TZ|CC|CXX|LD_LIBRARY_PATH|DYLD_.*|(CUDA|NVIDIA|NCCL|OMP|MKL|OPENBLAS|GLOO)_.*"
    "|TRITON_INTERPRET|CS_SYSTEMS_RUN_PENDING"
)


@dataclass(frozen=True)
class Limits:
    """What a run may take."""

    timeout_scale: float = 1.0
    """Factor on the time limits of tests, for slow machines."""
    max_minutes: float = 60.0
    """Minutes for everything; tests that have not run by then are not reached."""
    max_memory_gib: float = 8.0
    """Resident memory of all processes of a test together."""


@dataclass
class Progress:
    """Where one start of pytest is, by what its journal said."""

    since: float
    """When the last event came, by this process's clock."""
    pid: int = 0
    collected: bool = False
    """Whether it has said which tests it will run."""
    importing: bool = False
    test: str = ""
    """The test that runs now."""
    test_since: float = 0.0
    num_ended: int = 0


def supervise(record: Record, workspace: Workspace, adapters: str, seed: int, limits: Limits) -> bool:
    """Run all tests of the record until each has an outcome; False if the grader itself could not go on.

    Args:
        record: begins with the files to run, and is filled.
        workspace: has taken the submission.
        adapters: path of the adapters within the submission.
        seed: what hidden tests draw their numbers from.
        limits: time and memory.

    Raises:
        OSError: if the copies cannot be made, or no process started.
    """
    give_up = time.monotonic() + 60.0 * limits.max_minutes
    family = Family()
    broken_import = ""
    hidden = False
    all_files = list(record.results)
    try:
        while time.monotonic() < give_up:
            hidden = not record.waiting(hidden=False)
            if hidden and not record.waiting(hidden=True):
                return record.is_complete
            files = [name for name in all_files if TestResult(name, NOT_REACHED).is_hidden == hidden]
            environment = _environment(workspace, adapters)
            environment["CS_SYSTEMS_BROKEN_IMPORT"] = broken_import
            if hidden:
                environment["CS_SYSTEMS_SEED"] = str(seed)
            run = Run(record, workspace, limits, family, hidden=hidden)
            run.go(files, environment, give_up)
            broken_import = run.broken_import or broken_import
            if run.is_stuck:
                return False
    finally:
        family.kill()
    record.remarks.append(
        f"the time for all tests was over after {limits.max_minutes:g} minutes (--max-minutes)"
    )
    record.changed(record)
    return True


class Run:
    """One start of pytest."""

    def __init__(
        self, record: Record, workspace: Workspace, limits: Limits, family: Family, *, hidden: bool
    ) -> None:
        self.record, self.workspace, self.limits, self.family = record, workspace, limits, family
        self.hidden = hidden
        """Whether it is for the hidden tests, and not for the others."""
        self.timeouts = {problem.id: problem.timeout_s for problem in record.problems}
        self.progress = Progress(time.monotonic())
        self.printed = b""
        self.broken_import = ""
        """Why the adapters could not be imported, when that was the end of the process."""
        self.is_stuck = False
        """Whether the process ended without having begun a test: the next start would not go further."""

    def go(self, files: list[str], environment: dict[str, str], give_up: float) -> None:
        """Start pytest for the tests that are left, and watch it until it ends or must be ended."""
        self.workspace.refresh(with_hidden=self.hidden)
        self.record.about["num_starts"] = self.record.about.get("num_starts", 0) + 1
        environment["CS_SYSTEMS_DONE"] = json.dumps(self.record.done())
        with Pipe() as journal, Pipe() as output:
            environment["CS_SYSTEMS_JOURNAL"] = f"{journal.write_end}:{journal.mark}"
            guard = start(
                self._command(files),
                environment=environment,
                folder=str(self.workspace.submission),
                output=output.write_end,
                keep=journal.write_end,
            )
            journal.close_write_end()
            output.close_write_end()
            try:
                ending = self._watch(guard, journal, output, give_up)
            finally:
                if not self.family.kill():
                    self.record.remarks.append("a process of the submission could not be ended")
        self._settle(ending)

    def _command(self, files: list[str]) -> list[str]:
        """Tests may print what they like (-s): the pipe is read, and only the end of it is kept."""
        kit = self.workspace.kit
        switches = ["-s", "-p", "no:terminal", "-p", "no:warnings", "-p", "no:cacheprovider"]
        places = ["-c", str(kit / "grader.ini"), "--rootdir", str(kit), "--confcutdir", str(kit)]
        tests = [str(kit / name) for name in files]
        plugin = ["-p", "graded_support.plugin", "--continue-on-collection-errors"]
        return [sys.executable, "-P", "-B", "-m", "pytest", *switches, *places, *plugin, *tests]

    def _watch(self, guard: int, journal: Pipe, output: Pipe, give_up: float) -> str:
        """Read until all tests have ended or the process has; why it ended or had to be, or nothing."""
        poll_at = 0.0
        while True:
            self._read(journal, output)
            if self.progress.collected and not self.record.waiting(hidden=self.hidden):
                return ""
            code = exit_code(guard)
            if code is not None:
                self._read_rest(journal, output)
                return describe_exit(code)
            if journal.is_closed:
                time.sleep(POLL_S)  # the end of the process closes it a moment before the guard knows
                code = exit_code(guard)
                return "the code closed the files of the process" if code is None else describe_exit(code)
            now = time.monotonic()
            if now > give_up:
                self.progress.test = ""
                return ""
            if words := self._overdue(now):
                self._ask_where(output)
                return words
            if now > poll_at:
                if words := self._too_large():
                    return words
                poll_at = now + max(POLL_S, 20.0 * (time.monotonic() - now))  # 5 % of a core at most

    def _read(self, journal: Pipe, output: Pipe, wait_s: float = POLL_S) -> None:
        for pipe in ready([journal, output], wait_s):
            data = pipe.read()
            if pipe is output:
                self._keep(data)
            else:
                for event in journal.events(data):
                    self._note(event)

    def _read_rest(self, journal: Pipe, output: Pipe) -> None:
        """What was written before the end; a forked process may go on writing, so no more than pipes hold."""
        for _ in range(64):
            if not ready([journal, output], 0.0):
                return
            self._read(journal, output, 0.0)

    def _note(self, event: dict[str, Any]) -> None:
        """Take in one event of the journal."""
        now, progress = time.monotonic(), self.progress
        progress.since = now
        kind = event.get("event")
        if kind == "begun":
            progress.pid = int(event["pid"])
            self.record.about["versions"] = event["versions"]
        elif kind == "device":
            self.record.about["device"] = str(event["name"])
        elif kind == "uncollected":
            output = str(event["output"]).replace(str(self.workspace.run) + "/", "")
            self.record.cannot_read(str(event["file"]), output)
        elif kind == "collected":
            # The first start of pytest says which tests there are.
            if any("::" not in name for name in self.record.waiting(hidden=self.hidden)):
                self.record.expect_tests(event["tests"], hidden=self.hidden)
            progress.collected = True
        elif kind == "started":
            progress.test, progress.test_since = str(event["test"]), now
            self.printed = b""
        elif kind in ("importing", "imported"):
            progress.importing, progress.test_since = kind == "importing", now
        elif kind == "ended" and event["test"] == progress.test:
            self._finish(read_result(progress.test, event["result"], now - progress.test_since))
            progress.test, progress.num_ended = "", progress.num_ended + 1

    def _finish(self, result: TestResult) -> None:
        run = self.workspace.run
        folders = (self.workspace.submission, f"../{self.workspace.submission.name}", run)
        self.record.finish(without_paths(result, map(str, folders)))

    def _overdue(self, now: float) -> str:
        """Why the process must be ended, if its time is over."""
        progress, scale = self.progress, self.limits.timeout_scale
        if not progress.test:
            late = now > progress.since + START_TIMEOUT_S * max(1.0, scale)
            return f"nothing happened for {START_TIMEOUT_S:g} s between two tests" if late else ""
        limit = IMPORT_TIMEOUT_S if progress.importing else self.timeouts[problem_of(progress.test)]
        return f"stopped after {limit * scale:g} s" if now > progress.test_since + limit * scale else ""

    def _too_large(self) -> str:
        """Why the process must be ended, if it or what descends from it takes too much."""
        members = self.family.members()
        limit = self.limits.max_memory_gib * 2**30
        used = memory_bytes(members, limit)
        if used > limit:
            return (
                f"stopped at {used / 2**30:.2f} GiB of memory; "
                f"{self.limits.max_memory_gib:.4g} GiB are allowed (--max-memory-gib)"
            )
        if len(members) > MAX_PROCESSES:
            return f"stopped at {len(members)} processes; {MAX_PROCESSES} are allowed"
        return ""

    def _ask_where(self, output: Pipe) -> None:
        """Let a process that hangs print where it is. The journal is read no more: a verdict is too late."""
        send(self.progress.pid, signal.SIGUSR2)
        until, pause = time.monotonic() + TRACEBACK_S, TRACEBACK_S
        while time.monotonic() < until and ready([output], pause):
            self._keep(output.read())
            pause = TRACEBACK_S / 6  # it prints at once, line by line

    def _keep(self, data: bytes) -> None:
        self.printed = (self.printed + data)[-4 * MAX_OUTPUT :]

    def _settle(self, ending: str) -> None:
        """Record the failure of the test that was running when the process ended."""
        progress = self.progress
        if progress.test:
            printed = clean(self.printed.decode("utf-8", "replace"))
            words = ending + _where(printed, str(self.workspace.submission))
            if progress.importing:
                words = self.broken_import = f"importing the adapters: {words}"
            duration = time.monotonic() - progress.test_since
            self._finish(TestResult(progress.test, "failed", words, printed[-MAX_OUTPUT:], duration))
        elif ending and not progress.num_ended:
            self.is_stuck = True
            printed = clean(self.printed.decode("utf-8", "replace")).strip()
            last = printed.splitlines()[-1] if printed else "it printed nothing"
            self.record.remarks.append(f"pytest did not get to the first test ({ending}): {last}")
            self.record.changed(self.record)


def _environment(workspace: Workspace, adapters: str) -> dict[str, str]:
    """Variables of the tests' process: few of the caller's, and folders of its own."""
    home = str(workspace.home)
    kept = {name: value for name, value in os.environ.items() if KEPT_VARIABLES.fullmatch(name)}
    packages = {"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {}
    return kept | packages | {
        **dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "TRITON_HOME"), home),
        "PYTHONPATH": str(workspace.kit),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        SUBMISSION: str(workspace.submission),
        ADAPTERS: str(workspace.submission / adapters),
    }  # fmt: skip


def _where(printed: str, submission: str) -> str:
    """The innermost place in the submission that a traceback of faulthandler names, or nothing.

    The thread that ran is called the current one; when none did, the main thread is printed last.
    """
    threads = re.split(r"^(?=Thread |Current thread )", printed, flags=re.MULTILINE)
    for thread in sorted(reversed(threads), key=lambda text: not text.startswith("Current")):
        place = re.search(rf'File "{re.escape(submission)}/([^"\n]+)", line (\d+) in (\S+)', thread)
        if place:
            return f", in {place[1]}, line {place[2]} ({place[3]})"
    return ""
