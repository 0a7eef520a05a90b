"""The grader against broken submissions: each gets its points, none stops it, none leaves anything behind."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
import zipfile

import pytest
from broken_submissions import BROKEN, Link, misbehaving
from broken_submissions import KIT as BROKEN_KIT
from grade import default_memory_gib
from graded_support.rubric import read_rubric
from graded_support.workspace import Workspace, hash_code, hash_files

from cs_systems.grading import receipt

ROOT = pathlib.Path(__file__).parents[2]
GRADE = ROOT / "tests/graded/grade.py"
PROBLEM = "learning_rate_schedule"


def write_submission(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def contents(folder):
    """Names and contents of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def processes_of(folder):
    """Processes whose environment names the folder; dead ones have none."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or somebody else's
        if os.fsencode(folder) in environment and int(entry.name) != os.getpid():
            found.append((entry / "cmdline").read_bytes())
    return found


class Grading:
    """One run of the command, with a temporary folder of its own."""

    def __init__(self, tmp_path):
        self.submission = tmp_path / "submission"
        self.temporary = tmp_path / "temporary"
        self.output = tmp_path / "results.out"
        self.submission.mkdir()
        self.temporary.mkdir()

    def command(self, *flags, script=GRADE):
        problem = () if "--problem" in flags else ("--problem", PROBLEM)
        flags = ("--submission", self.submission, *problem, *flags)
        return [sys.executable, str(script), *map(str, flags)]

    def environment(self):
        return os.environ | {"TMPDIR": str(self.temporary)}

    def run(self, *flags, script=GRADE):
        """The finished command; standard output and error are text."""
        command, environment = self.command(*flags, script=script), self.environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def run_json(self, *flags, script=GRADE):
        """The finished command, and its results as JSON."""
        result = self.run("--format", "json", "--output", self.output, *flags, script=script)
        return result, json.loads(self.output.read_text())

    def leftovers(self):
        """Files and processes that should not be there any more."""
        return [path.name for path in self.temporary.iterdir()] + processes_of(self.temporary)


@pytest.fixture
def grading(tmp_path):
    return Grading(tmp_path)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_submission(broken, grading):
    write_submission(grading.submission, broken.files)
    before = contents(grading.submission)
    result, results = grading.run_json(*broken.flags)
    assert result.returncode == broken.exit_code, result.stderr
    tests = results["tests"]
    passed = sum(test["status"] == "passed" for test in tests)
    reasons = [test["message"] for test in tests if test["status"] != "passed"]
    assert passed == broken.passed, (reasons, results["remarks"])
    assert len(tests) == (4 if broken.exit_code == 0 else 1)
    assert all(test["status"] in ("passed", "failed") for test in tests)
    assert [reason for reason in reasons if not re.search(broken.says, reason)] == []
    assert results["total"]["earned"] == pytest.approx(broken.passed / 4)
    assert results["complete"]
    assert str(grading.temporary) not in grading.output.read_text()
    assert contents(grading.submission) == before
    assert grading.leftovers() == []


# --- The table of processes -------------------------------------------------------------------------------

FAMILY = """
import os, sys, time
from graded_support import processes
processes.IS_LINUX = sys.argv[1] == "proc"
family = processes.Family()
assert family.members() == []
body = "import os, time; x = bytes([1]) * 2**26; os.fork(); os.fork(); time.sleep(600)"
null = os.open(os.devnull, os.O_RDWR)
guard = processes.start(
    [sys.executable, "-c", body], environment={}, folder="/", output=null, keep=os.dup(null)
)
until = time.monotonic() + 20
while len(family.members()) < 5 and time.monotonic() < until:
    time.sleep(0.05)
members = family.members()
assert len(members) == 5, members
assert processes.exit_code(guard) is None
resident = processes.memory_bytes(members, 2**40)
assert resident > 4 * 2**26, resident
if processes.IS_LINUX:  # pages that were forked are shared
    assert 2**26 < processes.memory_bytes(members, 0) < 2 * 2**26
