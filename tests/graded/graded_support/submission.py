"""Find the implementation that is tested: the adapters, and the package that they stand on.

CS_SYSTEMS_ADAPTERS names the adapters, as a module (my_package.adapters) or as a file. Without it they are
tests/adapters.py, beside the folder of the graded tests. CS_SYSTEMS_SUBMISSION is set when a folder is graded
from outside: packages then come from there.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ADAPTERS = "CS_SYSTEMS_ADAPTERS"
SUBMISSION = "CS_SYSTEMS_SUBMISSION"
LOADED_ADAPTERS = "submitted_adapters"
"""Name that the adapters have as a module when they are a file."""
REFERENCE = "cs_systems"
"""Name of this project's package: a submission that was begun from the handout has one of the same name."""


class SubmissionFinder:
    """Finds the package `cs_systems` in the submission, and nowhere else.

    The grader's own Python has the reference under that name; a submission must not be lent it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """The place of `name`, or None to let Python look where it always does."""
        if name != REFERENCE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [self.folder])
        if spec is None:
            raise ModuleNotFoundError(f"the submission has no package {REFERENCE}", name=name)
        return spec


def use_submission(folder: str) -> None:
    """Let imports find what is in `folder`; what Python itself and its packages have comes first."""
    sys.meta_path.insert(0, SubmissionFinder(folder))
    sys.path.append(folder)


def load_adapters(default: pathlib.Path) -> ModuleType:
    """Import the adapters; whatever goes wrong there is the importing test's failure."""
    __tracebackhide__ = True
    name = os.environ.get(ADAPTERS) or str(default)
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(LOADED_ADAPTERS, name)
    if spec is None or spec.loader is None or not pathlib.Path(name).is_file():
        raise FileNotFoundError(f"{name} does not exist: a submission needs its tests/adapters.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
