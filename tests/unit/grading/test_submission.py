"""make submission: what is packed, what is left out and why, when it refuses, and what --verify finds."""

import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest

from cs_systems.grading import archive, submission
from cs_systems.grading.receipt import hash_code, tree_hash, write_receipt
from cs_systems.grading.submission import main, verify

ROOT = pathlib.Path(__file__).parents[3]
SCORES = [
    {"id": "linear", "points": 1.0, "earned": 1.0, "pending": 0.0, "lost": 0.0},
    {"id": "rope", "points": 2.0, "earned": 0.5, "pending": 1.0, "lost": 0.5},
]
TESTS = {
    "tests/graded/test_linear.py::test_square": "passed",
    "tests/graded/test_rope.py::test_turn": "failed",
}
FILES = {
    "cs_systems/__init__.py": "",
    "cs_systems/model/layers.py": "x = 1\n",
    "cs_systems/report/page.html": "<p>",
    "tests/adapters.py": "y = 2\n",
    "tests/graded/test_linear.py": "def test_square(): pass\n",
    "tests/graded/rubric.toml": "",
    "tests/graded/hidden/test_linear.py": "",
    "tests/unit/test_mine.py": "",
    "benchmark.py": "",
    "profiling/run.py": "",
    "pyproject.toml": "",
    "writeup/answers.md": '# A\n\n```answer\nid = "a.b"\nmodel = "small"\nbatch = " "\nratio = 2.5\n```\n',
    "writeup/notes.md": "mine",
    "results/local/runs.jsonl": "{}\n",
    "results/local/more/runs.jsonl": "{}\n",
    "results/local/profile/small.json.gz": "trace",
    "results/local/profile/small.run.json": "{}",
    ".git/config": "",
    ".env": "KEY=1",
}
WANTED = {
    *(name for name in FILES if name.startswith(("cs_systems/", "results/"))),
    "tests/adapters.py", "benchmark.py", "profiling/run.py", "pyproject.toml", "writeup/answers.md",
}  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """A small project whose graded tests were run."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    write_receipt(root, TESTS, SCORES)
    return root


def run(project, *words):
    return main([*words, "--output", str(project / "dist/submission.zip")], root=project)


def packed(project):
    with zipfile.ZipFile(project / "dist/submission.zip") as file:
        return {name: file.read(name) for name in file.namelist()}


def manifest(project):
    return json.loads(packed(project)["manifest.json"])


def refused(project, capsys, *words):
    """The one line that it says instead of packing."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(project, *words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_what_is_asked_for_is_packed_and_nothing_else(project, capsys):
    assert run(project, "--name", "ada") == 0
    files = packed(project)
    assert files.keys() == {*WANTED, "manifest.json"}
    assert all(files[name].decode() == FILES[name] for name in WANTED)
    listed = manifest(project)
    assert listed["files"] == {
        name: {"sha256": hashlib.sha256(FILES[name].encode()).hexdigest(), "bytes": len(FILES[name])}
        for name in WANTED
    }
    assert listed["answers"] == {"filled": 2, "asked": 3}
    assert listed["graded_tests"].keys() == {"tests/graded/test_linear.py", "tests/graded/rubric.toml"}
    assert listed["tests"]["tests"] == TESTS
    assert listed["versions"]["python"] == sys.version.split()[0]
    out = capsys.readouterr().out
    assert "points of the tests: 1.5 earned, 1 pending, 0.5 lost, of 3" in out
    last = json.loads(out.splitlines()[-1])
    assert last["points"] == {"points": 3.0, "earned": 1.5, "pending": 1.0, "lost": 0.5}
    assert (last["name"], last["num_files"], last["tested"]) == ("ada", len(WANTED), True)
    assert last["bytes"] == (project / "dist/submission.zip").stat().st_size


