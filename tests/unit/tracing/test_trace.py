"""The facts of a run: stored beside its trace, found again, and refused when they are something else."""

import json

import pytest

from cs_systems.tracing.trace import (
    Kernel,
    RunFacts,
    Trace,
    facts_path,
    read_facts,
    without_launch,
    write_facts,
)

FACTS = RunFacts(
    model="tiny", num_layers=2, num_heads=4, d_head=32, batch_size=4, seq_len=128, steps=3, mode="train-step",
    precision="fp32", attention="naive", device="Some GPU", command="python profiling/run.py",
    timer_s={"forward": 0.25},
)  # fmt: skip


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.sqlite", "a.nsys-rep"])
def test_every_form_of_a_trace_has_its_facts_under_one_name(tmp_path, name):
    assert facts_path(tmp_path / name) == tmp_path / "a.run.json"


@pytest.mark.parametrize("name", ["gpt2-1.5b.json.gz", "gpt2-1.5b.sqlite"])
def test_a_point_in_the_name_stays(name):
    assert facts_path(name).name == "gpt2-1.5b.run.json"


def test_facts_come_back(tmp_path):
    write_facts(tmp_path / "a.sqlite", FACTS)
    assert read_facts(tmp_path / "a.json.gz") == FACTS
    assert read_facts(tmp_path / "b.json.gz") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", json.dumps({"model": "tiny"}), json.dumps({"color": "red"}), "[" * 99999,
        json.dumps(FACTS.__dict__ | {"num_heads": "4"}), json.dumps(FACTS.__dict__ | {"num_heads": True}),
        json.dumps(FACTS.__dict__ | {"timer_s": [1]}),
        json.dumps(FACTS.__dict__ | {"timer_s": {"forward": "1"}}),
    ],
)  # fmt: skip
def test_what_is_not_facts_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.run.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.run\.json: .*delete") as caught:
        read_facts(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_trace_is_equal_only_to_itself():
    """Two empty traces compare as different, and one can be a key of a cache."""
    one, other = Trace([], []), Trace([], [])
    assert one != other
    assert {one: 1}.get(other) is None


def test_kernels_without_a_launch_are_told_of():
    known = Kernel("k", 0, 1, 1, 1, 2, 0, 1, 7, "kernel", None)
    unknown = Kernel("k", 0, 1, 1, None, None, None, None, 7, "kernel", None)
    assert without_launch([known]) == []
    assert "launched 1 of 2" in without_launch([known, unknown])[0]
