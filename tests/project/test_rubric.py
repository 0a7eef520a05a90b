"""The rubric, the text of the problems, the adapters and the graded tests say the same of every problem."""

import ast
import functools
import importlib
import importlib.util
import operator
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import torch
from graded_support.rubric import CodeProblem, TestResult, points_table, read_rubric, score_problems
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[2]
GRADED = ROOT / "tests/graded"
RUBRIC = GRADED / "rubric.toml"
PROBLEMS = read_rubric(RUBRIC)
TEXT = (ROOT / "writeup/code.md").read_text()
ADAPTERS = (ROOT / "tests/adapters.py").read_text()

FLASH = {"get_flashattention_autograd_function_pytorch", "get_flashattention_autograd_function_triton"}
SHARED = {
    "flash_backward": FLASH,
    "leaderboard": {"get_flashattention_autograd_function_triton"},
    "naive_ddp": {"get_ddp", "ddp_on_after_backward"},
}
"""Adapters that a problem shares with the one whose marker they carry."""
SEE_ALSO = {
    "flash_backward": {
        f"cs_systems/kernels/{name}.py" for name in ("flash_attention", "flash_attention_torch")
    }
}
"""Files that a section names by the number of another one."""


def sections(text):
    """The text below each heading of the second level, and the heading itself."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def section_of(problem):
    return sections(TEXT)[heading_of(problem)]


def heading_of(problem):
    unit = "point" if problem.points == 1 else "points"
    return f"{problem.section} {problem.id}: {problem.title} ({problem.points:g} {unit})"


FUNCTIONS = [
    node
    for node in ast.parse(ADAPTERS).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
]
"""The adapters."""


@functools.cache
def owner_of(function):
    """The problem that the marker in an adapter names."""
    (problem,) = set(re.findall(r"# BEGIN SOLUTION (\w+)", ast.get_source_segment(ADAPTERS, function)))
    return problem


def adapters_of(problem_id):
    own = {function.name for function in FUNCTIONS if owner_of(function) == problem_id}
    return own | SHARED.get(problem_id, set())


@functools.cache
def unsolved_files():
    """Problems and files in which a function of the handout waits for its solution."""
    markers = re.compile(r"^ +# BEGIN SOLUTION (\w+)$", re.MULTILINE)
    return {
        (problem, str(path.relative_to(ROOT)))
        for path in (ROOT / "cs_systems").rglob("*.py")
        if path.parent.name != "grading"
        for problem in markers.findall(path.read_text())
    }


def spans(text):
    """Inline code, and the words of it."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def by_id(problem):
    return problem.id


# --- The text ---------------------------------------------------------------------------------------------


def test_sections_are_the_problems_of_the_rubric_in_its_order():
    found = [heading for heading in sections(TEXT) if heading[0].isdigit()]
    assert found == [heading_of(problem) for problem in PROBLEMS]
    assert list(sections(TEXT)) == ["How to work", *found]


def test_the_introduction_counts_right():
    total = sum(problem.points for problem in PROBLEMS)
    pending = [problem for problem in PROBLEMS if problem.pending]
    introduction = " ".join(TEXT.partition("\n## 1 ")[0].split())
    assert f"{len(PROBLEMS)} problems, {total:g} points" in introduction
    first, last = pending[0].section, pending[-1].section
    assert last - first + 1 == len(pending)
    assert f"sections {first} to {last}, {sum(p.points for p in pending):g} points" in introduction


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_id)
def test_a_section_names_the_adapters_of_its_problem_and_no_others(problem):
    known = {function.name for function in FUNCTIONS}
    named = {word for span in spans(section_of(problem)) for word in re.findall(r"\w+", span)} & known
    assert named == adapters_of(problem.id)
    assert named, "nothing to write"


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_id)
def test_a_section_says_pending_where_the_rubric_does(problem):
    assert ("Pending in this edition" in section_of(problem)) == bool(problem.pending)


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_id)
def test_what_a_section_says_to_write_is_defined_in_the_files_that_it_names(problem):
    bullets = re.split(r"^- ", section_of(problem), flags=re.MULTILINE)
    (bullet,) = [bullet for bullet in bullets if re.match("Adapters?:", bullet)]
    files = [span for span in spans(bullet) if span.endswith(".py")]
    missing = [file for file in files if not (ROOT / file).is_file()]
    assert missing == []
    names = [span for span in spans(bullet) if span.isidentifier() and span not in adapters_of(problem.id)]
    source = "\n".join((ROOT / file).read_text() for file in files)
    assert [
        name for name in names if not re.search(rf"^ *(?:def|class) {name}\b", source, re.MULTILINE)
    ] == []


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_id)
def test_a_section_names_the_files_where_a_function_waits_for_its_solution(problem):
    """Files that are solutions as a whole, as some kernels are, are not in the handout: any place will do."""
    waiting = {path for problem_id, path in unsolved_files() if problem_id == problem.id}
    assert waiting <= set(spans(section_of(problem))) | SEE_ALSO.get(problem.id, set())


