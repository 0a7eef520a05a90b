"""What every test gets: checked tensor shapes, a fixed seed, and torch's global state put back afterwards.

torch itself is never imported here, so that tests of the command line and the estimator start at once.
"""

import importlib.util
import os
import random
import sys

import jaxtyping
import pytest

pytest_plugins = ["graded_support.plugin"]  # also chooses Triton's interpreter where there is no GPU

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with several threads each they would wait for one another. Torch reads it once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("beartype"):
    # Every annotated function under cs_systems has its shapes and types checked while tests run. This must
    # come before the first import of cs_systems; without beartype (a dev extra) the tests run unchecked.
    # The tower lets an int stand where a float is asked for, as type checkers do.
    jaxtyping.install_import_hook(
        "cs_systems", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_sessionfinish(session, exitstatus):
    """When all graded tests ran on this code, leave the receipt that `make submission` asks for."""
    config = session.config
    plugin = config.pluginmanager.get_plugin("graded_tests")
    in_worker = hasattr(config, "workerinput")
    if in_worker or plugin is None or not plugin.results or os.environ.get("CS_SYSTEMS_SUBMISSION"):
        return
    said = _leave_receipt(config, plugin, exitstatus)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write(f"\n{said}\n")


def _leave_receipt(config, plugin, exitstatus):
    """Write it, or say why this run is none for a submission."""
    from graded_support.plugin import KIT
    from graded_support.rubric import score_problems

    from cs_systems.grading.receipt import RECEIPT, write_receipt

    if os.environ.get("CS_SYSTEMS_ADAPTERS"):
        return (
            "no receipt for make submission: CS_SYSTEMS_ADAPTERS names other adapters than tests/adapters.py"
        )
    files = {config.rootpath / test.split("::")[0] for test in plugin.results}
    options = ("keyword", "markexpr", "deselect", "lf", "stepwise", "maxfail")
    chosen = [name for name in options if config.getoption(name, None)]
    complete = all(path in files for path in KIT.rglob("test_*.py"))
    if exitstatus not in (0, 1) or chosen or not complete or any("::" in word for word in config.args):
        return "no receipt for make submission: a part of the graded tests ran; pytest tests/graded runs all"
    tests = {test: result.status for test, result in plugin.results.items()}
    scores = [
        {"id": each.problem.id, "points": each.problem.points}
        | {key: getattr(each, key) for key in ("earned", "pending", "lost")}
        for each in score_problems(plugin.problems.values(), plugin.results.values())
    ]
    try:
        write_receipt(KIT.parents[1], tests, scores)
    except (OSError, ValueError) as error:
        return f"no receipt for make submission: {error}"
    return f"{RECEIPT} says how the graded tests went; make submission packs it"


@pytest.fixture(autouse=True)
def fixed_seed_and_restored_state():
    """Seed random and torch, then restore torch's settings that a test may have changed."""
    random.seed(0)
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.manual_seed(0)
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])
    torch.set_float32_matmul_precision(before[2])


@pytest.fixture
def no_shape_checks():
    """Switch the shape checks off: torch.compile cannot trace a checked function."""
    import torch

    torch.compiler.reset()  # a wrapper shared by many tests may be compiled eight times, no more
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
