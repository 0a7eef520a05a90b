"""Timing and memory tables of made-up records, and the whole report in each format."""

import csv
import io
import json

import pytest

from cs_systems.model.presets import PRESETS
from cs_systems.report.tables import memory_table, model_table, render_report, summary, timing_table
from cs_systems.tables import Cell, render_table

STEP = {"forward": [1.0, 2.0, 3.0, 4.0, 10.0], "backward": [2.0] * 5, "optimizer_step": [0.5] * 5}


def by_pass(table):
    return {row["pass"]: row for row in table.rows}


def test_a_row_holds_the_statistics_of_its_pass(make_record):
    rows = by_pass(timing_table([make_record(**STEP)]))
    assert list(rows) == ["forward", "backward", "optimizer_step", "train_step"]
    forward = rows["forward"]
    statistics = ("min_s", "max_s", "mean_s", "median_s", "iqr_s")
    assert [forward[name] for name in statistics] == [1.0, 10.0, 4.0, 3.0, 2.0]
    assert forward["std_s"] == pytest.approx((50 / 4) ** 0.5)
    assert rows["train_step"]["min_s"] == 3.5


def test_rates_come_from_the_metrics_of_the_pass_and_may_be_missing(make_record):
    metrics = {
        "tokens_per_s": {"forward": 170.5},
        "tflops_per_s": {"forward": 0.25},
        "fraction_of_peak": {"forward": 0.5},
        "peak_tflops_per_s": 0.5,
        "peak_source": "a datasheet",
    }
    table = timing_table([make_record(**STEP, metrics=metrics)])
    text = render_table(table, "table")
    assert "170.5   0.2500    50.0%" in text
    assert "of peak: share of 0.500 TFLOP/s (a datasheet)" in table.notes
    assert by_pass(table)["optimizer_step"]["tflops_per_s"] is None
    assert "TFLOP/s" not in render_table(timing_table([make_record(**STEP)]), "table")


def test_a_case_that_was_not_run_has_its_status_in_place_of_the_median_and_one_note(make_record):
    skipped = make_record("medium", status="skipped", reason="needs 43.2 GiB, 22.9 GiB free", steps=5)
    table = timing_table([make_record(**STEP), skipped])
    rows = [row for row in table.rows if row["model"] == "medium"]
    assert [row["pass"] for row in rows] == ["forward", "backward", "optimizer_step", "train_step"]
    assert all(row["median_s"] == Cell(None, "skipped") for row in rows)
    assert all(row.get("min_s") is None for row in rows)
    note = "medium: skipped: needs 43.2 GiB, 22.9 GiB free"
    assert list(table.notes).count(note) == 1
    read = list(csv.DictReader(io.StringIO(render_table(table, "csv"))))
    assert [row["median_s"] for row in read[4:]] == [""] * 4
    assert {row["status"] for row in read[4:]} == {"skipped"}


def test_steps_that_ctrl_c_left_are_shown_with_how_many_were_asked(make_record):
    record = make_record(
        **STEP, steps=10, status="failed", reason="interrupted after 5 of 10 steps", notes=["a note"]
    )
    table = timing_table([record])
    assert table.rows[0]["steps"] == Cell(5, "5/10")
    assert table.rows[0]["median_s"] == 3.0
    assert table.notes[-2:] == ["small: a note", "small: failed: interrupted after 5 of 10 steps"]


def test_a_note_that_many_records_share_is_said_once(make_record):
    records = [make_record(**STEP, notes=["shared"], precision=name) for name in ("fp32", "bf16", "fp16")]
    records.append(make_record(**STEP, precision="tf32", notes=["own"]))
    notes = timing_table(records).notes
    assert "small, fp32; small, bf16; small, fp16: shared" in notes
    assert "small, tf32: own" in notes
    assert "shared" in timing_table(records[:3]).notes


def test_what_varies_has_a_column_and_what_does_not_is_in_the_title(make_record):
    table = timing_table([make_record(**STEP, precision=name) for name in ("fp32", "bf16")])
    assert table.title == "Training step: batch 4 x 128 tokens, naive attention, optimizer adamw"
    heading = render_table(table, "table").split("\n")[1]
    assert "Precision" in heading
    assert "Attention" not in heading


def test_programs_get_every_setting_in_each_row(make_record):
    table = timing_table([make_record(**STEP)])
    row = next(csv.DictReader(io.StringIO(render_table(table, "csv"))))
    expected = {"model": "small", "pass": "forward", "d_model": "768", "batch_size": "4", "median_s": "3.0"}
    expected |= {"commit": "abc1234", "device": "Some", "status": "ok"}
    assert expected.items() <= row.items()


