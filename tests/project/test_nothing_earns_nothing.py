"""Code that does nothing earns no points: neither None nor zeros of the right shape pass a graded test."""

import os
import pathlib
import subprocess
import sys
import tomllib
import xml.etree.ElementTree

import pytest

pytest.importorskip("triton", reason="needs Triton (Linux)")

ROOT = pathlib.Path(__file__).parents[2]
GRADED = ROOT / "tests/graded"
MAY_BE_PENDING = {"weighted_sum", "softmax_kernel", "leaderboard"}
"""Problems that nobody is asked where neither a GPU nor Triton's interpreter can run a kernel."""
NONE = """
def __getattr__(name):
    if name.startswith(("run_", "get_")):
        return lambda *arguments, **named: None
    raise AttributeError(name)
"""


def outcomes_of(adapters, folder):
    """What pytest says of each graded test: the name of its file, its own, and passed, failed or skipped."""
    report = folder / "report.xml"
    environment = os.environ | {"CS_SYSTEMS_ADAPTERS": str(adapters), "OMP_NUM_THREADS": "1"}
    environment.pop("CS_SYSTEMS_RUN_PENDING", None)
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", GRADED]
    result = subprocess.run(
        [*command, f"--junitxml={report}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr[-3000:]
    outcomes = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        told = {child.tag for child in case}
        outcome = "skipped" if "skipped" in told else "failed" if told & {"failure", "error"} else "passed"
        outcomes.append((case.attrib["classname"].rpartition(".test_")[2], case.attrib["name"], outcome))
    return outcomes


@pytest.mark.parametrize("returned", ["None", "zeros"])
def test_nothing_earns_nothing(returned, tmp_path):
    adapters = pathlib.Path(__file__).with_name("adapters_of_zeros.py")
    if returned == "None":
        adapters = tmp_path / "adapters_of_none.py"
        adapters.write_text(NONE)
    outcomes = outcomes_of(adapters, tmp_path)
    assert [(problem, name) for problem, name, outcome in outcomes if outcome == "passed"] == []
    # Each problem was asked: a skipped test has said nothing.
    problems = tomllib.loads((GRADED / "rubric.toml").read_text())["problem"]
    open_problems = {problem["id"] for problem in problems if "pending" not in problem}
    failed = {problem for problem, _, outcome in outcomes if outcome == "failed"}
    assert open_problems - failed <= MAY_BE_PENDING
