"""The handout: no solution is in it, everything else works, and filling it in earns the points."""

import ast
import collections
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import test_docs as docs

from cs_systems.grading import handout
from cs_systems.grading.markers import find_blocks, missing, strip_blocks

ROOT = pathlib.Path(__file__).parents[2]
PROBLEMS = handout.read_problems(ROOT)
SECTIONS = handout.sections_of(PROBLEMS)
GRADED = [name for name, entry in PROBLEMS.items() if not entry.get("pending")]
WITHOUT_BLANK = {"leaderboard"}
"""Problems for which nothing is written: it times what another asked for."""
SOLUTIONS_AS_A_WHOLE = ("cs_systems/kernels/flash_kernels.py", "cs_systems/kernels/reference.py")

COMMONPLACE = {
    "handle.remove()",  # of hooks, wherever there are any
    "loss.backward()",  # in every training step
    "sums.append(total.item())",  # keeps a sum of another way to add
    "synchronize()",  # calls what was given
}
"""Statements of solutions that other code needs too, and that are no solution by themselves."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The handout as the command makes it."""
    folder = tmp_path_factory.mktemp("dist") / "handout"
    sources()  # as they are now, should somebody be editing them
    handout.build(ROOT, folder, force=False)
    return folder


@functools.cache
def sources():
    return handout.read_sources(ROOT)


parsed = functools.cache(ast.parse)


@functools.cache
def python_files(tree):
    """Text by path of all Python files of a handout."""
    return {path.relative_to(tree).as_posix(): path.read_text() for path in sorted(tree.rglob("*.py"))}


def package_modules(tree):
    """Dotted names of all modules of the package."""
    parts = (path.relative_to(tree).with_suffix("").parts for path in tree.glob("cs_systems/**/*.py"))
    return {".".join(each[:-1] if each[-1] == "__init__" else each) for each in parts}


def run(tree, *words, **environment):
    """A Python command in a folder that has nothing of this project but what is in it."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("CS_SYSTEMS", "PYTEST"))
    }
    settings = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    settings = inherited | settings | environment
    return subprocess.run([sys.executable, *words], cwd=tree, env=settings, capture_output=True, text=True)


def outcomes(report):
    """For each test of a JUnit report: problem, "passed", "failed" or "skipped", and the message."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.get("classname").rpartition("test_")[2]
        results = [each for each in case if each.tag in ("failure", "error", "skipped")]
        result = (results[0].tag, results[0].get("message")) if results else ("passed", "")
        found[f"{case.get('classname')}::{case.get('name')}"] = (problem, *result)
    return found


# --- Nothing is given away --------------------------------------------------------------------------------


def test_markers_of_the_whole_project_balance_and_name_known_problems():
    for path in sorted(ROOT.glob("cs_systems/**/*.py")):
        if path.name not in ("markers.py", "handout.py"):
            find_blocks(path.read_text(), path.name, SECTIONS)
    assert all(find_blocks(text, path, SECTIONS) is not None for path, text in sources().items())


def test_every_graded_problem_has_a_place_for_its_solution(tree):
    files = python_files(tree)
    assert [name for name in GRADED if not handout.places_of(name, files) and name not in WITHOUT_BLANK] == []
    adapters = files[handout.ADAPTERS]
    assert [name for name in GRADED if missing(name) not in adapters and name not in WITHOUT_BLANK] in (
        [], ["flash_backward"],
    )  # fmt: skip
    marked = [path for path, text in sources().items() if find_blocks(text, path, SECTIONS)]
    assert [path for path in marked if (tree / path).read_text() == sources()[path]] == []


def computing_statements(text, lines=None):
    """Simple statements that compute something, as Python writes them; those in a range of lines alone."""
    found = {}
    for node in ast.walk(parsed(text)):
        simple = isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr)
        if not simple or (lines and not (lines[0] < node.lineno and node.end_lineno < lines[1])):
            continue
        computes = ast.BinOp | ast.Call | ast.Compare | ast.UnaryOp | ast.Subscript
        value = [] if node.value is None else ast.walk(node.value)
        if any(isinstance(part, computes) for part in value) or isinstance(node, ast.AugAssign):
            found[ast.unparse(node)] = node
    return found


