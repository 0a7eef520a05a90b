"""Made-up runs on a GPU, written as torch.profiler and as nsys would write them.

`GpuRun` is a list of what happened; `write_chrome` and `write_sqlite` write it down, each in the form of its
tool. Nothing of the readers under test is used here.
"""

import gzip
import json
import sqlite3

import pytest

US = 1000
PID, MAIN, AUTOGRAD, FOREIGN_PID = 1234, 100, 101, 999
BASE_NS = 7_000_000_000_123
"""When the clock of the made-up runs began: far from 0, and not on a microsecond."""
LAG_NS = 10_000 * US
"""How far the device is behind: when a kernel runs, the CPU has long left the range that launched it."""
VM = 1 << 48
"""nsys puts the machine above process and thread."""

SCORES, FINAL, BACKWARD = (
    f"void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_{layout}>(Params)" for layout in ("tn", "nn", "nt")
)
SOFTMAX = "void (anonymous namespace)::softmax_warp_forward<float, float, 10>(float*, float const*, int)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
STEP_KERNEL = "_adamw_kernel"

# The columns of each table, as nsys 2024.2 writes them.
NVTX_COLUMNS = (
    "start end eventType rangeId category color text globalTid endGlobalTid textId domainId uint64Value "
    "int64Value doubleValue uint32Value int32Value floatValue jsonTextId jsonText"
)
RUNTIME_COLUMNS = "start end eventClass globalTid correlationId nameId returnValue callchainId"
KERNEL_COLUMNS = (
    "start end deviceId contextId streamId correlationId globalPid demangledName shortName mangledName "
    "launchType cacheConfig registersPerThread gridX gridY gridZ blockX blockY blockZ staticSharedMemory "
    "dynamicSharedMemory localMemoryPerThread localMemoryTotal gridId sharedMemoryExecuted graphNodeId "
    "sharedMemoryLimitConfig"
)
COPY_COLUMNS = "start end deviceId contextId streamId correlationId globalPid bytes copyKind srcKind dstKind"
MEMORY_COLUMNS = "start globalPid deviceId contextId address bytes memKind memoryOperationType correlationId"