def test_every_selection_of_tests_that_is_shown_names_problems():
    shown = re.findall(r"pytest tests/graded -m (\"[^\"]+\"|\w+)", TEXT)
    assert shown
    named = {name for selection in shown for name in re.findall(r"problem_\w+", selection)}
    assert named <= {f"problem_{problem.id}" for problem in PROBLEMS}


def shown_commands():
    """Commands of this project that the text shows, as words after the interpreter."""
    return [shlex.split(span)[1:] for span in spans(TEXT) if span.startswith("python ")]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_every_command_that_is_shown_can_be_typed(words, capsys):
    if words[0] == "-m":
        name, flags = words[1], words[2:]
        # A package is run by its __main__, whose body must not run here.
        is_package = importlib.util.find_spec(name).submodule_search_locations is not None
        program = importlib.import_module(f"{name}.__main__" if is_package else name)
    else:
        spec = importlib.util.spec_from_file_location("program_of_code_md", ROOT / words[0])
        program, flags = importlib.util.module_from_spec(spec), words[1:]
        spec.loader.exec_module(program)
    if hasattr(program, "make_parsers"):
        parser = program.make_parsers()[1][flags.pop(0)]
    elif hasattr(program, "make_parser"):
        parser = program.make_parser()
    else:  # its main() is made to stop at the first question after all flags were read
        with pytest.raises(SystemExit):
            program.main([*flags, "--resume"])
        assert "--resume needs --output" in capsys.readouterr().err
        return
    arguments = parser.parse_args(flags)
    if hasattr(program, "make_cases"):
        assert program.make_cases(arguments)


def test_the_commands_are_found():
    programs = {words[1] if words[0] == "-m" else words[0] for words in shown_commands()}
    assert {"benchmark.py", "profiling/run.py", "cs_systems.bench.attention"} <= programs


def test_the_failure_that_is_shown_is_what_pytest_says(tmp_path):
    """Numbers aside: they are those of one machine."""
    wrong = "def run_linear(d_in, d_out, weights, in_features):\n    return in_features @ weights\n"
    (tmp_path / "wrong.py").write_text(wrong)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/graded/test_linear.py"],
        cwd=ROOT,
        env=os.environ | {"CS_SYSTEMS_ADAPTERS": str(tmp_path / "wrong.py")},
        capture_output=True,
        text=True,
    )
    (shown,) = re.findall(r"^```text\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert without_numbers(shown) in without_numbers(result.stdout), result.stdout[-2000:] + result.stderr


def without_numbers(text):
    return re.sub(r"-?\d[\d.e-]*\d|\d", "0", " ".join(text.split()))


# --- Adapters, tests, points ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_an_adapter_explains_itself_with_an_example(function):
    documentation = ast.get_docstring(function)
    assert re.search(r"^For example, ", documentation, re.MULTILINE)
    assert owner_of(function) in {problem.id for problem in PROBLEMS}


def test_every_problem_has_tests_and_every_test_a_problem():
    with_tests = {path.stem.removeprefix("test_") for path in GRADED.glob("test_*.py")}
    assert with_tests == {problem.id for problem in PROBLEMS}
    hidden = {path.stem.removeprefix("test_") for path in (GRADED / "hidden").glob("test_*.py")}
    assert hidden <= with_tests


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_id)
def test_tests_need_no_adapter_but_those_of_the_section(problem):
    used = set()
    for path in GRADED.rglob(f"test_{problem.id}.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "adapters" else set()
    assert used <= adapters_of(problem.id)


def test_code_has_no_more_points_than_the_whole_problem():
    from cs_systems.grading import problems

    whole = {problem.id: problem.points for problem in problems.PROBLEMS}
    both = [problem for problem in PROBLEMS if problem.id in whole]
    assert len(both) >= 8
    assert [problem.id for problem in both if problem.points > whole[problem.id]] == []


def test_every_problem_has_a_marker(pytestconfig):
    known = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert {f"problem_{problem.id}" for problem in PROBLEMS} <= known


ALLOWED = set(sys.stdlib_module_names) | {"torch", "numpy", "pytest", "triton", "graded_support"}
"""What the kit may import, wherever the import stands: a submission brings its own cs_systems."""


def imported_packages(source):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0] if node.level == 0 else "a relative import")
    return names