def test_the_same_files_give_the_same_archive(project, monkeypatch):
    assert run(project) == 0
    first = (project / "dist/submission.zip").read_bytes()
    elsewhere = project.with_name("elsewhere")
    shutil.copytree(project, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert run(elsewhere) == 0
    assert (elsewhere / "dist/submission.zip").read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as file:
        names = file.namelist()
    assert names[0] == "manifest.json"
    assert names[1:] == sorted(names[1:])


def test_what_is_left_out_is_listed_with_the_reason(project, capsys, monkeypatch):
    added = {
        "cs_systems/weights.pt": b"", "cs_systems/big.py": b"x" * (2**20 + 1), "cs_systems/.secret.py": b"",
        "cs_systems/__pycache__/a.py": b"", "cs_systems/.cache/a.py": b"", "cs_systems/a\\b.py": b"",
        "results/local/notes.docx": b"", "results/local/profile/huge.json.gz": b"x" * 100,
        "build/writeup.exe": b"",
    }  # fmt: skip
    for name, data in added.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(data)
    (project / "cs_systems/link.py").symlink_to("/etc/passwd")
    (project / "cs_systems/linked").symlink_to(project / ".git", target_is_directory=True)
    os.mkfifo(project / "cs_systems/pipe.py")
    (project / "cs_systems" / os.fsdecode(b"\xff.py")).touch()
    monkeypatch.setattr(submission, "record_rules", lambda folder: (
        submission.Rule("profile", f"{folder}/profile", (".json.gz", ".run.json"), 50),
        submission.Rule("records", folder, (".jsonl",), 1000, without=("profile",)),
    ))  # fmt: skip
    assert run(project, "--untested") == 0
    assert packed(project).keys() == {*WANTED, "manifest.json"}
    left_out = manifest(project)["left_out"]
    assert {path: " ".join(reason.split()[:2]) for path, reason in left_out.items()} == {
        "cs_systems/weights.pt": "none of", "cs_systems/big.py": "larger than",
        "cs_systems/.secret.py": "a hidden", "cs_systems/__pycache__/": "a cache",
        "cs_systems/.cache/": "a cache", "cs_systems/a\\\\b.py": "a name", "cs_systems/\\udcff.py": "a name",
        "results/local/notes.docx": "none of", "cs_systems/link.py": "a link", "cs_systems/linked": "a link",
        "cs_systems/pipe.py": "not an",
        "results/local/profile/huge.json.gz": "larger than",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "Left out, a link: cs_systems/link.py, cs_systems/linked" in out
    assert "Left out, larger than 1.0 MiB: cs_systems/big.py" in out


def test_recordings_are_packed_as_far_as_they_fit(project, monkeypatch):
    for name in "abc":
        (project / f"results/local/profile/{name}.json.gz").write_bytes(b"x" * 40)
    rule = submission.Rule("profile", "results/local/profile", (".json.gz",), 50, together=100)
    files, left_out = submission.collect(project, (rule,))
    assert [file.path[-9:] for file in files] == ["a.json.gz", "b.json.gz", "l.json.gz"]
    assert left_out[0].path.endswith("c.json.gz")
    assert left_out[0].reason == "over the 100 B that all of results/local/profile may take"


def test_untested_code_is_refused_with_the_way_out(project, capsys):
    (project / "build/graded.json").unlink()
    said = (
        "the tests were not run on this code: run make test (or pytest tests/graded), or pack with --untested"
    )
    assert said in refused(project, capsys)
    assert not (project / "dist/submission.zip").exists()
    assert run(project, "--untested") == 0
    assert (manifest(project)["tested"], manifest(project)["tests"]) == (False, None)
    assert "no test was run; 2 of 3 answers filled in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["cs_systems/model/layers.py", "tests/adapters.py", "tests/graded/test_linear.py", "cs_systems/new.py"],
)
def test_code_or_tests_that_changed_since_are_named(project, capsys, name):
    with (project / name).open("a") as file:
        file.write("z = 3\n")
    assert f"code changed since the tests ran: {name}; run make test" in refused(project, capsys)
    assert run(project, "--untested") == 0
    assert manifest(project)["tested"] is False
    assert "the code changed since" in capsys.readouterr().out


def test_a_file_that_is_gone_is_a_change_and_a_record_is_none(project, capsys):
    (project / "results/local/runs.jsonl").write_text("{}\n{}\n")
    (project / "benchmark.py").write_text("z = 3\n")
    assert run(project) == 0
    (project / "cs_systems/model/layers.py").unlink()
    (project / "tests/adapters.py").write_text("")
    assert "changed since the tests ran: cs_systems/model/layers.py, tests/adapters.py;" in refused(
        project, capsys
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema_version": 2}', '{"schema_version": 1, "files": {}}']
)
def test_a_receipt_that_cannot_be_read_is_none(project, capsys, text):
    (project / "build/graded.json").write_text(text)
    assert "the tests were not run on this code" in refused(project, capsys)


def test_without_answers_it_warns_and_goes_on(project, capsys):
    (project / "writeup/answers.md").unlink()
    assert run(project) == 0
    assert "writeup/answers.md does not exist" in capsys.readouterr().err
    assert manifest(project)["answers"] is None
    (project / "writeup/answers.md").write_text("```answer\n")
    assert run(project) == 0
    assert "writeup/answers.md, line 1" in capsys.readouterr().err


def test_a_document_older_than_its_answers_is_mentioned(project, capsys):
    assert run(project) == 0
    assert "the write-up is not built: make writeup" in capsys.readouterr().err
    document = project / "build/writeup.pdf"
    document.write_text("%PDF")
    os.utime(document, (1, 1))
    assert run(project) == 0
    assert "build/writeup.pdf is older than writeup/answers.md" in capsys.readouterr().err
    os.utime(document)
    assert run(project) == 0
    assert capsys.readouterr().err == ""
    assert "build/writeup.pdf" in packed(project)


def test_what_is_in_the_way_is_not_overwritten_but_an_older_submission_is(project, capsys):
    output = project / "dist/submission.zip"
    assert run(project) == 0
    assert run(project, "--name", "second") == 0
    assert manifest(project)["name"] == "second"
    with zipfile.ZipFile(output, "w") as file:
        file.writestr("thesis.tex", "years")
    assert "exists and is no submission; move it away, or name another file" in refused(project, capsys)
    output.write_text("years")
    assert "exists and is no submission" in refused(project, capsys)
    assert output.read_text() == "years"
    output.unlink()
    output.mkdir()
    assert "is a folder; name a file in it" in refused(project, capsys)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_more_leaves_the_older_archive(project, capsys, monkeypatch, number):
    assert run(project) == 0
    before = (project / "dist/submission.zip").read_bytes()

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(archive.zipfile.ZipFile, "writestr", fail)
    assert f"cannot write ({os.strerror(number)}); make room, or choose" in refused(project, capsys)
    assert [path.name for path in (project / "dist").iterdir()] == ["submission.zip"]
    assert (project / "dist/submission.zip").read_bytes() == before


def test_a_folder_that_is_a_file_and_records_elsewhere_are_explained(project, capsys, tmp_path):
    (project / "dist").write_text("")
    assert "cannot write (" in refused(project, capsys)
    (project / "dist").unlink()
    said = refused(project, capsys, "--records", str(tmp_path))
    assert "is not in this project; copy your records to results/local" in said
    (project / "tests/adapters.py").unlink()
    assert "tests/adapters.py is missing" in refused(project, capsys)


def test_other_records_are_packed_from_their_place(project):
    (project / "results/mine").mkdir()
    (project / "results/mine/runs.jsonl").write_text("{}")
    assert run(project, "--records", "results/mine") == 0
    assert {name for name in packed(project) if name.startswith("results")} == {"results/mine/runs.jsonl"}


def rewrite(path, change):
    """The archive again, its files passed through `change`."""
    with zipfile.ZipFile(path) as file:
        files = {name: file.read(name) for name in file.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)


def test_an_untouched_archive_verifies(project, capsys):
    assert run(project) == 0
    capsys.readouterr()
    path = str(project / "dist/submission.zip")
    assert main(["--verify", path], root=project) == 0
    out = capsys.readouterr().out
    assert f"{path}: {len(WANTED)} files, as they were packed, with these tests" in out
    assert json.loads(out.splitlines()[-1])["differences"] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda files: files.update({"tests/adapters.py": b"z"}),
            "tests/adapters.py: changed after it was packed",
        ),
        (
            lambda files: files.pop("benchmark.py"),
            "benchmark.py: listed in manifest.json, and not in the archive",
        ),
        (lambda files: files.update({"../evil.py": b""}), "../evil.py: in the archive, and not listed"),
    ],
)
def test_an_archive_that_was_changed_is_found_out(project, capsys, change, said):
    assert run(project) == 0
    path = project / "dist/submission.zip"
    rewrite(path, change)
    assert main(["--verify", str(path)], root=project) == 1
    assert said in capsys.readouterr().err


