"""Write-ups as students type them, cut into blocks: what is one, what is none, and what each error says."""

import itertools
import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.grading.blocks import AnswerBlock, MeasuredBlock, PlainText, parse_answers, read_answers

WRITE_UP = """\
# Assignment

## 1 benchmarking_script: Benchmarking script (4 points)

### (b) Times

How long do they take?

```answer
id = "benchmarking_script.b"
model = ""                    # which of your models
forward_median = "12.3 ms"
layers = 24
factor = 1.5
order = ["naive", "flash"]
```
<!-- 1 to 2 sentences -->
Forward takes 12.3 ms, <!-- check
this --> half of backward.

```measured
show = "timing"
model = ["small"]
context_length = [128, 256]
compile = false
```

It varies.

### (c) Warm-up

```answer
id = "benchmarking_script.c"
```
"""


def test_a_write_up_is_read_block_by_block():
    answers = parse_answers(WRITE_UP, "answers.md")
    kinds = [(type(piece), piece.line) for piece in answers.pieces]
    assert kinds == [
        (PlainText, 1),
        (AnswerBlock, 9),
        (PlainText, 17),
        (MeasuredBlock, 21),
        (PlainText, 27),
        (AnswerBlock, 32),
    ]
    block = answers.find("benchmarking_script.b")
    assert block is not None
    assert block is answers.blocks[0]
    assert block.values == {
        "model": "",
        "forward_median": "12.3 ms",
        "layers": 24,
        "factor": 1.5,
        "order": ["naive", "flash"],
    }
    assert block.prose == "Forward takes 12.3 ms,  half of backward.\n\n\nIt varies."
    assert answers.blocks[1].prose == ""
    assert answers.blocks[1].values == {}
    assert answers.find("benchmarking_script.d") is None
    (view,) = answers.measured
    assert view.show == "timing"
    assert view.where == {"model": ["small"], "context_length": [128, 256], "compile": False}
    assert "".join(piece.source for piece in answers.pieces) == WRITE_UP


ANSWER = '```answer\nid = "p.a"\n```\n'


@pytest.mark.parametrize(
    "text",
    [
        '````answer\nid = "p.a"\n```` \n',
        '~~~answer\nid = "p.a"\n~~~~\n',
        '   ``` answer\n  id = "p.a"\n   ```\n',
        '```Answer title\nid = "p.a"\n```',  # without a last newline
        '```answer\r\nid = "p.a"\r\n```\r\n',
        '```answer\rid = "p.a"\r```\r',
        '```answer\nid = " p.a "\n```\n',
        "text\f with U+2028 \u2028```\n" + ANSWER,
        "`` ``` ``\n" + ANSWER,
        "a `code` b\n``` not ` a fence\n" + ANSWER,
        "```python\nx\n```\n" + ANSWER,
    ],
)
def test_a_fence_of_any_length_or_mark_is_a_block(text):
    assert [block.id for block in parse_answers(text, "answers.md").blocks] == ["p.a"]


@pytest.mark.parametrize(
    "text",
    [
        textwrap.indent(ANSWER, "    "),
        "\t```answer\n\tid = 3\n\t```\n",
        "````markdown\n" + ANSWER + "````\n",
        "~~~\n" + ANSWER + "~~~\n",
        "```\n```answer\n```\n",
        "<!--\n" + ANSWER + "-->\n",
        "> ```answer\n> ```\n",
        "``answer\nid = 3\n``\n",
        "see ```answer```\n",
    ],
)
def test_what_is_indented_quoted_or_commented_out_is_text(text):
    assert [type(piece) for piece in parse_answers(text, "answers.md").pieces] == [PlainText]


@pytest.mark.parametrize(
    ("behind", "prose"),
    [
        ("one\n## two\nthree", "one"),
        ("one\n### (c)\nthree", "one"),
        ("one\n" + ANSWER.replace("p.a", "p.b") + "three", "one"),
        ("one\n#two #3\n####### seven", "one\n#two #3\n####### seven"),
        (
            "one\n```sh\n# no heading <!-- kept -->\n```\ntwo",
            "one\n```sh\n# no heading <!-- kept -->\n```\ntwo",
        ),
        ("<!--\n## hidden\n--> one\r\n two  \r\n", "one\n two"),
        ('```measured\nshow = "timing"\n```\none\n~~~measured\nshow = "memory"\n~~~', "one"),
        ("<!-- a --><!-- b -->", ""),
    ],
)
def test_prose_ends_at_a_heading_or_block_and_leaves_comments_and_views_out(behind, prose):
    assert parse_answers(ANSWER + behind, "answers.md").blocks[0].prose == prose


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('x\n```answer\nid = "p.a"\n', 2, ["answer block", "not closed"]),
        ('x\n```answer\nid = "p.a"\n~~~\n', 2, ["not closed", "end it with a line ```"]),
        ('\n\n~~~~measured\nshow = "timing"\n~~~\n', 3, ["measured block", "not closed", "~~~~"]),
        ('```answer\nid = "p.a"\n\n' + ANSWER, 1, ["not closed", "line 4"]),
        ("```python\nx = 1\n" + ANSWER.replace("```\n", ""), 1, ["code block", "not closed"]),
        ("a\n\n<!-- later\n" + ANSWER, 3, ["comment", "not closed"]),
        ('```answer\nid = "p.a"\nmodel = small\n```\n', 3, ["model = small", 'key = "text"']),
        ('```answer\nid = "p.a"\nThe text.\n```\n', 3, ["The text."]),
        ('```answer\nid = "p.a"\nt = 12 ms\n```\n', 3, ["t = 12 ms"]),
        ('```answer\nid = "p.a"\nt = "12\n```\n', 3, ['t = "12']),
        ('```answer\nid = "p.a"\nt = """12\n```\n', 1, ["closing quote"]),
        ('```answer\nid = "p.a"\nt = ""\nt = "1"\n```\n', 4, ["twice"]),
        ("```answer\nt = " + "9" * 5000 + "\n```\n", 1, ["digits"]),
        ("```answer\nt = " + "[" * 5000 + "\n```\n", 1, ["nested"]),
        ('x\n```answer\nmodel = "small"\n```\n', 2, ["no id"]),
        ("x\n```answer\nid = 3\n```\n", 2, ["no id"]),
        ("```answer\n```\n", 1, ["no id"]),
        ('```measured\nview = "timing"\n```\n', 1, ["no show", "timing"]),
        (ANSWER + "\n" + ANSWER, 5, ["p.a", "line 1", "keep one"]),
        ('```answer\nid = "p.a"\nab = 1\n[a]\nb = 1\n```\n', 4, ["a must be"]),
        ('```answer\nid = "p.a"\na.b = 1\n```\n', 3, ["a must be"]),
        ('```answer\nid = "p.a"\na = true\n```\n', 3, ["a must be"]),
        ('```answer\nid = "p.a"\na = 2026-01-01\n```\n', 3, ["a must be"]),
        ('```answer\nid = "p.a"\na = [1, 2]\n```\n', 3, ["a must be"]),
        ('```measured\nshow = "timing"\na = [[1]]\n```\n', 3, ["a must be"]),
    ],
)
def test_errors_are_one_line_with_the_line_number(text, line, words):
    with pytest.raises(ValueError, match=rf"^answers\.md, line {line}: ") as error:
        parse_answers(text, "answers.md")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 250
    for word in words:
        assert word in message


