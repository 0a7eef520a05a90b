"""Rendering of tables, read back by independent readers of each format."""

import csv
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs_systems.tables import (
    Cell,
    Column,
    Table,
    format_bytes,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_value,
    render_table,
)

COLUMNS = [
    Column("model", "Model", align="left"),
    Column("median_s", "Median", unit="s"),
    Column("share", "Share", format=format_percent),
    Column("status", "Status", raw_only=True),
]
ROWS = [
    {"model": "small", "median_s": 0.0308262, "share": 0.25, "status": "ok"},
    {"model": "medium", "median_s": Cell(None, "skipped"), "status": "skipped"},
]
TABLE = Table("Training step", COLUMNS, ROWS, ["a note"])


def test_text_is_aligned_rounded_and_blank_where_nothing_is_known():
    assert render_table(TABLE, "table").split("\n") == [
        "Training step",
        "Model   Median (s)  Share",
        "------  ----------  -----",
        "small      0.03083  25.0%",
        "medium     skipped",
        "a note",
    ]


def test_markdown_is_a_table_with_its_title_and_notes():
    assert render_table(TABLE, "md").split("\n") == [
        "**Training step**",
        "",
        "| Model | Median (s) | Share |",
        "|:--|--:|--:|",
        "| small | 0.03083 | 25.0% |",
        "| medium | skipped |  |",
        "",
        "- a note",
    ]


def test_latex_is_a_tabular_with_rules():
    assert render_table(TABLE, "latex").split("\n") == [
        "% Training step",
        r"\begin{tabular}{lrr}",
        r"\hline",
        r"Model & Median (s) & Share \\",
        r"\hline",
        r"small & 0.03083 & 25.0\% \\",
        r"medium & skipped &  \\",
        r"\hline",
        r"\end{tabular}",
        "% a note",
    ]


def test_programs_get_every_digit_and_no_text_in_place_of_a_number():
    assert list(csv.DictReader(io.StringIO(render_table(TABLE, "csv")))) == [
        {"model": "small", "median_s": "0.0308262", "share": "0.25", "status": "ok"},
        {"model": "medium", "median_s": "", "share": "", "status": "skipped"},
    ]
    assert json.loads(render_table(TABLE, "json")) == {
        "title": "Training step",
        "rows": [
            {"model": "small", "median_s": 0.0308262, "share": 0.25, "status": "ok"},
            {"model": "medium", "median_s": None, "share": None, "status": "skipped"},
        ],
        "notes": ["a note"],
    }


def test_no_line_is_cut_or_wrapped_except_notes():
    table = Table("t", COLUMNS[:1] * 9, [{"model": "x" * 40}], ["word " * 60])
    lines = render_table(table, "table").split("\n")
    assert lines[3] == "  ".join(["x" * 40] * 9)
    table = Table("t", COLUMNS[:1], [{"model": "x"}], ["word " * 60])
    assert max(map(len, render_table(table, "table").split("\n"))) <= 100


@pytest.mark.parametrize("style", ["table", "md", "csv", "json", "latex"])
def test_a_table_without_rows_still_has_its_headings(style):
    assert "odel" in render_table(Table("t", COLUMNS, []), style) or style == "json"


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=3, max_size=3))
def test_any_text_survives_the_way_into_markdown_and_latex_and_back(texts):
    columns = [Column(str(i), "x") for i in range(3)]
    table = Table("t", columns, [{str(i): text for i, text in enumerate(texts)}])
    markdown = render_table(table, "md").split("\n")[4]
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", markdown)
    assert [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in cells[1:-1]] == texts
    latex = render_table(table, "latex").split("\n")[5].removesuffix(r" \\")
    names = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^"}
    plain = re.sub(
        r"\\text\w+\{\}|\\([&%$#_{}])",
        lambda found: names.get(found[0], found[1]),
        latex,
    )
    assert re.findall(r"(?<!\\)[&%$#_]", latex) == ["&", "&"]
    assert plain.split(" & ") == texts


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [*((c, "\\" + c) for c in "&%$#_{}"), ("~", r"\textasciitilde{}"), ("^", r"\textasciicircum{}"),
     ("\\", r"\textbackslash{}")],
)  # fmt: skip
def test_each_special_character_of_latex_is_escaped(plain, escaped):
    table = Table("t", [Column("a", "x")], [{"a": f"a{plain}b"}])
    assert rf"a{escaped}b \\" in render_table(table, "latex").split("\n")


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))))
def test_raw_numbers_come_back_from_csv_and_json_exactly(values):
    table = Table("t", [Column("a_s", "A"), Column("b", "B")], [{"a_s": value, "b": 1} for value in values])
    assert [row["a_s"] for row in json.loads(render_table(table, "json"))["rows"]] == values
    read = [row["a_s"] for row in csv.DictReader(io.StringIO(render_table(table, "csv")))]
    assert read == ["" if value is None else str(value) for value in values]


def test_a_line_break_in_a_cell_does_not_break_the_table():
    table = Table("t", [Column("a", "A", align="left")], [{"a": "two\nlines"}], ["so\nhas a note"])
    for style in ("table", "md", "latex"):
        assert "two lines" in render_table(table, style)
        assert "so has a note" in render_table(table, style)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0308262, "0.03083"),
        (0.1, "0.1000"),
        (1.0, "1.000"),
        (12.3456, "12.35"),
        (9.99996, "10.00"),
        (1234.6, "1235"),
        (9999.6, "10000"),
        (1234567.8, "1234568"),
        (0.000123456, "0.0001235"),
        (0.0000123456, "1.235e-05"),
        (0.0, "0"),
        (-2.5, "-2.500"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert format_number(value) == text


@given(st.floats(1e-12, 1e12))
def test_a_formatted_number_is_within_half_a_unit_of_its_last_digit(value):
    assert float(format_number(value)) == pytest.approx(value, rel=0.5001e-3)
    assert len(format_number(value).replace(".", "").lstrip("0").split("e")[0]) >= 4


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (590_464, "590.5K"),
        (128_625_408, "128.6M"),
        (3_406_809_600, "3.407B"),
        (999_960, "1.000M"),
        (512, "512"),
    ],
)
def test_counts_have_a_decimal_suffix(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (46_385_646_797, "43.2 GiB"),
        (2**30 - 1, "1.0 GiB"),
        (3 * 2**50, "3.0 PiB"),
        (-(2**20), "-1.0 MiB"),
    ],
)
def test_bytes_have_a_binary_unit(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (2.5e-8, "25.0 ns"),
        (8.43e-4, "843 us"),
        (0.0123, "12.3 ms"),
        (0.99996, "1.00 s"),
        (1.5, "1.50 s"),
        (99.97, "1 min 40 s"),
        (125.0, "2 min 5 s"),
        (3600 * 2 + 65, "2 h 1 min"),
    ],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "on"), (False, "off"), (7, "7"), ("x", "x"), (0.5, "0.5000")]
)
def test_values_of_any_type_have_a_text(value, text):
    assert format_value(value) == text
