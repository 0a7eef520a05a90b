"""The Markdown of a write-up, and what a build does when something is missing, damaged or full."""

import hashlib
import pathlib
import re
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from cs_systems.bench.measured import read_measured
from cs_systems.bench.record import append_record
from cs_systems.grading.blocks import parse_answers
from cs_systems.report import writeup
from cs_systems.report.writeup import build, build_markdown, code, escape, table_lines
from cs_systems.tables import Cell, Column, Table

PASSES = {"forward": [1.0, 2.0, 3.0], "backward": [2.0, 4.0, 6.0]}
HOSTILE = r"<script>a|b</script> `x` *y* __z__ [l](javascript:1) $\input{/etc/passwd}$ &lt; \ ~~s~~"


def answers(text, folder=pathlib.Path("writeup")):
    return parse_answers(text, str(folder / "answers.md"))


@pytest.fixture
def records(tmp_path, make_record):
    folder = tmp_path / "records"
    folder.mkdir()
    for model in ("small", "medium"):
        append_record(folder / "training_step.jsonl", make_record(model, **PASSES))
    return folder


def built(text, records, tmp_path, verdicts=None):
    return build_markdown(answers(text), read_measured(records), tmp_path / "build", verdicts)


def cells_and_notes(markdown):
    """The texts of a rendered table and of its notes, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inline = [token for token in tokens if token.type == "inline"]
    return ["".join(child.content for child in token.children) for token in inline], {
        child.type for token in inline for child in token.children
    }


def test_the_text_of_the_student_passes_unchanged(records, tmp_path):
    before = "# Mine\r\n\nTemplates {{ x }} {% y %} << z >> $a_b$ <b>bold</b>\n\n```python\nshow = 1\n```\n"
    after = "\n\nBehind.  \n<!-- a comment -->\n\tcode\nEnd"
    document = built(f'{before}```measured\nshow = "timing"\n```{after}', records, tmp_path)
    assert document.text.startswith(before)
    assert document.text.endswith(after + "\n")
    assert "**Training step: batch 4 x 128 tokens" in document.text
    assert (document.missing, document.problems) == ([], [])


def test_a_measured_block_becomes_tables_figures_and_their_origin(records, tmp_path):
    text = built('A\n```measured\nshow = "timing"\n```\nB\n', records, tmp_path).text
    first, *rest = text.split("\n\n")
    assert first == "A"
    assert rest[-1].strip() == "B"
    assert "| small | 128.6M | forward | 0 | 3 |" in text
    assert "\n- Some, 2 threads, torch 2.13.0, commit abc1234def56, 2026-01-02\n" in text
    assert "\n- measured by `python benchmark.py`\n" in text
    (link,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (tmp_path / "build" / link).read_text().startswith("<?xml")


def test_every_number_of_a_filled_block_comes_from_the_records(records, tmp_path, make_record):
    """Other records, other numbers: nothing is kept from a template or from an earlier build."""
    text = '```measured\nshow = "timing"\n```\n'
    before = built(text, records, tmp_path).text
    slower = {name: [10 * value for value in values] for name, values in PASSES.items()}
    for model in ("small", "medium"):
        append_record(records / "training_step.jsonl", make_record(model, **slower))
    after = built(text, records, tmp_path).text
    assert "| 2.000 |" in before
    assert "| 2.000 |" not in after
    assert "| 20.00 |" in after


def test_what_is_missing_stands_in_the_text_and_is_returned(records, tmp_path):
    document = built('```measured\nshow = "flash"\n```\n', records, tmp_path)
    (missing,) = document.missing
    assert f"> **Not measured yet**: flash. Run `{missing.command}`" in document.text
    again = built('```measured\nshow = "flash"\n```\n' * 2, records, tmp_path)
    assert again.missing == [missing]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ('show = "flsh"', "there is no view 'flsh'; did you mean flash?"),
        ('show = "timing"\nmodell = "small"', "did you mean model?"),
        ('show = "precision"\nprecision = "bf16"', "compares values of precision"),
    ],
)
def test_a_block_that_cannot_be_filled_says_so_with_its_line(block, said, records, tmp_path):
    document = built(f"# T\n\n```measured\n{block}\n```\n", records, tmp_path)
    (problem,) = document.problems
    assert problem.startswith(f"{pathlib.Path('writeup/answers.md')}, line 3: ")
    assert said in problem
    assert "> **This block shows nothing**" in document.text


def test_an_answer_block_becomes_a_table_of_questions_and_answers(records, tmp_path):
    block = (
        '```answer\nid = "benchmarking_script.b"\nmodel = "small"\nforward_median = "12.3 ms"\nown = 7\n```\n'
    )
    text = built(block, records, tmp_path).text
    assert "| Item | Asked | Answer |" in text
    assert "| model | one of your models, the name of a preset | small |" in text
    assert "| 12.3 ms |" in text
    assert "| own |  | 7 |" in text
    assert "not answered |" in text
    assert "```" not in text
    assert built('A\n```answer\nid = "unknown.a"\n```\nB\n', records, tmp_path).text.split() == ["A", "B"]


def test_blocks_that_show_different_records_draw_into_different_folders(records, tmp_path):
    block = '```measured\nshow = "timing"\n{}\n```\n'
    text = built(block.format("") + block.format('model = ["small", "medium"]'), records, tmp_path).text
    first, second = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert first != second


def test_a_table_shows_every_text_as_it_is(tmp_path):
    columns = [Column("a", HOSTILE, align="left"), Column("b", "b"), Column("c", "c", raw_only=True)]
    row = {"a": HOSTILE, "b": Cell(None, "oom"), "c": "hidden"}
    lines = table_lines(Table(HOSTILE, columns, [row], [HOSTILE, "# one", "1. two"]), ["- three"], ["x `y`"])
    texts, kinds = cells_and_notes("\n".join(lines))
    assert texts == [HOSTILE, HOSTILE, "b", HOSTILE, "oom", HOSTILE, "# one", "1. two", "- three",
                     "measured by x `y`"]  # fmt: skip
    assert kinds <= {"text", "text_special", "strong_open", "strong_close", "code_inline"}


@pytest.mark.parametrize("text", ["a", "`", "``a`", "a ` b `` c", "` a", "a\nb"])
def test_code_holds_any_backticks(text):
    assert cells_and_notes(code(text)) == ([" ".join(text.split())], {"code_inline"})


@pytest.mark.parametrize("text", ["# a", "- a", "+ a", "1. a", "12) a", "> a", "===", "a\x00\x1b[0m", "---"])
def test_escaped_text_opens_no_block(text):
    texts, kinds = cells_and_notes(escape(text))
    assert texts == [" ".join(re.sub(r"[\x00\x1b]", " ", text).split())]
    assert kinds <= {"text", "text_special"}


def test_verdicts_stand_at_the_end(records, tmp_path):
    verdicts = Table("Problems", [Column("problem", "Problem", align="left")], [{"problem": "a_b"}])
    text = built("# T\n", records, tmp_path, verdicts).text
    assert text.endswith("## Check of the answers\n\n**Problems**\n\n| Problem |\n|:--|\n| a\\_b |\n")


def test_half_a_character_in_a_name_stops_nothing(records, tmp_path):
    verdicts = Table("T", [Column("a", "a")], [{"a": "x\ud800y"}])
    assert "x" in built("# T\n", records, tmp_path, verdicts).text.encode().decode()


def test_build_writes_three_documents_and_the_same_ones_again(records, tmp_path):
    folder = tmp_path / "some" / "build"
    text = answers('# T\n\n```measured\nshow = "timing"\n```\n', tmp_path)
    result = build(text, records, folder)
    assert [file.name for file in result.files] == ["writeup.md", "writeup.html", "writeup.pdf"]
    assert (result.missing, result.problems) == ([], [])
    assert result.files[2].read_bytes().startswith(b"%PDF-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "figures", "writeup.html", "writeup.md", "writeup.pdf",
    ]  # fmt: skip
    before = [hashlib.sha256(file.read_bytes()).hexdigest() for file in result.files[:2]]
    build(text, records, folder)
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in result.files[:2]] == before


@pytest.mark.parametrize(
    ("package", "left"),
    [
        ("typst", ["writeup.md", "writeup.html"]),
        ("pypandoc", ["writeup.md", "writeup.html"]),
        ("markdown_it", ["writeup.md", "writeup.pdf"]),
        ("mdit_py_plugins.dollarmath", ["writeup.md", "writeup.pdf"]),
        ("latex2mathml", ["writeup.md", "writeup.pdf"]),
    ],
)
def test_without_a_package_the_other_documents_come_out_and_an_old_one_goes(
    package, left, records, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    for suffix in ("html", "pdf"):
        (tmp_path / f"writeup.{suffix}").write_text("of an earlier build")
    result = build(answers("# T $x$\n"), records, tmp_path)
    assert [file.name for file in result.files] == left
    (problem,) = result.problems
    assert problem.endswith("pip install 'cs_systems[report]'")
    assert problem.count("\n") == 0
    assert {path.name for path in tmp_path.glob("writeup.*")} == set(left)


def test_a_folder_that_cannot_be_written_is_one_line(records, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot create it") as error:
        build(answers("# T\n"), records, tmp_path / "file")
    assert "\n" not in str(error.value)

    def full(path, data):
        raise ValueError(f"{path}: cannot write (No space left on device)")

    monkeypatch.setattr(writeup, "write_atomically", full)
    with pytest.raises(ValueError, match="No space left"):
        build(answers("# T\n"), records, tmp_path)


def test_without_records_everything_is_missing_and_the_documents_come_out(tmp_path):
    result = build(
        answers('# T\n\n```measured\nshow = "timing"\n```\n'), tmp_path / "none", tmp_path / "build"
    )
    assert len(result.files) == 3
    assert [missing.view for missing in result.missing] == ["timing"]
    assert result.problems == [
        f"{tmp_path / 'none'} does not exist: nothing of your own to show or check; type make measure"
    ]


def test_importing_it_loads_neither_torch_nor_the_packages_of_the_documents():
    lazy = {"torch", "matplotlib", "markdown_it", "typst", "pypandoc", "latex2mathml"}
    program = f"import sys, cs_systems.report.writeup; print({lazy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
