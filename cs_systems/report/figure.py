"""How our plots look: one style, one size of panel, times on a logarithmic axis, a caption with the origin.

matplotlib is an extra and slow to import, so it is imported inside functions.
"""

import itertools
import math
import pathlib
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008): told apart with every common form of colour blindness."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each colour, so that a print in black and white can be read too."""

Mark = tuple[str, str, str, bool]
"""An entry of the legend: name, colour, marker and whether it is hollow."""

_GREY = "#555555"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "lines.markersize": 5,
    "savefig.dpi": 160,
    "svg.hashsalt": "cs_systems",  # without it every SVG gets random identifiers
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}
_PANEL_INCHES = (3.4, 3.1)
_PANELS_A_ROW = 3


def our_style() -> AbstractContextManager[Any]:
    """The style, for as long as figures are made and saved.

    Raises:
        ValueError: when matplotlib is not installed; the message says how to get it.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'cs_systems[report]'") from None
    return matplotlib.rc_context(_STYLE)


def mark(name: str, index: int, hollow: bool = False) -> Mark:
    """The look of the series with this index."""
    return name, COLOURS[index], MARKERS[index], hollow


def make_figure(
    heading: str, marks: Sequence[Mark], caption: str, num_panels: int
) -> tuple["Figure", list["Axes"]]:
    """A figure whose panels share the time axis, with a legend above and a small caption below."""
    from matplotlib.figure import Figure

    columns = min(num_panels, _PANELS_A_ROW)
    rows = math.ceil(num_panels / columns)
    width = max(5.2, columns * _PANEL_INCHES[0])
    longest = max(len(name) for name, *_ in marks)
    legend_columns = min(len(marks), max(1, int(width / (0.4 + 0.07 * longest))))  # inches, of 9 point text
    above = 0.45 + 0.19 * math.ceil(len(marks) / legend_columns)  # inches of heading and legend
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, int(19 * width))]
    below = 0.11 + 0.12 * len(lines)  # inches of caption, in 6.5 point text
    height = above + rows * _PANEL_INCHES[1] + below
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", rect=(0, below / height, 1, 1 - (above + below) / height))
    figure.text(0.08 / width, 1 - 0.08 / height, heading, va="top", fontsize=11, fontweight="bold")
    figure.text(0.08 / width, 0.08 / height, "\n".join(lines), fontsize=6.5, color=_GREY)
    _add_legend(figure, marks, legend_columns, 1 - 0.27 / height)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for unused in axes[num_panels:]:
        unused.remove()
    return figure, axes[:num_panels]


def _add_legend(figure: "Figure", marks: Sequence[Mark], columns: int, top: float) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for _, colour, marker, hollow in marks:
        inside = "white" if hollow else colour
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor=inside))
    figure.legend(
        handles, [name for name, *_ in marks], loc="upper left", ncols=columns,
        bbox_to_anchor=(0, top), handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip


def time_unit(longest_s: float) -> tuple[str, float]:
    """The unit for an axis of times up to `longest_s`, and the factor from seconds to it."""
    return ("s", 1.0) if longest_s >= 1 else ("ms", 1e3) if longest_s >= 1e-3 else ("us", 1e6)


def log_time_axes(axes: Sequence["Axes"], unit: str) -> None:
    """Make the shared vertical axis logarithmic with plain numbers at 1, 2 and 5, and name its unit.

    The limits are moved out to such numbers: by default an axis from 0.93 to 0.97 would show no number.
    """
    axes[0].set_yscale("log")
    low, high = axes[0].get_ylim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    nice = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    first = max((i for i, value in enumerate(nice) if value <= low), default=0)
    last = min(i for i, value in enumerate(nice) if value >= high)
    ticks = nice[first : last + 1]
    if len(ticks) > 10:  # powers of ten alone are enough over more than three decades
        ticks = [tick for tick in ticks if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
    axes[0].set_ylim(nice[first], nice[last])
    axes[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].minorticks_off()
    for index, panel in enumerate(axes):
        panel.tick_params(axis="y", length=0)
        if index % _PANELS_A_ROW == 0:
            panel.set_ylabel(f"time ({unit})")


def log_number_axis(panel: "Axes", names: dict[int, str]) -> None:
    """Make the horizontal axis logarithmic, with a name at each number that is not too near the last."""
    numbers = sorted(names)
    length = math.log(numbers[-1] / numbers[0])
    gaps = [math.log(above / below) / length for below, above in itertools.pairwise(numbers)]
    slanted = min(gaps) < 0.02 * max(map(len, names.values()))  # a letter takes about a fiftieth of the axis
    shown = numbers[:1]
    for number in numbers[1:]:
        if math.log(number / shown[-1]) >= 0.06 * length:
            shown.append(number)
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xticks(shown, [names[number] for number in shown])
    if slanted:
        panel.tick_params(axis="x", labelrotation=35)
        for text in panel.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    panel.margins(x=0.12)


def save(figure: "Figure", folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Write `figure` to `folder`, made if need be, as SVG and PNG; the same figure gives the same bytes.

    Raises:
        ValueError: when the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot create this folder for plots ({error.strerror})") from None
    files = [folder / f"{name}.{suffix}" for suffix in ("svg", "png")]
    for file, metadata in zip(files, ({"Date": None}, {"Software": None}), strict=True):
        try:
            figure.savefig(file, metadata=metadata)
        except OSError as error:
            raise ValueError(f"{file}: cannot write ({error.strerror})") from None
    return files
