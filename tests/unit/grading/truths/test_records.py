"""Which record a question is about, what it accepts, and what it says when there is none."""

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.grading.items import NotMeasuredError
from cs_systems.grading.truths.find import find_truth
from cs_systems.grading.truths.records import median_interval, rounded

B = "benchmarking_script.b"
SMALL = {"model": "small", "context_length": "128"}


def forward(evidence, **values):
    return find_truth(B, "forward_median", {**SMALL, **values}, evidence)


def both(*seconds):
    return {"forward": list(seconds), "backward": [2 * each for each in seconds]}


@pytest.mark.parametrize("n", range(1, 17))
def test_the_interval_of_the_median_covers_it_as_often_as_it_says(n):
    """Counted: each of n samples is below the median or above it, all 2^n ways being equally likely."""
    low, high = median_interval([float(rank) for rank in range(1, n + 1)])
    covered = sum(low <= below and below < high for below in map(sum, itertools.product((0, 1), repeat=n)))
    tighter = sum(
        low + 1 <= below and below < high - 1 for below in map(sum, itertools.product((0, 1), repeat=n))
    )
    assert low + high == n + 1
    assert covered >= 0.95 * 2**n or (low, high) == (1, n)
    assert tighter < 0.95 * 2**n


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_the_median_and_its_rounding_to_two_digits_are_accepted(samples):
    median = statistics.median(samples)
    low, high = rounded(*median_interval(samples))
    assert low <= float(f"{median:.1e}") <= high


def test_most_warmup_counts_then_the_newest(evidence_of, record):
    evidence = evidence_of(
        record(both(1.0), warmup_steps=5, day=1), record(both(2.0), warmup_steps=5, day=3),
        record(both(3.0), warmup_steps=0, day=9),
    )  # fmt: skip
    truth = forward(evidence)
    assert truth.value == 2.0
    assert [(low <= 1.0 <= high, day) for low, high, day in truth.older] == [(True, "2026-01-01")]


@pytest.mark.parametrize(
    "changes",
    [{"precision": "bf16"}, {"compile": True}, {"attention": "sdpa"}, {"mode": "forward"}, {"kernels": "all"},
     {"checkpoint_blocks": 1}, {"model": "medium"}, {"context_length": 256}],
)  # fmt: skip
def test_a_record_of_another_case_is_not_taken(evidence_of, record, changes):
    evidence = evidence_of(record(both(1.0), day=9, **changes), record(both(2.0)))
    assert forward(evidence).value == 2.0


def test_a_record_from_before_a_setting_existed_is_taken(evidence_of, record):
    old = record(both(1.0))
    del old.case["kernels"]
    assert forward(evidence_of(old)).value == 1.0


def test_what_the_block_leaves_open_the_newest_record_decides(evidence_of, record):
    evidence = evidence_of(record(both(1.0), context_length=256, day=9), record(both(2.0)))
    assert find_truth(B, "forward_median", {"model": "small", "context_length": ""}, evidence).value == 1.0


@pytest.mark.parametrize("context", [1024, 1024.0, "1024", "1,024"])
def test_a_length_can_be_written_in_several_ways(evidence_of, record, context):
    evidence = evidence_of(record(both(1.0), day=9), record(both(2.0), context_length=1024))
    assert forward(evidence, context_length=context).value == 2.0


@pytest.mark.parametrize("context", ["128 tokens", -128, 128.5, "1e400", ["128"], "9" * 50])
def test_a_length_that_is_none_has_no_record(evidence_of, record, context):
    with pytest.raises(NotMeasuredError, match="no record"):
        forward(evidence_of(record(both(1.0))), context_length=context)


def test_an_alias_of_a_preset_is_the_same_model(evidence_of, record):
    evidence = evidence_of(record(both(1.0), model="2.7B"))
    assert forward(evidence, model="xl-2026").value == 1.0


def test_a_missing_case_is_told_with_the_command_that_measures_it(evidence_of, record):
    evidence = evidence_of(record(both(1.0)))
    with pytest.raises(NotMeasuredError) as raised:
        find_truth("benchmarking_mixed_precision.c", "forward_bf16", SMALL, evidence)
    message = str(raised.value)
    assert "python benchmark.py --model small --context-length 128 --precision bf16 --output" in message
    assert "\n" not in message


def test_a_case_that_did_not_fit_is_told_with_its_reason(evidence_of, record):
    evidence = evidence_of(record({}, status="oom", reason="needs 43.2 GiB"))
    with pytest.raises(NotMeasuredError, match=r"is oom \(needs 43\.2 GiB\)"):
        forward(evidence)


def test_without_any_record_the_message_names_the_target(evidence_of):
    with pytest.raises(NotMeasuredError, match="make measure"):
        forward(evidence_of())


def test_the_line_that_chooses_is_right_when_there_is_such_a_record(evidence_of, record):
    evidence = evidence_of(record(both(1.0)))
    assert find_truth(B, "model", SMALL, evidence).value == "small"
    assert find_truth(B, "context_length", SMALL, evidence).value == 128.0
    assert "did you mean small?" in find_truth(B, "model", {**SMALL, "model": "smal"}, evidence).hint
    with pytest.raises(NotMeasuredError, match="medium"):
        find_truth(B, "model", {**SMALL, "model": "medium"}, evidence)


def test_a_ratio_is_that_of_the_medians(evidence_of, record):
    samples = {"forward": [1.0, 2.0, 9.0], "backward": [4.0, 5.0, 30.0]}
    truth = find_truth(B, "backward_over_forward", SMALL, evidence_of(record(samples)))
    assert truth.value == 2.5
    assert truth.low < 2.4 < 2.6 < truth.high


def test_a_speedup_compares_the_newest_of_both_and_knows_what_it_was(evidence_of, record):
    evidence = evidence_of(
        record(both(8.0, 8.0), day=1), record(both(4.0, 4.0), precision="bf16", day=2),
        record(both(2.0, 2.0), precision="bf16", day=3),
    )  # fmt: skip
    truth = find_truth("benchmarking_mixed_precision.c", "forward_speedup", SMALL, evidence)
    assert truth.value == 4.0
    [(low, high, day)] = truth.older
    assert low < 2.0 < high
    assert day == "2026-01-02"


def test_bytes_come_from_the_metrics(evidence_of, record):
    shape = {"batch_size": 8, "num_heads": 0, "d_head": 64, "seq_len": 256}
    case = {**shape, "precision": "fp32", "implementation": "naive"}
    samples = both(1.0)
    known = record(samples, experiment="attention", metrics={"held_bytes": 123}, **case)
    unknown = record(
        samples, experiment="attention", day=2, metrics={"held_bytes": None}, **(case | {"d_head": 32})
    )
    evidence = evidence_of(known, unknown)
    assert find_truth("pytorch_attention.a", "held", shape, evidence).value == 123.0
    with pytest.raises(NotMeasuredError, match="held_bytes"):
        find_truth("pytorch_attention.a", "held", shape | {"d_head": 32}, evidence)
