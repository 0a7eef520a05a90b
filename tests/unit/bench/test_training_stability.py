"""A training run as a record: complete, interrupted and continued, diverged, or refused."""

import dataclasses
import json
import math
import signal
import statistics
from typing import Any

import pytest
import torch

from cs_systems.bench import training_stability
from cs_systems.bench.training_stability import check_all, run_case
from cs_systems.mixed_precision.checkpoint import checkpoint_path
from cs_systems.mixed_precision.settings import TrainingConfig

STEPS = 6


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and the dog on the log. " * 60)
    return str(path)


def make_config(text, **settings):
    sizes: dict[str, Any] = {
        "d_model": 32, "num_heads": 2, "num_layers": 1, "context_length": 16, "batch_size": 4, "steps": STEPS,
        "eval_every": 4, "growth_interval": 2,
    }  # fmt: skip
    return TrainingConfig(text=text, **(sizes | settings))


def run(config, on_step=lambda phase: None, **options):
    return run_case(config, "python -m cs_systems.mixed_precision train", on_step, **options)


def stop_at(step):
    """An `on_step` in which Ctrl-C arrives after so many calls."""
    calls = []

    def on_step(phase):
        calls.append(phase)
        if len(calls) == step:
            raise KeyboardInterrupt

    return on_step


def test_a_record_holds_the_curves_and_what_follows_from_them(text):
    phases = []
    record, interrupted = run(make_config(text, precision="fp16"), phases.append)
    assert not interrupted
    assert (record.experiment, record.status, record.reason) == ("training_stability", "ok", None)
    assert phases == ["trained"] * STEPS
    assert record.case == dataclasses.asdict(make_config(text, precision="fp16"))
    assert list(record.samples_s) == ["train_step"]
    assert len(record.samples_s["train_step"]) == STEPS
    assert record.warmup_samples_s == {}
    metrics = json.loads(record.to_json())["metrics"]
    curves = metrics["curves"]
    assert {len(curves[name]) for name in ("loss", "grad_norm", "scale", "skipped")} == {STEPS}
    assert metrics["final_loss"] == curves["loss"][-1]  # a tenth of six steps: the last
    assert metrics["held_out_loss"] == curves["evaluations"][-1]["held_out_loss"]
    assert metrics["held_out_bits_per_byte"] == pytest.approx(metrics["held_out_loss"] / math.log(2))
    assert (metrics["min_scale"], metrics["max_scale"]) == (min(curves["scale"]), max(curves["scale"]))
    assert metrics["num_skipped_steps"] == curves["skipped"].count(True)
    errors = [one["gradient_error"] for one in curves["evaluations"] if one.get("gradient_error") is not None]
    assert metrics["gradient_error"] == pytest.approx(statistics.fmean(errors))
    assert metrics["text_num_bytes"] == 60 * 48
    assert metrics["diverged_at_step"] is None


def test_no_scale_is_reported_where_there_is_no_scaler(text):
    metrics = run(make_config(text, precision="bf16"))[0].metrics
    assert metrics["min_scale"] is metrics["max_scale"] is metrics["num_skipped_steps"] is None
    assert metrics["autocast"] == "bf16"


def test_an_interrupted_run_is_recorded_and_continued_to_the_same_end(text, tmp_path):
    config, folder = make_config(text, precision="fp16"), tmp_path / "checkpoints"
    whole, _ = run(config)
    record, interrupted = run(config, stop_at(2), checkpoints=folder)
    assert interrupted
    assert record.status == "failed"
    assert record.reason == "interrupted after 2 of 6 steps; the same command with --resume continues it"
    assert record.metrics["curves"]["loss"] == whole.metrics["curves"]["loss"][:2]
    phases = []
    record, interrupted = run(config, phases.append, checkpoints=folder, resume=True)
    assert not interrupted
    assert phases == ["resumed"] * 2 + ["trained"] * 4
    assert record.status == "ok"
    assert record.metrics["curves"] == whole.metrics["curves"]
    assert record.notes == ["continued from a checkpoint after step 2"]
    assert len(record.samples_s["train_step"]) == STEPS
    again, _ = run(config, checkpoints=folder, resume=True)  # its record was lost, its checkpoint was not
    assert again.metrics["curves"] == whole.metrics["curves"]
    assert again.samples_s == record.samples_s


def test_without_checkpoints_an_interrupted_run_is_still_recorded(text):
    record, interrupted = run(make_config(text), stop_at(3))
    assert interrupted
    assert record.reason == "interrupted after 3 of 6 steps; a run with --checkpoints FOLDER can be continued"
    assert len(record.metrics["curves"]["loss"]) == record.metrics["steps_done"] == 3
    assert record.to_json()


