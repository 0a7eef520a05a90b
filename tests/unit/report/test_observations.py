"""What is said about samples, and that it is not said when they do not show it."""

import pytest

from cs_systems.report.observations import observations

QUIET = {"forward": [1.0, 1.01, 1.02, 1.0, 1.01], "backward": [2.0, 2.01, 2.02, 2.0, 2.01]}
NO_WARM_UP = {"forward": [6.0, 1.01, 1.02, 1.0, 1.01], "backward": [2.2, 2.01, 2.02, 2.0, 2.01]}


def said(records, *words):
    """Lines that hold all the words."""
    return [line for line in observations(records) if all(word in line for word in words)]


def test_quiet_samples_only_confirm_the_backward_ratio(make_record):
    lines = observations([make_record(**QUIET, warmup={"forward": [3.0], "backward": [4.0]})])
    assert lines == [
        "backward / forward is 1.99, as expected (about 2: two matrix products for each of forward)"
    ]


def test_nothing_is_said_about_nothing(make_record):
    assert observations([]) == []
    assert observations([make_record(status="skipped", reason="too large")]) == []


def test_a_slow_first_step_without_warm_up_is_noticed_for_the_pass_that_has_it(make_record):
    (line,) = said([make_record(**NO_WARM_UP)], "first step")
    assert "5.9x (forward), 2.7x (forward_backward)" in line
    assert "backward)" not in line.replace("forward_backward)", "")


def test_a_slow_first_step_after_warm_up_is_not_called_one(make_record):
    assert said([make_record(**NO_WARM_UP, warmup={"forward": [9.0], "backward": [9.0]})], "first step") == []


@pytest.mark.parametrize(("first", "lines"), [(1.4, 0), (1.6, 1)])
def test_a_slightly_slow_first_step_is_not_worth_a_line(make_record, first, lines):
    assert len(said([make_record(forward=[first, 1.0, 1.0, 1.0, 1.0])], "first step")) == lines


@pytest.mark.parametrize(("width", "lines"), [(0.15, 0), (0.3, 1)])
def test_a_wide_spread_is_noticed(make_record, width, lines):
    samples = [1.0, 1.0, 1.0 + width / 2, 1.0 + width, 1.0 + width]
    found = said([make_record(forward=samples, warmup={"forward": [1.0]})], "spread too wide")
    assert len(found) == lines


def test_of_many_wide_spreads_the_widest_are_named(make_record):
    records = [
        make_record(forward=[1.0, 1.0, 2.0, 3.0, 3.0 + extra], batch_size=extra, warmup={"forward": [1.0]})
        for extra in (1, 2, 3, 4, 5)
    ]
    (line,) = said(records, "spread too wide")
    assert "and 2 more" in line


@pytest.mark.parametrize(("load", "lines"), [(None, 0), (0.2, 0), (0.9, 1)])
def test_other_load_on_the_cores_is_noticed(make_record, load, lines):
    found = said([make_record(**QUIET, metrics={"other_load_cores": load})], "other programs")
    assert len(found) == lines
    assert all("small (0.90 cores)" in line for line in found)


def test_fewer_steps_than_asked_for_are_noticed_with_both_numbers(make_record):
    records = [make_record(**QUIET, steps=10), make_record("medium", **QUIET)]
    assert said(records, "fewer steps") == ["fewer steps than asked for: small, 10 steps (5 of 10)"]


def test_too_few_samples_to_compare_are_noticed(make_record):
    short = {"forward": [1.0] * 4, "backward": [2.0] * 4}
    records = [make_record(**QUIET), make_record("medium", **short)]
    (line,) = said(records, "too few samples to compare")
    assert line.endswith(": medium, 4 steps")
    (line,) = said([make_record(**short), make_record("medium", **short)], "too few samples")
    assert line.endswith(": every case")
    assert said([make_record(**QUIET)], "too few samples") == []


@pytest.mark.parametrize("ratio", [1.2, 4.0])
def test_an_odd_backward_ratio_is_noticed(make_record, ratio):
    record = make_record(forward=[1.0] * 5, backward=[ratio] * 5)
    (line,) = said([record], "backward / forward")
    assert f"is {ratio:.2f}" in line
    assert "about 2 is expected" in line


def test_checkpointing_raises_the_expected_ratio_to_three(make_record):
    record = make_record(forward=[1.0] * 5, backward=[3.1] * 5, checkpoint_blocks=1)
    (line,) = said([record], "backward / forward")
    assert "as expected (about 3" in line


def test_forward_alone_has_no_backward_ratio(make_record):
    assert said([make_record(forward=[1.0] * 5)], "backward / forward") == []


def test_several_expected_ratios_share_a_line(make_record):
    records = [
        make_record(forward=[1.0] * 5, backward=[b] * 5, batch_size=i) for i, b in enumerate((1.9, 2.2))
    ]
    assert said(records, "is 1.90 to 2.20, as expected")
