"""Tables and plots of the training experiment, from records made up here."""

import dataclasses

import pytest

from cs_systems.bench.record import BenchmarkRecord, Provenance
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.report.training_curves import draw_curves
from cs_systems.report.training_stability import draw, summary, tables
from cs_systems.tables import Cell, render_table

SHARES = {
    "zeroed_logit_fraction": 0.0, "zeroed_fraction": 0.0, "below_fp16_fraction": 0.0001,
    "below_fp16_normal_fraction": 0.1, "gradient_error": 0.0, "lost_update_fraction": 0.0,
}  # fmt: skip


def make_record(precision, seed=0, held_out=2.0, *, status="ok", reason=None, device_type="cpu", **given):
    """A run of 20 steps; `given` are settings of the case or metrics."""
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    settings = {name: value for name, value in given.items() if name in names}
    config = TrainingConfig(precision=precision, seed=seed, steps=20, eval_every=10, **settings)
    steps = given.get("steps_done", 20)
    loss = [5 - 3 * i / 20 + (held_out - 2) for i in range(steps)]
    curves = {
        "loss": loss, "grad_norm": [1.0] * steps, "scale": [2.0**16] * steps,
        "skipped": [i == 3 for i in range(steps)],
        "evaluations": [{"step": step, "held_out_loss": held_out, **SHARES} for step in range(0, steps, 10)],
    }  # fmt: skip
    metrics = {
        "steps_done": steps, "diverged_at_step": None, "final_loss": 2.1, "held_out_loss": held_out,
        "held_out_bits_per_byte": held_out / 0.693, "min_scale": None, "max_scale": None,
        "num_skipped_steps": None, "text_num_files": 3, "text_num_bytes": 12_345, "text_sha256": "ab" * 32,
        "curves": curves, **SHARES,
    }  # fmt: skip
    metrics |= {name: value for name, value in given.items() if name not in names}
    provenance = Provenance(
        "python -m cs_systems.mixed_precision train", "abc1234def56", True, "2026-01-02T03:04:05+00:00",
        "Some Chip", device_type, 2, {"torch": "2.13.0"},
    )  # fmt: skip
    times = {"train_step": [9.0] + [0.25] * (steps - 1)}
    return BenchmarkRecord(
        "training_stability", dataclasses.asdict(config), status, provenance, reason, times, {}, metrics
    )


def cells(table, key):
    return [row[key] for row in table.rows]


def notes_of(table):
    return " ".join(table.notes)


def test_differences_are_taken_from_fp32_of_the_same_seed():
    records = [
        make_record("fp32", 0, 2.0), make_record("fp32", 1, 3.0), make_record("bf16", 0, 2.5),
        make_record("bf16", 1, 3.25), make_record("bf16", 2, 9.0),
    ]  # fmt: skip
    by_precision, by_run = tables(records)
    assert cells(by_run, "minus_fp32") == [None, None, 0.5, 0.25, None]
    assert cells(by_precision, "precision") == ["fp32", "bf16"]
    assert cells(by_precision, "minus_fp32") == [None, 0.375]
    assert cells(by_precision, "held_out_loss") == [2.5, 3.25]
    assert [cell.value for cell in cells(by_precision, "num_runs")] == [2, 3]
    assert "seeds of fp32 end up to 1.0000 nats apart" in notes_of(by_precision)


@pytest.mark.parametrize("other", [{"text_sha256": "cd" * 32}, {"learning_rate": 0.5}, {"device": "cuda"}])
def test_runs_of_another_text_setting_or_device_are_not_compared(other):
    by_run = tables([make_record("fp32", **other), make_record("bf16")])[1]
    assert cells(by_run, "minus_fp32") == [None, None]


def test_the_first_step_does_not_count_for_the_time():
    record = dataclasses.replace(make_record("fp32"), samples_s={"train_step": [9.0, 0.25, 0.75]})
    table = tables([record])[1]
    assert cells(table, "median_step_s") == [0.5]
    assert "median without the first" in notes_of(table)


def test_a_setting_that_varies_becomes_a_column():
    records = [make_record("fp32", learning_rate=rate) for rate in (0.1, 0.2)]
    for table in tables(records):
        shown = [column.key for column in table.columns if not column.raw_only]
        assert shown[:2] == ["learning_rate", "precision"]
        assert cells(table, "learning_rate") == [0.1, 0.2]


def test_machines_are_not_mixed():
    records = [make_record("fp32"), make_record("fp32", 1)]
    there = dataclasses.replace(records[1].provenance, device="Another Chip")
    records[1] = dataclasses.replace(records[1], provenance=there)
    for table in tables(records):
        assert table.columns[0].key == "processor"
        assert not table.columns[0].raw_only
        assert cells(table, "processor") == ["Some Chip", "Another Chip"]


