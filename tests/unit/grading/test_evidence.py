"""Evidence is read lazily, in the order of time, and nothing in a folder is fatal."""

import json

import pytest

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import NotMeasuredError

FACTS = {
    "model": "tiny", "num_layers": 2, "num_heads": 4, "d_head": 32, "batch_size": 4, "seq_len": 64,
    "steps": 1, "mode": "train-step", "precision": "fp32", "attention": "naive",
    "device": "A GPU", "command": "",
}  # fmt: skip


def test_all_files_of_a_folder_are_read_and_sorted_by_time(evidence_of, record):
    evidence_of(record({"forward": [2.0]}, day=2), name="a.jsonl")
    evidence = evidence_of(record({"forward": [1.0]}, day=1), name="b.jsonl")
    assert [each.samples_s["forward"] for each in evidence.records] == [[1.0], [2.0]]
    assert not evidence.problems


def test_what_cannot_be_read_is_one_line_and_the_rest_is_used(tmp_path, evidence_of, record):
    (tmp_path / "notes.jsonl").write_text("groceries\n")
    newer = json.loads(record({"forward": [1.0]}).to_json()) | {"schema_version": 99}
    (tmp_path / "newer.jsonl").write_text(json.dumps(newer) + "\n")
    (tmp_path / "folder.jsonl").mkdir()
    evidence = evidence_of(record({"forward": [1.0]}))
    assert len(evidence.records) == 1
    assert len(evidence.problems) == 3
    assert any("schema 99" in problem for problem in evidence.problems)
    assert all("\n" not in problem for problem in evidence.problems)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_nothing_measured_names_the_command(tmp_path, name):
    folder = tmp_path / name
    if name == "empty":
        folder.mkdir()
    evidence = Evidence(folder)
    assert evidence.is_empty
    [problem] = evidence.problems
    assert "make measure" in problem
    assert str(folder) in problem


def test_profiles_are_found_by_their_facts_and_opened_only_when_asked(tmp_path):
    folder = tmp_path / "profile"
    folder.mkdir()
    for name, facts in (("good", json.dumps(FACTS)), ("bad", "{"), ("alone", None)):
        (folder / f"{name}.json.gz").write_bytes(b"not gzip")
        if facts is not None:
            (folder / f"{name}.run.json").write_text(facts)
    evidence = Evidence(tmp_path)
    [run] = evidence.runs
    assert run.facts.model == "tiny"
    assert len(evidence.problems) == 2
    assert not evidence.is_empty
    with pytest.raises(NotMeasuredError, match=r"good\.json\.gz.*profiling/run\.py"):
        _ = run.trace