def test_the_kit_stands_on_nothing_that_is_graded():
    foreign = {
        str(path.relative_to(GRADED)): imported_packages(path.read_text()) - ALLOWED
        for path in sorted(GRADED.rglob("*.py"))
    }
    assert len(foreign) > 5
    assert {path: names for path, names in foreign.items() if names} == {}
    assert imported_packages("def f():\n    from cs_systems.cli import Parser") == {"cs_systems"}


# --- Changed rubrics --------------------------------------------------------------------------------------

LINEAR = '[[problem]]\nid = "linear"\ntitle = "a matrix product"\npoints = 1\n'
BROKEN = {
    "bad TOML": (LINEAR.replace('"linear"', '"linear'), "not a rubric"),
    "nothing at all": ("", r"not a rubric \('problem'\)"),
    "no title": (LINEAR.replace('title = "a matrix product"\n', ""), "not a rubric .*'title'"),
    "a key too many": (LINEAR + "weight = 2\n", "not a rubric .*'weight'"),
    "points below 0": (LINEAR.replace("= 1", "= -1"), r"linear has points = -1; give a number from 0 on"),
    "points that are no number": (LINEAR.replace("= 1", '= "1"'), "linear has points = '1'"),
    "points that are true": (LINEAR.replace("= 1", "= true"), "linear has points = True"),
    "points that are nan": (LINEAR.replace("= 1", "= nan"), "linear has points = nan"),
    "endless points": (LINEAR.replace("= 1", "= inf"), "linear has points = inf"),
    "the same problem twice": (LINEAR * 2, "a problem stands there twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rubric_is_refused_in_one_line(case, tmp_path):
    text, message = BROKEN[case]
    path = tmp_path / "rubric.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_rubric(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_rubric_that_is_no_text_is_refused_in_one_line(tmp_path):
    path = tmp_path / "rubric.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a rubric"):
        read_rubric(path)


def test_a_rubric_gives_sections_in_its_order(tmp_path):
    path = tmp_path / "rubric.toml"
    path.write_text(LINEAR + LINEAR.replace("linear", "rope").replace("= 1", "= 0.5"))
    assert [(problem.section, problem.id, problem.points) for problem in read_rubric(path)] == [
        (1, "linear", 1),
        (2, "rope", 0.5),
    ]


def test_what_is_not_allowed_exists_in_torch_and_is_named_in_the_text():
    names = {name for problem in PROBLEMS for name in problem.not_allowed}
    assert len(names) > 10
    for name in names:
        assert callable(operator.attrgetter(name.removeprefix("torch."))(torch))
    assert [
        problem.id for problem in PROBLEMS if problem.id.endswith("schedule") and problem.not_allowed
    ] == []


# --- Points -----------------------------------------------------------------------------------------------

STATUSES = ("passed", "failed", "pending", "not reached")


def results_of(problem_id, statuses):
    folder = "tests/graded/"
    return [
        TestResult(f"{folder}test_{problem_id}.py::test_{i}", status, f"because {i}")
        for i, status in enumerate(statuses)
    ]


outcomes = st.lists(st.sampled_from(STATUSES), min_size=1, max_size=20)
points = st.sampled_from(sorted({problem.points for problem in PROBLEMS})) | st.floats(0, 100)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(points, outcomes)
def test_points_are_earned_pending_or_lost_and_add_up(number, statuses):
    problem = CodeProblem("rope", "rotate", number, 1)
    (score,) = score_problems([problem], results_of("rope", statuses))
    assert score.earned + score.pending + score.lost == pytest.approx(number, rel=1e-12, abs=1e-300)
    shares = {"passed": score.earned, "pending": score.pending, ("failed", "not reached"): score.lost}
    for meant, share in shares.items():
        count = sum(status in meant if isinstance(meant, tuple) else status == meant for status in statuses)
        assert share == pytest.approx(number * count / len(statuses), rel=1e-12, abs=1e-300)
        assert share >= 0
        if count == 0:  # not even a trace of rounding, which a table would show
            assert share == 0


@settings(derandomize=True, deadline=None, max_examples=300)
@given(points, outcomes, st.data())
def test_a_test_more_that_passes_never_costs_points(number, statuses, data):
    problem = CodeProblem("rope", "rotate", number, 1)
    i = data.draw(st.integers(0, len(statuses) - 1))
    (before,) = score_problems([problem], results_of("rope", statuses))
    (after,) = score_problems([problem], results_of("rope", [*statuses[:i], "passed", *statuses[i + 1 :]]))
    assert after.earned >= before.earned
    assert after.lost <= before.lost
    assert after.earned + after.pending >= (before.earned + before.pending) * (1 - 1e-12)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from([problem.id for problem in PROBLEMS]), outcomes), st.randoms())