def test_edited_tests_are_found_out(project):
    (project / "tests/graded/test_linear.py").write_text("def test_square(): assert True\n")
    (project / "tests/graded/test_more.py").write_text("")
    write_receipt(project, TESTS, SCORES)
    assert run(project) == 0
    pristine = project.with_name("pristine")
    shutil.copytree(project, pristine)
    (pristine / "tests/graded/test_linear.py").write_text(FILES["tests/graded/test_linear.py"])
    (pristine / "tests/graded/test_more.py").unlink()
    (pristine / "tests/graded/test_rope.py").write_text("")
    _, problems = verify(project / "dist/submission.zip", pristine)
    assert problems == [
        "tests/graded/test_linear.py: this test file was edited or added",
        "tests/graded/test_more.py: this test file was edited or added",
        "tests/graded/test_rope.py: this test file was removed",
    ]


@pytest.mark.parametrize("spoil", ["cut", "text", "zip", "manifest", "scores", "missing"])
def test_what_is_no_submission_is_said_in_one_line(project, capsys, spoil):
    assert run(project) == 0
    path = project / "dist/submission.zip"
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "text":
        path.write_text("no zip")
    elif spoil == "missing":
        path.unlink()
    else:
        texts = {
            "manifest": b"[]",
            "zip": None,
            "scores": json.dumps(manifest(project) | {"tests": {}}).encode(),
        }
        text = texts[spoil]
        rewrite(
            path,
            lambda files: (
                files.pop("manifest.json") if text is None else files.update({"manifest.json": text})
            ),
        )
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["--verify", str(path)], root=project)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_byte_that_flipped_is_found(project):
    assert run(project) == 0
    path = project / "dist/submission.zip"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    try:
        problems = verify(path, project)[1]
    except ValueError as error:
        problems = [str(error)]
    assert problems


