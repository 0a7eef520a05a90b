"""The curves of training runs in several precisions: losses, errors of gradients, lost updates, the scale."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.figure import COLOURS, our_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE = "fp32"
"""The precision that the others are compared with."""
PRECISIONS = (BASELINE, "bf16", "fp16", "fp16-noscale", "pure-bf16")
"""In the order of the legend; the place is the colour."""

_SMOOTHED_SHARE = 0.05
"""Losses of single batches jump: lines show the mean over this share of the steps."""


def find_baseline(record: BenchmarkRecord, records: Sequence[BenchmarkRecord]) -> BenchmarkRecord | None:
    """The run of the same batches in fp32; None for fp32 itself."""
    if record.case["precision"] == BASELINE:
        return None
    wanted = {**record.case, "precision": BASELINE}, _text_and_device(record)
    same = [other for other in records if (dict(other.case), _text_and_device(other)) == wanted]
    return same[-1] if same else None


def _text_and_device(record: BenchmarkRecord) -> tuple[str | None, str]:
    return record.metrics.get("text_sha256"), record.provenance.device


def varying_settings(records: Sequence[BenchmarkRecord]) -> list[str]:
    """Settings other than precision and seed that the runs differ in."""
    names = dict.fromkeys(name for record in records for name in record.case)
    return [
        name for name in names
        if name not in ("precision", "seed") and len({repr(record.case.get(name)) for record in records}) > 1
    ]  # fmt: skip


def run_name(record: BenchmarkRecord) -> str:
    """A run in a sentence: 'fp16, seed 0'."""
    return f"{record.case['precision']}, seed {record.case['seed']}"


def draw(records: Sequence[BenchmarkRecord], folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Draw the curves of all runs as SVG and PNG, one figure for those alike but in precision and seed.

    Returns:
        The files, and a sentence for what was not drawn.

    Raises:
        ValueError: when matplotlib is missing or a file cannot be written; the message says what to do.
    """
    settings = varying_settings(records)
    groups: dict[str, list[BenchmarkRecord]] = {}
    remarks = []
    for record in records:
        name = "".join(f"_{setting}_{record.case[setting]}" for setting in settings)
        if len(record.metrics.get("curves", {}).get("loss", [])) < 2:
            remarks.append(
                f"training_stability{name}: {run_name(record)} is not drawn, it has under two steps"
            )
            continue
        groups.setdefault("training_stability" + name.replace("/", "-"), []).append(record)
    files = []
    with our_style():
        for name, group in groups.items():
            files += save(draw_curves(group), folder, name)
    return files, remarks


