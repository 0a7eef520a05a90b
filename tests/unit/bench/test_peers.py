"""The comparison with Hugging Face as users run it, and its parts on models and clocks made for it."""

import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys

import pytest

from cs_systems.bench import peers
from cs_systems.bench.peer_case import PASSES, PeersConfig, case_settings, peer_config, peer_settings
from cs_systems.bench.record import read_records
from cs_systems.model.presets import find_preset

ROOT = pathlib.Path(__file__).parents[3]
TINY = ["--model", "tiny", "--context-length", "8", "--batch-size", "2", "--threads", "1", "--steps", "2"]

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="needs the peer: pip install 'cs_systems[peers]'",
)


def run_main(arguments, capsys):
    """Exit code, standard output and standard error of the command."""
    try:
        code = peers.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@needs_transformers
@pytest.mark.timeout(120)
def test_both_families_and_attentions_are_compared_and_recorded(tmp_path, capsys):
    output = tmp_path / "runs.jsonl"
    flags = [*TINY, "--family", "llama,gpt2", "--attention", "naive,sdpa", "--output", output]
    code, out, err = run_main(flags, capsys)
    assert code == 0, err
    rows = json.loads(out.splitlines()[-1])["records"]
    assert [(row["family"], row["attention"], row["status"]) for row in rows] == [
        (family, attention, "ok") for family in ("llama", "gpt2") for attention in ("naive", "sdpa")
    ]
    assert "Ratio" in out
    records, problems = read_records(output)
    assert problems == []
    for record in records:
        assert record.experiment == "peers"
        assert record.case["d_model"] == 128
        assert record.provenance.command.startswith("python -m cs_systems.bench.peers --model tiny")
        assert record.metrics["logit_difference"] < 1e-5
        for name in PASSES:
            times = record.samples_s[f"{name}_ours"], record.samples_s[f"{name}_peer"]
            assert [len(side) for side in times] == [2, 2]
            ratio, low, high = (record.metrics[key][name] for key in ("ratio", "ratio_low", "ratio_high"))
            assert ratio == pytest.approx(sum(times[0]) / sum(times[1]))  # of two, the median is the mean
            assert low <= ratio <= high

    code, out, err = run_main([*flags, "--resume", "--format", "csv"], capsys)
    assert code == 0
    assert err.count("finished before") == 4
    assert len(read_records(output)[0]) == 4
    assert out.count("\n") == 1 + 4 * len(PASSES)


@needs_transformers
def test_models_that_differ_are_not_timed(monkeypatch, capsys):
    from cs_systems.bench import side_by_side

    def forget_a_layer(*arguments):
        state = mapped(*arguments)
        state["layers.0.ffn.w2.weight"] = state["layers.0.ffn.w2.weight"] * 0
        return state

    mapped = side_by_side.state_from_hugging_face
    monkeypatch.setattr(side_by_side, "state_from_hugging_face", forget_a_layer)
    code, out, _ = run_main(TINY, capsys)
    assert code == 1
    (row,) = json.loads(out.splitlines()[-1])["records"]
    assert row["status"] == "failed"
    assert "do not compute the same" in row["reason"]
    assert "ratio" not in row["metrics"]


@needs_transformers
def test_a_model_that_cannot_fit_is_skipped(monkeypatch, capsys):
    from cs_systems.bench import side_by_side

    monkeypatch.setattr(side_by_side, "available_bytes", lambda: 1 << 20)
    code, out, _ = run_main(TINY, capsys)
    assert code == 0
    (row,) = json.loads(out.splitlines()[-1])["records"]
    assert row["status"] == "skipped"
    assert "9.0 MiB, 1.0 MiB are free" in row["reason"]


@needs_transformers
def test_ctrl_c_keeps_complete_steps(monkeypatch, tmp_path, capsys):
    from cs_systems.bench import side_by_side

    calls = itertools.count(1)

    def forward(self, token_ids, targets):
        if next(calls) == 6:  # warm-up step: 1, 2; first measured step: 3, 4; in the middle of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side.Contestant, "forward", forward)
    output = tmp_path / "runs.jsonl"
    code, out, err = run_main([*TINY, "--family", "llama,gpt2", "--output", output], capsys)
    assert code == 130
    assert "interrupted; 0 of 2 cases are complete" in err
    (record,), _ = read_records(output)
    assert record.status == "failed"
    assert record.reason == "interrupted after 1 of 4 steps"
    assert [len(times) for times in record.samples_s.values()] == [1, 1]
    assert json.loads(out.splitlines()[-1])["records"][0]["metrics"]["ratio"].keys() == {"forward"}


@needs_transformers
def test_turns_are_taken_in_alternating_order_and_preparation_is_not_timed():
    from cs_systems.bench.side_by_side import measure_in_turns

    now, log = [0.0], []

    def take(name, seconds):
        log.append(name)
        now[0] += seconds

    times = {}
    measure_in_turns(
        {"ours": lambda: take("ours", 2.0), "peer": lambda: take("peer", 3.0)}, 3, times,
        prepare=lambda: take("prepare", 5.0), on_step=lambda: take("step", 7.0), clock=lambda: now[0],
    )  # fmt: skip
    assert [name for name in log if name in times] == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert times == {"ours": [2.0] * 3, "peer": [3.0] * 3}
    assert log.count("prepare") == 6
    assert log.count("step") == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("model", ["tiny", "small", "medium"])
def test_the_peer_has_the_shape_of_the_preset(family, model):
    shape = find_preset(model).config
    config = peer_config(PeersConfig(model=model, family=family, context_length=32))
    for name in ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "d_ff", "norm_eps"):
        assert getattr(config, name) == getattr(shape, name), name
    assert config.context_length == 32
    if family == "llama":  # the presets of the course are Llamas already
        assert config == shape.replace(context_length=32)


def test_the_case_holds_every_setting():
    case = PeersConfig(model="tiny", threads=2)
    settings = case_settings(case)
    assert settings["threads"] == 2
    assert settings["d_ff"] == peer_config(case).d_ff
    assert json.loads(json.dumps(settings)) == settings
    assert peer_settings(case)["model_type"] == "llama"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--famly", "llama"], "did you mean --family"),
        (["--family", "bloom"], "not one of llama, gpt2"),
        (["--model", "smal"], "did you mean small"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--threads", "-1"], "--threads -1 must not be negative"),
        (["--model", "clm-60m", "--family", "gpt2"], "use --family llama"),
        (["--output", "/nowhere/x.jsonl"], "does not exist"),
        (["--resume"], "--resume needs --output"),
    ],
)
def test_bad_usage_is_one_line_with_advice(flags, words, capsys):
    code, out, err = run_main(flags, capsys)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_without_transformers_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run_main(TINY, capsys)
    assert code == 2
    assert "pip install 'cs_systems[peers]'" in err
    assert err.count("\n") == 1


def test_help_and_errors_come_before_torch_is_imported():
    program = (
        "import sys; from cs_systems.bench import peers\n"
        "try: peers.main(['--family', 'bloom'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
