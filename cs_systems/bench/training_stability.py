"""The training experiment: one run in one precision with one seed, as a record that holds its curves."""

import contextlib
import dataclasses
import math
import pathlib
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cs_systems import device as devices
from cs_systems.bench.provenance import collect_provenance
from cs_systems.bench.record import BenchmarkRecord, Status
from cs_systems.mixed_precision.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.mixed_precision.text import read_text
from cs_systems.mixed_precision.training import AUTOCAST, Curves, TrainingRun, model_config
from cs_systems.timing.contention import CoreLoad

CHECKPOINT_EVERY_S = 30.0
"""A run that is killed loses no more than this."""

MEASURED_SHARES = (
    "zeroed_logit_fraction",
    "zeroed_fraction",
    "below_fp16_fraction",
    "below_fp16_normal_fraction",
    "gradient_error",
    "lost_update_fraction",
)
"""What evaluations say about the precision; a record has their means."""

_OTHER_SETTINGS = "started from step 0: its checkpoints in the folder are of runs with other settings"

_LAST_SHARE = 0.1
"""The loss of one batch is noisy: the final one is the mean over the last tenth of the steps."""


def check_all(configs: Sequence[TrainingConfig]) -> None:
    """Read every text and look at every size once, before the first run.

    Raises:
        ValueError: on a text that cannot be read, sizes that do not go together, or a missing device.
    """
    for config in configs:
        model_config(config)
        _choose_device(config)
    for text, context_length in dict.fromkeys((config.text, config.context_length) for config in configs):
        read_text(text, context_length)


def num_steps(config: TrainingConfig) -> int:
    """How often `run_case` will tell of a step."""
    return config.steps


def run_case(
    config: TrainingConfig,
    command: str,
    on_step: Callable[[str], object],
    *,
    checkpoints: pathlib.Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> tuple[BenchmarkRecord | None, bool]:
    """Train one run, or finish it; returns its record, and whether Ctrl-C ended it.

    A loss of inf or nan ends a run, which is a result: its status is ok. A checkpoint that cannot be used
    makes a record that failed, so that the other runs go on.

    Args:
        config: what to train.
        command: what was typed, for the record.
        on_step: told `trained` once a step; steps that a checkpoint brought are told as `resumed`.
        checkpoints: folder of the states of runs; none are kept without it.
        resume: continue from the checkpoint of this run where there is one.
        checkpoint_every_s: seconds between two checkpoints.
    """
    device = _choose_device(config)
    provenance = collect_provenance(command, device)
    path = None if checkpoints is None else checkpoint_path(checkpoints, config)
    case = dataclasses.asdict(config)
    try:
        run = TrainingRun(config, read_text(config.text, config.context_length), device)
        notes = [] if path is None else _open_checkpoint(path, run, resume)
    except KeyboardInterrupt:
        return None, True
    except ValueError as error:
        return BenchmarkRecord(config.EXPERIMENT, case, "failed", provenance, reason=str(error)), False
    load = CoreLoad.start()
    try:
        pressed = _train(run, on_step, path, checkpoint_every_s, notes)
        reason = None if run.finished else _how_to_continue(run, path)
        status: Status = "ok" if run.finished else "failed"
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        pressed, status = False, "oom"
        reason = "ran out of memory: try a smaller --batch-size, --context-length or --d-model"
    if run.diverged:
        notes.append(f"the loss of step {run.num_steps} is inf or nan: the run ends there")
    metrics = measure(run) | {"other_load_cores": load.finish()}
    samples = {"train_step": run.curves.step_s}
    record = BenchmarkRecord(
        config.EXPERIMENT, case, status, provenance, reason, samples, metrics=metrics, notes=notes
    )
    return record, pressed


def measure(run: TrainingRun) -> dict[str, Any]:
    """What the tables and plots show of a run; None where there is no such number."""
    config, curves, text = run.config, run.curves, run.text
    last = curves.loss[-max(1, round(_LAST_SHARE * config.steps)) :]
    losses = [loss for loss in last if loss is not None]
    held_out = curves.evaluations[-1]["held_out_loss"] if curves.evaluations and not run.diverged else None
    scaled = run.scaler.is_enabled() and curves.scale
    return {
        "num_parameters": sum(weight.numel() for weight in run.model.parameters()),
        "bytes_per_step": config.batch_size * config.context_length,
        "autocast": AUTOCAST.get(config.precision),
        "text_num_bytes": text.num_bytes,
        "text_num_files": text.num_files,
        "text_sha256": text.sha256,
        "steps_done": run.num_steps,
        "diverged_at_step": run.num_steps if run.diverged else None,
        "final_loss": statistics.fmean(losses) if losses and not run.diverged else None,
        "held_out_loss": held_out,
        "held_out_bits_per_byte": None if held_out is None else held_out / math.log(2),
        "min_scale": min(curves.scale) if scaled else None,
        "max_scale": max(curves.scale) if scaled else None,
        "num_skipped_steps": sum(curves.skipped) if scaled else None,
        **{name: _mean_over_evaluations(curves, name) for name in MEASURED_SHARES},
        "curves": {name: value for name, value in dataclasses.asdict(curves).items() if name != "step_s"},
    }


def _mean_over_evaluations(curves: Curves, name: str) -> float | None:
    values = [one[name] for one in curves.evaluations if one.get(name) is not None]
    return statistics.fmean(values) if values else None


def _choose_device(config: TrainingConfig) -> torch.device:
    device = devices.choose_device(config.device)
    devices.check_precision(device, "bf16" if "bf16" in config.precision else "fp32")
    return device


def _open_checkpoint(path: pathlib.Path, run: TrainingRun, resume: bool) -> list[str]:
    """Continue from the file, or make sure that there can be one; returns remarks."""
    if not path.exists():
        save_checkpoint(path, run)  # a folder that cannot be written is told before hours of training
        others = list(path.parent.glob(f"{run.config.precision}-seed{run.config.seed}-*.pt"))
        return [_OTHER_SETTINGS] if resume and len(others) > 1 else []
    if not resume:
        raise ValueError(f"{path} holds this run already: add --resume to continue it, or delete it")
    remarks = load_checkpoint(path, run)
    return [f"continued from a checkpoint after step {run.num_steps}", *remarks]


def _train(
    run: TrainingRun,
    on_step: Callable[[str], object],
    path: pathlib.Path | None,
    checkpoint_every_s: float,
    notes: list[str],
) -> bool:
    """Advance `run` to its end or to Ctrl-C, and keep its state in `path`; returns whether Ctrl-C came."""

    def save() -> None:
        try:
            if path is not None:
                save_checkpoint(path, run)
        except ValueError as error:  # a full disk: the run is worth more than its checkpoint
            if str(error) not in notes:
                notes.append(str(error))

    with _interrupt_between_steps() as pressed:
        try:
            for _ in range(run.num_steps):
                on_step("resumed")
            saved_s = time.monotonic()
            while not run.finished and not pressed.is_set():
                run.advance()
                if time.monotonic() - saved_s >= checkpoint_every_s:
                    save()
                    saved_s = time.monotonic()
                on_step("trained")
        except KeyboardInterrupt:  # raised by `on_step`: the step is complete
            pressed.set()
        save()
    return pressed.is_set()


@contextlib.contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event and stops nothing: a step cut in two would spoil the weights."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _how_to_continue(run: TrainingRun, path: pathlib.Path | None) -> str:
    done = f"interrupted after {run.num_steps} of {run.config.steps} steps"
    if path is None:
        return f"{done}; a run with --checkpoints FOLDER can be continued"
    return f"{done}; the same command with --resume continues it"