class GpuRun:
    """What happened, in ns from BASE_NS; kernels run one after another, LAG_NS after their launch."""

    def __init__(self):
        self.ranges, self.operators, self.launches, self.kernels, self.memory = [], [], [], [], []
        self.thread_names = {(PID, MAIN): "python", (PID, AUTOGRAD): "pt_autograd_0"}
        self.device_free_ns = 0

    def range(self, name, start_ns, end_ns, tid=MAIN, pid=PID):
        self.ranges.append((name, start_ns, end_ns, pid, tid))

    def kernel(
        self, name, at_ns, length_ns, *, tid=MAIN, pid=PID, op=None, call="cudaLaunchKernel", kind="kernel",
        launched=True,
    ):  # fmt: skip
        """Launch a kernel (or a copy, by its kind) with a call of 5 us, inside an operator."""
        correlation = len(self.kernels) + 1
        if op:
            self.operators.append((op, at_ns - 2 * US, at_ns + 8 * US, pid, tid))
        if launched:
            self.launches.append((call, at_ns, at_ns + 5 * US, pid, tid, correlation))
        start_ns = max(at_ns + LAG_NS, self.device_free_ns)
        self.device_free_ns = start_ns + length_ns
        self.kernels.append((name, start_ns, start_ns + length_ns, pid, correlation, kind))

    def allocate(self, at_ns, num_bytes):
        """An allocation on the device, or with a negative number a release."""
        total = num_bytes + (self.memory[-1][2] if self.memory else 0)
        self.memory.append((at_ns, num_bytes, total))

    def write_chrome(self, path):
        def event(category, name, start_ns, end_ns, pid, tid, **args):
            start_us = (BASE_NS + start_ns) / 1000
            times = {"ts": start_us, "dur": (end_ns - start_ns) / 1000}
            return {"ph": "X", "cat": category, "name": name, "pid": pid, "tid": tid, **times, "args": args}

        events = [
            {
                "ph": "M",
                "name": "thread_name",
                "pid": pid,
                "tid": tid,
                "ts": 0,
                "args": {"name": f"thread {tid} ({name})"},
            }
            for (pid, tid), name in self.thread_names.items()
        ]
        events += [event("user_annotation", *item, **{"External id": 1}) for item in self.ranges]
        # The projection of a range to the device, which the reader must not take for a range of its own.
        events += [
            event("gpu_user_annotation", name, start, end, 0, 7) for name, start, end, *_ in self.ranges
        ]
        events += [
            event("cpu_op", *item, **{"Input Dims": [[4, 4]], "Sequence number": 1})
            for item in self.operators
        ]
        for call, start, end, pid, tid, correlation in self.launches:
            category = (
                "cuda_driver" if call.startswith("cu") and not call.startswith("cuda") else "cuda_runtime"
            )
            events.append(event(category, call, start, end, pid, tid, correlation=correlation, cbid=211))
        for name, start, end, _, correlation, kind in self.kernels:
            category = {"kernel": "kernel", "copy": "gpu_memcpy", "fill": "gpu_memset"}[kind]
            events.append(
                event(category, name, start, end, 0, 7, stream=7, device=0, correlation=correlation)
            )
        for at_ns, delta, total in self.memory:
            args = {"Total Allocated": total, "Bytes": delta, "Addr": 1, "Device Id": 0, "Device Type": 1}
            events.append(
                {
                    "ph": "i",
                    "name": "[memory]",
                    "pid": PID,
                    "tid": MAIN,
                    "ts": (BASE_NS + at_ns) / 1000,
                    "args": args,
                }
            )
        text = json.dumps({"schemaVersion": 1, "traceEvents": events, "traceName": str(path)}, indent=1)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path

    def write_sqlite(
        self, path, *, registered=True, drop=(), without=(), version="3.11.1", extra_columns="", domain=None,
        kind_of_range=59,
    ):  # fmt: skip
        """Write the export of nsys.

        Args:
            path: of the file.
            registered: range names are strings (the nvtx package), else in the row (torch.cuda.nvtx).
            drop: columns that this version does not have.
            without: tables that are left out.
            version: of the schema; in 3.0 the table that holds it had another name.
            extra_columns: more columns of the kernels, as newer versions have.
            domain: the NVTX domain of all ranges.
            kind_of_range: 59 is push and pop, 60 start and end.
        """
        strings = {}

        def string(text):
            return strings.setdefault(text, len(strings) + 1)

        def thread(pid, tid):
            return VM | pid << 24 | tid

        tables = {}

        def add(table, columns, **values):
            kept = [column for column in columns.split() if column not in drop]
            tables.setdefault(table, (kept, []))[1].append([values.get(column) for column in kept])

        for name, start, end, pid, tid in self.ranges:
            names = {"textId": string(name)} if registered else {"text": name}
            add(
                "NVTX_EVENTS", NVTX_COLUMNS, start=start, end=end, eventType=kind_of_range,
                globalTid=thread(pid, tid), domainId=5 if domain else 0, **names,
            )  # fmt: skip
        if domain:
            add(
                "NVTX_EVENTS",
                NVTX_COLUMNS,
                start=0,
                eventType=75,
                text=domain,
                domainId=5,
                globalTid=thread(PID, MAIN),
            )
        for number, (name, start, end, pid, tid) in enumerate(self.operators):
            add(
                "NVTX_EVENTS", NVTX_COLUMNS, start=start, end=end, eventType=59, globalTid=thread(pid, tid),
                text=f"{name}, seq = {number}, op_id = {number}, sizes = [[4, 4]]", domainId=0,
            )  # fmt: skip
        for call, start, end, pid, tid, correlation in self.launches:
            add(
                "CUPTI_ACTIVITY_KIND_RUNTIME", RUNTIME_COLUMNS, start=start, end=end, eventClass=0,
                globalTid=thread(pid, tid), correlationId=correlation, nameId=string(call + "_v7000"),
            )  # fmt: skip
        for name, start, end, pid, correlation, kind in self.kernels:
            table = {"kernel": "KERNEL", "copy": "MEMCPY", "fill": "MEMSET"}[kind]
            columns = f"{KERNEL_COLUMNS} {extra_columns}" if kind == "kernel" else COPY_COLUMNS
            add(
                f"CUPTI_ACTIVITY_KIND_{table}", columns, start=start, end=end, deviceId=0, streamId=7,
                correlationId=correlation, globalPid=thread(pid, 0), demangledName=string(name),
                shortName=string("short"), mangledName=string("mangled"), bytes=64, copyKind=1,
            )  # fmt: skip
        for at_ns, delta, _ in self.memory:
            add(
                "CUDA_GPU_MEMORY_USAGE_EVENTS", MEMORY_COLUMNS, start=at_ns, globalPid=thread(PID, 0),
                deviceId=0, bytes=abs(delta), memKind=2, memoryOperationType=0 if delta > 0 else 1,
            )  # fmt: skip
        for (pid, tid), name in self.thread_names.items():
            add(
                "ThreadNames",
                "nameId priority globalTid",
                nameId=string(name),
                priority=1,
                globalTid=thread(pid, tid),
            )
        meta = "EXPORT_META_DATA" if version.startswith("3.0.") else "META_DATA_EXPORT"
        add(meta, "name value", name="EXPORT_SCHEMA_VERSION", value=version)
        for text, number in strings.items():
            add("StringIds", "id value", id=number, value=text)
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as connection:
            for table, (columns, rows) in tables.items():
                if table not in without:
                    connection.execute(
                        f"CREATE TABLE {table} ({', '.join(repr(column) for column in columns)})"
                    )
                    marks = ", ".join("?" * len(columns))
                    connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.close()
        return path