def draw_curves(records: Sequence[BenchmarkRecord]) -> "Figure":
    """Six panels over the steps; a colour a precision, a line a seed."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10.2, 6.6), layout="constrained")
    loss, difference, error, scale, zeroed, lost = panels = figure.subplots(2, 3).flatten().tolist()
    present = [name for name in PRECISIONS if any(record.case["precision"] == name for record in records)]
    for record in sorted(records, key=lambda record: -PRECISIONS.index(record.case["precision"])):
        colour = COLOURS[PRECISIONS.index(record.case["precision"])]
        _draw_loss(loss, record, colour)
        _draw_difference(difference, record, find_baseline(record, records), colour)
        _draw_scale(scale, record, colour)
        _draw_measured(error, record, "gradient_error", colour)
        _draw_measured(zeroed, record, "zeroed_logit_fraction", colour)
        _draw_measured(lost, record, "lost_update_fraction", colour)
    titles = {
        loss: "training loss (nats)",
        difference: "training loss minus that of fp32 (nats)",
        error: "error of the gradient (% of its length)",
        scale: "scale of the loss in fp16; x: step skipped",
        zeroed: "gradient of the logits that became 0 (%)",
        lost: "updates lost to rounding (%)",
    }
    for panel in panels:
        panel.set_title(titles[panel])
        panel.set_xlabel("step (number)")
    difference.set_yscale("symlog", linthresh=0.01)
    error.set_yscale("log" if error.lines else "linear")
    scale.set_yscale("log", base=2)
    for panel in (zeroed, lost):
        panel.set_ylim(0, max(1.0, panel.get_ylim()[1]))  # nothing lost is a line at the bottom
    marks = [Line2D([], [], color=COLOURS[PRECISIONS.index(name)], label=name) for name in present]
    figure.legend(
        handles=marks, loc="outside upper left", ncols=len(marks), alignment="left",
        title="Training in several precisions", title_fontproperties={"size": 11, "weight": "bold"},
    )  # fmt: skip
    figure.supxlabel(_caption(records), x=0.008, ha="left", fontsize=6.5, color="#555555")
    return figure


def _draw_loss(panel: "Axes", record: BenchmarkRecord, colour: str) -> None:
    """Single batches faintly, their running mean above them, and a cross where a run diverged."""
    losses = [value for value in record.metrics["curves"]["loss"] if value is not None]
    panel.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=0.5, alpha=0.12)
    panel.plot(*_smoothed(losses, record), color=colour, linewidth=1.1)
    if record.metrics.get("diverged_at_step") is not None and losses:
        panel.plot(len(losses), losses[-1], "X", color=colour, markersize=8)


def _draw_difference(
    panel: "Axes", record: BenchmarkRecord, baseline: BenchmarkRecord | None, colour: str
) -> None:
    """The noise of the batches cancels, as both runs saw the same ones."""
    if baseline is None:
        return
    pairs = zip(record.metrics["curves"]["loss"], baseline.metrics["curves"]["loss"], strict=False)
    differences = [low - wide for low, wide in pairs if low is not None and wide is not None]
    panel.plot(*_smoothed(differences, record), color=colour, linewidth=1.1)


def _draw_scale(panel: "Axes", record: BenchmarkRecord, colour: str) -> None:
    if record.metrics.get("max_scale") is None:
        return
    curves = record.metrics["curves"]
    steps = range(1, len(curves["scale"]) + 1)
    panel.step(steps, curves["scale"], where="mid", color=colour, linewidth=1.1)
    skipped = [
        (step, value)
        for step, value, was in zip(steps, curves["scale"], curves["skipped"], strict=True)
        if was
    ]
    panel.plot([step for step, _ in skipped], [value for _, value in skipped], "x", color=colour)


def _draw_measured(panel: "Axes", record: BenchmarkRecord, name: str, colour: str) -> None:
    """What the evaluations say, in percent."""
    known = [one for one in record.metrics["curves"]["evaluations"] if one.get(name) is not None]
    if name == "gradient_error":
        known = [one for one in known if one[name] > 0]  # its axis is logarithmic: fp32 has no place on it
    if known:
        values = [100 * one[name] for one in known]
        panel.plot([one["step"] for one in known], values, "o-", color=colour, linewidth=1.1, markersize=3)


def _smoothed(values: Sequence[float], record: BenchmarkRecord) -> tuple[list[float], list[float]]:
    """(steps, means) over windows of a twentieth of the run, each at the middle of its window."""
    width = min(len(values), max(1, round(_SMOOTHED_SHARE * record.case["steps"])))
    sums = [0.0, *itertools.accumulate(values)]
    means = [(sums[i + width] - sums[i]) / width for i in range(len(values) - width + 1)]
    return [i + (width + 1) / 2 for i in range(len(means))], means if width else []


def _caption(records: Sequence[BenchmarkRecord]) -> str:
    case = records[0].case
    num_seeds = len({record.case["seed"] for record in records})
    return (
        f"{num_seeds} seed{'s' if num_seeds > 1 else ''}, a line each; "
        "losses: means over a twentieth of the steps, single batches faint; "
        f"{case['num_layers']} layers of width {case['d_model']}, batch {case['batch_size']} x "
        f"{case['context_length']} bytes, learning rate {case['learning_rate']:g}\n"
        f"{cases.machine(records)}"
    )