@functools.cache
def solution_statements():
    """All such statements of solutions with their lines, where they are longer than a dozen characters."""
    statements, lines = set(), set()
    texts = dict(sources()) | {path: (ROOT / path).read_text() for path in SOLUTIONS_AS_A_WHOLE}
    ranges = {
        path: [(block.begin, block.end) for block in find_blocks(text, path, SECTIONS) if block.problem]
        for path, text in texts.items()
    } | {path: [(0, 10**6)] for path in SOLUTIONS_AS_A_WHOLE}
    for path, blocks in ranges.items():
        raw = texts[path].splitlines()
        for block in blocks:
            found = computing_statements(texts[path], block)
            statements |= {statement for statement in found if len(statement) > 12}
            for node in found.values():
                lines |= {raw[number - 1].strip() for number in range(node.lineno, node.end_lineno + 1)}
    opening = ("(", "[", "{", "(  # fmt: skip")  # the beginning of a call, without what is passed on
    return statements, {
        line for line in lines if len(line) > 12 and re.search(r"\w", line) and not line.endswith(opening)
    }


def test_no_statement_of_a_solution_is_left_anywhere(tree):
    statements, _ = solution_statements()
    assert len(statements) > 400
    for path, text in python_files(tree).items():
        assert (computing_statements(text).keys() & statements) - COMMONPLACE == set(), path


def test_no_line_of_a_solution_stands_in_a_comment_or_a_document(tree):
    _, lines = solution_statements()
    computing = {line for line in lines if re.search(r"[-+*/@=<>]|\w\(", line)} - COMMONPLACE
    assert len(computing) > 400
    for path in sorted(tree.rglob("*")):
        if not path.is_file():
            continue
        text = path.read_text()
        if path.suffix == ".py":
            comments = {line.strip().lstrip("#> ").strip() for line in text.splitlines() if "#" in line}
            assert comments & computing == set(), path
        else:
            assert [line for line in computing if line in text] == [], path


def test_no_helper_of_a_solution_is_left_alone(tree):
    """A private name that nobody uses belonged to what was taken out."""
    files = [text for path, text in python_files(tree).items() if not path.startswith("tests/")]
    words = collections.Counter(word for text in files for word in re.findall(r"\w+", text))
    private = {
        name
        for text in files
        for node in parsed(text).body
        for name in names_of(node)
        if name.startswith("_") and not name.startswith("__")
    }
    assert len(private) > 200
    assert [name for name in sorted(private) if words[name] < 2] == []


def names_of(node):
    """What a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return {
        part.id for target in targets if target for part in ast.walk(target) if isinstance(part, ast.Name)
    }


def test_only_files_that_were_asked_for_are_in_it(tree):
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    made = {line.split("  ", 1)[1] for line in (tree / handout.MANIFEST).read_text().splitlines()}
    assert names == made | {handout.MANIFEST}
    endings = {".py", ".md", ".toml", ".txt", ".html", ".css", ".typ", ".ini", ""}
    assert {pathlib.PurePath(name).suffix for name in names} <= endings
    forbidden = (
        "results/",
        "tests/unit/",
        "tests/project/",
        "tests/graded/hidden/",
        "writeup/example",
        ".git/",
        "dist/",
    )
    assert [name for name in names if name.startswith(forbidden)] == []
    assert [
        name
        for name in names
        if "/." in name or (name.startswith(".") and name not in (".gitignore", ".handout"))
    ] == []
    assert {
        "README.md",
        "LICENSE",
        "Makefile",
        "writeup/code.md",
        "writeup/questions.md",
        "tests/adapters.py",
    } <= names


def test_every_exclusion_is_of_something_that_exists():
    packed, _ = handout.collect(ROOT, handout.RULES)
    paths = [each.path for each in packed] + ["cs_systems/grading/starter/README.md"]
    idle = [
        pattern
        for pattern in handout.EXCLUDED
        if not any(handout.fnmatch.fnmatchcase(p, pattern) for p in paths)
    ]
    assert idle == []


# --- It is whole ------------------------------------------------------------------------------------------


IMPORT_ALL = """
import importlib, sys
import cs_systems
assert cs_systems.__file__.startswith(sys.argv[1]), cs_systems.__file__
for name in sys.argv[2:]:
    importlib.import_module(name)