def test_a_file_is_read_with_and_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "answers.md"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + WRITE_UP.replace("\n", "\r\n").encode())
        answers = read_answers(path)
        assert answers.name == str(path)
        assert "".join(piece.source for piece in answers.pieces) == WRITE_UP.replace("\n", "\r\n")
        with_lf = parse_answers(WRITE_UP, "answers.md")
        assert [(block.id, block.values, block.prose, block.line) for block in answers.blocks] == [
            (block.id, block.values, block.prose, block.line) for block in with_lf.blocks
        ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist; make writeup-new"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        ("caf\u00e9\n".encode("latin-1"), "line 1: byte 3 of the file is not UTF-8"),
        (b"\xef\xbb\xbfab\ncd\xff", "line 2: byte 8 of the file is not UTF-8"),
        ("# A".encode("utf-16"), "line 1: byte 0 of the file is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_say_why_in_one_line(tmp_path, data, words):
    path = tmp_path / "answers.md"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_answers(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_folder_is_no_write_up(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_answers(tmp_path)


PARTS = [
    "text\n",
    "\n",
    "# heading\r\n",
    "<!-- comment -->\n",
    "<!--\n```answer\n-->\n",
    "~~~python\n```answer\n~~~\n",
    "    ```answer\n",
    "\u2028 \x0b \x0c\r",
    "`` ` ```\n",
    '```measured\nshow = "timing"\n```\n',
    '~~~~measured\r\nshow = "x"\r\n~~~~\r\n',
]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*PARTS, ANSWER]), max_size=12), st.sampled_from(["", "end", "\r"]))
def test_pieces_join_to_the_text_and_know_their_lines(parts, end):
    ids = itertools.count()
    parts = [part.replace("p.a", f"p.{next(ids)}") for part in parts]
    text = "".join(parts) + end
    answers = parse_answers(text, "answers.md")
    assert "".join(piece.source for piece in answers.pieces) == text
    num_before = 0
    for piece in answers.pieces:
        assert piece.line == 1 + num_before
        num_before += len(piece.source.replace("\r\n", "\n").replace("\r", "\n").split("\n")) - 1
    assert [block.id for block in answers.blocks] == [
        f"p.{n}" for n, part in enumerate(parts) if part.startswith("```answer")
    ]


OPENING = [
    "```measured",
    "   ````measured",
    "    ```measured",
    "~~~ measured",
    "```measured `",
    "~~~measured `",
]
CLOSING = ["```", "   ````  ", "    ```", "~~~", "~~~~", "``", "```\n```sh\n~~~\n```"]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(OPENING), st.sampled_from(CLOSING)), max_size=3))
def test_fences_open_and_close_where_commonmark_says(groups):
    markdown_it = pytest.importorskip("markdown_it", reason="comes with the extra: report")
    text = "".join(f'{opening}\nshow = "timing"\n{closing}\n' for opening, closing in groups)
    tokens = [token for token in markdown_it.MarkdownIt().parse(text) if token.type == "fence"]
    found = [(token.map[0] + 1, token.info.split()[:1] == ["measured"], token.content) for token in tokens]
    try:
        answers = parse_answers(text, "a.md")
    except ValueError as error:
        line = int(str(error).partition("line ")[2].partition(":")[0])
        first = max((fence for fence in found if fence[0] <= line), key=lambda fence: fence[0])
        closed = first[0] + first[2].count("\n") + 1 <= text.count("\n")
        assert not closed or (first[1] and first[2] != 'show = "timing"\n')
    else:
        assert [block.line for block in answers.measured] == [line for line, measured, _ in found if measured]
        assert all(content == 'show = "timing"\n' for _, measured, content in found if measured)
