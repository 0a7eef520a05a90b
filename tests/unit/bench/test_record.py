"""The record format: what is written comes back, and what cannot be read is reported and skipped."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.bench.record import (
    SCHEMA_VERSION,
    BenchmarkRecord,
    Provenance,
    append_record,
    check_writable,
    read_records,
)

PROVENANCE = Provenance(
    command="python benchmark.py --model tiny",
    commit="0" * 40,
    dirty=False,
    time_utc="2025-01-02T03:04:05Z",
    device="some CPU",
    device_type="cpu",
    threads=2,
    versions={"python": "3.11.7", "torch": "2.13.0", "cuda": None},
)

finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | finite | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
objects = st.dictionaries(st.text(), values, max_size=3)
seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
samples = st.dictionaries(st.sampled_from(["forward", "backward"]), st.lists(seconds, max_size=3))
provenances = st.fixed_dictionaries(
    {
        "command": st.text(),
        "commit": st.none() | st.text(),
        "dirty": st.none() | st.booleans(),
        "time_utc": st.text(),
        "device": st.text(),
        "device_type": st.sampled_from(["cpu", "cuda"]),
        "threads": st.integers(1, 64),
        "versions": st.dictionaries(st.text(), st.none() | st.text(), max_size=2),
    }
)
fields_of_records = st.fixed_dictionaries(
    {
        "experiment": st.text(),
        "case": objects,
        "status": st.sampled_from(["ok", "oom", "skipped", "failed"]),
        "provenance": provenances,
        "reason": st.none() | st.text(),
        "samples_s": samples,
        "warmup_samples_s": samples,
        "metrics": objects,
        "notes": st.lists(st.text(), max_size=2),
    }
)


def build(fields):
    return BenchmarkRecord(**(fields | {"provenance": Provenance(**fields["provenance"])}))


def make_record(**changes):
    fields = {"experiment": "training_step", "case": {"d_model": 8}, "status": "ok", "provenance": PROVENANCE}
    return BenchmarkRecord(**(fields | changes))


def as_json(**changes):
    """A stored line with some of its fields replaced; None of them is checked here."""
    return json.dumps(json.loads(make_record().to_json()) | changes)


@settings(deadline=None, max_examples=50)
@given(fields_of_records)
def test_a_record_survives_its_line_of_json(fields):
    record = build(fields)
    line = record.to_json()
    assert line.splitlines() == [line]  # splitlines also knows U+2028 and other separators
    assert BenchmarkRecord.from_json(line) == record


@settings(deadline=None, max_examples=10)  # each record is forced to disk
@given(st.lists(fields_of_records, max_size=3))
def test_appended_records_are_read_back_in_order(tmp_path_factory, fields):
    written = [build(each) for each in fields]
    path = tmp_path_factory.mktemp("records") / "runs.jsonl"
    check_writable(path)
    for record in written:
        append_record(path, record)
    assert read_records(path) == (written, [])
    assert path.read_bytes().count(b"\n") == len(written)


def test_a_line_holds_the_schema_version_and_all_samples():
    record = make_record(samples_s={"forward": [0.25, 0.5]}, metrics={"loss": None})
    stored = json.loads(record.to_json())
    assert stored["schema_version"] == SCHEMA_VERSION == 1
    assert stored["samples_s"] == {"forward": [0.25, 0.5]}
    assert stored["provenance"]["versions"]["cuda"] is None
    assert list(stored) == [field.name for field in dataclasses.fields(BenchmarkRecord)]


def test_line_separators_and_undecodable_file_names_survive(tmp_path):
    odd = "a\u2028b\u2029c\x85d\ne\r\0 \udcff µ"  # \udcff: a byte of a file name that is not UTF-8
    path = tmp_path / "runs.jsonl"
    for _ in range(2):
        append_record(path, make_record(reason=odd, case={odd: odd}))
    stored, problems = read_records(path)
    assert [record.reason for record in stored] == [odd, odd]
    assert stored[0].case == {odd: odd}
    assert problems == []


def test_a_half_written_last_line_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_record(path, make_record())
    with path.open("a") as file:
        file.write(make_record().to_json()[:50])
    stored, problems = read_records(path)
    assert stored == [make_record()]
    assert problems == [f"{path}: line 2 ignored: not JSON, or cut off"]


@pytest.mark.parametrize("rest", [b'{"experiment": "trai', b"\xff\xfe", b" "])
def test_appending_after_a_half_written_line_starts_a_new_line(tmp_path, rest):
    path = tmp_path / "runs.jsonl"
    append_record(path, make_record())
    with path.open("ab") as file:
        file.write(rest)
    append_record(path, make_record(status="oom", reason="too large"))
    stored, problems = read_records(path)
    assert [record.status for record in stored] == ["ok", "oom"]
    assert len(problems) == bool(rest.strip())


def test_every_prefix_of_a_file_is_readable(tmp_path):
    path = tmp_path / "runs.jsonl"
    for _ in range(2):
        append_record(path, make_record())
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for length in range(first_line, len(whole), 7):  # whatever instant the writer was killed at
        path.write_bytes(whole[:length])
        stored, problems = read_records(path)
        complete = length >= len(whole) - 1  # the last byte is only the newline
        assert len(stored) == 1 + complete
        assert len(problems) == (length != first_line and not complete)


def test_an_empty_file_and_blank_lines_hold_no_records(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.touch()
    assert read_records(path) == ([], [])
    path.write_text(f"\n{make_record().to_json()}\r\n\n")
    assert read_records(path) == ([make_record()], [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("hello", "not JSON, or cut off"),
        ("[" * 4, "not JSON, or cut off"),
        ("[1]", "JSON, but not a benchmark record"),
        ("null", "JSON, but not a benchmark record"),
        ('{"a": 1}', "JSON, but not a benchmark record"),
        (as_json(schema_version=2), "schema 2, this program reads 1"),
        (as_json(schema_version=None), "schema None, this program reads 1"),
        (as_json(surprise=1), "missing or unknown fields"),
        (as_json(provenance={}), "missing or unknown fields"),
        (as_json(provenance=None), "missing or unknown fields"),
        ('{"schema_version": 1}', "missing or unknown fields ('provenance')"),
        (as_json(status="great"), "unknown status 'great'"),
        (as_json(case=[1]), "must be JSON objects"),
        (as_json(samples_s=[1.0]), "must be JSON objects"),
        (as_json(warmup_samples_s=3), "must be JSON objects"),
        (as_json(metrics="none"), "must be JSON objects"),
        (as_json(samples_s={"forward": 1.0}), "samples must be lists of seconds"),
        (as_json(warmup_samples_s={"forward": ["fast"]}), "samples must be lists of seconds"),
    ],
)
def test_a_foreign_line_is_skipped_with_the_reason(tmp_path, no_shape_checks, line, why):
    path = tmp_path / "odd: name.jsonl"
    path.write_text(line + "\n" + make_record().to_json() + "\n")
    stored, (problem,) = read_records(path)
    assert stored == [make_record()]
    assert problem.startswith(f"{path}: line 1 ignored: ")
    assert why in problem
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match="holds no benchmark records") as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path} holds no benchmark records (line 1 ignored: ")
    assert why in str(caught.value)


def test_a_binary_file_is_no_record_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="holds no benchmark records"):
        read_records(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.jsonl: cannot read \(No such file or directory\)"):
        read_records(tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match=r"cannot read \(Is a directory\)"):
        read_records(tmp_path)


def test_check_writable_accepts_new_and_existing_files_and_keeps_their_content(tmp_path):
    path = tmp_path / "runs.jsonl"
    check_writable(path)
    append_record(path, make_record())
    check_writable(path)
    assert read_records(path) == ([make_record()], [])
    check_writable(pathlib.Path("/dev/null"))


def test_check_writable_names_what_is_wrong_and_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"--output .*: folder .*/missing does not exist; create it first"):
        check_writable(tmp_path / "missing" / "runs.jsonl")
    with pytest.raises(
        ValueError, match=r"--output .*: cannot write \(Is a directory\); choose another place"
    ):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"folder .*/file does not exist"):
        check_writable(tmp_path / "file" / "runs.jsonl")


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_os_error():
    with pytest.raises(OSError, match="No space left"):
        append_record(pathlib.Path("/dev/full"), make_record())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["case", "metrics", "samples_s"])
def test_a_number_that_json_does_not_have_is_refused_before_the_file_is_touched(tmp_path, value, place):
    path = tmp_path / "runs.jsonl"
    content = [value] if place == "samples_s" else value
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_record(path, make_record(**{place: {"forward": content}}))
    assert not path.exists()


def test_the_key_is_the_experiment_and_the_case_and_nothing_else():
    first = make_record(case={"a": 1, "b": [1, 2]})
    assert first.key == make_record(case={"b": (1, 2), "a": 1}, status="failed", reason="x", notes=["y"]).key
    assert first.key == BenchmarkRecord.from_json(first.to_json()).key
    assert first.key != make_record(case={"a": 1, "b": [2, 1]}).key
    assert first.key != make_record(case=first.case, experiment="other").key
    assert make_record(case={"a": 1}).key != make_record(case={"a": True}).key


def test_reading_records_needs_no_torch():
    code = "import sys, cs_systems.bench.record; print({'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_file_cut_off_in_its_first_record_can_be_used_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(make_record().to_json()[:50])
    assert read_records(path)[0] == []
    append_record(path, make_record())
    stored, (problem,) = read_records(path)
    assert stored == [make_record()]
    assert "line 1 ignored" in problem
