"""Memory of each phase, of made-up allocations."""

import pytest

from cs_systems.tracing.memory_table import memory_by_phase, peak_table
from cs_systems.tracing.trace import MemoryEvent, Range, RunFacts, Trace

RANGES = [
    Range("forward", 100, 200, 1, 1), Range("backward", 200, 300, 1, 1), Range("forward", 500, 600, 1, 1),
    Range("backward", 600, 700, 1, 1), Range("forward", 610, 620, 1, 1),
]  # fmt: skip


def events(*moments, device="cuda:0"):
    """(time, total): with the difference to the total before."""
    found, before = [], 0
    for at, total in moments:
        found.append(MemoryEvent(at, total - before, total, device))
        before = total
    return found


def rows_of(memory, tool="torch.profiler"):
    table = memory_by_phase(Trace(RANGES, [], memory, {"tool": tool}))
    return {
        (row["phase"], row["device"]): (row["start_bytes"], row["peak_bytes"], row["end_bytes"])
        for row in table.rows
    }


def test_start_peak_and_end_are_those_of_the_step_with_the_highest_peak():
    memory = events(
        (50, 10), (120, 30), (150, 20), (250, 25), (510, 40), (520, 35), (615, 90), (650, 5), (900, 7)
    )
    assert rows_of(memory) == {
        ("forward", "cuda:0"): (25, 40, 35), ("backward", "cuda:0"): (35, 90, 5),
        ("all of it", "cuda:0"): (0, 90, 7),
    }  # fmt: skip


def test_a_phase_without_events_has_what_was_there_before():
    assert rows_of(events((50, 10), (900, 20)))["backward", "cuda:0"] == (10, 10, 10)


def test_before_the_first_event_there_was_what_it_did_not_add():
    memory = [MemoryEvent(150, -5, 95, "cuda:0")]
    assert rows_of(memory)["forward", "cuda:0"] == (100, 100, 95)


def test_devices_have_rows_of_their_own_and_the_gpu_comes_first():
    rows = rows_of([*events((150, 10), device="cpu"), *events((150, 20), device="cuda:0")])
    assert [device for _, device in rows] == ["cuda:0"] * 3 + ["cpu"] * 3
    assert rows["forward", "cpu"] == (0, 10, 10)


@pytest.mark.parametrize(
    ("tool", "device", "said"), [("nsys", "cuda:0", "driver"), ("torch.profiler", "cpu", "parameters")]
)
def test_what_the_totals_lack_is_said(tool, device, said):
    table = memory_by_phase(Trace(RANGES, [], events((150, 1), device=device), {"tool": tool}))
    assert said in " ".join(table.notes)


def test_without_events_there_are_no_rows():
    assert memory_by_phase(Trace(RANGES, [], [])).rows == []


def make_run(**facts):
    ranges = [Range("forward", 0, 10, 1, 1), Range("backward", 10, 20, 1, 1)]
    memory = [
        MemoryEvent(5, 100, 100, "cpu"),
        MemoryEvent(15, 50, 150, "cpu"),
        MemoryEvent(16, -150, 0, "cpu"),
    ]
    given = {
        "model": "toy", "num_layers": 1, "num_heads": 1, "d_head": 8, "batch_size": 1, "seq_len": 4,
        "steps": 1, "mode": "train-step", "precision": "fp32", "attention": "naive",
        "device": "cpu", "command": "x",
    }  # fmt: skip
    return Trace(ranges, [], memory, {"device": "cpu"}), RunFacts(**given | facts)


def test_peaks_side_by_side_count_what_was_there_before_and_show_the_prediction():
    runs = [
        make_run(base_bytes=1000, predicted_bytes={"forward": 1200, "backward": 1380}),
        make_run(base_bytes=10, checkpoint_blocks=2),
    ]
    table = peak_table(runs)
    first, second = table.rows
    assert (first["forward_bytes"], first["backward_bytes"], first["peak_bytes"]) == (1100, 1150, 1150)
    assert (first["predicted_bytes"], first["ratio"]) == (1380, 1.2)
    assert second["peak_bytes"] == 160
    assert "lowest peak with 2 blocks a checkpoint; by the prediction with 0" in table.notes
    assert "predicted_bytes" not in second
    assert [column.title for column in table.columns if not column.raw_only][:3] == [
        "Model",
        "Context",
        "Checkpoint",
    ]


def test_runs_without_facts_memory_or_phases_have_no_peaks():
    trace, facts = make_run()
    without_phases = Trace([], [], trace.memory, trace.meta)
    assert peak_table([(trace, None), (Trace([], []), facts), (without_phases, facts)]).rows == []
