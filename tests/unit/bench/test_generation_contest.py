"""Engines in turns: tokens are compared first, the ratio is Hugging Face over ours, Ctrl-C loses nothing."""

import itertools
import json

import pytest
import torch

from cs_systems.bench import generation, generation_contest
from cs_systems.bench.generation_contest import measure
from cs_systems.bench.generation_contest_table import contest_table
from cs_systems.bench.record import read_records
from cs_systems.tables import render_table

pytest.importorskip("transformers")

FLAGS = [
    *("--side-by-side", "--d-model", "32", "--num-layers", "1", "--vocab-size", "256", "--prompt-len", "6"),
    *("--new-tokens", "4", "--runs", "3", "--threads", "1"),
]


def run_main(arguments, capsys):
    try:
        code = generation.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def make_group(*flags):
    args = generation.make_parser().parse_args([*FLAGS, *flags])
    return generation_contest.make_groups(args)


def test_contestants_take_turns_and_are_recorded_and_resumed(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    flags = [*FLAGS, "--engine", "ours", "--precision", "fp32,int8", "--batch-size", "2", "--output", output]
    code, out, err = run_main(flags, capsys)
    assert code == 0, err
    records, problems = read_records(output)
    assert problems == []
    names = [(record.case["engine"], record.case["precision"]) for record in records]
    assert names == [("hf", "fp32"), ("ours", "fp32"), ("hf", "bf16"), ("ours", "int8")]
    assert {record.status for record in records} == {"ok"}
    assert records[1].metrics["tokens_match"] == 1.0
    for record in records:
        assert {len(times) for times in record.samples_s.values()} == {3}
    theirs, ours = (sorted(record.samples_s["end_to_end"])[1] for record in records[:2])
    assert records[1].metrics["end_to_end_speedup"] == pytest.approx(theirs / ours)
    assert "end_to_end_speedup" not in records[0].metrics
    assert json.loads(out.splitlines()[-1])["records"][1]["metrics"]["end_to_end_speedup"] > 0
    code, out, err = run_main([*flags, "--resume"], capsys)
    assert code == 0
    assert err.count("finished before") == 2
    assert "Times as fast" in render_table(contest_table(records), "table")


def test_the_default_is_the_three_groups_of_a_small_gpt2():
    groups = make_group()
    assert [len(cases) for cases in groups] == [3, 5, 3]
    assert [cases[0].batch_size for cases in groups] == [1, 1, 8]
    assert {cases[0].workload.engine for cases in groups} == {"hf"}


def test_other_tokens_in_fp32_are_a_failure_without_a_time(monkeypatch):
    real = generation_contest.load_ours

    def spoiled(case, model):
        with torch.no_grad():
            model.token_embeddings.weight.add_(torch.randn(256, 32))
        return real(case, model)

    monkeypatch.setattr(generation_contest, "load_ours", spoiled)
    (cases,) = make_group("--engine", "ours", "--precision", "fp32")
    outcomes, _ = measure(cases, torch.device("cpu"), ["hf fp32", "ours fp32"], lambda _: None)
    assert outcomes["hf fp32"].status == "ok"
    assert outcomes["ours fp32"].status == "failed"
    assert "agree, so its time means nothing" in outcomes["ours fp32"].reason
    assert outcomes["ours fp32"].samples_s == {}


def test_ctrl_c_keeps_the_rounds_that_are_complete(monkeypatch):
    real, calls = generation_contest.timed_generate, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 2 * 2 + 2 + 1:  # check and warm-up of both, a round, half a round
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generation_contest, "timed_generate", interrupted)
    (cases,) = make_group("--engine", "ours", "--precision", "bf16")
    outcomes, was_interrupted = measure(cases, torch.device("cpu"), ["hf bf16", "ours bf16"], lambda _: None)
    assert was_interrupted
    assert {outcome.reason for outcome in outcomes.values()} == {"interrupted after 1 of 3 rounds"}
    assert [len(outcome.samples_s["end_to_end"]) for outcome in outcomes.values()] == [1, 1]
