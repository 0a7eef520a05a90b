"""The closing table of a plain run of the graded tests, where the code under test takes its process down."""

import os
import pathlib
import subprocess
import sys

import pytest
from graded_support.rubric import read_rubric

ROOT = pathlib.Path(__file__).parents[2]


def test_a_crash_under_xdist_is_a_lost_test(tmp_path):
    adapters = tmp_path / "adapters.py"
    adapters.write_text(
        "import os\n\n\ndef run_get_lr_cosine_schedule(it, highest, least, warmup, cycle):\n    os.abort()\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "tests/graded/test_learning_rate_schedule.py"],
        cwd=ROOT,
        env=os.environ | {"CS_SYSTEMS_ADAPTERS": str(adapters)},
        capture_output=True,
        text=True,
    )
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("learning_rate_schedule ")]
    assert result.returncode == 1
    cells = row.split(maxsplit=5)
    assert cells[1:5] == ["1", "0", "0", "1"]
    assert cells[5] == "the process crashed in this test: does a kernel load or store outside of a tensor?"


@pytest.mark.parametrize("file", ["test_linaer.py", "hidden/test_linaer.py"])
def test_tests_of_a_misspelt_problem_are_not_passed_over(tmp_path, file):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "rubric.toml").write_text('[[problem]]\nid = "linear"\ntitle = "t"\npoints = 1\n')
    (tmp_path / file).write_text("")
    with pytest.raises(ValueError, match=f"{file} is of no problem there"):
        read_rubric(tmp_path / "rubric.toml")
