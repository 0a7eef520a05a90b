"""writeup/run.py as a student meets it; parsing, checking and building are tested where they live."""

import importlib.util
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SUMS = "mixed_precision_accumulation"


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("writeup_run", ROOT / "writeup" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(command, capsys, tmp_path, monkeypatch):
    """run("check", ...) -> exit code, output, errors; the write-up and the records are in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        given = ["--answers", "answers.md"] + ([] if name == "new" else ["--records", "records"])
        try:
            code = command.main([name, *given, *words])
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def answer(tmp_path, **values):
    """Fill blanks of the write-up in."""
    text = (tmp_path / "answers.md").read_text()
    for key, value in values.items():
        assert f'{key} = ""' in text
        text = text.replace(f'{key} = ""', f'{key} = "{value}"', 1)
    (tmp_path / "answers.md").write_text(text)


def test_the_skeleton_is_the_questions_and_is_never_overwritten(run, tmp_path):
    assert run("new")[0] == 0
    assert (tmp_path / "answers.md").read_text() == (ROOT / "writeup" / "questions.md").read_text()
    (tmp_path / "answers.md").write_text("mine")
    code, _, err = run("new")
    assert code == 2
    assert "answers.md exists and is yours" in err
    assert (tmp_path / "answers.md").read_text() == "mine"


def test_a_skeleton_of_one_problem_is_checked_as_one(run):
    assert run("new", "--problem", SUMS)[0] == 0
    code, out, err = run("check")
    assert code == 0
    assert f"{SUMS}.a: not answered yet: fp32, fp16" in out
    assert "total" in out
    assert "nsys_profile" not in out
    assert "records does not exist" in err


def test_a_wrong_answer_fails_and_a_right_one_does_not(run, tmp_path):
    run("new", "--problem", SUMS)
    answer(tmp_path, fp32="10.0001")
    assert run("check")[0] == 0
    answer(tmp_path, bf16="10.0098")
    code, out, _ = run("check")
    assert code == 1
    assert f"{SUMS}.a: bf16" in out
    assert "10.0001" not in out  # what is right is not repeated


def test_strict_wants_every_answer(run):
    run("new", "--problem", SUMS)
    assert run("check", "--strict")[0] == 1


def test_the_build_says_what_is_missing_and_still_writes(run, tmp_path):
    run("new", "--problem", SUMS)
    code, out, err = run("build", "--output-dir", "built")
    assert code == 1
    assert "accumulation is not measured yet; run: python -m cs_systems.mixed_precision accumulation" in err
    assert "built/writeup.md" in out
    assert "ot measured yet" in (tmp_path / "built" / "writeup.md").read_text()


def test_measuring_runs_what_is_missing_and_then_nothing(run, command, tmp_path, monkeypatch):
    run("new", "--problem", SUMS)
    _, listed, _ = run("measure", "--list")
    assert listed.startswith("python -m cs_systems.mixed_precision accumulation")
    started = []

    def measure(words, **options):
        started.append(words)
        source = ROOT / "results" / "amd-epyc-2-cores" / "accumulation.jsonl"
        shutil.copy(source, tmp_path / "records")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(command.subprocess, "run", measure)
    assert run("measure")[0] == 0
    assert len(started) == 1
    code, out, _ = run("measure")
    assert code == 0
    assert "everything that the write-up shows is measured" in out
    assert len(started) == 1


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (130, 130)])
def test_a_measurement_that_fails_or_is_interrupted_is_said(run, command, monkeypatch, code, expected):
    run("new", "--problem", SUMS)
    result = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(command.subprocess, "run", lambda words, **options: result)
    found, _, err = run("measure")
    assert found == expected
    assert "type it again to go on" in err if code == 130 else "ended with an error" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check"], "answers.md does not exist; make writeup-new"),
        (["build"], "answers.md does not exist; make writeup-new"),
        (["new", "--problem", "nsys_profil"], "did you mean nsys_profile?"),
        (["check", "--strictt"], "did you mean --strict?"),
    ],
)
def test_bad_usage_is_one_line(run, words, said):
    code, _, err = run(*words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_damaged_write_up_is_one_line_with_its_number(run, tmp_path):
    (tmp_path / "answers.md").write_text('# A\n\n```answer\nid = "mixed_precision_accumulation.a"\n')
    code, _, err = run("check")
    assert code == 2
    assert "line 3" in err
    assert len(err.splitlines()) == 1


def test_a_section_that_is_not_there_cannot_be_chosen(run):
    run("new", "--problem", SUMS)
    code, _, err = run("check", "--problem", "nsys_profile")
    assert code == 2
    assert "has no section" in err


def test_a_file_in_the_place_of_the_records_is_one_line(run, tmp_path):
    run("new", "--problem", SUMS)
    (tmp_path / "records").write_text("")
    code, _, err = run("measure")
    assert code == 2
    assert "records: cannot be a folder" in err
    assert "is a file and no folder of records" in run("check")[2]
