"""Made-up records, written to a folder as a student's would be."""

import dataclasses
import gzip
import json
import pathlib
import shutil

import pytest

from cs_systems.bench.record import BenchmarkRecord, Provenance, append_record
from cs_systems.grading.evidence import Evidence

REFERENCE = pathlib.Path(__file__).parents[3] / "results" / "amd-epyc-2-cores"
CASE = {
    "model": "small", "context_length": 128, "batch_size": 4, "mode": "train-step", "precision": "fp32",
    "param_dtype": "fp32", "attention": "naive", "kernels": "off", "compile": False, "checkpoint_blocks": 0,
    "warmup_steps": 5, "steps": 10,
}  # fmt: skip
ORIGIN = Provenance("python benchmark.py", "abc", False, "2026-01-01T00:00:00", "A GPU", "cuda", 1, {})


def make_record(
    samples, day=1, device="A GPU", status="ok", reason=None, experiment="training_step", metrics=None,
    **changes,
):  # fmt: skip
    """A record of `CASE` with changes; `samples` are seconds by pass."""
    origin = dataclasses.replace(ORIGIN, time_utc=f"2026-01-{day:02}T00:00:00", device=device)
    case = {**(CASE if experiment == "training_step" else {}), **changes}
    return BenchmarkRecord(experiment, case, status, origin, reason, samples, metrics=metrics or {})


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def evidence_of(tmp_path):
    """The evidence of a folder with these records."""

    def write(*records, name="runs.jsonl"):
        for each in records:
            append_record(tmp_path / name, each)
        return Evidence(tmp_path)

    return write


def write_profile(folder, name, kernels, totals=(), passes=1, **facts):
    """A trace as torch.profiler writes it on a GPU, with its facts.

    Args:
        folder: of the records; the trace goes to its `profile` folder.
        name: of the files.
        kernels: (ranges from the outside in, kernel, operator, microseconds), one after another.
        totals: allocated bytes in each phase, {phase: bytes}, if they are recorded.
        passes: how often the whole is repeated.
        facts: of the run, besides those of `FACTS`.
    """
    events, clock = [], 1000.0

    def event(category, name, start, length, thread, **args):
        where = {"pid": thread[0], "tid": thread[1], "ts": start, "dur": length}
        events.append({"ph": "X", "cat": category, "name": name, **where, "args": args})

    before = 0
    for _ in range(passes):
        open_ranges = []
        for path, kernel, op, microseconds in kernels:
            while open_ranges and [each[0] for each in open_ranges] != list(path)[: len(open_ranges)]:
                label, start = open_ranges.pop()
                event("user_annotation", label, start, clock - start, (1, 1))
            for label in path[len(open_ranges) :]:
                open_ranges.append((label, clock))
                clock += 1
            phase = next((label for label in path if label in dict(totals)), None)
            if phase:
                total = dict(totals)[phase]
                args = {
                    "Total Allocated": total,
                    "Bytes": total - before,
                    "Addr": 1,
                    "Device Id": 0,
                    "Device Type": 1,
                }
                events.append({"ph": "i", "name": "[memory]", "pid": 1, "tid": 1, "ts": clock, "args": args})
                before = total
            correlation = len(events)
            event("cpu_op", op, clock, 3, (1, 1))
            event("cuda_runtime", "cudaLaunchKernel", clock + 1, 1, (1, 1), correlation=correlation)
            event(
                "kernel", kernel, clock + 2, microseconds, (0, 7), correlation=correlation, device=0, stream=7
            )
            clock += 5 + microseconds
        for label, start in reversed(open_ranges):
            event("user_annotation", label, start, clock - start, (1, 1))
        clock += 1
    command = "python profiling/run.py" + (" --memory" if totals else "")
    (folder / "profile").mkdir(exist_ok=True)
    path = folder / "profile" / f"{name}.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": events}).encode()))
    path.with_name(f"{name}.run.json").write_text(
        json.dumps(FACTS | {"time_utc": "2026-01-01T00:00:00", "command": command} | facts)
    )


FACTS = {
    "model": "small", "num_layers": 12, "num_heads": 12, "d_head": 64, "batch_size": 4, "seq_len": 128,
    "steps": 2, "mode": "train-step", "precision": "fp32", "attention": "naive", "device": "A GPU",
    "timer_s": {"forward": 0.0002}, "checkpoint_blocks": 0, "base_bytes": 0,
}  # fmt: skip
KERNELS = [
    (("step", "forward"), "gemm_128x64_nn", "aten::mm", 30),
    (("step", "forward"), "gemm_128x64_nn", "aten::mm", 20),
    (("step", "forward", "attention", "attention scores"), "gemm_nt", "aten::bmm", 8),
    (("step", "forward", "attention", "attention softmax"), "softmax_forward", "aten::_softmax", 12),
    (("step", "forward", "attention", "attention final matmul"), "gemm_nt", "aten::bmm", 7),
    (("step", "forward"), "elementwise_kernel", "aten::mul", 23),
    (("step", "loss"), "reduce_kernel", "aten::sum", 5),
    (("step", "backward"), "gemm_128x64_nt", "aten::mm", 150),
    (("step", "backward"), "elementwise_kernel", "aten::mul", 50),
    (("step", "optimizer"), "multi_tensor_adam", "aten::_foreach_add_", 195),
]
"""A step of 500 us, 100 of them forward."""


@pytest.fixture
def profile(tmp_path):
    """Writes profiles into the folder of the records."""

    def write(name="run", kernels=KERNELS, **rest):
        write_profile(tmp_path, name, kernels, **rest)
        return Evidence(tmp_path)

    return write


@pytest.fixture(scope="session")
def everything_measured(tmp_path_factory):
    """Evidence for every question: the committed records of small, and made-up ones of what they lack."""
    folder = tmp_path_factory.mktemp("measured")
    for path in REFERENCE.glob("*.jsonl"):
        shutil.copy(path, folder)
    for changes in ({"precision": "bf16"}, {"compile": True}):
        samples = {"forward": [0.5] * 5, "backward": [1.0] * 5, "train_step": [1.6] * 5}
        append_record(folder / "more.jsonl", make_record(samples, device="AMD EPYC", **changes))
    for mode in ("train-step", "forward"):
        for precision, peak in (("fp32", 2**30), ("bf16", 2**31)):
            totals = {"forward": peak, "loss": peak // 2}
            write_profile(folder, f"{mode}-{precision}", KERNELS, totals, mode=mode, precision=precision)
    for size in (1, 2):
        write_profile(folder, f"blocks{size}", KERNELS, {"loss": size * 2**30}, checkpoint_blocks=size)
    return Evidence(folder)
