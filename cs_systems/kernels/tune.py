"""Measure which tiles make the attention kernels fastest on this GPU, and remember them for later launches.

    python -m cs_systems.kernels.tune
    python -m cs_systems.kernels.tune --head-dim 64 --causal on --seq-len 16384 --retune

Each candidate is compiled, checked against PyTorch's own attention and timed, on random data. The fastest is
written to ~/.cache/cs_systems/tuning.json, or to the file that CS_SYSTEMS_TUNING names. Takes some minutes,
most of them for compiling. The last line is JSON.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cs_systems.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Parser, list_of
from cs_systems.tables import Column, Style, Table, format_number, render_table

PROGRAM = "-m cs_systems.kernels.tune"


def tuning_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a candidate, in the order measured; why some failed stands below."""
    columns = [
        Column("kernel", "Kernel", align="left"),
        Column("head_dim", "Head dim"),
        Column("dtype", "dtype", align="left"),
        Column("is_causal", "Causal", align="left"),
        *(
            Column(key, title)
            for key, title in (
                ("block_m", "Queries"), ("block_n", "Keys"), ("num_warps", "Warps"), ("num_stages", "Stages")
            )
        ),
        Column("time_s", "Median", "ms", format=lambda seconds: format_number(1e3 * seconds)),
        Column("flops_per_s", "Speed", "TFLOP/s", format=lambda speed: format_number(speed / 1e12)),
        Column("status", "Status", align="left"),
        Column("reason", "Reason", align="left", raw_only=True),
    ]  # fmt: skip
    flat = [{**row, **row["config"]} for row in rows]
    notes = ["Queries, keys: sides of a tile. Speed counts the matrix products, half of them when causal."]
    reasons = dict.fromkeys(row["reason"] for row in rows if row["reason"])
    return Table(
        "Tiles of the attention kernels", columns, flat, [*notes, *(f"failed: {why}" for why in reasons)]
    )


def main(argv: list[str] | None = None) -> int:
    """Measure what `argv` asks for, store the winners, print all, and return the exit code."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if importlib.util.find_spec("triton") is None:
        print(f"{parser.prog}: Triton is not installed: pip install triton (Linux only)", file=sys.stderr)
        return EXIT_FAILED
    from cs_systems.device import choose_device, device_name  # torch takes seconds to import

    device = choose_device("auto")
    if device.type != "cuda":
        print(f"{parser.prog}: no GPU is usable here: nothing to tune, nothing was stored", file=sys.stderr)
        return EXIT_FAILED
    import triton

    from cs_systems.kernels.flash_attention import MAX_HEAD_DIM
    from cs_systems.kernels.flash_tuning import Case, median_ms, tune_cases
    from cs_systems.kernels.tuning import check_storable, tuning_path

    if max(args.head_dim) > MAX_HEAD_DIM:
        parser.error(f"--head-dim {max(args.head_dim)}: the kernels are for head sizes up to {MAX_HEAD_DIM}")
    try:
        check_storable()
    except ValueError as error:
        parser.error(str(error))
    kinds = itertools.product(args.kernel, args.head_dim, args.dtype, args.causal)
    cases = [Case(*kind, args.batch_size, args.num_heads, args.seq_len) for kind in kinds]
    say = functools.partial(print, file=sys.stderr, flush=True)
    rows, interrupted = tune_cases(cases, device, median_ms, args.retune, say)
    if rows:
        print(render_table(tuning_table(rows), args.format))
    chosen = [row for row in rows if row["status"] == "chosen"]
    if args.format == "table":
        where = {"device": device_name(device), "triton": triton.__version__, "file": str(tuning_path())}
        print(json.dumps({"experiment": "kernels_tune", **where, "chosen": chosen}, allow_nan=False))
    if interrupted:
        print(f"{parser.prog}: interrupted; what was chosen before is stored", file=sys.stderr)
        return EXIT_INTERRUPTED
    raced = {(row["kernel"], row["head_dim"], row["dtype"], row["is_causal"]) for row in rows}
    return EXIT_OK if len(chosen) == len(raced) else EXIT_FAILED


def _make_parser() -> Parser:
    parser = Parser(prog=f"python {PROGRAM}", description=__doc__)
    flag, styles = parser.add_argument, typing.get_args(Style)
    switch = {"on": True, "off": False}
    for name, choices, default, what in (
        ("--kernel", {name: name for name in ("forward", "dq", "dkdv")}, "forward,dq,dkdv", "kernels"),
        ("--dtype", {name: name for name in ("fp32", "bf16", "fp16")}, "bf16", "types of the inputs"),
        ("--causal", switch, "on,off", "with and without the causal mask"),
    ):
        flag(name, type=list_of(_one_of(choices)), default=default, metavar="|".join(choices), help=(
            f"{what}; one or a comma-separated list (default: {default})"))  # fmt: skip
    flag("--head-dim", type=list_of(_positive), default="64,80,128", metavar="N", help=(
        "head sizes; one or a comma-separated list (default: 64,80,128)"))  # fmt: skip
    for name, default, what in (
        ("--seq-len", 4096, "queries and keys of a sequence"),
        ("--batch-size", 4, "sequences"),
        ("--num-heads", 16, "heads"),
    ):
        flag(name, type=_positive, default=default, metavar="N", help=f"{what} (default: {default})")
    flag("--retune", action="store_true", help="measure again what is stored already")
    flag("--format", choices=styles, default="table", metavar="|".join(styles), help=(
        "how the result is printed; table is followed by one line of JSON (default: table)"))  # fmt: skip
    return parser


def _one_of(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return choices[text]

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
