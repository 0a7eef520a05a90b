"""Whole write-ups: a published one with its known errors, the empty skeleton, and typing errors."""

import pathlib
import re
import shutil

import pytest

from cs_systems.grading.answers import check_answers, messages, verdict_table
from cs_systems.grading.blocks import parse_answers, read_answers
from cs_systems.grading.check import check_item
from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import Choice, Dtype, Number, Order, OwnNumber, Symbolic
from cs_systems.grading.problems import PROBLEMS
from cs_systems.grading.symbolic import parse_formula
from cs_systems.grading.truths.find import find_truth
from cs_systems.tables import render_table, table_as_json

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]
QUESTIONS = ROOT / "writeup" / "questions.md"
NOTHING = Evidence(pathlib.Path("nowhere"))
CHOSEN = {
    "model": "small", "context_length": 128, "batch_size": 4, "num_heads": 12, "d_head": 64, "seq_len": 512,
    "precision": "fp32", "implementation": "sdpa",
}  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """Verdicts on the published write-up, checked against the table that it printed."""
    shutil.copy(HERE / "published_records.jsonl", tmp_path / "published.jsonl")
    answers = read_answers(HERE / "published_answers.md")
    return check_answers(answers, Evidence(tmp_path), PROBLEMS)


def statuses(verdicts, part):
    return {verdict.key: verdict.status for verdict in verdicts if verdict.part == part}


def test_the_published_write_up_has_its_known_errors_and_no_others(published):
    wrong = {(verdict.part, verdict.key) for verdict in published if verdict.status == "wrong"}
    assert wrong == {
        ("benchmarking_mixed_precision.a", "parameters"),
        ("benchmarking_mixed_precision.a", "fc1"),
        ("benchmarking_mixed_precision.a", "layer_norm"),
        ("benchmarking_mixed_precision.a", "gradients"),
        ("benchmarking_script.c", "effect"),  # called minor: its own table says 2.3 times
        ("mixed_precision_accumulation.a", "prose"),  # one sentence, which explains one of two roundings
    }
    assert {verdict.status for verdict in published} == {"right", "wrong", "missing", "not measured"}


def test_the_published_write_up_is_right_where_it_is(published):
    right = {(verdict.part, verdict.key) for verdict in published if verdict.status == "right"}
    timing = ("model", "forward_median", "backward_median", "backward_over_forward", "forward_std", "prose")
    assert right >= {("benchmarking_script.b", key) for key in timing}
    assert right >= {("benchmarking_script.c", key) for key in ("model", "forward_mean", "prose")}
    assert right >= {
        ("mixed_precision_accumulation.a", key) for key in ("fp32", "fp16", "mixed", "mixed_cast")
    }
    assert right >= {("benchmarking_mixed_precision.a", key) for key in ("logits", "loss")}


def test_the_published_profile_has_no_evidence_and_what_is_blank_is_missing(published):
    assert statuses(published, "nsys_profile.d")["change"] == "not measured"
    assert set(statuses(published, "benchmarking_mixed_precision.b").values()) == {"missing"}
    assert statuses(published, "benchmarking_script.b")["context_length"] == "missing"
    rows = {row["problem"]: row.get("verdict") for row in verdict_table(published, PROBLEMS).rows}
    assert rows["benchmarking_mixed_precision"] == "wrong"
    assert rows["nsys_profile"] == "open"


def test_the_empty_skeleton_is_missing_everywhere_and_derives_nothing():
    verdicts = check_answers(read_answers(QUESTIONS), NOTHING, PROBLEMS)
    assert {verdict.status for verdict in verdicts} == {"missing"}
    asked = sum(len(part.items) + (part.prose is not None) for problem in PROBLEMS for part in problem.parts)
    assert len(verdicts) == asked
    assert len(messages(verdicts)) == len({verdict.part for verdict in verdicts})  # one line a part
    table = verdict_table(verdicts, PROBLEMS)
    assert {row["verdict"] for row in table.rows if "verdict" in row} == {"open"}


def test_a_part_that_was_deleted_is_missing_too():
    verdicts = check_answers(parse_answers("# nothing\n", "a.md"), NOTHING, PROBLEMS[:1])
    assert {verdict.status for verdict in verdicts} == {"missing"}


def right_answer(item, truth):
    """How a student would write a truth."""
    if isinstance(truth.value, tuple):
        return " > ".join(truth.value)
    if isinstance(item, Number | OwnNumber):
        return f"{truth.value!r} {item.unit}".strip()
    return str(truth.value)


def wrong_answer(item, truth):
    if isinstance(item, Dtype):
        return "bf16"
    if isinstance(truth.value, tuple):
        return " > ".join(reversed(truth.value))
    if isinstance(item, Number | OwnNumber):
        return f"{7.77 * truth.value + 1:.3f} {item.unit}".strip()
    choices = getattr(item, "choices", ("another",))
    return next(choice for choice in choices if choice not in (truth.value, *truth.also))


@pytest.fixture(scope="module")
def truths(everything_measured):
    """Every item with its part and its truth."""
    return [
        (part, item, find_truth(part.id, item.key, CHOSEN, everything_measured))
        for problem in PROBLEMS for part in problem.parts for item in part.items
    ]  # fmt: skip


def write_up(truths, answer):
    parts = {part.id: {} for part, _, _ in truths}
    for part, item, truth in truths:
        if answer is right_answer or not isinstance(item, Symbolic):
            parts[part.id][item.key] = CHOSEN[item.key] if item.key in CHOSEN else answer(item, truth)
    blocks = [
        "\n".join(["```answer", *(f'{key} = "{value}"' for key, value in values.items()), "```\n"])
        for values in ({"id": name} | values for name, values in parts.items())
    ]  # fmt: skip
    return parse_answers("\n".join(blocks), "answers.md")


