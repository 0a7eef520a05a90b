"""Markers: what is left of a file without its blocks, and every way in which a marker can be wrong."""

import ast
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.grading.markers import MarkerError, find_blocks, missing, strip_blocks

PROBLEMS = {"rope": 5, "softmax": 6}
ROPE = 'raise NotImplementedError("problem rope is not written yet: section 5 of writeup/code.md")'


def strip(text, name="model.py"):
    return strip_blocks(textwrap.dedent(text), name, PROBLEMS)


def test_a_solution_in_a_function_becomes_an_error_that_names_the_section():
    left = strip('''
        def rotate(x):
            """Turn it."""
            # BEGIN SOLUTION rope
            y = 2 * x

            return y + 1
            # END SOLUTION


        def other():
            return 3
        ''')
    assert left == textwrap.dedent(f'''
        def rotate(x):
            """Turn it."""
            {ROPE}


        def other():
            return 3
        ''')
    module = {}
    exec(left, module)
    with pytest.raises(NotImplementedError, match=missing("rope")):
        module["rotate"](1)
    assert module["other"]() == 3


def test_it_stands_where_the_marker_stands():
    left = strip("""
        class Model:
            def forward(self, x):
                for _ in x:
                    # BEGIN SOLUTION softmax
                    x = x + 1
                    # END SOLUTION
                return x
        """)
    raised = [node for node in ast.walk(ast.parse(left)) if isinstance(node, ast.Raise)]
    assert [node.col_offset for node in raised] == [12]
    assert "section 6" in left
    assert "return x" in left


def test_at_module_and_class_level_nothing_is_left():
    left = strip('''
        """Doc."""
        # BEGIN SOLUTION rope
        TABLE = {1: 2}


        def helper():
            return TABLE
        # END SOLUTION


        class Model:
            """A model."""
            # BEGIN SOLUTION rope
            def helper(self):
                return 1
            # END SOLUTION

            size = 3
        ''')
    tree = ast.parse(left)
    assert [type(node).__name__ for node in tree.body] == ["Expr", "ClassDef"]
    assert [type(node).__name__ for node in tree.body[1].body] == ["Expr", "Assign"]


def test_a_class_in_a_function_is_a_class():
    left = strip("""
        def make():
            class Inner:
                size = 1
                # BEGIN SOLUTION rope
                width = 2
                # END SOLUTION
            return Inner
        """)
    module = {}
    exec(left, module)
    assert not hasattr(module["make"](), "width")


def test_a_block_behind_a_function_is_not_in_it():
    left = strip("""
        def f():
            return 1


        # BEGIN SOLUTION rope
        def g():
            return 2
        # END SOLUTION


        async def h():
            # BEGIN SOLUTION rope
            return 3
            # END SOLUTION
        """)
    assert "def g" not in left
    assert left.count(ROPE) == 1


def test_what_is_the_instructors_is_dropped_in_functions_and_in_expressions_too():
    left = strip("""
        CHOICES = (
            "a",
            # BEGIN INSTRUCTOR
            "b",
            # END INSTRUCTOR
        )


        def f():
            x = 1
            # BEGIN INSTRUCTOR
            x = 2
            # END INSTRUCTOR
            return x
        """)
    module = {}
    exec(left, module)
    assert module["CHOICES"] == ("a",)
    assert module["f"]() == 1


def test_other_files_lose_the_instructors_lines():
    text = "a:\n\techo 1\n# BEGIN INSTRUCTOR\nb:\n\techo 2\n# END INSTRUCTOR\nc:\n"
    assert strip_blocks(text, "Makefile", PROBLEMS) == "a:\n\techo 1\nc:\n"


def test_blocks_tell_their_place():
    text = (
        "a = 1\n# BEGIN SOLUTION rope\nb = 2\n# END SOLUTION\n# BEGIN INSTRUCTOR\nc = 3\n# END INSTRUCTOR\n"
    )
    first, second = find_blocks(text, "x.py", PROBLEMS)
    assert (first.problem, first.begin, first.end, first.lines) == ("rope", 2, 4, ("b = 2",))
    assert (second.problem, second.lines) == (None, ("c = 3",))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["kept", "rope", "softmax", None]), max_size=12))