print(len(sys.argv[2:]))
"""


def test_every_module_can_be_imported_from_it_alone(tree):
    names = sorted(package_modules(tree))
    result = run(tree, "-W", "error", "-c", IMPORT_ALL, str(tree), *names, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) == len(names) > 80


def test_no_module_imports_what_is_not_there(tree):
    """Not even inside a function, which importing it would not show."""
    modules, defined = package_modules(tree), {}
    files = python_files(tree)
    for path, text in files.items():
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        body = ast.walk(parsed(text))
        defined[name] = {
            getattr(node, "name", None) or getattr(node, "id", None)
            for node in body
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Name)
        } | {
            alias.asname or alias.name
            for node in ast.walk(parsed(text))
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
        }
    absent = []
    for path, text in files.items():
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cs_systems"):
                wanted = {f"{node.module}.{alias.name}": alias.name for alias in node.names}
                absent += [
                    (path, full)
                    for full, name in wanted.items()
                    if node.module not in modules
                    or (full not in modules and name not in defined[node.module])
                ]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("cs_systems")]
                absent += [(path, name) for name in names if name not in modules]
    assert absent == []


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_it_passes_ruff_with_its_own_settings(tree, command):
    result = run(tree, "-m", "ruff", *command, "--no-cache", "--no-respect-gitignore", ".")
    assert result.returncode == 0, result.stdout[-3000:]


def test_its_graded_tests_are_ours_to_the_byte(tree):
    """Or a submission could not be told from one whose tests were edited."""
    for path in sorted((tree / "tests/graded").rglob("*")):
        if path.is_file() and path.name != "hidden.txt":
            assert path.read_text() == sources()[path.relative_to(tree).as_posix()], path


def test_the_same_sources_give_the_same_bytes_wherever_they_lie(tree, tmp_path):
    root = copy_sources(tmp_path / "elsewhere")
    again = tmp_path / "handout"
    handout.build(root, again, force=False)
    assert (again / handout.MANIFEST).read_bytes() == (tree / handout.MANIFEST).read_bytes()
    assert handout.changed_files(again) == handout.changed_files(tree) == []


def copy_sources(root):
    """A project folder with the files that go in, and the hidden tests."""
    for path, text in sources().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    if (ROOT / handout.HIDDEN).exists():
        shutil.copytree(
            ROOT / handout.HIDDEN, root / handout.HIDDEN, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


# --- Its documents ----------------------------------------------------------------------------------------


def test_the_readme_lists_the_problems_of_the_rubric(tree):
    text = (tree / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([\d.]+) \|", text, flags=re.MULTILINE)
    listed = [(name, float(points)) for _, name, points in rows]
    assert listed == [(name, entry["points"]) for name, entry in PROBLEMS.items()]
    assert handout.PROBLEMS_HERE not in text


@pytest.mark.parametrize("name", ["README.md", "writeup/code.md"])
def test_its_documents_name_commands_and_files_that_it_has(tree, name):
    text = (tree / name).read_text()
    assert docs.make_targets(text) - set(docs.targets_of((tree / "Makefile").read_text())) == set()
    in_package = {path.name for path in (tree / "cs_systems").rglob("*.py")}
    made_later = {"writeup/answers.md", "build/writeup.md", "results/local/"}
    absent = [
        path
        for path in docs.named_paths(text)
        + [str((tree / name).parent / link) for link in docs.linked_paths(text)]
        if not (tree / path).exists()
        and path not in in_package | made_later
        and not path.startswith("results/local")
    ]
    assert absent == []
    for words in docs.python_commands(text):
        program, flags = docs.split_program(words)
        assert flags - known_flags(tree, program) == set(), " ".join(words)


@functools.cache
def known_flags(tree, program):
    result = run(tree, *program, "--help")
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"--[a-z0-9][\w-]*", result.stdout))


def test_nothing_names_a_file_that_stays_here(tree):
    packed, _ = handout.collect(ROOT, handout.RULES)
    kept = {path.name for path in tree.rglob("*")}
    left_out = {pathlib.PurePath(each.path).name for each in packed if each.path not in sources()} - kept
    assert {"flash_kernels.py", "truths", "rmsnorm.py"} & left_out
    texts = {
        path.relative_to(tree).as_posix(): path.read_text() for path in tree.rglob("*") if path.is_file()
    }
    named = [
        (path, name) for path, text in texts.items() for name in left_out if re.search(rf"[`/]{name}\b", text)
    ]
    assert named == []
    options = run(tree, "benchmark.py", "--help").stdout
    assert "triton" not in options
    assert "--kernels" not in options
    assert (
        re.search(r"make (kernels|grade|gpu|handout|tune|check-answers)\b", (tree / "Makefile").read_text())
        is None
    )


# --- It works ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_in_a_fresh_copy_ends_with_no_points_and_the_reasons(tree, tmp_path):
    fresh = shutil.copytree(tree, tmp_path / "mine")
    report = tmp_path / "report.xml"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CS_SYSTEMS", "PY"))
    }
    result = subprocess.run(
        ["make", "test", "USE_SYSTEM=1", f"PY={sys.executable}", f"ARGS=--junitxml={report}"],
        cwd=fresh, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode != 0
    total = re.search(r"^total +([\d.]+) +([\d.]+)", result.stdout, flags=re.MULTILINE)
    assert total, result.stdout[-2000:] + result.stderr[-2000:]
    assert float(total[2]) == 0
    tests = outcomes(report)
    assert {problem for problem, *_ in tests.values()} >= {
        path.stem.removeprefix("test_") for path in (ROOT / "tests/graded").glob("test_*.py")
    }
    expected = re.compile(
        r"NotImplementedError: problem \w+ is not written yet: section \d+ of writeup/code\.md"
    )
    strange = {
        name: test
        for name, test in tests.items()
        if not is_pending(test) and not (test[1] == "failure" and expected.search(test[2]))
    }
    assert strange == {}
    note = tree / handout.HIDDEN_NOTE
    assert not note.exists() or note.read_text().strip() in result.stdout


@pytest.fixture(scope="module")
def filled(tree, tmp_path_factory):
    """The handout after a student wrote what the reference has, and cleaned up the imports."""
    mine = shutil.copytree(tree, tmp_path_factory.mktemp("mine") / "handout")
    edited = [path for path, text in sources().items() if path.endswith(".py") and "# BEGIN SOLUTION" in text]
    for path in edited:
        unmarked = re.sub(r"(?m)^ *# (BEGIN SOLUTION \w+|END SOLUTION)\n", "", sources()[path])
        (mine / path).write_text(strip_blocks(unmarked, path, SECTIONS))
    shutil.copy(ROOT / handout.ADAPTERS, mine / handout.ADAPTERS)
    for name in ("flash_kernels.py", "flash_configs.py", "tuning.py"):
        shutil.copy(ROOT / "cs_systems/kernels" / name, mine / "cs_systems/kernels")
    run(mine, "-m", "ruff", "check", "--no-cache", "--fix", "--fixable", "F401", *edited)
    return mine


def test_what_is_filled_in_earns_all_points(filled, tmp_path):
    report = tmp_path / "report.xml"
    result = run(
        filled, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", TRITON_INTERPRET="1"
    )
    strange = {
        name: test for name, test in outcomes(report).items() if test[1] != "passed" and not is_pending(test)
    }
    assert strange == {}, result.stdout[-3000:]
    total = re.search(r"^total +([\d.]+) +([\d.]+) +([\d.]+) +0$", result.stdout, flags=re.MULTILINE)
    assert total, result.stdout[-3000:]
    assert float(total[2]) + float(total[3]) == float(total[1])
    assert float(total[2]) >= 50


def is_pending(test):
    _, outcome, message = test
    return outcome == "skipped" and "pending: " in message


def test_the_benchmark_times_the_model_that_was_filled_in(filled):
    flags = ("--model", "tiny", "--context-length", "16", "--steps", "1", "--warmup-steps", "0")
    result = run(filled, "benchmark.py", *flags, "--precision", "bf16", "--checkpoint-blocks", "1")
    assert json.loads(result.stdout.splitlines()[-1])["num_ok"] == 1, result.stdout + result.stderr


def test_benchmark_without_a_model_says_which_problem_it_waits_for(tree):
    result = run(
        tree,
        "benchmark.py",
        "--model",
        "tiny",
        "--context-length",
        "16",
        "--steps",
        "1",
        "--warmup-steps",
        "0",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["cases"][0]["status"] == "failed"
    assert re.search(
        r"problem \w+ is not written yet: section \d+ of writeup/code.md", last["cases"][0]["reason"]
    )


def test_the_profiler_without_a_model_says_so_in_one_line(tree):
    result = run(tree, "profiling/run.py", "--model", "tiny", "--context-length", "16")
    assert result.returncode == 1
    assert re.search(r"^problem \w+ is not written yet: section \d+ of writeup/code.md$", result.stderr, re.M)
    assert "Traceback" not in result.stderr


def test_the_write_up_can_be_begun_and_built(tree, tmp_path):
    answers = tmp_path / "answers.md"
    assert run(tree, "writeup/run.py", "new", "--answers", str(answers)).returncode == 0
    assert answers.read_bytes() == (ROOT / "writeup/questions.md").read_bytes()
    commands = run(tree, "writeup/run.py", "measure", "--list", "--answers", str(answers)).stdout.splitlines()
    assert len(commands) > 5
    for command in commands:
        program, flags = docs.split_program(command.split()[1:])
        assert flags - known_flags(tree, program) == set(), command
    built = run(
        tree, "writeup/run.py", "build", "--answers", str(answers), "--output-dir", str(tmp_path / "build")
    )
    assert "is not measured yet; run: python" in built.stderr
    assert (tmp_path / "build/writeup.html").exists()
    assert "check" not in run(tree, "writeup/run.py", "--help").stdout


# --- The command ------------------------------------------------------------------------------------------


def test_only_an_untouched_handout_is_replaced_unless_forced(tree, tmp_path, capsys):
    mine = shutil.copytree(tree, tmp_path / "handout")
    handout.check_output(mine, force=False)
    (mine / "cs_systems/__pycache__").mkdir()
    (mine / "cs_systems/__pycache__/x.pyc").touch()
    handout.check_output(mine, force=False)
    (mine / "cs_systems/optim.py").write_text("# a week of work\n")
    (mine / "notes.txt").touch()
    assert handout.changed_files(mine) == ["cs_systems/optim.py", "notes.txt"]
    with pytest.raises(SystemExit) as left:
        handout.main(["--output-dir", str(mine)])
    assert left.value.code == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert (mine / "cs_systems/optim.py").read_text() == "# a week of work\n"
    assert handout.main(["--output-dir", str(mine), "--force"]) == 0
    assert handout.changed_files(mine) == []
    assert f"{len(PROBLEMS)} problems" in capsys.readouterr().out


@pytest.mark.parametrize("force", [False, True])
def test_another_folder_is_never_replaced(tmp_path, force):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is no handout; nothing was written"):
        handout.build(ROOT, tmp_path, force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write") as caught:
        handout.build(ROOT, tmp_path / "file" / "handout", force=False)
    assert "\n" not in str(caught.value)


def test_a_wrong_marker_stops_everything(tmp_path):
    root = copy_sources(tmp_path / "project")
    path = root / "cs_systems/optim.py"
    path.write_text(path.read_text().replace("# END SOLUTION", "# END", 1))
    with pytest.raises(ValueError, match=r"^cs_systems/optim\.py:\d+: '# END' is no marker"):
        handout.build(root, tmp_path / "dist/handout", force=False)
    assert not (tmp_path / "dist").exists()


def test_a_folder_that_is_no_project_is_refused(tmp_path):
    with pytest.raises(ValueError, match="made in the folder of the project"):
        handout.build(tmp_path, tmp_path / "handout", force=False)
    root = copy_sources(tmp_path / "project")
    (root / "LICENSE").unlink()
    with pytest.raises(ValueError, match="LICENSE is missing"):
        handout.build(root, tmp_path / "handout", force=False)


def test_hidden_tests_are_counted_and_announced(tmp_path):
    folder = tmp_path / handout.HIDDEN
    folder.mkdir(parents=True)
    assert handout.hidden_note(tmp_path) == ""
    (folder / "test_rope.py").write_text(
        "def test_a():\n    pass\n\n\ndef helper():\n    pass\n\n\ndef test_b():\n    pass\n"
    )
    assert handout.hidden_note(tmp_path).startswith("2 further tests are hidden: ")


def test_as_many_hidden_tests_are_announced_as_pytest_collects(tmp_path):
    folder = tmp_path / handout.HIDDEN
    folder.mkdir(parents=True)
    (folder / "test_rope.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('n', range(3))\n@pytest.mark.parametrize('m', 'ab')\n"
        "def test_a(n, m):\n    pass\n\nclass TestB:\n    def test_c(self):\n        pass\n"
    )
    (folder.parent / "test_rope.py").write_text("def test_shown():\n    pass\n")
    assert handout.hidden_note(tmp_path).startswith("7 further tests are hidden: ")


LINEAR = '[[problem]]\nid = "linear"\ntitle = "a product"\npoints = 1\n'


@pytest.mark.parametrize(
    ("rubric", "file", "said"),
    [
        (LINEAR.replace("id", "name"), None, "not a rubric"),
        ("points = 1", None, "not a rubric"),
        (LINEAR.replace("points = 1", ""), None, "points"),
        (LINEAR.replace("= 1", "= -1"), None, "linear has points = -1"),
        (LINEAR.replace("= 1", "= inf"), None, "linear has points = inf"),
        (LINEAR.replace("= 1", '= "1"'), None, "linear has points = '1'"),
        (LINEAR.replace("linear", "liner"), None, "test_linear.py is of no problem there"),
        (
            LINEAR + LINEAR.replace("linear", "liner"),
            None,
            "liner has no tests; write tests/graded/test_liner.py",
        ),
        (LINEAR, "test_rope.py", ": test_rope.py is of no problem there"),
        (LINEAR, "hidden/test_rope.py", "hidden/test_rope.py is of no problem there"),
        (LINEAR, "hidden/test_linear.py", "hidden/test_linear.py: pytest cannot collect its tests (Syntax"),
    ],
)
def test_a_rubric_or_tests_that_are_wrong_stop_everything(tmp_path, capsys, monkeypatch, rubric, file, said):
    root = copy_sources(tmp_path / "project")
    kit = root / "tests/graded"
    for path in [*kit.glob("test_*.py"), *kit.glob("hidden/test_*.py")]:
        path.unlink()
    (kit / "rubric.toml").write_text(rubric)
    for name in ("test_linear.py", file) if file else ("test_linear.py",):
        (kit / name).write_text("def test_it(:\n" if name == "hidden/test_linear.py" else "")
    monkeypatch.setattr(handout, "ROOT", root)
    if "collect" in said:
        # Markers of problems that this small rubric does not have would be found before.
        monkeypatch.setattr(handout, "strip_blocks", lambda text, path, sections: text)
    with pytest.raises(SystemExit) as left:
        handout.main(["--output-dir", str(tmp_path / "dist/handout")])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "dist").exists()
