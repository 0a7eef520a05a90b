"""The set-up logic of the Makefile, offline: a stand-in for Python writes down what it is asked to do."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Answers like a Python 3.11+ with venv and pip. `-m venv DIR` puts a copy of itself into DIR/bin; each venv
# and pip call is a line in $LOG; a step named in $FAIL fails, leaving what a cut-off step would leave.
STAND_IN = """#!/bin/sh
case "$1 $2" in
  "-m venv")
    echo venv >> "$LOG"
    mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"
    [ "$FAIL" = venv ] && exit 1
    cp "$0" "$3/bin/python" ;;
  "-m pip")
    [ "$3" = --version ] && exit 0
    echo "$3" >> "$LOG"
    [ "$FAIL" = pip ] && exit 1 ;;
  "-c import sys"*) [ "$FAIL" = old ] && exit 1 ;;
  "-c import venv"*) [ "$FAIL" = no-venv ] && exit 1 ;;
  "-c import torch"*) [ "$FAIL" = no-torch ] && exit 1 ;;
  "-m pytest") echo "pytest PYTHONPATH=$PYTHONPATH" >> "$LOG" ;;
esac
exit 0
"""


class Checkout:
    """A folder with our Makefile and a stand-in for Python."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *words, fail=""):
        """Run make; returns what it did (venv and pip calls), its exit status and what it said."""
        self.log.write_text("")
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        result = subprocess.run(
            ["make", *words, f"PY={self.python}"],
            cwd=self.folder,
            env=inherited | {"LOG": str(self.log), "FAIL": fail},
            capture_output=True,
            text=True,
        )
        return self.log.read_text().split("\n")[:-1], result.returncode, result.stdout + result.stderr


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_set_up_creates_a_venv_once_and_then_does_nothing(checkout):
    assert checkout.make("setup")[0] == ["venv", "install"]
    assert checkout.make("setup")[0] == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_into_the_same_venv(checkout, changed):
    checkout.make("setup")
    later = (checkout.folder / ".venv/ready").stat().st_mtime + 10
    os.utime(checkout.folder / changed, (later, later))
    assert checkout.make("setup")[0] == ["install"]


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_first_set_up_that_failed_half_way_starts_afresh(checkout, step):
    did, status, _ = checkout.make("setup", fail=step)
    assert status != 0
    leftover = checkout.folder / ".venv/half-installed"
    leftover.touch()
    did, status, _ = checkout.make("setup")
    assert (did, status) == (["venv", "install"], 0)
    assert not leftover.exists()


def test_a_failed_refresh_keeps_the_venv_and_is_tried_again(checkout):
    checkout.make("setup")
    later = (checkout.folder / ".venv/ready").stat().st_mtime + 10
    os.utime(checkout.folder / "constraints.txt", (later, later))
    assert checkout.make("setup", fail="pip")[1] != 0
    assert checkout.make("setup")[0] == ["install"]


def test_a_venv_whose_python_is_gone_is_built_anew(checkout):
    checkout.make("setup")
    link = checkout.folder / ".venv/bin/python"
    link.unlink()
    link.symlink_to(checkout.folder / "uninstalled")
    assert checkout.make("setup")[0] == ["venv", "install"]


def test_a_venv_made_by_hand_is_kept(checkout):
    checkout.make("setup")
    (checkout.folder / ".venv/ready").unlink()
    assert checkout.make("setup")[0] == ["install"]


def test_a_folder_that_is_no_venv_is_left_alone(checkout):
    mine = checkout.folder / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    did, status, said = checkout.make("setup", "VENV=mine")
    assert did == []
    assert status != 0
    assert "no virtual environment" in said
    assert (mine / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("fail", "advice"), [("old", "Python 3.11 or newer is needed"), ("no-venv", "apt install python3-venv")]
)
def test_an_unfit_python_is_explained_before_anything_is_created(checkout, fail, advice):
    did, status, said = checkout.make("setup", fail=fail)
    assert did == []
    assert status != 0
    assert advice in said
    assert not (checkout.folder / ".venv").exists()


def test_use_system_runs_the_given_python_and_creates_and_installs_nothing(checkout):
    did, status, _ = checkout.make("test", "USE_SYSTEM=1")
    assert (did, status) == (["pytest PYTHONPATH=."], 0)
    assert not (checkout.folder / ".venv").exists()


def test_use_system_without_torch_says_so(checkout):
    did, status, said = checkout.make("bench", "USE_SYSTEM=1", fail="no-torch")
    assert did == []
    assert status != 0
    assert "cannot import torch" in said


def test_help_is_the_default_and_lists_the_targets():
    environment = {"PATH": os.environ["PATH"]}
    said = subprocess.run(
        ["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "bench", "test", "check"):
        assert f"make {target} " in said
    assert "USE_SYSTEM=1" in said


def test_check_ends_with_the_tests():
    command = ["make", "-n", "check", "USE_SYSTEM=1", f"PY={sys.executable}"]
    said = subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    lines = said.stdout.strip().splitlines()
    assert any("ruff check" in line for line in lines)
    assert any("pyright" in line for line in lines)
    assert "pytest" in lines[-1]
