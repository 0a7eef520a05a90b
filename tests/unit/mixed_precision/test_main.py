"""The command as a user meets it; what each experiment computes is tested elsewhere."""

import json

import pytest

from cs_systems.bench import accumulation, autocast, layer_norm
from cs_systems.bench.record import read_records
from cs_systems.mixed_precision import __main__ as command
from cs_systems.mixed_precision.settings import AccumulationConfig, AutocastConfig, LayerNormConfig


def run(capsys, *words):
    """Exit code, output and errors of the command."""
    try:
        code = command.main(list(words))
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_course_sums_come_out_as_printed_by_the_course(capsys):
    code, out, _ = run(capsys, "accumulation", "--dtypes", "fp32,fp16")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    totals = [next(word for word in row if word.startswith(("10.", "9."))) for row in rows[3:7]]
    assert totals == ["10.0001", "9.9531", "10.0021", "10.0021"]
    assert json.loads(out.splitlines()[-1])["experiment"] == "accumulation"


def test_records_are_kept_and_finished_cases_are_not_run_again(capsys, tmp_path, monkeypatch):
    output = tmp_path / "runs.jsonl"
    words = ("accumulation", "--steps", "10,20", "--dtypes", "fp16", "--output", str(output))
    assert run(capsys, *words)[0] == 0
    records, problems = read_records(output)
    assert [record.case["steps"] for record in records] == [10, 20]
    assert problems == []
    monkeypatch.setattr(accumulation, "run_case", None)  # to be called would fail
    code, out, _ = run(capsys, *words, "--resume")
    assert code == 0
    assert len(json.loads(out.splitlines()[-1])["records"]) == 2


def test_ctrl_c_between_cases_keeps_what_is_done(capsys, tmp_path, monkeypatch):
    real, output = accumulation.run_case, tmp_path / "runs.jsonl"

    def pressed_in_the_second(config, *others):
        return (None, True) if config.steps == 20 else real(config, *others)

    monkeypatch.setattr(accumulation, "run_case", pressed_in_the_second)
    words = ("accumulation", "--steps", "10,20", "--dtypes", "fp16", "--output", str(output))
    code, _, err = run(capsys, *words)
    assert code == 130
    assert "interrupted; 1 of 2 cases are complete" in err
    assert len(read_records(output)[0]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["accumulation", "--steps", "0"], "--steps 0 must be between"),
        (["accumulation", "--value", "nan"], "not a finite number"),
        (["accumulation", "--value", "1e6", "--dtypes", "fp16"], "--value 1e+06, --dtypes fp16"),
        (["accumulation", "--dtypes", "fp8"], "'fp8' is not one of"),
        (["accumulation", "--stepps", "1"], "did you mean --steps?"),
        (["accumulation", "--resume"], "--resume needs --output"),
        (["autocast", "--model", "smal"], "did you mean small?"),
        (["layer-norm", "--d-model", "1"], "one number has no variance"),
        (["train", "--text", "no/such/file", "--steps", "1"], "no/such/file"),
        (["train", "--d-model", "10", "--num-heads", "3"], "num-heads"),
        (["acumulation"], "invalid choice"),
        (["accumulation", "--plots", __file__], "is a file; name a folder"),
        (["train", "--steps", "1", "--checkpoints", __file__], "is a file; name a folder"),
    ],
)
def test_bad_usage_is_one_line(capsys, words, said):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "config"),
    [
        (accumulation, AccumulationConfig(steps=10)),
        (autocast, AutocastConfig()),
        (layer_norm, LayerNormConfig(d_model=16)),
    ],
)
def test_the_announced_number_of_steps_is_told(body, config):
    told = []
    body.run_case(config, "a command", told.append)
    assert len(told) == body.num_steps(config)


def test_a_plot_that_there_is_not_is_no_failure(capsys, tmp_path):
    code, _, err = run(capsys, "autocast", "--plots", str(tmp_path))
    assert code == 0
    assert "no plot" in err


@pytest.mark.parametrize("style", ["json", "md", "csv", "latex"])
def test_every_format_is_printed(capsys, style):
    code, out, _ = run(capsys, "accumulation", "--dtypes", "bf16", "--steps", "5", "--format", style)
    assert code == 0
    assert out.strip()
    if style == "json":
        assert json.loads(out)
