"""The tables in README.md are those of the committed records, to the letter."""

import pathlib

from cs_systems.bench.attention import attention_table as attention_bench_table
from cs_systems.bench.generation_contest_table import contest_table
from cs_systems.bench.peers import comparison_table
from cs_systems.bench.record import read_records
from cs_systems.report import accumulation
from cs_systems.report.generation import frontier_table
from cs_systems.report.generation_layouts import bigcode_tables
from cs_systems.report.precision import precision_tables
from cs_systems.report.tables import timing_table
from cs_systems.tables import render_table
from cs_systems.tracing.attention_table import attention_table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import all_tables, combined_table
from cs_systems.tracing.trace import read_facts

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results" / "amd-epyc-2-cores"


def committed(name):
    records, problems = read_records(RESULTS / name)
    assert problems == []
    return records


def test_the_timing_table_is_that_of_the_records():
    small = [record for record in committed("training_step.jsonl") if record.case["model"] == "small"]
    table = render_table(timing_table(small), "md")
    assert table in (ROOT / "README.md").read_text()


def test_the_table_of_peers_is_that_of_the_records():
    table = render_table(comparison_table(committed("peers.jsonl")), "md")
    assert table in (ROOT / "README.md").read_text()


def test_the_table_of_attention_in_the_small_model_is_that_of_the_records():
    table = render_table(timing_table(committed("attention_small.jsonl")), "md")
    assert table in (ROOT / "README.md").read_text()


def test_the_table_of_attention_functions_is_that_of_the_records():
    records = [
        r for r in committed("attention.jsonl") if (r.case["seq_len"], r.case["precision"]) == (512, "fp32")
    ]
    assert render_table(attention_bench_table(records), "md") in (ROOT / "README.md").read_text()


def test_the_tables_of_the_profile_are_those_of_the_traces():
    paths = [RESULTS / "profile" / f"small-{seq_len}.json.gz" for seq_len in (128, 256)]
    runs = [(read_trace(path), read_facts(path)) for path in paths]
    text = (ROOT / "README.md").read_text()
    assert render_table(combined_table(runs), "md") in text
    assert render_table(attention_table(*runs[1]), "md") in text
    every = (RESULTS / "profile" / "tables.md").read_text()
    for table in (table for run in runs for table in all_tables(*run)):
        assert render_table(table, "md") in every
    for _, facts in runs:
        assert "with changes" not in facts.commit


def test_the_table_of_peaks_is_the_committed_one():
    start = "**Peak memory of tensors by phase**"
    table = (RESULTS / "profile" / "memory.md").read_text().split(start)[1].split("```")[0].rstrip()
    assert start + table in (ROOT / "README.md").read_text()


def test_the_table_of_a_sum_is_that_of_the_records():
    (table,) = [
        table
        for table in accumulation.tables(committed("accumulation.jsonl"))
        if table.title.startswith("fp16 into fp16")
    ]
    assert render_table(table, "md") in (ROOT / "README.md").read_text()


def test_the_table_of_precisions_is_that_of_the_records():
    small = [record for record in committed("precision.jsonl") if record.case["model"] == "small"]
    assert render_table(precision_tables(small)[0], "md") in (ROOT / "README.md").read_text()


def test_the_tables_of_generation_are_those_of_the_records():
    text = (ROOT / "README.md").read_text()
    sweep = committed("generation.jsonl")
    tables = [bigcode_tables(sweep)[0], *frontier_table(sweep)]
    for table in (*tables, contest_table(committed("generation_side_by_side.jsonl"))):
        assert render_table(table, "md") in text


def test_reference_records_are_complete_and_from_committed_code():
    records = committed("training_step.jsonl")
    assert {(r.case["model"], r.case["warmup_steps"]) for r in records} == {
        (model, steps) for model in ("small", "medium") for steps in (0, 1, 5)
    }
    for record in records + [record for path in RESULTS.glob("*.jsonl") for record in committed(path.name)]:
        assert record.status in ("ok", "oom", "skipped")  # what does not fit is a row
        assert record.status == "ok" or "memory" in record.reason or "GiB" in record.reason
        assert record.provenance.commit
        assert record.provenance.dirty is False