def test_the_hash_of_the_code_is_that_of_sha256sum(project):
    """The oracle is a program of the system, where it is installed."""
    names = sorted(name for name in FILES if name.startswith("cs_systems/") or name == "tests/adapters.py")
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    lines = subprocess.run(["sha256sum", *names], cwd=project, capture_output=True, check=True).stdout
    assert hash_code(project) == hashlib.sha256(lines).hexdigest()
    assert tree_hash({}) == hashlib.sha256().hexdigest()


def test_files_of_the_archive_can_be_read_by_whoever_unpacks_it(project):
    assert run(project) == 0
    with zipfile.ZipFile(project / "dist/submission.zip") as file:
        modes = {stat.S_IMODE(info.external_attr >> 16) for info in file.infolist()}
    assert modes == {0o644}
    assert stat.S_IMODE((project / "dist/submission.zip").stat().st_mode) == 0o644


CONFTEST = (ROOT / "tests/conftest.py").read_text()


@pytest.fixture
def checkout(tmp_path):
    """A project with our conftest and kit, and two graded tests."""
    root = tmp_path / "checkout"
    (root / "tests/graded").mkdir(parents=True)
    for name in ("tests/conftest.py", "tests/graded/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "tests/graded/graded_support", root / "tests/graded/graded_support",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    (root / "tests/graded/rubric.toml").write_text(
        '[[problem]]\nid = "linear"\ntitle = "l"\npoints = 1\n'
        '[[problem]]\nid = "rope"\ntitle = "r"\npoints = 2\n'
    )
    (root / "tests/graded/test_linear.py").write_text(
        '"""l"""\ndef test_a(adapters):\n    assert adapters.x == 1\n'
    )
    (root / "tests/graded/test_rope.py").write_text(
        '"""r"""\ndef test_b(adapters):\n    assert adapters.x == 2\n'
    )
    (root / "tests/adapters.py").write_text("x = 1\n")
    (root / "tests/test_other.py").write_text("def test_c():\n    pass\n")
    return root


