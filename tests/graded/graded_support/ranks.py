"""Run a function on several ranks: processes of this machine that talk by gloo, each with the adapters.

Ranks are forked from a server that has imported torch once, and never from the process of pytest, which may
have threads and a GPU in use. They meet at a file in a temporary folder, so no port can be taken by another.
When this process ends, however it ends, a pipe closes and its ranks leave.
"""

import gc
import io
import multiprocessing
import os
import pathlib
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from graded_support.collectives import WatchCollectives, Watcher
from graded_support.compare import fail
from graded_support.submission import ADAPTERS, SUBMISSION, load_adapters, use_submission

DEFAULT_ADAPTERS = pathlib.Path(__file__).parents[2] / "adapters.py"
TIME_LIMIT_S = 50.0
"""For all of it, the imports too; below the time that rubric.toml gives a test."""
COLLECTIVE_LIMIT_S = 10.0
"""What one collective may take: milliseconds on toys, so one that takes longer waits for nobody."""
CRASHED = "its process ended without a word (a crash, or os._exit)"
PRELOADED = ["numpy", "torch", "torch.distributed", "torch._dynamo", "jaxtyping", "pytest"]


@dataclass
class Rank:
    """What the work of a rank is given besides the adapters."""

    rank: int
    num_ranks: int
    watcher: Watcher
    folder: pathlib.Path
    """A folder that all ranks share."""
    patience_s: float
    """How long to wait for an announcement: less than a collective may take."""

    def announce(self, what: str) -> None:
        """Tell the other ranks that something happened here."""
        (self.folder / what).touch()

    def await_announcement(self, what: str, within_s: float | None = None) -> bool:
        """Whether another rank says so in time. No collective is used, so that a rank can be kept waiting."""
        end = time.monotonic() + (self.patience_s if within_s is None else within_s)
        while not (self.folder / what).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True


Work = Callable[..., Any]
"""A function of the kit: (adapters, rank, **arguments); it returns tensors, numbers, text, lists, dicts."""


@dataclass(frozen=True)
class _Report:
    """How the work of one rank ended."""

    rank: int
    result: Any = None
    error: str = ""
    """In one line."""
    where: str = ""
    """The traceback of it."""
    is_waiting: bool = False
    """Whether the error says no more than that another rank did not answer."""


def run_on_ranks(work: Work, num_ranks: int = 2, *, advice: str = "", **arguments: Any) -> list[Any]:
    """What `work` returned on each rank; the test fails with the error of the first rank that failed.

    Args:
        work: what each rank does.
        num_ranks: how many there are.
        advice: what an error on a rank, or a rank that waits in vain, probably means here.
        arguments: passed on to `work`.

    Raises:
        pytest.fail.Exception: with what the student should know of an error, a crash, or a rank that waits.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    adapters = os.environ.get(ADAPTERS) or str(DEFAULT_ADAPTERS)
    processes, connections = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(num_ranks):
                here, there = context.Pipe()
                connections.append(here)
                places = (folder, adapters, os.environ.get(SUBMISSION, ""))
                given = (there, rank, num_ranks, places, COLLECTIVE_LIMIT_S, work, arguments)
                process = context.Process(target=_rank_main, args=given, daemon=True)
                process.start()
                processes.append(process)
                there.close()
            reports = _collect(connections)
            failed = [report for report in reports.values() if report.error]
            if failed or len(reports) < num_ranks:
                fail(_explain(reports, num_ranks, pathlib.Path(folder), advice))
        finally:
            for connection in connections:
                connection.close()
            for process in processes:
                process.join(1.0)
                if process.is_alive():
                    process.kill()
                    process.join()
    return [reports[rank].result for rank in range(num_ranks)]


def _collect(connections: list[Connection]) -> dict[int, _Report]:
    """The reports of the ranks, until all are there, one has failed by itself, or the time is up.

    When a rank says that it waits in vain, the others get a moment to say why.
    """
    reports: dict[int, _Report] = {}
    end = time.monotonic() + TIME_LIMIT_S
    while len(reports) < len(connections):
        open_ones = [connection for i, connection in enumerate(connections) if i not in reports]
        ready = wait(open_ones, max(0.0, end - time.monotonic()))
        if not ready:
            return reports
        for connection in ready:
            rank = next(i for i, other in enumerate(connections) if other is connection)
            reports[rank] = _receive(connections[rank], rank)
            if reports[rank].error:
                end = min(end, time.monotonic() + (1.0 if reports[rank].is_waiting else 0.1))
    return reports


def _receive(connection: Connection, rank: int) -> _Report:
    try:
        data = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=True)
    except EOFError:
        return _Report(rank, error=CRASHED, is_waiting=True)
    return _Report(rank, **data)


def _explain(reports: dict[int, _Report], num_ranks: int, folder: pathlib.Path, advice: str) -> str:
    """One message of what the ranks said: an error of its own comes before one that follows from it."""
    advice = f". {advice}" if advice else ""
    failed = sorted((report for report in reports.values() if report.error), key=lambda report: report.rank)
    for report in failed:
        if not report.is_waiting:
            return f"on rank {report.rank} of {num_ranks}: {report.error}{advice}\n{report.where}"
    logs = [_read_log(folder, rank) for rank in range(num_ranks)]
    silent = [rank for rank in range(num_ranks) if rank not in reports]
    waiting = [report.rank for report in failed if report.error != CRASHED] or silent
    difference = _first_difference(logs, waiting)
    if difference:
        gone = [f"; rank {report.rank}: {CRASHED}" for report in failed if report.error == CRASHED]
        return difference + "".join(gone) + advice
    if not failed:
        return f"rank {silent[0]} of {num_ranks} did not finish within {TIME_LIMIT_S:g} s{advice}"
    rank, error, where = failed[0].rank, failed[0].error, failed[0].where
    return f"on rank {rank} of {num_ranks}: {error}; all ranks called the same collectives{advice}\n{where}"


def _read_log(folder: pathlib.Path, rank: int) -> list[str]:
    log = folder / f"collectives-{rank}"
    return log.read_text().splitlines() if log.exists() else []


def _first_difference(logs: list[list[str]], waiting: list[int]) -> str:
    """Where the ranks' collectives differ for the first time, or nothing."""
    place = next((i for i in range(max(map(len, logs))) if len({_at(log, i) for log in logs}) > 1), None)
    if place is None:
        return ""
    rank = next((rank for rank in waiting if _at(logs[rank], place)), None)
    if rank is None:
        rank = next(i for i, log in enumerate(logs) if _at(log, place))
    other = next(i for i, log in enumerate(logs) if _at(log, place) != _at(logs[rank], place))
    there = _at(logs[other], place)
    instead = f"called {there} instead" if there else f"had called only {len(logs[other])} by then"
    return (
        f"rank {rank} waits for a collective that rank {other} never joined: collective {place + 1} of rank "
        f"{rank} is {_at(logs[rank], place)}, rank {other} {instead}; the order or the number of collectives "
        "differs between ranks"
    )


