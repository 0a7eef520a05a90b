"""The comparison of two sets of records: pairing, verdicts and what is said about the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs_systems.report.compare import adjust_p, compare_records

BASE = [1.0 + 0.01 * i for i in range(10)]
FASTER = [value / 2 for value in BASE]


def only_row(comparison):
    (row,) = comparison.table.rows
    return row


@pytest.mark.parametrize(("b", "verdict"), [(FASTER, "faster"), (BASE[::-1], "~"), ([2.0] * 10, "slower")])
def test_the_verdict_is_about_b(make_record, b, verdict):
    comparison = compare_records([make_record(forward=BASE)], [make_record(forward=b)])
    row = only_row(comparison)
    assert row["verdict"] == verdict
    assert comparison.verdicts == {verdict: 1}
    assert row["ratio"] == pytest.approx(row["median_b_s"] / row["median_a_s"])
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_swapping_the_files_swaps_the_verdict_and_keeps_p(make_record):
    a, b = [make_record(forward=BASE)], [make_record(forward=FASTER)]
    there, back = only_row(compare_records(a, b)), only_row(compare_records(b, a))
    assert (there["verdict"], back["verdict"]) == ("faster", "slower")
    assert there["p"] == back["p"]
    assert there["ratio"] == pytest.approx(1 / back["ratio"])


def test_under_five_samples_a_side_there_is_no_verdict(make_record):
    a = [make_record(forward=BASE[:4], steps=10)]
    b = [make_record(forward=FASTER, steps=10)]
    row = only_row(compare_records(a, b))
    assert row["verdict"] == "too few samples"
    assert "p" not in row


def test_many_rows_without_a_difference_make_a_single_small_p_unconvincing(make_record):
    # Complete separation of five from five: p = 0.008 alone, 0.16 as one of twenty rows.
    five, apart = BASE[:5], [value + 1 for value in BASE[:5]]
    lone = compare_records([make_record(forward=five)], [make_record(forward=apart)])
    assert only_row(lone)["verdict"] == "slower"
    a = [make_record(forward=five, seed=seed) for seed in range(20)]
    b = [make_record(forward=apart if seed == 0 else five[::-1], seed=seed) for seed in range(20)]
    rows = compare_records(a, b).table.rows
    assert rows[0]["p"] == only_row(lone)["p"]
    assert rows[0]["verdict"] == "~"


def test_every_pass_of_every_common_case_is_a_row(make_record):
    passes = {"forward": BASE, "backward": BASE, "optimizer_step": BASE}
    a = [make_record(name, **passes) for name in ("small", "medium")]
    comparison = compare_records(a, a)
    assert comparison.num_compared == 2
    assert [(row["case"], row["pass"]) for row in comparison.table.rows] == [
        (model, name)
        for model in ("small", "medium")
        for name in ("forward", "backward", "optimizer_step", "train_step")
    ]


def test_cases_in_one_file_only_are_listed_with_their_status(make_record):
    a = [make_record(forward=BASE), make_record("medium", forward=BASE), make_record("tiny", forward=BASE)]
    b = [make_record(forward=BASE), make_record("tiny", status="oom", mode="forward")]
    b.append(make_record("other", forward=BASE))
    notes = compare_records(a, b).table.notes
    assert "not compared (ok in A, missing in B): medium" in notes
    assert "not compared (ok in A, oom in B): tiny" in notes
    assert "not compared (missing in A, ok in B): other" in notes


def test_of_several_measurements_the_last_is_used_and_said(make_record):
    a = [make_record(forward=[9.0] * 10), make_record(forward=BASE)]
    comparison = compare_records(a, [make_record(forward=BASE)])
    assert only_row(comparison)["verdict"] == "~"
    assert "A: small: measured 2 times, the last is used" in comparison.table.notes


def test_other_experiments_are_not_compared_silently(make_record):
    a = [make_record(forward=BASE, experiment="estimate")]
    comparison = compare_records(a, a)
    assert comparison.num_compared == 0
    assert comparison.table.rows == []
    assert any(
        note.startswith("A: 1 of 1 records belong to the experiment") for note in comparison.table.notes
    )


def test_both_origins_are_named_and_differences_beside_the_code_too(make_record):
    a = [make_record(forward=BASE)]
    b = [make_record(forward=BASE, device="NVIDIA H200", torch="2.11.0", device_type="cuda",
                     metrics={"other_load_cores": 1.5})]  # fmt: skip
    notes = "\n".join(compare_records(a, b).table.notes)
    assert "A: Some, 2 threads, torch 2.13.0" in notes
    assert "B: NVIDIA H200, 2 threads, torch 2.11.0" in notes
    assert "A and B ran with different devices" in notes
    assert "A and B ran with different torch versions" in notes
    assert "numbers of threads" not in notes
    assert "1.50 cores busy" in notes


def test_adjusted_p_of_a_known_example():
    # Benjamini and Hochberg 1995, table 1: 4 of these 15 are rejected at 0.05, by the step-up rule.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
         0.6528, 0.7590, 1.0]  # fmt: skip
    assert [value < 0.05 for value in adjust_p(p)] == [True] * 4 + [False] * 11


@given(st.lists(st.floats(1e-6, 1.0), max_size=30), st.floats(0.001, 0.5))
def test_adjusted_p_rejects_what_the_step_up_rule_rejects(values, level):
    ordered = sorted(values)
    passing = [k for k, value in enumerate(ordered, 1) if value * len(values) / k <= level]
    limit = ordered[max(passing) - 1] if passing else -1.0
    adjusted = adjust_p(values)
    assert [value <= level for value in adjusted] == [value <= limit for value in values]
    assert all(new >= old * (1 - 1e-12) for new, old in zip(adjusted, values, strict=True))
