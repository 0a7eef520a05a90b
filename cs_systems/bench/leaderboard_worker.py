"""Run the leaderboard's worker on a submission: a process of its own that is stopped when its time is up.

The worker is `graded_support/timed_calls.py` of the graded tests, which knows nothing of this package: the
submission brings one of the same name.
"""

import json
import math
import os
import pathlib
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from cs_systems.bench.leaderboard_table import COUNTED, FORMULA
from cs_systems.tables import format_seconds

KIT = pathlib.Path(__file__).parents[2] / "tests/graded"
BEFORE = "before it was imported"
"""Where a worker is until it says something: the submission has done nothing yet."""
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from graded_support.timed_calls import main; main()"
_SUPERVISE = """
import signal, subprocess, sys
folder = sys.argv.pop(1)
sys.path.insert(0, folder)
from graded_support.processes import Family
family = Family()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
try:
    code = subprocess.Popen(sys.argv[1:], start_new_session=True).wait()
finally:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    family.kill()
sys.exit(128 - code if code < 0 else code)
"""
"""Runs a command, then ends all that it started, also in sessions of their own, and ends as it did.

A process of its own, because a `Family` is all that descends from a process."""
_STOP_S = 20.0
"""Seconds in which that must be done."""
_DROPPED = ("PYTHON", "PYTEST_", "CS_SYSTEMS_", "TRITON_", "TORCHINDUCTOR_", "XDG_")
_NUMBERS = ("checked_calls", "error", "floor_s", "bytes_per_s", "flops_per_s")


def run_worker(request: Mapping[str, Any], max_seconds: float) -> dict[str, Any]:
    """What `race` of the kit returned, with "reason" None; or {"reason": why the submission gets no time}.

    The worker starts with empty caches in a folder that is removed afterwards. All that it started dies with
    it; on macOS only what still descends from it.
    """
    with tempfile.TemporaryDirectory(prefix="leaderboard-", ignore_cleanup_errors=True) as folder:
        home = pathlib.Path(folder)
        (home / "request.json").write_text(json.dumps(dict(request)))
        said, errors = home / "said", home / "errors"
        with (home / "request.json").open() as stdin, said.open("w") as stdout, errors.open("w") as stderr:
            worker = (sys.executable, "-P", "-c", _START, str(KIT))
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SUPERVISE, str(KIT), *worker],
                stdin=stdin, stdout=stdout, stderr=stderr,
                cwd=home, env=_environment(home, request["device"]), start_new_session=True,
            )  # fmt: skip
        try:
            code = process.wait(max_seconds)
            code = 128 - code if code - 128 in set(signal.Signals) else code
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
        return read_outcome(said.read_text(errors="replace"), request["seed"], code, max_seconds)


def read_outcome(said: str, seed: int, code: int | None, max_seconds: float) -> dict[str, Any]:
    """What the worker's lines come to; `code` is its exit status, None when it had to be stopped.

    Only a line with the seed counts: the submission was never told it.
    """
    stage = BEFORE
    for event in _events(said):
        stage = str(event.get("stage", stage))
        if code == 0 and event.get("seed") == seed:
            if event.get("reason") is not None:
                return {"reason": " ".join(str(event["reason"]).split())}
            return event if _is_result(event) else {"reason": "the result holds times that cannot be"}
    if code is None:
        return {"reason": overdue(max_seconds, stage)}
    if code < 0:
        return {"reason": f"the process was killed by {signal.Signals(-code).name} {stage}"}
    return {"reason": f"the process ended {stage}, with exit code {code} and no result"}


def overdue(max_seconds: float, stage: str) -> str:
    """The reason of a submission whose time was over."""
    return f"did not end within {format_seconds(max_seconds)} and was stopped {stage}"


def _events(said: str) -> list[dict[str, Any]]:
    events = []
    for line in said.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut off, or something else that was printed
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _is_result(event: Mapping[str, Any]) -> bool:
    samples = [event.get(key) for key in ("samples_s", "warmup_samples_s")]
    if not all(isinstance(each, dict) and {COUNTED, FORMULA} <= each.keys() for each in samples):
        return False
    values = [value for each in samples if each for series in each.values() for value in series]
    values += [event.get(key) for key in _NUMBERS]
    return all(isinstance(value, int | float) and 0 <= value < math.inf for value in values)


def _environment(home: pathlib.Path, device: str) -> dict[str, str]:
    """The caller's, without what changes Python, the tests or the kernels; caches are new and empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    kept |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONUSERBASE": site.getuserbase(),  # torch may be installed there
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    return kept | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})


def _stop(process: subprocess.Popen) -> None:
    """Let the supervisor end the worker and whatever that started, and itself."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
