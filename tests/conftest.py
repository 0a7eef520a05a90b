"""What every test gets: checked tensor shapes, a fixed seed, and torch's global state put back afterwards.

torch itself is never imported here, so that tests of the command line and the estimator start at once.
"""

import importlib.util
import os
import random
import sys

import jaxtyping
import pytest

pytest_plugins = ["graded_support.plugin"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with several threads each they would wait for one another. Torch reads it once.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
    # Without a GPU (Linux, or Windows' WSL), kernels run in Triton's interpreter. Triton decides when a
    # kernel is defined, so this must come before the first import of one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
