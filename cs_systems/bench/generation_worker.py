"""The process that measures one point, or first of all the machine; events as in `bench.worker`.

A request with "probe" asks for the device, its ceilings and the layout of weights; one with "batch_size" for
a point, and brings the ceilings along.
"""

import dataclasses
import json
import sys
from typing import Any

import torch

from cs_systems.bench.generation_case import EXPERIMENT, GenerationCase, GenerationWorkload
from cs_systems.bench.generation_ceilings import Ceilings, measure_ceilings
from cs_systems.bench.generation_engines import find_obstacle
from cs_systems.bench.generation_run import is_packed, run_point
from cs_systems.bench.groups import prepare_device
from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.bench.worker import be_first_to_die, open_channel
from cs_systems.device import UnsupportedError, check_precision
from cs_systems.model.config import ModelConfig


def read_case(request: dict[str, Any]) -> GenerationCase:
    """The point that a request describes."""
    workload = GenerationWorkload(**request["workload"])
    return GenerationCase(request["label"], ModelConfig(**request["model"]), workload, request["batch_size"])


def probe(cases: list[GenerationCase], device: torch.device) -> dict[str, Any]:
    """Ceilings of the machine, and for each case what stands in its way and how its weights will lie."""
    ceilings = measure_ceilings(device, [case.workload.precision for case in cases])
    return {
        "device_type": device.type,
        "ceilings": dataclasses.asdict(ceilings),
        "obstacles": [_obstacle(case, device) for case in cases],
        "packed": [is_packed(case, device) for case in cases],
    }


def _obstacle(case: GenerationCase, device: torch.device) -> str | None:
    precision = case.workload.precision
    try:
        check_precision(device, "bf16" if precision == "int8" else precision)
    except UnsupportedError as error:
        return str(error)
    if case.workload.memory_limit_bytes and device.type == "cuda":
        return "--memory-limit-gib is for CPUs; a GPU's own memory is the limit"
    return find_obstacle(case)


def main() -> int:
    """Answer the one request on standard input."""
    send = open_channel()
    request = json.load(sys.stdin)
    be_first_to_die()
    cases = [read_case(entry) for entry in request.get("probe", [request])]
    work = cases[0].workload
    try:
        device = prepare_device(work.device, work.threads)
    except UnsupportedError as error:
        provenance = collect_provenance(request["command"], torch.device("cpu"))
        record = BenchmarkRecord(EXPERIMENT, cases[0].settings(), "skipped", provenance, reason=str(error))
        send(record=dataclasses.asdict(record), unsupported=str(error))
        return 0
    provenance = collect_provenance(request["command"], device)
    send(provenance=dataclasses.asdict(provenance))
    if "probe" in request:
        send(probe=probe(cases, device))
        return 0
    ceilings = Ceilings(**request["ceilings"])
    record = run_point(cases[0], device, ceilings, provenance, lambda phase: send(step=[phase, 0, 0]))
    send(record=dataclasses.asdict(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