def _at(log: list[str], place: int) -> str:
    return log[place] if place < len(log) else ""


def _rank_main(
    connection: Connection,
    rank: int,
    num_ranks: int,
    places: tuple[str, str, str],
    collective_limit_s: float,
    work: Work,
    arguments: dict[str, Any],
) -> None:
    """What a rank's process does: the work, a report, and then wait until it is told to leave."""
    gc.freeze()  # a collection would touch, and so copy, all that the server has imported
    threading.Thread(target=_leave_with, args=(connection,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then closes the pipe
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    try:
        data = {"result": _work(rank, num_ranks, places, collective_limit_s, work, arguments)}
    except BaseException as error:
        waiting = isinstance(error, RuntimeError) and _says_that_it_waits(str(error))
        line = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        data = {"error": line, "where": _traceback_of(error), "is_waiting": waiting}
    buffer = io.BytesIO()
    torch.save(data, buffer)
    connection.send_bytes(buffer.getvalue())
    threading.Event().wait()  # leaving now could cut off what the others still receive


def _leave_with(connection: Connection) -> None:
    """End this process when the other end of the pipe closes."""
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(0)


def _work(
    rank: int,
    num_ranks: int,
    places: tuple[str, str, str],
    collective_limit_s: float,
    work: Work,
    arguments: dict[str, Any],
) -> Any:
    folder, adapters_name, submission = places
    if submission:
        use_submission(submission)
    os.environ[ADAPTERS] = adapters_name
    adapters = load_adapters(DEFAULT_ADAPTERS)
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]  # no look-up of this machine's name, which may be slow
    store = dist.FileStore(f"{folder}/store", num_ranks)  # pyright: ignore[reportPrivateImportUsage]
    # Others may still be importing, so meeting may take long; after that everything takes milliseconds.
    store.set(f"here-{rank}", "")
    store.wait([f"here-{other}" for other in range(num_ranks)], timedelta(seconds=TIME_LIMIT_S))
    limit = timedelta(seconds=collective_limit_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=limit)
    watcher = Watcher()
    this = Rank(rank, num_ranks, watcher, pathlib.Path(folder), collective_limit_s / 3)
    with WatchCollectives(watcher, this.folder / f"collectives-{rank}"):
        return work(adapters, this, **arguments)


def _says_that_it_waits(message: str) -> bool:
    return any(words in message for words in ("Timed out waiting", "Connection closed by peer", "gloo"))


def _traceback_of(error: BaseException) -> str:
    """Where the error came from, without the frames of this kit around it."""
    outside = error.__traceback__
    while (
        outside and pathlib.Path(outside.tb_frame.f_code.co_filename).parent == pathlib.Path(__file__).parent
    ):
        outside = outside.tb_next
    return "".join(traceback.format_exception(type(error), error, outside or error.__traceback__))