def make_golden():
    """Two steps of two layers: 31 kernels whose sums are known.

    A layer's forward has a product of 90 us, softmax of 40 + 60, a product of 80; its backward, launched by
    the autograd thread, products of 150 and 160 and 30 elementwise; a step's optimizer 20, launched through
    the driver. One kernel of 1 us belongs to a process without ranges. Besides, each step copies its input.
    """
    run = GpuRun()
    run.kernel("foreign_kernel", 0, 1 * US, pid=FOREIGN_PID, tid=5)
    now = 1000 * US
    run.allocate(now, 4096)

    def launch(name, length_us, **given):
        nonlocal now
        now += 10 * US
        run.kernel(name, now, length_us * US, **given)
        now += 10 * US

    for _ in range(2):
        step_start = now
        now += 5 * US
        forward_start = now
        for _ in range(2):
            attention_start = now
            for name, kernels in (
                ("attention scores", [(SCORES, 90, "aten::bmm")]),
                ("attention softmax", [(SOFTMAX, 40, "aten::_softmax"), (ADD, 60, "aten::add")]),
                ("attention final matmul", [(FINAL, 80, "aten::bmm")]),
            ):
                part_start = now
                for kernel, length_us, op in kernels:
                    launch(kernel, length_us, op=op)
                run.range(name, part_start, now)
            run.range("attention", attention_start, now)
            run.allocate(now, 1024)
        run.range("forward", forward_start, now)
        backward_start = now
        now += 5 * US
        for _ in range(2):
            launch(BACKWARD, 150, tid=AUTOGRAD, op="aten::bmm")
            launch(ADD, 30, tid=AUTOGRAD, op="aten::add")
            launch(BACKWARD, 160, tid=AUTOGRAD, op="aten::mm")
        run.allocate(now, 512)
        run.allocate(now + 1, -1536)
        now += 5 * US
        run.range("backward", backward_start, now)
        optimizer_start = now
        launch(STEP_KERNEL, 20, call="cuLaunchKernelEx")
        run.range("optimizer", optimizer_start, now)
        run.range("step", step_start, now)
        now += 7 * US
    return run


@pytest.fixture
def golden():
    """The run that `make_golden` describes."""
    return make_golden()


@pytest.fixture
def make_run():
    """An empty `GpuRun` to be filled."""
    return GpuRun


@pytest.fixture(params=["torch.profiler", "nsys"])
def golden_trace(request, golden, tmp_path):
    """The golden run as each tool recorded it."""
    from cs_systems.tracing.read import read_trace

    if request.param == "nsys":
        return read_trace(golden.write_sqlite(tmp_path / "golden.sqlite"))
    return read_trace(golden.write_chrome(tmp_path / "golden.json.gz"))