def test_the_signal_of_ctrl_c_waits_for_the_end_of_a_step(text, monkeypatch):
    advance = training_stability.TrainingRun.advance

    def interrupted_in_the_middle(self):
        if self.num_steps == 2:
            signal.raise_signal(signal.SIGINT)
        advance(self)

    monkeypatch.setattr(training_stability.TrainingRun, "advance", interrupted_in_the_middle)
    before = signal.getsignal(signal.SIGINT)
    record, interrupted = run(make_config(text))
    assert interrupted
    assert record.metrics["steps_done"] == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_leaves_no_record(text, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_stability, "read_text", interrupt)
    assert run(make_config(text)) == (None, True)


def test_checkpoints_are_written_while_training(text, tmp_path):
    config, sizes = make_config(text), []
    path = checkpoint_path(tmp_path, config)

    def look(phase):
        sizes.append(torch.load(path, weights_only=True)["state"]["curves"]["loss"])

    run(config, look, checkpoints=tmp_path, checkpoint_every_s=0.0)
    assert [len(losses) for losses in sizes] == list(range(1, STEPS + 1))


def test_a_checkpoint_is_neither_overwritten_nor_trusted(text, tmp_path):
    config = make_config(text)
    run(config, checkpoints=tmp_path)
    path = checkpoint_path(tmp_path, config)
    content = path.read_bytes()
    record, interrupted = run(config, checkpoints=tmp_path)
    assert not interrupted
    assert record.status == "failed"
    assert record.reason == f"{path} holds this run already: add --resume to continue it, or delete it"
    assert path.read_bytes() == content
    path.write_bytes(content[:-100])
    record, _ = run(config, checkpoints=tmp_path, resume=True)
    assert record.status == "failed"
    assert "cut off" in record.reason


def test_a_resumed_run_that_finds_only_other_settings_says_so(text, tmp_path):
    record, _ = run(make_config(text), checkpoints=tmp_path, resume=True)
    assert (record.status, record.notes) == ("ok", [])  # a later case of a sweep: nothing is missing
    record, _ = run(make_config(text, steps=5), checkpoints=tmp_path, resume=True)
    assert record.status == "ok"
    assert record.notes == [
        "started from step 0: its checkpoints in the folder are of runs with other settings"
    ]


def test_a_folder_that_cannot_be_written_is_told_before_training(text):
    record, _ = run(make_config(text), stop_at(1), checkpoints=training_stability.pathlib.Path(text))
    assert record.status == "failed"
    assert "--checkpoints" in record.reason
    assert "cannot write" in record.reason


def test_a_disk_that_fills_up_costs_the_checkpoint_and_not_the_run(text, tmp_path, monkeypatch):
    save, saved = training_stability.save_checkpoint, []

    def fail_later(path, run):
        saved.append(path)
        if len(saved) > 1:
            raise ValueError("--checkpoints: cannot write (No space left on device)")
        save(path, run)

    monkeypatch.setattr(training_stability, "save_checkpoint", fail_later)
    record, _ = run(make_config(text), checkpoints=tmp_path, checkpoint_every_s=0.0)
    assert record.status == "ok"
    assert record.notes == ["--checkpoints: cannot write (No space left on device)"]


def test_a_run_that_diverges_is_a_result(text):
    record, _ = run(make_config(text, learning_rate=1e30, warmup_fraction=0.0, steps=40))
    assert record.status == "ok"
    done = record.metrics["diverged_at_step"]
    assert 1 < done < 40
    assert record.metrics["steps_done"] == len(record.metrics["curves"]["loss"]) == done
    assert record.metrics["final_loss"] is record.metrics["held_out_loss"] is None
    assert record.notes == [f"the loss of step {done} is inf or nan: the run ends there"]
    assert record.to_json()


def test_memory_that_runs_out_is_a_result_with_advice(text, monkeypatch):
    def advance(self):
        raise MemoryError

    monkeypatch.setattr(training_stability.TrainingRun, "advance", advance)
    record, interrupted = run(make_config(text))
    assert (record.status, interrupted) == ("oom", False)
    assert "--batch-size" in record.reason


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text": "no/such/file"}, "--text no/such/file: no such file or folder"),
        ({"num_heads": 5}, "--d-model 32 is not divisible by --num-heads 5"),
        ({"context_length": 5000}, "too few: a tenth is held out"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(text, settings, said):
    with pytest.raises(ValueError, match=said):
        check_all([make_config(text), make_config(**({"text": text} | settings))])


def test_good_cases_pass(text):
    check_all([make_config(text), make_config(text, precision="pure-bf16")])