def test_problems_do_not_touch_each_other_and_order_does_not_matter(by_problem, random):
    results = [result for name, statuses in by_problem.items() for result in results_of(name, statuses)]
    scores = score_problems(PROBLEMS, results)
    assert [score.problem.id for score in scores] == [p.id for p in PROBLEMS if p.id in by_problem]
    for score in scores:
        (alone,) = score_problems(PROBLEMS, results_of(score.problem.id, by_problem[score.problem.id]))
        assert (alone.earned, alone.pending, alone.lost) == (score.earned, score.pending, score.lost)
    random.shuffle(results)
    shuffled = score_problems(PROBLEMS, results)
    assert [(s.problem, s.earned, s.lost) for s in shuffled] == [
        (s.problem, s.earned, s.lost) for s in scores
    ]


def test_the_table_adds_up_and_says_why():
    results = results_of("linear", ["passed", "failed", "passed", "passed"]) + results_of(
        "softmax", ["pending"]
    )
    lines = points_table(score_problems(PROBLEMS, results))
    assert [line.split() for line in lines] == [
        ["problem", "points", "earned", "pending", "lost", "why"],
        ["linear", "1", "0.75", "0", "0.25", "because", "1"],
        ["softmax", "1", "0", "1", "0", "because", "0"],
        ["total", "2", "0.75", "1", "0.25"],
    ]


def test_the_reason_that_is_frequent_stands_first():
    results = [TestResult(f"test_rope.py::{i}", "failed", why) for i, why in enumerate(("b", "a", "a", "c"))]
    (score,) = score_problems(PROBLEMS, results)
    assert score.reasons == ("a", "b", "c")
    assert "a (and 2 more)" in points_table([score])[1]


def test_hidden_tests_share_the_points_of_their_problem():
    results = [
        TestResult("tests/graded/test_rope.py::a", "passed"),
        TestResult("tests/graded/hidden/test_rope.py::a", "failed", "off"),
    ]
    assert [result.is_hidden for result in results] == [False, True]
    (score,) = score_problems(PROBLEMS, results)
    assert (score.problem.id, score.earned, score.lost) == ("rope", 1.0, 1.0)