def test_kept_lines_stay_as_they_are_and_in_order_and_no_other_stays(kinds):
    lines, kept = [], []
    for number, kind in enumerate(kinds):
        line = f"value_{number} = {number}"
        if kind == "kept":
            lines.append(line)
            kept.append(line)
        else:
            name = "INSTRUCTOR" if kind is None else "SOLUTION"
            lines += [f"# BEGIN {name}" + (f" {kind}" if kind else ""), line, f"# END {name}"]
    left = strip_blocks("\n".join([*lines, ""]), "x.py", PROBLEMS)
    assert left.split("\n") == [*kept, ""]


BEGIN, END = "# BEGIN SOLUTION rope\n", "# END SOLUTION\n"
OPEN, CLOSE = "# BEGIN INSTRUCTOR\n", "# END INSTRUCTOR\n"
WRONG = {
    "nested": (f"{BEGIN}{OPEN}a = 1\n{CLOSE}{END}", 2, "close that first"),
    "unclosed": (f"a = 1\n{BEGIN}b = 2\n", 2, "never closed"),
    "unknown problem": (f"# BEGIN SOLUTION roop\na = 1\n{END}", 1, "no problem 'roop'"),
    "no problem": (f"# BEGIN SOLUTION\na = 1\n{END}", 1, "the problem is missing"),
    "end alone": (f"a = 1\n{END}", 2, "without a BEGIN"),
    "text behind": (f"# BEGIN SOLUTION rope of it\na = 1\n{END}", 1, "is no marker"),
    "text behind the end": (f"{BEGIN}a = 1\n# END SOLUTION rope\n", 3, "does not belong"),
    "a blank behind the end": (f"{BEGIN}a = 1\n# END SOLUTION \n", 3, "is no marker"),
    "a problem of an instructor": (f"# BEGIN INSTRUCTOR rope\na = 1\n{CLOSE}", 1, "does not belong"),
    "small letters": (f"# begin solution rope\na = 1\n{END}", 1, "is no marker"),
    "no blank": (f"#BEGIN SOLUTION rope\na = 1\n{END}", 1, "is no marker"),
    "another word": (f"# BEGIN SOLUTIONS rope\na = 1\n{END}", 1, "is no marker"),
    "behind code": (f"a = 1  # BEGIN SOLUTION rope\nb = 2\n{END}", 1, "is no marker"),
    "another kind of end": (f"{BEGIN}a = 1\n{CLOSE}", 3, "its BEGIN in line 1"),
    "another indentation": (f"if 1:\n    {BEGIN}    a = 1\n{END}", 4, "indentation"),
    "indented less": (f"if 1:\n    {OPEN}    a = 1\nb = 2\nif 2:\n    {CLOSE}    c = 3\n", 2, "less"),
    "in a string": (f'a = """\n{BEGIN}b = 2\n{END}"""\n', 2, "inside a string"),
    "empty": (f"{BEGIN}\n{END}", 1, "nothing stands"),
}


@pytest.mark.parametrize(("text", "line", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_marker_is_an_error_in_one_line_with_its_place(text, line, words):
    with pytest.raises(MarkerError, match=words) as caught:
        strip_blocks(text, "folder/x.py", PROBLEMS)
    assert str(caught.value).startswith(f"folder/x.py:{line}: ")
    assert "\n" not in str(caught.value)


def test_a_solution_must_be_python():
    with pytest.raises(MarkerError, match="Makefile:1: solutions are Python"):
        strip_blocks("# BEGIN SOLUTION rope\na:\n# END SOLUTION\n", "Makefile", PROBLEMS)


def test_what_is_left_must_be_python():
    text = "def f():\n    # BEGIN INSTRUCTOR\n    return 1\n    # END INSTRUCTOR\n"
    with pytest.raises(MarkerError, match=r"^x\.py: without its blocks this is not Python"):
        strip_blocks(text, "x.py", PROBLEMS)


@pytest.mark.parametrize("text", ["f(:\n", "a = '''\n", "f(\n"])
def test_what_is_no_python_from_the_start_is_said_to_be_none(text):
    with pytest.raises(MarkerError, match=r"^x\.py: .*not Python") as caught:
        strip_blocks(f"{BEGIN}a = 1\n{END}{text}", "x.py", PROBLEMS)
    assert "\n" not in str(caught.value)


def test_text_without_markers_is_left_alone():
    text = "x = 'BEGIN'  # beginning and end\r\n\n\n"
    assert strip_blocks(text, "x.py", PROBLEMS) == text
