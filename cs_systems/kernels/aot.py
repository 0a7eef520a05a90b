"""Compile every kernel of this package for GPUs that need not be here, and check what comes out.

    python -m cs_systems.kernels.aot
    python -m cs_systems.kernels.aot --kernel softmax --arch 90 --triton-dir DIR

Every form in which the package launches a kernel is compiled for sm_80 (A100) and sm_90 (H100, H200). It must
keep its values in registers, fit into shared memory, and use tensor cores where it multiplies matrices. The
second run is quick, thanks to Triton's cache. The last line is JSON.
"""

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser, list_of
from cs_systems.tables import Column, Style, Table, render_table

PROGRAM = "-m cs_systems.kernels.aot"

MODULES = (
    "weighted_sum",
    "softmax",
    "flash_attention",
    "rmsnorm",
    "rope",
    "swiglu",
    "cross_entropy",
    "linear_cross_entropy",
    "adamw",
)
"""Modules of this package with a function `variants`: a new kernel's module goes here."""

SHARED_BYTES = {80: 166912, 90: 232448}
"""Most shared memory of one program, by architecture (163 and 227 KiB)."""

TOOLS = ("cuobjdump", "nvdisasm")

_ROOT = pathlib.Path(__file__).parents[2]
_SHARED_BYTES_OF_SM = {80: 164 * 1024, 90: 228 * 1024}
_REGISTERS_OF_SM, _WARPS_OF_SM, _PROGRAMS_OF_SM = 65536, 64, 32


