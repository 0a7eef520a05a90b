"""The registry agrees with writeup/questions.md, word for word, and with the course's points."""

import pathlib
import re

import pytest

from cs_systems.grading.blocks import read_answers
from cs_systems.grading.items import Choice, Order, Symbolic
from cs_systems.grading.problems import PROBLEMS

QUESTIONS = pathlib.Path(__file__).parents[3] / "writeup" / "questions.md"
TEXT = QUESTIONS.read_text()
PARTS = [part for problem in PROBLEMS for part in problem.parts]
VIEWS = (
    *("timing", "warmup", "precision", "compile", "memory", "checkpointing", "accumulation", "autocast"),
    *("layer-norm", "training-stability", "attention", "attention-compiled", "flash", "profile-timer"),
    *("profile-kernels", "profile-kinds", "profile-attention", "profile-memory"),
)


def test_ids_and_keys_stand_in_the_same_order():
    blocks = {block.id: list(block.values) for block in read_answers(QUESTIONS).blocks}
    assert list(blocks) == [part.id for part in PARTS]
    assert blocks == {part.id: [item.key for item in part.items] for part in PARTS}


def test_every_line_is_blank_and_its_comment_is_what_is_asked():
    lines = re.findall(r'^(\w+) = ""\s+# (.*)$', TEXT, re.MULTILINE)
    assert lines == [(item.key, item.what) for part in PARTS for item in part.items]


def test_headings_have_title_and_points():
    headings = re.findall(r"^## (\d+) (\w+): (.*) \((\d+) points?\)$", TEXT, re.MULTILINE)
    expected = [(str(n), each.id, each.title, str(each.points)) for n, each in enumerate(PROBLEMS, start=1)]
    assert headings == expected
    assert headings
    assert len(headings) == len(re.findall("^## ", TEXT, re.MULTILINE))


def test_letters_and_sentences_are_those_of_the_parts():
    pieces = re.split(r"^(?=## |### )", TEXT, flags=re.MULTILINE)
    sections = [re.match(r"### \((\w)\)", piece)[1] for piece in pieces if piece.startswith("### ")]
    assert sections == [part.id.partition(".")[2] for part in PARTS]
    asked = re.findall(r"<!-- (\d+) to (\d+) sentences -->", TEXT)
    assert asked == [(str(p.prose.min_sentences), str(p.prose.max_sentences)) for p in PARTS if p.prose]
    for part, piece in zip(PARTS, (piece for piece in pieces if piece.startswith("### ")), strict=True):
        assert ("sentences -->" in piece) == (part.prose is not None), part.id


def test_views_exist():
    assert {block.show for block in read_answers(QUESTIONS).measured} <= set(VIEWS)


def test_points_are_the_courses():
    """2026: 137 in all, 51 of them for work on several devices; 13 of ours are of 2025."""
    points = {problem.id: problem.points for problem in PROBLEMS}
    of_2025 = points["communication_accounting"] + points["ddp_bucketed_benchmarking"]
    several_devices = 5 + (5 + 3) + 2 + (5 + 1) + 15 + 15
    assert of_2025 == 10 + 3
    assert sum(points.values()) - of_2025 + several_devices == 137


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.id)
def test_a_part_can_be_answered(part):
    keys = [item.key for item in part.items]
    assert len(keys) == len(set(keys))
    assert "id" not in keys
    for item in part.items:
        assert re.fullmatch(r"\w+", item.key)
        if isinstance(item, Choice | Order):
            assert all(choice in item.what for choice in item.choices)
        if isinstance(item, Symbolic):
            assert item.what.endswith(f", in {', '.join(item.names)}")