def run_pytest(checkout, *words, **environment):
    """What pytest prints there, and the receipt."""
    shutil.rmtree(checkout / "build", ignore_errors=True)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CS_SYSTEMS_"))
    }
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], cwd=checkout, text=True,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True,
    )  # fmt: skip
    assert result.returncode in (0, 1), result.stdout + result.stderr
    receipt = checkout / "build/graded.json"
    return result.stdout, json.loads(receipt.read_text()) if receipt.exists() else None


def test_a_run_of_all_graded_tests_leaves_a_receipt(checkout):
    out, receipt = run_pytest(checkout, "tests/graded")
    assert "build/graded.json says how the graded tests went; make submission packs it" in out
    assert receipt["tests"] == {
        "tests/graded/test_linear.py::test_a": "passed", "tests/graded/test_rope.py::test_b": "failed",
    }  # fmt: skip
    assert [(score["id"], score["earned"], score["lost"]) for score in receipt["scores"]] == [
        ("linear", 1.0, 0.0), ("rope", 0.0, 2.0),
    ]  # fmt: skip
    assert {"tests/adapters.py", "tests/graded/test_linear.py"} <= receipt["files"].keys()


def test_workers_of_xdist_leave_one_receipt(checkout):
    pytest.importorskip("xdist")
    out, receipt = run_pytest(checkout, "-n", "1")
    assert len(receipt["tests"]) == 2
    assert out.count("make submission") == 1


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (
            ["tests/graded", "-m", "problem_linear or problem_rope"],
            {},
            "no receipt for make submission: a part of the graded tests ran",
        ),
        (["tests/graded", "-k", "test"], {}, "a part"),
        (["tests/graded/test_linear.py"], {}, "a part"),
        (["tests/graded", "-x"], {}, "a part"),
        (["tests/graded"], {"CS_SYSTEMS_ADAPTERS": "json"}, "CS_SYSTEMS_ADAPTERS names other adapters"),
        (["tests/test_other.py"], {}, ""),
    ],
    ids=["marker", "keyword", "file", "first failure", "adapters", "other tests"],
)
def test_another_run_leaves_none_and_says_so(checkout, words, environment, said):
    out, receipt = run_pytest(checkout, *words, **environment)
    assert receipt is None
    assert re.search(said, out) if said else "make submission" not in out


def add_own_code(project):
    """A package beside cs_systems, a module that it imports, and what nobody imports."""
    texts = {
        "tests/adapters.py": "def run():\n    from my_package.layers import f\n    import torch, json\n",
        "my_package/__init__.py": "", "my_package/layers.py": "import helper\nfrom . import more\n",
        "my_package/more.py": "import benchmark\n", "my_package/weights.pt": "",
        "helper.py": "import cs_systems\n", "broken.py": "", "json/__init__.py": "", "unused/__init__.py": "",
    }  # fmt: skip
    for name, text in texts.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return {"my_package/__init__.py", "my_package/layers.py", "my_package/more.py", "helper.py"}


