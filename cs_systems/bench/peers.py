"""Time our model beside the Hugging Face model of the same shape and weights, on the CPU.

    python -m cs_systems.bench.peers
    python -m cs_systems.bench.peers --family gpt2 --attention naive,sdpa --output runs.jsonl

forward runs without a graph, forward_backward includes the loss. Both models live in one process and take
turns. A ratio is our median over theirs: below 1, ours is faster. Every flag takes one value or a
comma-separated list. The default takes about a minute on two quiet cores. The last line is JSON. Needs the
extra `peers`: pip install 'cs_systems[peers]'.
"""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.bench.peer_case import (
    EXPERIMENT,
    PASSES,
    WARMUP_STEPS,
    PeersConfig,
    case_settings,
    peer_config,
)
from cs_systems.bench.progress import Progress
from cs_systems.bench.record import BenchmarkRecord, append_record, case_key, check_writable
from cs_systems.bench.sweep import finished_cases
from cs_systems.cli import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_names,
    leave_with,
)
from cs_systems.estimator.flops import forward_flops
from cs_systems.tables import Column, Table, format_number, render_table

PROGRAM = "-m cs_systems.bench.peers"

BUSY_CORES = 0.2
"""Other programs using more than this are mentioned below the table."""


def comparison_table(records: Sequence[BenchmarkRecord]) -> Table:
    """One row a case and pass."""
    columns = [
        *(Column(name, name.capitalize(), align="left") for name in ("model", "family", "attention", "pass")),
        *(
            Column(f"{who}_{key}_s", f"{who.capitalize()} {title}", "ms", format=_milliseconds)
            for who in ("ours", "peer")
            for key, title in (("median", "median"), ("iqr", "IQR"))
        ),
        *(
            Column(key, title, format=_ratio)
            for key, title in (("ratio", "Ratio"), ("ratio_low", "95 % from"), ("ratio_high", "to"))
        ),
        Column("status", "Status", align="left"),
    ]
    rows = [
        {
            key: values[name]
            for key, values in record.metrics.items()
            if isinstance(values, dict) and name in values
        }
        | {key: record.case[key] for key in ("model", "family", "attention")}
        | {"pass": name, "status": record.status}
        for record in records
        for name in PASSES
    ]
    notes = ["Ratio: our median over theirs, taken in turns; below 1, ours is faster."]
    for record in records:
        load = record.metrics.get("other_load_cores")
        label = f"{record.case['family']}, {record.case['attention']}"
        if record.reason:
            notes.append(f"{label}: {record.reason}")
        if load is not None and load > BUSY_CORES:
            notes.append(f"{label}: other programs used {load:.1f} cores meanwhile; repeat when it is quiet")
    return Table("Our model beside the Hugging Face model of the same weights", columns, rows, notes)


def summary(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """What the last line says: case, outcome and metrics of every record."""
    names = field_names(PeersConfig)
    return {
        "experiment": EXPERIMENT,
        "records": [
            {name: record.case[name] for name in names}
            | {"status": record.status, "reason": record.reason, "metrics": dict(record.metrics)}
            for record in records
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Compare what `argv` asks for, print it, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    add_flags(parser, PeersConfig, "comparison")
    add_output_flags(parser)
    args = parser.parse_args(argv)
    if args.resume and args.output is None:
        parser.error("--resume needs --output FILE.jsonl, the file whose finished cases are kept")
    try:
        cases = [PeersConfig(**given) for given in cross_product(args, field_names(PeersConfig))]
        for case in cases:
            peer_config(case)  # a shape that cannot be built is a usage error before anything runs
        finished, problems = {}, []
        if args.output is not None:
            check_writable(args.output)
            if args.resume:
                finished, problems = finished_cases(args.output)
    except ValueError as error:
        parser.error(str(error))
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is not installed; try pip install 'cs_systems[peers]'")
    records, interrupted = _run(cases, command_line(PROGRAM, argv), args.output, finished)
    if records:
        print(render_table(comparison_table(records), args.format))
        if args.format == "table":
            print(json.dumps(summary(records), allow_nan=False))
    for problem in problems:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
    if interrupted:
        kept = sum(record.status == "ok" for record in records)
        print(f"{parser.prog}: interrupted; {kept} of {len(cases)} cases are complete", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(record.status == "failed" for record in records) else EXIT_OK


def _run(
    cases: Sequence[PeersConfig],
    command: str,
    output: pathlib.Path | None,
    finished: Mapping[str, BenchmarkRecord],
) -> tuple[list[BenchmarkRecord], bool]:
    """The records of the cases in order, and whether Ctrl-C ended it."""
    from cs_systems.bench.side_by_side import run_case  # torch and transformers take seconds to import

    keys = [case_key(EXPERIMENT, case_settings(case)) for case in cases]
    progress = Progress(sys.stderr)
    progress.plan([0.0 if key in finished else _work(case) for key, case in zip(keys, cases, strict=True)])
    records = []
    for key, case in zip(keys, cases, strict=True):
        label = f"{case.model}, {case.family}, {case.attention}"
        if key in finished:
            records.append(finished[key])
            progress.finish_case(f"{label}: finished before, not measured again")
            continue
        progress.start_case(label, len(PASSES) * (WARMUP_STEPS + case.steps))
        record, interrupted = run_case(case, command, progress.step)
        records.append(record)
        if output is not None:
            append_record(output, record)
        progress.finish_case(f"{label}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
        if interrupted:
            return records, True
    return records, False


def _work(case: PeersConfig) -> float:
    """FLOPs of a case, for guessing the time left: forward, then forward and backward, for two models."""
    steps = WARMUP_STEPS + case.steps
    return 2 * (1 + 3) * steps * forward_flops(peer_config(case), case.batch_size, case.context_length)


def _milliseconds(seconds: float) -> str:
    return format_number(1e3 * seconds)


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}"


if __name__ == "__main__":
    leave_with(main)