assert family.kill()
assert family.members() == []
"""


@pytest.mark.parametrize("source", ["proc", "ps"])
def test_descendants_are_found_and_ended(source):
    if source == "proc" and sys.platform != "linux":
        pytest.skip("only Linux has /proc")
    if source == "ps" and shutil.which("ps") is None:
        pytest.skip("there is no ps on this machine")
    command = [sys.executable, "-c", FAMILY, source]
    environment = os.environ | {"PYTHONPATH": str(GRADE.parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.returncode == 0


# --- What the caller does ---------------------------------------------------------------------------------


RIGHT = next(broken for broken in BROKEN if broken.name == "nothing-is-broken").files
HANGS = next(broken for broken in BROKEN if broken.name == "endless-loop").files


@contextlib.contextmanager
def waiting_grader(grading, *flags):
    """The command while it waits for a test that hangs, and has written what came before."""
    write_submission(grading.submission, HANGS)
    command = grading.command("--format", "json", "--output", grading.output, *flags)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=grading.environment(), **pipes)
    try:
        for _ in range(600):
            time.sleep(0.05)
            if grading.output.exists() and '"passed"' in grading.output.read_text():
                break
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def statuses(results):
    return [test["status"] for test in results["tests"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_what_was_graded(grading, number):
    with waiting_grader(grading) as process:
        assert statuses(json.loads(grading.output.read_text())) == ["passed"] + ["not reached"] * 3
        process.send_signal(number)
        printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "3 of 4 tests were not reached" in printed
    results = json.loads(grading.output.read_text())
    assert not results["complete"]
    assert statuses(results) == ["passed"] + ["not reached"] * 3
    assert results["total"] == {"points": 1, "earned": 0.25, "pending": 0, "lost": 0.75}
    assert grading.leftovers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a signal that the kernel sends when a parent dies")
def test_nothing_runs_on_when_the_grader_is_killed(grading):
    with waiting_grader(grading) as process:
        assert processes_of(grading.temporary) != []
        process.kill()
        process.wait()
    for _ in range(100):
        if not processes_of(grading.temporary):
            break
        time.sleep(0.05)
    assert processes_of(grading.temporary) == []


def test_a_crash_at_import_is_paid_for_once(grading):
    write_submission(grading.submission, next(b for b in BROKEN if b.name == "os-exit-at-import").files)
    _, results = grading.run_json()
    assert results["num_starts"] == 2  # one that ended, one that tells the other tests


def test_variables_of_the_caller_do_not_matter(grading, monkeypatch):
    for name, value in {"PYTEST_ADDOPTS": "--co", "CS_SYSTEMS_ADAPTERS": "nothing", "A_SECRET": "x"}.items():
        monkeypatch.setenv(name, value)
    nosy = "import os\nassert 'A_SECRET' not in os.environ\n" + RIGHT["tests/adapters.py"]
    write_submission(grading.submission, {"tests/adapters.py": nosy})
    result, results = grading.run_json()
    assert result.returncode == 0
    assert statuses(results) == ["passed"] * 4


def test_time_for_everything_is_bounded(grading):
    write_submission(grading.submission, HANGS)
    result, results = grading.run_json("--max-minutes", "0.04")
    assert result.returncode == 0
    assert statuses(results) == ["passed"] + ["not reached"] * 3
    assert "--max-minutes" in results["remarks"][0]
    assert grading.leftovers() == []


def test_results_are_there_before_anything_ran(grading, tmp_path):
    kit = copy_kit(tmp_path, {f"test_{PROBLEM}.py": "import time; time.sleep(600)"})
    write_submission(grading.submission, RIGHT)
    command = grading.command("--format", "gradescope", "--output", grading.output, script=kit / "grade.py")
    process = subprocess.Popen(command, env=grading.environment())
    try:
        for _ in range(200):
            if grading.output.exists():
                break
            time.sleep(0.05)
        results = json.loads(grading.output.read_text())
    finally:
        process.kill()
        process.wait()
    assert [(test["score"], test["max_score"], test["output"]) for test in results["tests"]] == [
        (0.0, 1.0, "not reached")
    ]


USAGE = {
    "flag": (["--submision", "x"], "unknown argument --submision; did you mean --submission?"),
    "format": (["--format", "gradscope"], "did you mean gradescope?"),
    "problem": (["--problem", "learning_rate"], "did you mean learning_rate_schedule?"),
    "number": (["--max-minutes", "0"], "0 is not a number above 0"),
    "folder": (["--submission", "nowhere"], "nowhere does not exist"),
    "output": (["--output", "nowhere/x.json"], "name a file in a folder that exists"),
    "adapters": (["--adapters", "my/adaptors.py"], "no my/adaptors.py; there is tests/adapters.py"),
    "outside": (["--adapters", "../../outside.py"], "no ../../outside.py"),
}


@pytest.mark.parametrize(("flags", "says"), USAGE.values(), ids=USAGE)
def test_bad_usage_is_one_line(grading, tmp_path, flags, says):
    write_submission(grading.submission, RIGHT)
    (tmp_path / "outside.py").write_text("")
    result = grading.run(*flags)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert grading.leftovers() == []


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a terminal", "links in a circle"])
def test_output_replaces_no_special_file(grading, tmp_path, kind):
    """A terminal stands for /dev/null, which a grader that is wrong here would destroy for everybody."""
    place, target = tmp_path / "place", tmp_path / "pipe"
    leader, follower = os.openpty()
    os.mkfifo(target)
    targets = {"link to a pipe": target, "link to a terminal": os.ttyname(follower)}
    if kind == "pipe":
        place = target
    else:
        place.symlink_to(targets.get(kind, place))
    result = grading.run("--output", place)
    os.close(leader)
    os.close(follower)
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1
    assert stat.S_ISFIFO(target.stat().st_mode)
    assert place == target or place.is_symlink()


def test_output_may_be_a_link_to_a_file(grading, tmp_path):
    write_submission(grading.submission, RIGHT)
    link = tmp_path / "link"
    link.symlink_to(grading.output)
    assert grading.run("--output", link, "--format", "json").returncode == 0
    assert link.is_symlink()
    assert statuses(json.loads(grading.output.read_text())) == ["passed"] * 4


def shell(grading, words, *flags):
    """The command in a shell, which limits or redirects it as in `words`."""
    command = ["bash", "-c", words, "bash", *grading.command(*flags)]
    return subprocess.run(
        command, env=grading.environment(), capture_output=True, text=True, timeout=120, check=False
    )


def test_output_that_cannot_be_written_is_told_before_grading(grading):
    write_submission(grading.submission, RIGHT)
    result = shell(grading, 'ulimit -f 0; "$@"', "--output", grading.output)
    assert result.returncode == 2
    assert re.fullmatch(
        r"grade.py: --output \S+ cannot be written: File too large. See --help.\n", result.stderr
    )
    assert not grading.output.exists()
    assert list(grading.output.parent.glob(".results*")) == []


def test_results_that_cannot_be_kept_are_printed(grading, tmp_path):
    """A folder that vanishes stands for a disk that fills up."""
    gone = tmp_path / "gone"
    gone.mkdir()
    spoil = f"import shutil\nshutil.rmtree({str(gone)!r}, ignore_errors=True)\n"
    write_submission(grading.submission, {"tests/adapters.py": spoil + RIGHT["tests/adapters.py"]})
    result = grading.run("--output", gone / "results.json", "--format", "json")
    assert result.returncode == 1
    assert re.search(r"learning_rate_schedule +1 +1 +0 +0", result.stdout)
    assert "Written to" not in result.stdout
    assert "the newest results are not in" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_not_the_fault_of_the_submission(grading):
    write_submission(grading.submission, RIGHT)
    no_room = (
        "import errno, runpy, shutil, sys\n"
        "def copy(*paths): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "shutil.copyfile = copy\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    _, script, *flags = grading.command("--format", "json", "--output", grading.output)
    command = [sys.executable, "-c", no_room, str(GRADE.parent), script, *flags]
    result = subprocess.run(command, env=grading.environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == (
        "grade.py: cannot copy the submission to TMPDIR (No space left on device): "
        "set TMPDIR to a folder with room.\n"
    )
    assert statuses(json.loads(grading.output.read_text())) == ["not reached"]
    assert grading.leftovers() == []


@pytest.mark.parametrize("where", [">&-", "> /dev/full", "| head -n 0", "> /dev/full 2>&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_or_full(grading, where):
    write_submission(grading.submission, RIGHT)
    words = f'set -o pipefail; "$@" {where}'
    result = shell(grading, words, "--output", grading.output, "--format", "json")
    assert result.returncode == 1
    assert statuses(json.loads(grading.output.read_text())) == ["passed"] * 4
    told = "grade.py: the results could not be printed: standard output is closed or full.\n"
    assert result.stderr == ("" if "2>&-" in where else told)
    assert grading.leftovers() == []


def test_problems_may_be_given_one_by_one(grading):
    write_submission(grading.submission, RIGHT)
    _, results = grading.run_json("--problem", "linear", "--problem", PROBLEM)
    assert {problem["id"] for problem in results["problems"]} == {"linear", PROBLEM}


def test_a_limit_that_is_too_small_for_pytest_is_named(grading):
    write_submission(grading.submission, RIGHT)
    result, results = grading.run_json("--max-memory-gib", "0.001")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "grade.py: the grader itself failed: pytest did not get to the first test"
    )
    assert "(--max-memory-gib)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert statuses(results) == ["not reached"]


@pytest.mark.parametrize(("machine", "limit"), [(1, 1), (2, 2), (3, 2), (4, 2), (8, 4), (16, 8), (256, 8)])
def test_default_limit_of_memory(machine, limit):
    assert default_memory_gib(machine) == limit


BAD_ENTRIES = ["timeout_s = '60'", "timeout_s = -60", "timeout_s = true", "timeout_s = nan"]
BAD_ENTRIES += ["points = '3'", "points = [3]", "pending = 3", "not_allowed = 'x'", "id = 3"]


@pytest.mark.parametrize("line", BAD_ENTRIES)
def test_a_broken_rubric_is_one_line(tmp_path, line):
    entry = {"id": "id = 'a'", "title": "title = 'b'", "points": "points = 1"} | {line.split()[0]: line}
    path = tmp_path / "rubric.toml"
    path.write_text("\n".join(["[[problem]]", *entry.values()]))
    with pytest.raises(ValueError, match=f"has {line.split()[0]} = ") as caught:
        read_rubric(path)
    assert "\n" not in str(caught.value)


def test_table_says_points_and_reasons(grading):
    write_submission(grading.submission, next(b for b in BROKEN if b.name == "os-exit").files)
    result = grading.run()
    assert result.returncode == 0
    assert re.search(r"learning_rate_schedule +1 +0.75 +0 +0.25", result.stdout)
    told = " ".join(result.stdout.split())
    assert "test_then_half_a_cosine_leads_down: the code ended the whole process" in told
    assert re.search(r"Graded with python 3.*, torch .*, seed 0, tests [0-9a-f]{12}\.", told)
    assert result.stderr == ""


def test_the_reference_gets_full_points(grading):
    result = grading.run("--submission", ROOT, "--problem", f"{PROBLEM},linear", "--format", "json")
    results = json.loads(result.stdout)
    assert result.returncode == 0
    assert results["total"] == {"points": 2, "earned": 2, "pending": 0, "lost": 0}
    assert {test["status"] for test in results["tests"]} == {"passed"}
    assert results["device"]
    assert {"python", "torch", "pytest"} <= set(results["versions"])


# --- What may be handed in --------------------------------------------------------------------------------


def packed(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_zip_file_of_a_folder_is_graded(grading, tmp_path):
    entries = {f"homework/{name}": content for name, content in RIGHT.items()}
    archive = packed(tmp_path / "homework.zip", {"__MACOSX/._x": "", **entries, "homework/.git/config": "x"})
    result, results = grading.run_json("--submission", archive)
    assert result.returncode == 0
    assert statuses(results) == ["passed"] * 4
    assert grading.leftovers() == []


def test_adapters_elsewhere(grading):
    write_submission(grading.submission, {"mine/glue.py": RIGHT["tests/adapters.py"]})
    result, results = grading.run_json("--adapters", "mine/glue.py")
    assert result.returncode == 0
    assert statuses(results) == ["passed"] * 4


def link_entry():
    entry = zipfile.ZipInfo("tests/adapters.py")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


UNUSABLE = {
    "outside": ({"../evil.py": "x", **RIGHT}, "an entry outside of itself, '../evil.py'"),
    "absolute": ({"/tmp/evil.py": "x"}, "an entry outside of itself"),
    "windows": ({"C:\\evil.py": "x"}, "an entry outside of itself"),
    "huge": ({"zeros": bytes(2**20)}, "larger than a submission may be"),
    "empty": ({}, "is empty"),
    "link": ({"a.py": "", link_entry(): "/etc/passwd"}, "no tests/adapters.py"),
    "clash": ({"a": "x", "a/b": "x"}, "cannot be read"),
}


@pytest.mark.parametrize(("entries", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_zip_file_is_one_line(grading, tmp_path, monkeypatch, entries, says):
    monkeypatch.setattr("graded_support.workspace.MAX_BYTES", 2**19)
    workspace = Workspace(tmp_path / "workspace")
    archive = packed(tmp_path / "homework.zip", entries)

    def take():
        workspace.take(archive)
        workspace.find_adapters("")

    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        take()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil.py").exists()


@pytest.mark.parametrize("kind", ["text", "empty file", "cut zip", "empty folder", "pipe"])
def test_what_is_no_submission(grading, tmp_path, kind):
    place = tmp_path / "thing"
    if kind == "empty folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "cut zip":
        place.write_bytes(packed(tmp_path / "whole.zip", RIGHT).read_bytes()[:-30])
    else:
        place.write_text("hello" if kind == "text" else "")
    result, results = grading.run_json("--submission", place)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "neither a folder nor a zip file" in result.stderr or "is empty" in result.stderr
    assert [(test["status"], test["message"]) for test in results["tests"]] == [
        ("failed", results["remarks"][0])
    ]
    assert results["total"]["lost"] == 1
    assert grading.leftovers() == []


def test_a_copy_has_no_links_pipes_or_environments(tmp_path):
    kept = {"a.py": "1", "data/b.txt": "2"}
    others = {
        ".git/config": "x",
        "env/pyvenv.cfg": "x",
        "env/lib/c.py": "x",
        "__pycache__/a.pyc": "x",
        "d.pyc": "",
    }
    source = write_submission(
        tmp_path / "source", {**kept, **others, "link": Link("/etc"), "loop": Link(".")}
    )
    os.mkfifo(source / "pipe")
    workspace = Workspace(tmp_path / "workspace")
    workspace.take(source)
    assert set(contents(workspace.original)) == set(kept)
    assert hash_files(source) == hash_files(workspace.original)
    (workspace.original / "a.py").write_text("changed")
    assert hash_files(source) != hash_files(workspace.original)


# --- What the tests are ------------------------------------------------------------------------------------


def copy_kit(tmp_path, files):
    """The graded tests of one problem, with further files."""
    kit = tmp_path / "kit"
    ignored = shutil.ignore_patterns("test_*.py", "hidden", "__pycache__")
    shutil.copytree(GRADE.parent, kit, ignore=ignored)
    shutil.copy(GRADE.parent / f"test_{PROBLEM}.py", kit)
    write_submission(kit, files)
    if "rubric.toml" not in files:  # the rubric and the tests beside it name the same problems
        ids = {path.stem.removeprefix("test_") for path in kit.rglob("test_*.py")}
        entries = (kit / "rubric.toml").read_text().split("[[problem]]")[1:]
        kept = [entry for entry in entries if tomllib.loads(entry)["id"] in ids]
        (kit / "rubric.toml").write_text("".join(f"[[problem]]{entry}" for entry in kept))
    return kit


CALL = "adapters.run_get_lr_cosine_schedule(20, 1.0, 0.1, 4, 40)"


def test_hidden_tests_are_counted_and_not_told(grading, tmp_path):
    checks = f"    assert secret_seed == 7\n    assert {CALL} == 'secret'\n"
    secret = f"def test_secret(adapters, secret_seed):\n{checks}"
    kit = copy_kit(tmp_path, {f"hidden/test_{PROBLEM}.py": secret})
    nosy = f"assert 'CS_SYSTEMS_SEED' not in os.environ and not os.path.exists({BROKEN_KIT} + '/hidden')"
    write_submission(grading.submission, misbehaving(nosy))  # the four others run where neither is
    result = grading.run("--seed", "7", script=kit / "grade.py")
    assert result.returncode == 0, result.stderr
    assert "secret" not in result.stdout
    assert "hidden test 1: a hidden test failed" in result.stdout
    result = grading.run("--seed", "7", "--format", "gradescope", script=kit / "grade.py")
    results = json.loads(result.stdout)
    assert "1 of the 5 tests are hidden tests" in results["output"]
    visibilities = {test["name"]: test["visibility"] for test in results["tests"]}
    assert [name for name, value in visibilities.items() if value != "visible"] == [
        "learning_rate_schedule: hidden: test_secret"
    ]
    assert results["score"] == 0.8
    assert "seed" not in result.stdout.replace("secret_seed", "")
    result = grading.run("--seed", "7", "--format", "json", "--show-hidden", script=kit / "grade.py")
    results = json.loads(result.stdout)
    assert (results["complete"], results["num_starts"], results["seed"]) == (True, 2, 7)
    assert statuses(results) == ["passed"] * 4 + ["failed"]


def test_a_test_that_cannot_be_read_is_the_graders_failure(grading, tmp_path):
    kit = copy_kit(tmp_path, {"test_linear.py": "import nothing_of_this_name\n"})
    write_submission(grading.submission, RIGHT)
    result, results = grading.run_json("--problem", f"{PROBLEM},linear", script=kit / "grade.py")
    assert result.returncode == 1
    assert "no fault of the submission" in result.stderr
    assert sorted(statuses(results)) == ["not reached"] + ["passed"] * 4
    broken = next(test for test in results["tests"] if test["status"] == "not reached")
    assert "nothing_of_this_name" in broken["output"]


def test_a_grader_that_cannot_start_says_so(grading, tmp_path):
    kit = copy_kit(tmp_path, {"conftest.py": "raise ImportError('of the grader')"})
    write_submission(grading.submission, RIGHT)
    result, results = grading.run_json(script=kit / "grade.py")
    assert result.returncode == 1
    assert "of the grader" in results["remarks"][0]
    assert statuses(results) == ["not reached"]


RUBRIC = f"""
[[problem]]
id = "{PROBLEM}"
title = "the schedule"
points = 1