def test_a_package_of_ones_own_is_packed_and_hashed_with_what_it_imports(project, capsys):
    own = add_own_code(project)
    assert f"code changed since the tests ran: {sorted([*own, 'benchmark.py'])[0]}" in refused(
        project, capsys
    )
    write_receipt(project, TESTS, SCORES)
    assert run(project) == 0
    assert packed(project).keys() == {*WANTED, *own, "manifest.json"}
    listed = manifest(project)
    assert listed["own_code"] == ["benchmark.py", "helper.py", "my_package"]
    assert listed["left_out"].keys() == {"my_package/weights.pt"}
    before = hash_code(project)
    assert listed["code_sha256"] == before
    (project / "helper.py").write_text("z = 3\n")
    assert hash_code(project) != before
    assert "code changed since the tests ran: helper.py;" in refused(project, capsys)


def test_code_that_cannot_be_parsed_imports_nothing_and_that_in_tests_is_refused(project, capsys):
    (project / "tests/adapters.py").write_text("import my_package (\n")
    (project / "my_package").mkdir()
    (project / "my_package/__init__.py").touch()
    assert run(project, "--untested") == 0
    assert packed(project).keys() == {*WANTED, "manifest.json"}
    (project / "cs_systems/model/layers.py").write_text("from tests.unit import test_mine\n")
    said = refused(project, capsys, "--untested")
    assert "cs_systems/model/layers.py imports from tests, which is not handed in; move that code" in said


def test_a_submission_packed_again_in_a_folder_or_unpacked_verifies_as_well(project, capsys, tmp_path):
    add_own_code(project)
    assert run(project, "--untested") == 0
    folder, again = tmp_path / "ada", tmp_path / "again.zip"
    with zipfile.ZipFile(project / "dist/submission.zip") as file:
        file.extractall(folder)
    (folder / "cs_systems/__pycache__").mkdir()
    (folder / "cs_systems/__pycache__/a.pyc").touch()
    assert verify(folder, project)[1] == []
    shutil.rmtree(folder / "cs_systems/__pycache__")
    shutil.make_archive(str(again.with_suffix("")), "zip", tmp_path, "ada")
    assert verify(again, project)[1] == []
    (folder / "helper.py").write_text("changed")
    assert verify(folder, project)[1] == [
        "helper.py: changed after it was packed",
        "code_sha256 in manifest.json is not that of the code in the archive",
    ]
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="is no unpacked archive"):
        verify(folder, project)


def forge(project, change):
    """Pack, and pass the manifest through `change`."""
    assert run(project) == 0
    path = project / "dist/submission.zip"
    text = json.dumps(change(manifest(project)))
    rewrite(path, lambda files: files.update({"manifest.json": text.encode()}))
    return path


def test_the_hash_of_the_code_is_computed_again(project):
    path = forge(project, lambda found: found | {"code_sha256": "0" * 64})
    assert verify(path, project)[1] == ["code_sha256 in manifest.json is not that of the code in the archive"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, "1", None])
def test_points_that_are_no_numbers_are_of_no_manifest(project, number):
    def change(found):
        found["tests"]["scores"][0]["earned"] = number
        return found

    with pytest.raises(ValueError, match="of another program or version"):
        verify(forge(project, change), project)


def test_what_an_archive_says_is_a_claim_and_printed_without_control_characters(project, capsys):
    def change(found):
        found["tests"]["time_utc"] = "\x1b[31mnow\n"
        found["graded_tests"]["\x1b[2J.py"] = "0"
        return found | {"name": "\x1b[1mada"}

    path = forge(project, change)
    capsys.readouterr()
    assert main(["--verify", str(path)], root=project) == 1
    out, err = capsys.readouterr()
    assert out.startswith("claimed, not checked (make grade does): points of the tests: 1.5 earned")
    assert "\\x1b[31mnow\\n" in out
    assert "\\x1b[2J.py: this test file was edited or added" in err
    assert all(each.isprintable() or each == "\n" for each in out + err)
