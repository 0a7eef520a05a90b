"""The example of a write-up: every answer is right, and its document is what the build makes of it."""

import pathlib

import pytest

from cs_systems.bench.measured import read_measured
from cs_systems.grading.answers import check_answers, messages, verdict_table
from cs_systems.grading.blocks import read_answers
from cs_systems.grading.evidence import Evidence
from cs_systems.grading.problems import PROBLEMS
from cs_systems.report.writeup import build_markdown

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "writeup" / "example"
RECORDS = ROOT / "results" / "amd-epyc-2-cores"


@pytest.fixture(scope="module")
def verdicts():
    return check_answers(read_answers(EXAMPLE / "answers.md"), Evidence(RECORDS), PROBLEMS)


def test_every_answer_of_the_example_is_right(verdicts):
    assert messages(verdicts) == []
    assert {verdict.status for verdict in verdicts} == {"right"}


def test_the_document_of_the_example_is_up_to_date(verdicts, tmp_path):
    table = verdict_table(verdicts, PROBLEMS)
    answers = read_answers(EXAMPLE / "answers.md")
    built = build_markdown(answers, read_measured(RECORDS), tmp_path, table)
    assert built.missing == []
    assert built.problems == []
    assert built.text == (EXAMPLE / "writeup.md").read_text()
    for figure in (tmp_path / "figures").rglob("*.svg"):
        assert (EXAMPLE / figure.relative_to(tmp_path)).exists()


def test_the_example_answers_the_questions_as_they_stand_now():
    """A question that changes must change in the example too."""

    def asked(path):
        lines = path.read_text().splitlines()
        return [line for line in lines if line.startswith(("#", "id = ", "show = "))]

    assert asked(EXAMPLE / "answers.md") == asked(ROOT / "writeup" / "questions.md")
