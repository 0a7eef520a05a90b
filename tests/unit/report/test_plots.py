"""Plots: which are drawn, what is in them, and that the same records give the same bytes."""

import builtins

import pytest

from cs_systems.report.figure import COLOURS, log_time_axes, our_style, time_unit
from cs_systems.report.plots import draw_context_length, draw_model_size, draw_plots, draw_warmup

pytest.importorskip("matplotlib")

BASE = [1.0, 1.1, 1.2]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def curves(panel):
    """The points of each line with more than one point."""
    return [
        list(zip(*(values.tolist() for values in line.get_data()), strict=True))
        for line in panel.get_lines()
        if len(line.get_xdata()) > 1
    ]


def test_the_same_records_give_the_same_svg(make_record, tmp_path):
    records = [make_record(name, forward=BASE, warmup={"forward": [5.0]}) for name in ("small", "medium")]
    for folder in ("one", "two"):
        files, remarks = draw_plots(records, tmp_path / folder)
        assert [file.name for file in files] == [
            "warmup.svg", "warmup.png", "model_size.svg", "model_size.png",
        ]  # fmt: skip
        assert [remark.split(":")[0] for remark in remarks] == ["context_length"]
    for name in ("warmup.svg", "model_size.svg", "model_size.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_warm_up_shows_every_step_from_the_first_of_the_process(make_record):
    record = make_record(
        forward=[1.0, 1.1], backward=[2.0, 2.1], warmup={"forward": [5.0], "backward": [6.0]}
    )
    with our_style():
        figure, why = draw_warmup([record])
    assert why == []
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["forward", "backward"]
    assert curves(figure.axes[0])[0] == [(1, 5.0), (2, 1.0), (3, 1.1)]
    assert figure.axes[0].get_ylabel() == "time (s)"
    assert figure.axes[0].get_yscale() == "log"
    assert "hollow: warm-up" in texts(figure)
    assert any("2026-01-02" in text and "abc1234" in text for text in texts(figure))


def test_more_cases_than_colours_are_said(make_record):
    records = [make_record(forward=BASE, seed=seed) for seed in range(len(COLOURS) + 2)]
    with our_style():
        figure, why = draw_warmup(records)
    assert figure is not None
    assert why == ["2 more cases not drawn, a plot holds 7"]


def test_a_single_step_is_no_warm_up_curve(make_record):
    figure, why = draw_warmup([make_record(forward=[1.0])])
    assert figure is None
    assert why == ["not drawn, no case has more than one step"]


def test_time_against_model_size_is_the_median_by_pass(make_record):
    records = [
        make_record("medium", forward=[3.0, 4.0, 9.0], backward=[7.0, 8.0, 9.0]),
        make_record("small", forward=BASE, backward=[2.0, 2.1, 2.2]),
    ]
    with our_style():
        figure, _ = draw_model_size(records)
    (panel,) = figure.axes
    sizes = (128_625_408, 423_183_360)
    assert curves(panel)[0] == [(sizes[0], 1.1), (sizes[1], 4.0)]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["small, 128.6M", "medium, 423.2M"]
    assert {"forward", "backward", "forward_backward"} <= set(texts(figure))


def test_runs_under_other_conditions_get_their_own_panel(make_record):
    records = [
        make_record(name, forward=BASE, precision=precision)
        for name in ("small", "medium")
        for precision in ("fp32", "bf16")
    ]
    with our_style():
        figure, _ = draw_model_size(records)
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["fp32", "bf16"]


def test_time_against_context_length_needs_two_lengths_of_one_model(make_record):
    records = [make_record(forward=BASE, context_length=length) for length in (128, 256)]
    with our_style():
        figure, _ = draw_context_length(records)
    (panel,) = figure.axes
    assert curves(panel)[0] == [(128, 1.1), (256, 1.1)]
    assert panel.get_xlabel() == "context length (tokens)"
    mixed = [make_record(forward=BASE), make_record("medium", forward=BASE, context_length=256)]
    assert draw_context_length(mixed)[0] is None


def test_cases_without_a_measurement_are_not_drawn_and_said(make_record, tmp_path):
    records = [make_record(status="oom", reason="ran out of memory"), make_record(forward=[1.0])]
    files, remarks = draw_plots(records, tmp_path)
    assert files == []
    assert "1 cases without a complete measurement are not drawn" in remarks


def test_a_folder_that_cannot_be_made_is_a_clear_error(make_record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="below: cannot create this folder"):
        draw_plots([make_record(forward=BASE)], tmp_path / "file" / "below")


def test_without_matplotlib_the_message_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *rest):
        if name == "matplotlib":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install 'cs_systems\[report\]'"):
        our_style()


@pytest.mark.parametrize(
    ("longest_s", "unit"), [(2.0, ("s", 1.0)), (0.5, ("ms", 1e3)), (0.0005, ("us", 1e6))]
)
def test_the_unit_of_an_axis_follows_its_longest_time(longest_s, unit):
    assert time_unit(longest_s) == unit


@pytest.mark.parametrize(("low", "high"), [(0.93, 0.97), (1.0, 9.0), (0.004, 300.0)])
def test_a_time_axis_always_has_at_least_two_plain_numbers(low, high):
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    panel.plot([1, 2], [low, high])
    log_time_axes([panel], "s")
    assert len(panel.get_yticks()) >= 2
    assert panel.get_ylim()[0] <= low < high <= panel.get_ylim()[1]
    assert all(f"{end:e}".startswith(("1.000000", "2.000000", "5.000000")) for end in panel.get_ylim())
    assert all("e" not in label.get_text() for label in panel.get_yticklabels())
