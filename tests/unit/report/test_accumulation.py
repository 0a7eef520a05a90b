"""Tables, sentences and the plot of sums, from records that were measured for this and from made-up ones."""

import copy
import dataclasses
import json

import pytest

from cs_systems.bench import accumulation as experiment
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.mixed_precision.settings import AccumulationConfig
from cs_systems.report import accumulation as report
from cs_systems.report.figure import our_style
from cs_systems.tables import render_table


def measure(**given):
    record, _ = experiment.run_case(AccumulationConfig(**given), "python", len)
    return BenchmarkRecord.from_json(record.to_json())


@pytest.fixture(scope="module")
def course():
    return [measure(dtypes=name) for name in ("fp32", "fp16", "bf16")]


def test_the_first_table_has_the_course_s_sums_as_torch_prints_them(course):
    table = report.tables(course)[0]
    printed = [
        [table.columns[i].show(row.get(table.columns[i].key)) for i in (0, 1, 3)] for row in table.rows
    ]
    assert printed == [
        ["fp32", "fp32", "10.0001"], ["fp16", "fp16", "9.9531"], ["fp16", "fp32", "10.0021"],
        ["fp16", "fp32", "10.0021"], ["bf16", "bf16", "4.0000"], ["bf16", "fp32", "10.0098"],
        ["bf16", "fp32", "10.0098"],
    ]  # fmt: skip
    assert [row["spelled"] for row in table.rows[2:4]] == ["sum += term", "sum += term.to(sum.dtype)"]


def test_sentences_come_from_the_numbers(course):
    notes = "\n".join(report.tables(course)[0].notes)
    assert "is 0.0100021362, off by +2.14e-06" in notes
    assert "from 8 on numbers are 0.0078125 apart, so each addition of 0.0100021 becomes 0.0078125" in notes
    assert "from 4 on numbers are 0.03125 apart, so each addition of 0.0100098 becomes 0 (650" in notes
    changed = copy.deepcopy(course[1])
    changed.metrics["binades"][-1]["spacing"] = 0.123
    assert "from 8 on numbers are 0.123 apart" in "\n".join(report.tables([changed])[0].notes)


def test_every_type_has_its_binades_and_every_method_a_row(course):
    tables = report.tables(course)
    assert [table.title.split(",")[0] for table in tables[2:]] == [
        f"{n} into {n}" for n in ("fp32", "fp16", "bf16")
    ]
    assert len(tables[1].rows) == 3 * 9
    bf16 = "\n".join(tables[4].notes)
    assert "the sum stalls at 4: addition 351 is the first to change nothing" in bf16
    assert "0.0100098 is less than half of that" in bf16
    assert "would stall at 32: addition 2,799" in "\n".join(tables[3].notes)
    assert all("bit for bit" in "\n".join(table.notes) for table in tables[2:])
    for table in tables:
        assert course[0].provenance.time_utc[:10] in table.notes[-1]
        for style in ("table", "md", "csv", "json", "latex"):
            assert render_table(table, style)


def test_a_prediction_that_fails_is_said(course):
    wrong = copy.deepcopy(course[2])
    wrong.metrics["observed_sum"] = 4.03125
    assert "torch gave 4.03125, so one of them is wrong" in "\n".join(report.tables([wrong])[2].notes)


def test_exact_sums_halves_overflow_and_what_was_not_run_are_worded():
    notes = "\n".join(report.tables([measure(value=1.0, steps=300, dtypes="bf16")])[2].notes)
    assert "stalls at 256: addition 257" in notes
    assert "1 is exactly half of that, which is rounded to the even neighbour" in notes
    plain, methods, binades = report.tables([measure(value=1000.0, steps=100, dtypes="fp16")])
    assert "addition 66 made infinity, fp16 ends at 65504" in "\n".join(plain.notes)
    assert "never stalls" in "\n".join(binades.notes)
    assert "overflows first" in render_table(methods, "table")
    exact = report.tables([measure(value=0.5, steps=8, dtypes="fp16")])[0]
    assert "none, as every sum is a number of the format" in "\n".join(exact.notes)
    record = measure(value=0.5, steps=8, dtypes="fp16")
    record.metrics["methods"][3]["sum"] = None
    assert "not run: Python" in render_table(report.tables([record])[1], "table")


def test_a_wider_sum_that_is_not_wide_enough_is_not_called_exact(course):
    enough = course[1]
    not_enough = copy.deepcopy(enough)
    not_enough.metrics["methods"][1]["accumulation_error"] = -3 * enough.metrics["input_error"]
    assert "input rounding is left" in "\n".join(report.tables([enough])[0].notes)
    assert "not even this sum is wide enough" in "\n".join(report.tables([not_enough])[0].notes)


def test_other_numbers_get_tables_of_their_own_and_a_repeat_counts_once(course):
    other = measure(value=0.1, steps=20, dtypes="fp16")
    tables = report.tables([*course, other, other])
    assert len(tables) == 5 + 3
    assert tables[5].title == "0.1 added 20 times, one by one"


def test_the_summary_is_small_and_json(course):
    summary = report.summary(course[2])
    assert summary["sums"]["one by one"] == 4.0
    assert (summary["stall_step"], summary["predicted_stall_step"]) == (351, 351)
    assert len(json.dumps(summary, allow_nan=False)) < 1000


def test_the_plot_has_a_panel_a_type_and_a_line_a_method(course, tmp_path):
    pytest.importorskip("matplotlib")
    with our_style():
        figure = report.draw_errors(course)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["fp32", "fp16", "bf16"]
    lines = figure.axes[1].get_lines()
    assert len(lines) == 6
    assert lines[0].get_xdata()[-1] == 1000
    assert lines[0].get_ydata()[-1] == pytest.approx(10 - 9.953125)
    assert figure.axes[0].get_yscale() == figure.axes[0].get_xscale() == "log"
    single = dataclasses.replace(course[0], case={**course[0].case, "steps": 1})
    files, remarks = report.draw([*course, single], tmp_path / "new")
    assert [file.name for file in files] == ["accumulation_0.01_1000.svg", "accumulation_0.01_1000.png"]
    assert remarks == ["0.01 added 1 times: not drawn, one addition makes no curve"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot create this folder"):
        report.draw(course, tmp_path / "file" / "folder")
