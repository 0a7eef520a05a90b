"""Records of the autocast experiment, and the command as users run it."""

import json

import pytest

from cs_systems.bench import autocast as bench
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.mixed_precision.__main__ import main
from cs_systems.mixed_precision.settings import AutocastConfig


def run(**given):
    steps = []
    record, interrupted = bench.run_case(AutocastConfig(**given), "python x", steps.append)
    assert (steps, interrupted) == (["inspect"], False)
    return record


def test_a_record_holds_what_its_tables_show_and_survives_a_file():
    record = run(model="toy", loss="mean")
    assert BenchmarkRecord.from_json(record.to_json()) == record
    assert record.metrics["course_answers"]["loss"] == "fp16"
    assert record.metrics["origins"]["cpu"] == "measured on this CPU"
    assert [row["op"] for row in record.metrics["operations"]] == [
        "linear",
        "relu",
        "layer_norm",
        "linear",
        "mean",
    ]
    assert record.metrics["rules_differ"] == {"cuda": [], "cpu": []}


def test_calls_that_differ_only_in_their_block_are_one_row():
    record = run(model="tiny", dtype="bf16")
    rows = record.metrics["operations"]
    queries = [row for row in rows if row["module"] == "layers.*.attn.q_proj"]
    assert [(row["op"], row["inputs"], row["output"], row["times"]) for row in queries] == [
        ("matmul", ["fp32", "fp32"], "bf16", 2)
    ]
    assert [(row["what"], row["times"]) for row in record.metrics["differences"]] == [
        ("exp", 2), ("sum", 2), ("div", 2),
    ]  # fmt: skip
    assert record.metrics["course_answers"] is None
    assert (
        len(record.metrics["entries"]) == 2 * 21 + 27 + 2
    )  # parameters twice, modules that ran, logits, loss


def test_rules_with_one_reason_are_one_row():
    rows = bench.group_rules()
    (norms,) = [row for row in rows if "layer_norm" in row["ops"]]
    assert (norms["cuda"], norms["cpu"]) == ("fp32", "not listed")
    assert "group_norm" in norms["ops"]
    assert len({op for row in rows for op in row["ops"]}) == sum(len(row["ops"]) for row in rows)


def test_ctrl_c_leaves_no_half_record(monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "differences", interrupt)
    assert bench.run_case(AutocastConfig(), "python x", print) == (None, True)


@pytest.mark.parametrize("option", [[], ["--policy", "cpu"]])
def test_the_command_prints_types_operations_and_differences(option, capsys):
    assert main(["autocast", "--dtype", "bf16", *option]) == 0
    printed = capsys.readouterr().out
    for title in ("Autocast: toy", "Operations: toy", "CUDA against CPU: toy", "Rules of autocast"):
        assert f"\n{title}" in f"\n{printed}"
    last = json.loads(printed.splitlines()[-1])
    metrics = last["records"][0]["metrics"]
    assert metrics["layer_norm"] == ("bf16" if option else "fp32")
    assert metrics["num_differences"] == 1


def test_an_unknown_model_is_told_before_anything_runs(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["autocast", "--model", "toy,tinny"])
    assert exit_.value.code == 2
    assert "did you mean tiny? (or --model toy)" in capsys.readouterr().err
