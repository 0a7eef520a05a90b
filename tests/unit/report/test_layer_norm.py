"""Tables, sentences and plots of layer norm from its records."""

import json

import pytest

from cs_systems.bench import layer_norm as experiment
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.mixed_precision.settings import LayerNormConfig
from cs_systems.report import layer_norm as report
from cs_systems.report.figure import our_style
from cs_systems.tables import render_table


def measure(**given):
    record, _ = experiment.run_case(LayerNormConfig(d_model=64, **given), "python", len)
    return BenchmarkRecord.from_json(record.to_json())


@pytest.fixture(scope="module")
def records():
    return [measure(dtype="fp16", scale=300.0), measure(dtype="bf16", offset=100.0)]


def shown(table, key):
    column = next(column for column in table.columns if column.key == key)
    return {row["name"]: column.show(row.get(key)) for row in table.rows}


def test_the_operation_that_overflows_is_named(records):
    table = report.tables(records)[0]
    happens = shown(table, "happens")
    assert happens["squares"].startswith("inf: ")
    assert happens["squares"].endswith(" of 64 (beyond 65504)")
    assert happens["rsqrt"] == happens["normalised"] == "0 for a number that is not"
    assert happens["centred"] == ""
    assert shown(table, "largest")["squares"] == "inf"
    assert shown(table, "total_error")["squares"] == "-"
    notes = "\n".join(table.notes)
    assert "centred^2: the first to leave the range" in notes
    assert "neither inf nor nan, is wrong" in notes


def test_cancellation_is_explained_with_its_numbers(records):
    notes = "\n".join(report.tables(records)[1].notes)
    assert "x - mean is 100 times smaller than x" in notes
    assert "the operation that loses most by itself" in notes
    assert "cancellation" not in "\n".join(report.tables(records)[0].notes)


def test_a_sum_that_overflows_makes_nan_and_no_reassurance():
    table = report.tables([measure(dtype="fp16", offset=2000.0)])[0]
    assert shown(table, "happens")["normalised"] == "nan"
    assert "sum of x: the first to leave the range" in "\n".join(table.notes)
    assert "nothing tells" not in "\n".join(table.notes)


def test_whole_norms_and_limits_of_all_records_in_one_table_each(records):
    norms, limits = report.tables([*records, measure(dtype="fp16", scale=2.0)])[3:]
    assert len(norms.rows) == 3 * 5
    assert {row["dtype"] for row in norms.rows} == {"fp16", "bf16", "fp32"}
    assert len(limits.rows) == 2 * 5  # the two records of fp16 have the same
    for table in (norms, limits):
        assert records[0].provenance.time_utc[:10] in table.notes[-1]
        for style in ("table", "md", "csv", "json", "latex"):
            assert render_table(table, style)


def test_the_summary_is_small_and_json(records):
    summary = report.summary(records[0])
    assert summary["not_finite"][0] == "squares"
    assert summary["errors"]["layer norm, op by op"] == 1
    assert len(json.dumps(summary, allow_nan=False)) < 1500


def test_plots_show_what_has_no_number_above_the_line(records, tmp_path):
    pytest.importorskip("matplotlib")
    with our_style():
        figure = report.draw_sweep({"fp16": records[0]}, "scale")
    (panel,) = figure.axes
    squares = panel.get_lines()[1]
    errors = records[0].metrics["sweeps"]["scale"]["errors"]["squares"]
    assert errors[-1] is None
    assert squares.get_ydata()[-1] > 20 > max(error for error in errors if error is not None)
    files, remarks = report.draw(records, tmp_path / "new")
    assert [file.name for file in files] == [
        "layer_norm_scale.svg", "layer_norm_scale.png", "layer_norm_offset.svg", "layer_norm_offset.png",
    ]  # fmt: skip
    assert remarks == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot create this folder"):
        report.draw(records, tmp_path / "file" / "folder")
