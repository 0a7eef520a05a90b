"""Run the leaderboard's worker on a submission: a process of its own that is stopped when its time is up.

The worker is `graded_support/timed_calls.py` of the graded tests, which knows nothing of this package: the
submission brings one of the same name.
"""

import contextlib
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
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from graded_support.timed_calls import main; main()"
_DROPPED = ("PYTHON", "PYTEST_", "CS_SYSTEMS_", "TRITON_", "TORCHINDUCTOR_", "XDG_")
_NUMBERS = ("checked_calls", "error", "floor_s", "bytes_per_s", "flops_per_s")


def run_worker(request: Mapping[str, Any], max_seconds: float) -> dict[str, Any]:
    """What `race` of the kit returned, with "reason" None; or {"reason": why the submission gets no time}.

    The worker starts with empty caches in a folder that is removed afterwards; its children die with it.
    """
    with tempfile.TemporaryDirectory(prefix="leaderboard-", ignore_cleanup_errors=True) as folder:
        home = pathlib.Path(folder)
        (home / "request.json").write_text(json.dumps(dict(request)))
        said, errors = home / "said", home / "errors"
        with (home / "request.json").open() as stdin, said.open("w") as stdout, errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(KIT)], stdin=stdin, stdout=stdout, stderr=stderr,
                cwd=home, env=_environment(home, request["device"]), start_new_session=True,
            )  # fmt: skip
        try:
            code = process.wait(max_seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_all(process)
        return read_outcome(said.read_text(errors="replace"), request["seed"], code, max_seconds)


def read_outcome(said: str, seed: int, code: int | None, max_seconds: float) -> dict[str, Any]:
    """What the worker's lines come to; `code` is its exit status, None when it had to be stopped.

    Only a line with the seed counts: the submission was never told it.
    """
    stage = "before it was imported"
    for event in _events(said):
        stage = str(event.get("stage", stage))
        if code == 0 and event.get("seed") == seed:
            if event.get("reason") is not None:
                return {"reason": " ".join(str(event["reason"]).split())}
            return event if _is_result(event) else {"reason": "the result holds times that cannot be"}
    if code is None:
        return {"reason": f"did not end within {format_seconds(max_seconds)} and was stopped {stage}"}
    if code < 0:
        return {"reason": f"the process was killed by {signal.Signals(-code).name} {stage}"}
    return {"reason": f"the process ended {stage}, with exit code {code} and no result"}


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


def _kill_all(process: subprocess.Popen) -> None:
    """End the worker and whatever it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
