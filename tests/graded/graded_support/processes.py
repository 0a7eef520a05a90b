"""Start a process that may do anything, see all that descends from it, and end all of that.

What is started gets a session of its own, and a guard for a parent: code that kills its parent or its process
group then ends the guard or itself. On Linux this process becomes the one to which orphans are given, so that
a daemon that forked twice is still found. macOS has nothing like it: there, what was seen as a descendant
once is remembered.
"""

import ctypes
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

PROC = pathlib.Path("/proc")
IS_LINUX = sys.platform == "linux"
MAX_FILE_BYTES = 4 * 2**30
"""Size of one file that is written: a loop that prints into a file does not fill the disk."""
PAGE_BYTES = resource.getpagesize()
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@dataclass(frozen=True)
class Process:
    """One line of the table of processes."""

    pid: int
    parent: int
    started: str
    """When it began; tells it from a later process with the same number."""
    resident_bytes: int
    is_dead: bool
    """Whether it has ended and only waits for its parent to ask."""


class Family:
    """Everything that descends from this process."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        if IS_LINUX:
            _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def members(self) -> list[Process]:
        """Those that live now."""
        table = _read_proc() if IS_LINUX else _read_ps()
        found = {pid for pid, started in self._seen.items() if pid in table and table[pid].started == started}
        grew = True
        while grew:
            more = {p.pid for p in table.values() if p.parent in found or p.parent == os.getpid()} - found
            found |= more
            grew = bool(more)
        self._seen = {pid: table[pid].started for pid in found}
        return [table[pid] for pid in found if not table[pid].is_dead]

    def kill(self, *, patience_s: float = 5.0) -> bool:
        """End all of them, and those that they start meanwhile; False if some would not die."""
        give_up = time.monotonic() + patience_s
        while members := self.members():
            for stop in (signal.SIGSTOP, signal.SIGKILL):  # first they stand still: then none can fork away
                for process in members:
                    send(process.pid, stop)
            self._reap()
            if time.monotonic() > give_up:
                return False
            time.sleep(0.005)
        self._reap()
        return True

    def _reap(self) -> None:
        """Ask for the ends of the orphans that were given to this process."""
        for pid in list(self._seen):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # somebody else's child, or asked already


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone, or is another user's by now."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def memory_bytes(members: Sequence[Process], limit_bytes: float) -> int:
    """Memory that processes hold, with pages that they share counted once where that decides.

    The sum of resident sizes counts shared pages in each; only above the limit is the slower, exact number
    asked.
    """
    resident = sum(process.resident_bytes for process in members)
    if resident <= limit_bytes or not IS_LINUX:
        return resident
    return sum(_proportional_bytes(process) for process in members)


def machine_memory_bytes() -> int:
    """Memory of this machine, or of the container where that has less."""
    total = os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = pathlib.Path("/sys/fs/cgroup") / name
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def start(
    command: Sequence[str], *, environment: Mapping[str, str], folder: str, output: int, keep: int
) -> int:
    """Start a command in a session of its own, under a guard; returns the guard's process number.

    The guard ends as the command does: with its exit code, or 128 plus the number of the signal that ended
    it.

    Args:
        command: program and arguments.
        environment: all of its environment variables.
        folder: where it starts.
        output: file descriptor that becomes its standard output and error; it reads nothing.
        keep: a further file descriptor that it inherits under the same number.
    """
    guard = os.fork()
    if guard == 0:
        _guard(command, environment, folder, output, keep)
    return guard


def exit_code(guard: int) -> int | None:
    """How the guarded command ended, or None while it runs."""
    pid, status = os.waitpid(guard, os.WNOHANG)
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code <= 128:
        return f"the code ended the whole process (exit code {code}), as os._exit does"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        name = f"signal {code - 128}"
    kinds = {
        "SIGSEGV": "a crash: memory was accessed that is not there",
        "SIGABRT": "a crash: C code gave up",
        "SIGKILL": "killed, by the code itself or because memory ran out",
    }
    return f"the process ended by {name}" + (f" ({kinds[name]})" if name in kinds else "")


def _guard(
    command: Sequence[str], environment: Mapping[str, str], folder: str, output: int, keep: int
) -> NoReturn:
    """Life of the guard: it never returns into the code of the grader."""
    code = 127
    try:
        os.setsid()
        _end_with_parent()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file
        allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if allowed == resource.RLIM_INFINITY or allowed > MAX_FILE_BYTES:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        child = os.fork()
        if child == 0:
            _become(command, environment, folder, output, keep)
        os.closerange(0, 1024)  # the command alone holds the pipes: they close when it ends
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os._exit(128 - code if code < 0 else code)


def _become(
    command: Sequence[str], environment: Mapping[str, str], folder: str, output: int, keep: int
) -> NoReturn:
    try:
        _end_with_parent()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.set_inheritable(keep, True)
        os.execve(command[0], list(command), dict(environment))
    finally:
        os._exit(127)


def _end_with_parent() -> None:
    """Should the grader be killed, its children are as well, and theirs."""
    if IS_LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _read_proc() -> dict[int, Process]:
    table = {}
    for entry in os.listdir(PROC):
        if not entry.isdigit():
            continue
        try:
            text = (PROC / entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        fields = text.rpartition(")")[2].split()  # its name, in parentheses, may hold anything; proc(5)
        pid, state, parent, started, pages = (
            int(entry),
            fields[0],
            int(fields[1]),
            fields[19],
            int(fields[21]),
        )
        table[pid] = Process(pid, parent, started, pages * PAGE_BYTES, state in "ZX")
    return table


def _read_ps() -> dict[int, Process]:
    columns = ["ps", "-axo", "pid=,ppid=,rss=,stat=,lstart="]
    with subprocess.Popen(columns, stdout=subprocess.PIPE, text=True) as ps:
        lines = ps.communicate()[0].splitlines()
    table = {}
    for line in lines:
        pid, parent, kib, state, started = line.split(None, 4)
        table[int(pid)] = Process(int(pid), int(parent), started, int(kib) * 1024, state.startswith("Z"))
    table.pop(ps.pid, None)  # it saw itself
    return table


def _proportional_bytes(process: Process) -> int:
    try:
        lines = (PROC / str(process.pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return process.resident_bytes  # it ended meanwhile, or the kernel does not tell
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
