"""The tables in README.md are those of the committed records, to the letter."""

import pathlib

from cs_systems.bench.peers import comparison_table
from cs_systems.bench.record import read_records
from cs_systems.report.tables import timing_table
from cs_systems.tables import render_table

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


def test_reference_records_are_complete_and_from_committed_code():
    records = committed("training_step.jsonl")
    assert {(r.case["model"], r.case["warmup_steps"]) for r in records} == {
        (model, steps) for model in ("small", "medium") for steps in (0, 1, 5)
    }
    for record in records + committed("peers.jsonl"):
        assert record.status == "ok"
        assert record.provenance.commit
        assert record.provenance.dirty is False