[[problem]]
id = "fsdp"
title = "shards"
points = 15
pending = "not taught yet"
"""


def fake_torch(has_gpu):
    """Found before the real one."""
    return (
        "def __getattr__(name): return lambda *values: None\n"
        f"class cuda:\n    is_available = lambda: {has_gpu}\n    get_device_name = lambda: 'made up'\n"
    )


def test_a_gpu_does_not_vanish_because_the_submission_says_so(grading, tmp_path):
    test = f"import pytest\n@pytest.mark.gpu\ndef test_gpu(adapters):\n    {CALL}\n"
    kit = copy_kit(tmp_path, {f"test_{PROBLEM}.py": test, "torch.py": fake_torch(True)})
    hides = (
        "import os, torch\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\ntorch.cuda.is_available = lambda: False\n"
    )
    write_submission(grading.submission, {"tests/adapters.py": hides + RIGHT["tests/adapters.py"]})
    _, results = grading.run_json(script=kit / "grade.py")
    assert statuses(results) == ["passed"]


def test_kernels_do_not_become_pending_because_the_submission_says_so(grading):
    hides = "import os\nos.environ['TRITON_INTERPRET'] = '0'\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
    write_submission(grading.submission, {"tests/adapters.py": hides})
    _, results = grading.run_json("--problem", "weighted_sum")
    assert set(statuses(results)) == {"failed"}


def test_the_grader_and_the_manifest_of_an_archive_name_the_same_code(tmp_path):
    files = {
        "cs_systems/a.py": "1",
        "cs_systems/b/c.py": "2",
        "tests/adapters.py": "3",
        "results/d.jsonl": "4",
    }
    folder = write_submission(tmp_path, files)
    assert hash_code(folder) == receipt.hash_code(folder)
    assert hash_code(folder) != hash_files(folder)


def test_pending_stays_pending_whatever_the_import_does(grading, tmp_path):
    gpu = f"@pytest.mark.gpu\ndef test_gpu(adapters):\n    {CALL}\n"
    files = {
        f"test_{PROBLEM}.py": f"import pytest\n{gpu}def test_other(adapters):\n    {CALL}\n",
        "test_fsdp.py": f"def test_it(adapters):\n    {CALL}\n",
        "torch.py": fake_torch(False),
        "rubric.toml": RUBRIC,
    }
    kit = copy_kit(tmp_path, files)
    write_submission(grading.submission, next(b for b in BROKEN if b.name == "os-exit-at-import").files)
    result, results = grading.run_json("--problem", f"{PROBLEM},fsdp", script=kit / "grade.py")
    assert result.returncode == 0
    assert {test["id"].split("::")[1]: test["status"] for test in results["tests"]} == {
        "test_it": "pending",
        "test_gpu": "pending",
        "test_other": "failed",
    }
    assert results["total"] == {"points": 16, "earned": 0, "pending": 15.5, "lost": 0.5}
