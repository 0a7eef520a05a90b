"""The same run as torch.profiler and as nsys record it gives the same tables, cell for cell."""

import json
import random

import pytest

from cs_systems.tables import table_as_json
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import all_tables, compare_tables
from cs_systems.tracing.trace import RunFacts

US = 1000
FACTS = RunFacts(
    model="tiny", num_layers=2, num_heads=4, d_head=32, batch_size=3, seq_len=64, steps=2, mode="train-step",
    precision="fp32", attention="naive", device="Some GPU", command="python profiling/run.py",
)  # fmt: skip


def cells(trace, **options):
    """All tables as JSON, but for the remarks about memory, which the tools do see differently."""
    tables = [table_as_json(table) for table in all_tables(trace, FACTS, top=None, **options)]
    assert len(tables) > 5
    return [table | {"notes": [] if table["title"] == "Memory" else table["notes"]} for table in tables]


def random_run(make_run, seed):
    """A run of nested ranges on two threads, with everything that both tools record."""
    draw = random.Random(seed)
    run = make_run()
    now = 100 * US

    def launch(tid):
        nonlocal now
        now += draw.randrange(1, 40_000)
        kind = draw.choices(["kernel", "copy", "fill"], [8, 1, 1])[0]
        name = {
            "kernel": draw.choice(["void f<int>(int)", "ampere_sgemm_tn",
            "void (anonymous namespace)::softmax<4>(X)"]),
            "copy": "Memcpy HtoD (Pinned -> Device)", "fill": "Memset (Device)",
        }[kind]  # fmt: skip
        run.kernel(
            name, now, draw.randrange(0, 90_000), tid=tid, kind=kind, launched=draw.random() > 0.1,
            op=draw.choice([None, "aten::mm", "aten::add", "aten::_softmax"]),
        )  # fmt: skip
        run.allocate(now, draw.choice([512, 1024, -512]))
        now += 10 * US

    def inside(name, tid, body):
        nonlocal now
        start = now
        now += draw.randrange(0, 2000)
        for part in body:
            part()
        now += draw.randrange(0, 2000)
        run.range(name, start, now, tid=tid)

    def work(tid):
        return [lambda: launch(tid)] * draw.randrange(0, 4)

    def model(tid, suffix):
        parts = [
            lambda name=name: inside(name + suffix, tid, work(tid))
            for name in ("attention scores", "attention softmax", "attention final matmul")
        ]
        return [lambda: inside("attention" + suffix, tid, [*parts, *work(tid)]), *work(tid)]

    for _ in range(3):
        phases = [
            lambda: inside("forward", 100, model(100, "")),
            lambda: inside("loss", 100, work(100)),
            lambda: inside("backward", 100, model(101, " (backward)")),
            lambda: inside("optimizer", 100, work(100)),
        ]
        inside("step", 100, phases)
    return run


@pytest.mark.parametrize("registered", [True, False])
def test_the_golden_run(golden, tmp_path, registered):
    chrome = read_trace(golden.write_chrome(tmp_path / "a.json.gz"))
    nsys = read_trace(golden.write_sqlite(tmp_path / "a.sqlite", registered=registered))
    assert cells(chrome) == cells(nsys)
    assert cells(chrome, full_names=True) == cells(nsys, full_names=True)


@pytest.mark.parametrize("seed", range(12))
def test_random_runs(make_run, tmp_path, seed):
    run = random_run(make_run, seed)
    chrome, nsys = (
        read_trace(run.write_chrome(tmp_path / "a.json")),
        read_trace(run.write_sqlite(tmp_path / "a.sqlite")),
    )
    assert json.dumps(cells(chrome)) == json.dumps(cells(nsys))
    assert chrome.meta["problems"] == nsys.meta["problems"]
    assert all(row["ratio"] in (1, None) for table in compare_tables(chrome, nsys) for row in table.rows)


def test_a_difference_would_be_seen(golden, tmp_path):
    chrome = read_trace(golden.write_chrome(tmp_path / "a.json"))
    name, start, end, *rest = golden.kernels[5]
    golden.kernels[5] = (name, start, end + 1, *rest)
    assert cells(chrome) != cells(read_trace(golden.write_sqlite(tmp_path / "a.sqlite")))