def problems_of(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a compiled variant, in words; empty when it may ship."""
    if row["error"]:
        return [row["error"]]
    problems = []
    if row["spills"] or row["stack_bytes"]:
        problems.append(f"spills: {row['spills']} instructions, {row['stack_bytes']} B of stack a thread")
    limit = SHARED_BYTES[row["arch"]]
    if row["shared_bytes"] > limit:
        problems.append(f"needs {row['shared_bytes']} B of shared memory; sm_{row['arch']} has {limit}")
    if row["uses_tensor_cores"]:
        if row["arch"] == 90 and row["is_16_bit"]:
            if not row["num_wgmma"]:
                problems.append("no wgmma instruction")
        elif not row["num_mma"] + row["num_wgmma"]:
            problems.append("no tensor-core instruction")
    return problems


def programs_per_sm(row: Mapping[str, Any]) -> int:
    """How many programs of a compiled variant run on one multiprocessor at a time; 0 if none fits."""
    registers = -(-row["registers"] // 8) * 8  # a warp gets 256 at a time
    return min(
        _REGISTERS_OF_SM // (32 * registers * row["num_warps"]),
        _SHARED_BYTES_OF_SM[row["arch"]] // (row["shared_bytes"] + 1024),  # 1 KiB is the system's
        _WARPS_OF_SM // row["num_warps"],
        _PROGRAMS_OF_SM,
    )


def compile_all(request: Mapping[str, Any], num_shares: int, triton_dir: pathlib.Path | None) -> list[dict]:
    """One row a variant: what it is, its census, and what is wrong with it (`error`, None if it compiled).

    Args:
        request: modules (full names), archs, words and tools, for `census.py`.
        num_shares: processes that share the work.
        triton_dir: folder whose Triton is used instead of the installed one.
    """
    paths = [triton_dir and str(triton_dir), str(_ROOT), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("TRITON_INTERPRET", None)  # a kernel decides when it is defined
    rows, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [pathlib.Path(folder, f"{share}.jsonl") for share in range(num_shares)]
        try:
            for share, output in enumerate(outputs):
                argument = json.dumps({**request, "share": share, "num_shares": num_shares})
                command = [sys.executable, "-m", "cs_systems.kernels.census", argument]
                with output.open("w") as stream:
                    processes.append(subprocess.Popen(command, stdout=stream, env=environment))
            for process, output in zip(processes, outputs, strict=True):
                process.wait()
                rows += read_share(output, process.returncode)
        finally:
            for process in processes:
                process.terminate()  # does nothing to one that has ended
                process.wait()
    return sorted(rows, key=lambda row: row["index"])


def read_share(output: pathlib.Path, exit_code: int) -> list[dict]:
    """The rows of one process; a compiler that crashed leaves its variant and the rest without a census."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    if not lines:
        raise RuntimeError(f"a process that lists the kernels left with {exit_code}; its message is above")
    cases, *results = lines
    died = {"error": f"the compiler died with exit code {exit_code}, here or in a form before this one"}
    padded = itertools.chain(results, itertools.repeat(died))
    return [
        case | {"error": None} | result.get("census", result)
        for case, result in zip(cases, padded, strict=False)
    ]


def census_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a variant and architecture; what is wrong and the verdict stand below."""
    columns = [
        Column("kernel", "Kernel", align="left"),
        Column("variant", "Variant", align="left"),
        Column("arch", "sm"),
        Column("num_warps", "Warps"),
        Column("registers", "Registers"),
        Column("spills", "Spills"),
        Column("stack_bytes", "Stack", "B"),
        Column("shared_bytes", "Shared", "KiB", format=lambda count: f"{count / 1024:.1f}"),
        Column("num_mma", "mma"),
        Column("num_wgmma", "wgmma"),
        Column("programs_per_sm", "Programs/SM"),
        Column("status", "Status", align="left"),
        Column("triton", "Triton", raw_only=True),
    ]
    shown, notes = [], []
    for row in rows:
        problems = problems_of(row)
        computed: dict[str, Any] = {"status": "bad" if problems else "ok"}
        if row["error"] is None:
            computed["programs_per_sm"] = programs_per_sm(row)
        shown.append({**row, **computed})
        if problems:
            notes.append(f"{row['name']}, sm_{row['arch']}: {'; '.join(problems)}")
    verdict = f"{len(notes)} are bad, see above" if notes else "all fit, and none spills"
    notes.append(f"{len(rows)} compiled forms under Triton {rows[0]['triton']}: {verdict}.")
    return Table("What the compiler made of the kernels", columns, shown, notes)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last line says: how many forms were compiled, and which of them are bad."""
    bad = [
        {"name": row["name"], "arch": row["arch"], "problems": problems}
        for row in rows
        if (problems := problems_of(row))
    ]
    return {"experiment": "kernels_aot", "triton": rows[0]["triton"], "num_forms": len(rows), "bad": bad}


def main(argv: list[str] | None = None) -> int:
    """Compile what `argv` asks for, print what came out, and return the exit code."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    triton = find_triton(args.triton_dir)
    if triton is None:
        where = f"in {args.triton_dir}" if args.triton_dir else "installed: pip install triton (Linux only)"
        print(f"{parser.prog}: there is no Triton {where}", file=sys.stderr)
        return EXIT_FAILED
    tools = triton / "backends" / "nvidia" / "bin"
    for tool in TOOLS:
        if not (tools / tool).is_file():
            print(f"{parser.prog}: {tools} has no {tool}, which Triton's wheel brings", file=sys.stderr)
            return EXIT_FAILED
    modules = [f"cs_systems.kernels.{name}" for name in MODULES]
    request = {"modules": modules, "archs": args.arch, "words": args.kernel, "tools": str(tools)}
    try:
        rows = compile_all(request, args.jobs, args.triton_dir)
    except RuntimeError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; what was compiled stays in Triton's cache", file=sys.stderr)
        return EXIT_INTERRUPTED
    for word in args.kernel:
        if not any(word in row["name"] for row in rows):
            parser.error(f"no kernel's name or variant holds {word!r}; modules: {', '.join(MODULES)}")
    print(render_table(census_table(rows), args.format))
    if args.format == "table":
        print(json.dumps(summary(rows), allow_nan=False))
    return EXIT_FAILED if any(problems_of(row) for row in rows) else EXIT_OK


def find_triton(folder: pathlib.Path | None) -> pathlib.Path | None:
    """Where the package triton lies, installed or in `folder`; None if it does not. Imports nothing."""
    if folder is not None:
        return folder / "triton" if (folder / "triton" / "__init__.py").is_file() else None
    found = importlib.util.find_spec("triton")
    return None if found is None or found.origin is None else pathlib.Path(found.origin).parent


def _make_parser() -> Parser:
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    flag = parser.add_argument
    flag("--kernel", type=list_of(str), default=(), metavar="TEXT", help=(
        "only forms whose module, kernel or label holds one of these, such as softmax,backward or "
        "'softmax_forward_kernel bf16'"))  # fmt: skip
    flag("--arch", type=list_of(_architecture), default=tuple(SHARED_BYTES), metavar="80|90", help=(
        "compute capabilities without the dot (default: 80,90)"))  # fmt: skip
    flag("--jobs", type=_job_count, default=2, metavar="N", help=(
        "processes that compile at the same time (default: 2)"))  # fmt: skip
    flag("--triton-dir", type=pathlib.Path, metavar="DIR", help=(
        "use the Triton in this folder, from: pip install --no-deps --target DIR triton==3.6.0"))  # fmt: skip
    styles = typing.get_args(Style)
    flag("--format", choices=styles, default="table", metavar="|".join(styles), help=(
        "how the result is printed; table is followed by one line of JSON (default: table)"))  # fmt: skip
    return parser


def _architecture(text: str) -> int:
    if text not in map(str, SHARED_BYTES):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(map(str, SHARED_BYTES))}")
    return int(text)


def _job_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