def test_a_default_table_fits_into_150_characters(make_record):
    metrics = {
        name: dict.fromkeys(("forward", "backward", "optimizer_step", "train_step"), value)
        for name, value in (("tokens_per_s", 123_456.7), ("tflops_per_s", 1.2345e-3), ("fraction_of_peak", 1))
    }
    slow = {name: [value * 123.456 for value in values] for name, values in STEP.items()}
    records = [make_record(name, **slow, metrics=metrics) for name in ("small", "medium")]
    fast = {name: [value * 1.23456e-4 for value in values] for name, values in STEP.items()}
    records.append(make_record("tiny", **fast, metrics=metrics))
    assert max(map(len, render_table(timing_table(records), "table").split("\n"))) <= 150


def test_memory_is_measured_beside_predicted_with_their_ratio(make_record):
    metrics = {
        "predicted_peak_memory_bytes": 2 * 2**30,
        "predicted_peak_phase": "backward",
        "peak_memory_bytes": 3 * 2**30,
    }
    no_fit = make_record(
        "medium", status="skipped", reason="no", metrics={"predicted_peak_memory_bytes": 2**40}
    )
    table = memory_table([make_record(**STEP, metrics=metrics), no_fit])
    assert render_table(table, "table").split("\n")[3:5] == [
        "small   128.6M         2.0 GiB  backward        3.0 GiB                  1.50",
        "medium  423.2M         1.0 TiB                  skipped",
    ]
    assert "resident memory" in table.notes[0]


def test_the_report_for_people_ends_with_one_line_of_json(make_record):
    record = make_record(**STEP, metrics={"peak_memory_bytes": 2**30, "tokens_per_s": {"forward": 170.5}})
    report = render_report([record], "table")
    assert json.loads(report.split("\n")[-1]) == {
        "experiment": "training_step",
        "num_cases": 1,
        "num_ok": 1,
        "cases": [
            {
                "case": "small",
                "status": "ok",
                "reason": None,
                "median_s": {"forward": 3.0, "backward": 2.0, "optimizer_step": 0.5, "train_step": 5.5},
                "tokens_per_s": {"forward": 170.5},
                "peak_memory_bytes": 2**30,
            }
        ],
    }
    assert "Peak memory" in report
    assert "To notice" in report


def test_a_report_without_any_memory_number_has_no_memory_table(make_record):
    assert "Peak memory" not in render_report([make_record(**STEP)], "table")


def test_json_and_csv_reports_are_one_document_each(make_record):
    records = [make_record(**STEP), make_record("medium", status="oom", reason="ran out of memory")]
    document = json.loads(render_report(records, "json"))
    assert set(document) == {"timing", "memory", "precision", "observations"}
    assert document["timing"]["rows"][0]["median_s"] == 3.0
    assert document["timing"]["rows"][4]["median_s"] is None
    assert len(list(csv.DictReader(io.StringIO(render_report(records, "csv"))))) == 8


def test_every_line_around_a_latex_table_is_a_comment(make_record):
    record = make_record(**STEP, metrics={"peak_memory_bytes": 2**30})
    outside = render_report([record], "latex")
    for table in outside.split(r"\begin{tabular}")[1:]:
        outside = outside.replace(
            r"\begin{tabular}" + table.split(r"\end{tabular}")[0] + r"\end{tabular}", ""
        )
    assert all(line.startswith("%") for line in outside.split("\n") if line)


def test_records_of_other_experiments_are_left_out_of_the_report_and_said(make_record):
    report = render_report([make_record(**STEP), make_record(**STEP, experiment="estimate")], "md")
    assert report.count("| small |") == 4
    assert "1 of 2 records belong to the experiment 'estimate'" in report


@pytest.mark.parametrize("style", ["table", "md", "csv", "json", "latex"])
def test_a_report_of_no_records_is_no_crash(style):
    assert render_report([], style)


def test_a_record_of_a_dead_process_has_rows_though_it_has_no_metrics(make_record):
    record = make_record(status="failed", reason="the process died of SIGSEGV")
    record.metrics.clear()
    assert summary([record])["num_ok"] == 0
    assert "died of SIGSEGV" in render_report([record], "table")


def test_every_preset_is_listed_with_its_parameters_and_its_source():
    table = model_table()
    assert [row["model"] for row in table.rows] == list(PRESETS)
    rows = json.loads(render_table(table, "json"))["rows"]
    assert {row["model"]: row["source"] for row in rows} == {n: p.source for n, p in PRESETS.items()}
    text = render_table(table, "table")
    assert "3,406,809,600" in text
    assert all(preset.source in " ".join(text.split()) for preset in PRESETS.values())