@pytest.fixture(scope="module")
def all_right(truths, everything_measured):
    """Verdicts on a write-up that answers every item with its truth, and has no prose."""
    return check_answers(write_up(truths, right_answer), everything_measured, PROBLEMS)


def test_every_truth_is_right_when_it_is_answered(all_right):
    assert [verdict for verdict in all_right if verdict.status != "right" and verdict.key != "prose"] == []


def test_a_wrong_answer_is_wrong_and_no_message_holds_the_truth(truths, everything_measured):
    verdicts = check_answers(write_up(truths, wrong_answer), everything_measured, PROBLEMS)
    found = {(verdict.part, verdict.key): verdict for verdict in verdicts}
    for part, item, truth in truths:
        if item.key not in CHOSEN and not isinstance(item, Symbolic):
            verdict = found[part.id, item.key]
            assert verdict.status in ("wrong", "wrong unit"), verdict
            assert "\n" not in verdict.message
            for secret in secrets(item, truth):
                assert not re.search(rf"(?<![\w.^]){re.escape(secret)}(?![\w.])", verdict.message), verdict


def secrets(item, truth):
    """Ways to write a truth that would give it away; a word that a list of choices holds is none."""
    if isinstance(item, Choice):
        return []
    if isinstance(item, Order):
        return [" > ".join(truth.value)]
    if isinstance(item, Number | OwnNumber):
        value = truth.value
        sizes = (1, 1e-3, 1e3, 1e6, 1e9, 2**20, 2**30) if abs(value) >= 10 else (1, 1e-3)
        shown = [f"{value / size:.{digits}g}" for size in sizes for digits in (3, 6) if value / size >= 10]
        return [*shown, f"{value:g}"]
    return [str(truth.value)]


def test_no_reason_and_no_hint_holds_the_truth(truths):
    for part, item, truth in truths:
        for text in (*truth.why.values(), truth.hint):
            for secret in secrets(item, truth):
                assert not re.search(rf"(?<![\w.^]){re.escape(secret)}(?![\w.])", text), (
                    part.id,
                    item.key,
                    text,
                )


def test_a_formula_that_people_give_gets_its_reason(truths):
    """One of each kind of problem."""
    parts = (
        "memory_profiling.f",
        "alternate_ring_all_reduce.a",
        "tp_calcs.c",
        "fsdp_tp_calcs.b",
        "flash_backward.a",
    )
    formulas = [each for each in truths if isinstance(each[1], Symbolic) and each[0].id in parts]
    assert len(formulas) > 8
    for part, item, truth in formulas:
        for answer, reason in truth.why.items():
            verdict = check_item(part.id, item, answer, truth)
            assert (verdict.status, reason in verdict.message) == ("wrong", True), (part.id, answer, verdict)


def test_every_known_wrong_answer_can_be_read_is_wrong_and_gets_its_reason(truths):
    for part, item, truth in truths:
        for answer, reason in truth.why.items():
            if isinstance(item, Symbolic):  # reading one is quick, comparing it with all the others is not
                parse_formula(answer, item.names)
                continue
            number = isinstance(item, Number | OwnNumber)
            given = f"{answer} {item.unit}".strip() if number else answer
            verdict = check_item(part.id, item, given, truth)
            if verdict.status != "right":  # the same reasons serve several items of a part
                assert verdict.status == "wrong", (part.id, answer, verdict)
                assert reason in verdict.message, (part.id, answer, verdict)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ('id = "benchmarking_scrip.b"', "did you mean benchmarking_script.b?"),
        ('id = "benchmarking_script.b"\nforward_medain = "1 s"', "did you mean forward_median?"),
        ('id = "zebra"', "'zebra' is not asked"),
    ],
)
def test_typing_errors_are_told(block, said):
    verdicts = check_answers(parse_answers(f"```answer\n{block}\n```\n", "a.md"), NOTHING, PROBLEMS)
    [stranger] = [verdict for verdict in verdicts if verdict.status == "unreadable"]
    assert said in stranger.message
    assert "line 1" in stranger.message


def test_the_table_counts_and_can_be_printed(all_right):
    table = verdict_table(all_right, PROBLEMS)
    rows = {row["problem"]: row for row in table.rows}
    sums = rows["mixed_precision_accumulation"]
    assert (sums["items_right"], sums["items_asked"], sums["prose_right"], sums["prose_asked"]) == (
        7,
        7,
        0,
        1,
    )
    assert rows["fsdp_calcs"]["verdict"] == "right"  # asks for no prose
    assert rows["fsdp_calcs"]["fresh"] is None
    assert rows["total"]["points"] == sum(problem.points for problem in PROBLEMS)
    text = render_table(table, "table")
    assert "7 / 7" in text
    assert table_as_json(table)["rows"][-1]["items_asked"] == sum(
        len(part.items) for problem in PROBLEMS for part in problem.parts
    )


def test_a_number_of_the_day_before_is_stale(evidence_of, record):
    samples = [{"forward": [seconds] * 6, "backward": [1.0] * 6} for seconds in (1.0, 2.0)]
    evidence = evidence_of(*(record(each, day=day) for day, each in enumerate(samples, start=1)))
    block = (
        'id = "benchmarking_script.b"\nmodel = "small"\nforward_median = "1.01 s"\nbackward_median = "1.0 s"'
    )
    verdicts = check_answers(parse_answers(f"```answer\n{block}\n```\n", "a.md"), evidence, PROBLEMS)
    found = statuses(verdicts, "benchmarking_script.b")
    assert (found["forward_median"], found["backward_median"]) == ("stale", "right")
    assert verdict_table(verdicts, PROBLEMS).rows[0]["verdict"] == "wrong"
