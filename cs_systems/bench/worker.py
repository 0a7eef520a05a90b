"""The process that measures one case: reads a request on standard input, writes events on standard output.

Events are JSON lines: {"provenance": ...} before anything can go wrong, {"step": [phase, index, total]} after
each step, and last {"record": ...}, with "unsupported" beside it when the machine cannot do what was asked.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.bench.training import prepare_device, run_case
from cs_systems.bench.workload import EXPERIMENT, Case, WorkloadConfig
from cs_systems.device import UnsupportedError
from cs_systems.model.config import ModelConfig
from cs_systems.timing.timer import TimingConfig


def main() -> int:
    """Run the one case that was asked for."""
    send = open_channel()
    request = json.load(sys.stdin)
    be_first_to_die()
    case = Case(
        request["label"],
        ModelConfig(**request["model"]),
        WorkloadConfig(**request["workload"]),
        TimingConfig(**request["timing"]),
    )
    try:
        device = prepare_device(case.workload)
    except UnsupportedError as error:
        provenance = collect_provenance(request["command"], torch.device("cpu"))
        record = BenchmarkRecord(EXPERIMENT, case.settings(), "skipped", provenance, reason=str(error))
        send(record=dataclasses.asdict(record), unsupported=True)
        return 0
    provenance = collect_provenance(request["command"], device)
    send(provenance=dataclasses.asdict(provenance))
    record = run_case(case, device, provenance, lambda *step: send(step=step))
    send(record=dataclasses.asdict(record))
    return 0


def open_channel() -> Callable[..., None]:
    """A function that sends its keyword arguments as one event, past whatever libraries print."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is not an event

    def send(**event: object) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    return send


def be_first_to_die() -> None:
    """When memory runs out Linux should kill this process, which is a row, and not the user's editor."""
    knob = Path("/proc/self/oom_score_adj")
    if knob.exists():
        knob.write_text("1000")


if __name__ == "__main__":
    sys.exit(main())
