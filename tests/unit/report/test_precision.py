"""Speed-ups of lower precisions: against a baseline that is fp32, or not at all."""

import statistics

import pytest

from cs_systems.report.precision import precision_tables
from cs_systems.report.tables import render_report

FP32 = {"fp32_matmul_bits": 24, "matmul_precision": "highest", "num_parameters": 1}
TF32_HIDDEN = FP32 | {"fp32_matmul_bits": 11}
MIB = 2**20


@pytest.fixture
def pair(make_record):
    """The same case in fp32 and in bf16, with times in the ratio 3 : 2."""

    def make(baseline=FP32, peaks=(100 * MIB, 80 * MIB), model="small", **given):
        times = [0.30, 0.33, 0.27, 0.31, 0.29]
        return [
            make_record(
                model, precision=precision, forward=[factor * t for t in times],
                metrics=metrics | {"predicted_peak_memory_bytes": peak, "predicted_peak_phase": "loss"},
                **given,
            )
            for precision, factor, metrics, peak in zip(
                ("fp32", "bf16"), (1.0, 2 / 3), (baseline, FP32), peaks, strict=True
            )
        ]  # fmt: skip

    return make


def row_of(table, **wanted):
    (row,) = [row for row in table.rows if all(row[name] == value for name, value in wanted.items())]
    return row


def test_the_speed_up_is_the_ratio_of_medians(pair):
    records = pair()
    times, _ = precision_tables(records)
    row = row_of(times, precision="bf16")
    medians = [statistics.median(record.samples_s["forward"]) for record in records]
    assert row["speedup"] == pytest.approx(medians[0] / medians[1]) == pytest.approx(1.5)
    assert row["speedup_low"] <= 1.5 <= row["speedup_high"]
    assert row_of(times, precision="fp32")["speedup"] == 1.0


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (TF32_HIDDEN, "kept 11 of 24 bits"),
        ({"matmul_precision": "high"}, "matmul precision was high"),
        ({}, "not recorded"),
    ],
)
def test_a_hidden_tf32_baseline_gets_no_ratio(pair, baseline, said):
    times, _ = precision_tables(pair(baseline=baseline))
    assert all(row.get("speedup") is None for row in times.rows)
    assert any(said in note for note in times.notes)


def test_old_records_without_measured_bits_count_when_the_setting_was_highest(pair):
    times, _ = precision_tables(pair(baseline={"matmul_precision": "highest"}))
    assert row_of(times, precision="bf16")["speedup"] == pytest.approx(1.5)


def test_a_case_that_did_not_run_is_a_row_with_its_reason(pair, make_record):
    fp32, _ = pair()
    skipped = make_record("small", status="oom", reason="needs 9 GiB", precision="bf16", steps=5)
    skipped.case["mode"] = fp32.case["mode"]
    times, memory = precision_tables([fp32, skipped])
    assert row_of(times, precision="bf16")["median_s"].text == "oom"
    assert any("needs 9 GiB" in note for note in times.notes)
    assert row_of(memory, precision="bf16")["peak_memory_bytes"].text == "oom"


def test_sizes_are_compared_each_with_its_own_baseline(pair):
    times, _ = precision_tables([*pair(), *pair(model="medium")])
    speedups = [row["speedup"] for row in times.rows if row["precision"] == "bf16"]
    assert speedups == [pytest.approx(1.5)] * 2


def test_autocast_that_raises_the_peak_is_explained(pair):
    _, lower = precision_tables(pair())
    _, higher = precision_tables(pair(peaks=(100 * MIB, 120 * MIB)))
    assert not any("raises the peak" in note for note in lower.notes)
    assert any("raises the peak" in note for note in higher.notes)
    assert row_of(higher, precision="bf16")["predicted_ratio"] == pytest.approx(1.2)


def test_one_precision_makes_no_table(make_record):
    assert precision_tables([make_record("small", forward=[1.0])]) == []
    assert precision_tables([]) == []


def test_the_report_of_a_run_shows_it(pair):
    assert "Speed-up" in render_report(pair(), "table")
    assert '"precision"' in render_report(pair(), "json")


def test_only_the_last_measurement_of_a_case_counts(pair):
    fp32, bf16 = pair()
    slow = pair()[1]
    slow.samples_s["forward"][:] = [3.0] * 5
    times, _ = precision_tables([slow, fp32, bf16])
    assert row_of(times, precision="bf16")["speedup"] == pytest.approx(1.5)


def test_fp16_that_a_cpu_emulates_is_not_blamed_on_fp16(make_record):
    records = [
        make_record(precision=precision, forward=[time_s] * 5, metrics=FP32)
        for precision, time_s in (("fp32", 1.0), ("fp16", 9.0))
    ]
    times, _ = precision_tables(records)
    assert any("emulate" in note for note in times.notes)