def test_runs_that_ended_early_say_how():
    interrupted = make_record(
        "fp16", 1, status="failed", reason="interrupted after 7 of 20 steps", steps_done=7, max_scale=2.0**16,
        min_scale=2.0**15, num_skipped_steps=1,
    )  # fmt: skip
    gone = {"diverged_at_step": 12, "steps_done": 12, "final_loss": None, "held_out_loss": None}
    records = [
        make_record("fp16", 0),
        interrupted,
        make_record("fp16-noscale", 0),
        make_record("fp16-noscale", 1),
    ]
    records[2] = dataclasses.replace(records[2], metrics={**records[2].metrics, **gone})
    by_precision, by_run = tables(records)
    assert by_run.rows[1]["held_out_loss"] == Cell(None, "failed")
    assert by_run.rows[1]["steps_done"] == Cell(7, "7/20")
    assert by_run.rows[2]["held_out_loss"] == by_run.rows[2]["final_loss"] == Cell(None, "diverged")
    assert [cell.text for cell in cells(by_precision, "num_runs")] == ["1/2", "1/2"]
    assert "fp16, seed 1: failed, interrupted after 7 of 20 steps" in notes_of(by_run)
    assert "the scale doubles after 50 good steps" in notes_of(by_run)
    text = render_table(by_run, "table")
    assert "2^15" in text
    assert "2^16" in text


def test_a_case_without_any_metrics_keeps_its_row():
    refused = dataclasses.replace(
        make_record("fp16"), status="failed", reason="run.pt is cut off", metrics={}, samples_s={}
    )
    by_precision, by_run = tables([make_record("fp32"), refused])
    assert by_run.rows[1]["held_out_loss"] == Cell(None, "failed")
    assert by_precision.rows[1]["num_runs"].text == "0/1"
    assert "run.pt is cut off" in notes_of(by_run)
    for table in tables([refused]):
        for style in ("table", "md", "csv", "json", "latex"):
            assert render_table(table, style)
    assert summary(refused)["final_loss"] is None


def test_notes_fit_what_was_run():
    on_cpu = notes_of(tables([make_record("fp16-noscale"), make_record("pure-bf16")])[0])
    assert "autocast on a CPU leaves" in on_cpu
    assert "pure-bf16 loses updates" in on_cpu
    assert "fp16-noscale: " in on_cpu
    on_gpu = notes_of(tables([make_record("fp32", device_type="cuda")])[0])
    assert " CPU" not in on_gpu
    assert "pure-bf16 loses" not in on_gpu
    for words in ("Some Chip", "torch 2.13.0", "abc1234*", "2026-01-02", "12,345 bytes", "abababababab"):
        assert words in on_cpu


def test_shares_that_are_small_are_not_rounded_to_nothing():
    table = tables([make_record("fp32", lost_update_fraction=0.000042, zeroed_fraction=0.5)])[1]
    text = render_table(table, "table")
    assert "0.0042%" in text
    assert "50.0%" in text


def test_the_summary_has_the_numbers_and_not_the_curves():
    record = make_record("bf16", held_out=2.5, lost_update_fraction=0.25)
    numbers = summary(record)
    assert (numbers["held_out_loss"], numbers["lost_update_fraction"], numbers["median_step_s"]) == (
        2.5,
        0.25,
        0.25,
    )
    assert "curves" not in numbers


def test_every_run_is_drawn_and_differences_cancel_the_common_noise():
    pytest.importorskip("matplotlib")
    records = [make_record(name, seed, 2.0 + offset) for seed in (0, 1) for name, offset in (
        ("fp32", 0.0), ("bf16", 0.25), ("fp16", 0.5),
    )]  # fmt: skip
    records[2] = dataclasses.replace(records[2], metrics={**records[2].metrics, "max_scale": 2.0**16})
    for record in records[1:3]:
        for one in record.metrics["curves"]["evaluations"]:
            one["gradient_error"] = 0.01
    loss, difference, error, scale, *_ = map(lines_of, draw_curves(records).axes)
    assert len(loss) == 2 * 6  # single batches, and their mean
    assert len(loss[0][1]) == 20
    assert sorted({round(y[5], 9) for _, y in difference}) == [0.25, 0.5]
    assert len(difference) == 4
    assert [y for _, y in error] == [pytest.approx([1.0, 1.0])] * 2  # a logarithmic axis has no 0
    (steps, scales), (skipped, _) = scale
    assert len(steps) == len(scales) == 20
    assert skipped == [4]


def lines_of(panel):
    """(x, y) of every line."""
    return [([*map(float, line.get_xdata())], [*map(float, line.get_ydata())]) for line in panel.lines]


def test_a_running_mean_stands_in_the_middle_of_its_window():
    pytest.importorskip("matplotlib")
    record = make_record("fp32")
    record = dataclasses.replace(record, case={**record.case, "steps": 60})  # a twentieth of it: 3
    x, y = lines_of(draw_curves([record]).axes[0])[1]
    values = [5 - 3 * i / 20 for i in range(20)]
    assert x == [step + 1 for step in range(1, 19)]
    assert y == pytest.approx([sum(values[i : i + 3]) / 3 for i in range(18)])


def test_each_setting_gets_its_files_and_what_is_not_drawn_is_told(tmp_path):
    pytest.importorskip("matplotlib")
    records = [make_record("fp32", learning_rate=0.1), make_record("bf16", learning_rate=0.2, steps_done=1)]
    files, remarks = draw(records, tmp_path / "plots")
    assert [file.name for file in files] == [
        f"training_stability_learning_rate_0.1.{end}" for end in ("svg", "png")
    ]
    assert all(file.stat().st_size > 1000 for file in files)
    assert remarks == [
        "training_stability_learning_rate_0.2: bf16, seed 0 is not drawn, it has under two steps"
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot create this folder"):
        draw([make_record("fp32")], tmp_path / "file")
