"""Remarks for the instructor: where code under test calls what writeup/code.md rules out.

No points depend on it. The rubric lists what is not allowed in a problem; while one of its tests runs, each
call of it from the code under test makes a remark, calls from the tests' own code do not. It sees what
torch runs in forward; not backward, for which torch suspends such a watch, nor what is compiled, what other
threads do, or the functions of another library.
"""

import inspect
import operator
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import CodeType, FrameType
from typing import Any

from graded_support.fence import KIT, LIBRARIES

STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_TESTS = os.path.join(KIT, "")


def watch(names: Iterable[str], folder: str, remarks: list[str]) -> AbstractContextManager[Any]:
    """While this is open, calls of functions with these names of torch go into `remarks`.

    Args:
        names: such as torch.nn.functional.softmax; of an optimizer class its `step` is meant.
        folder: what the paths in remarks are relative to.
        remarks: one sentence for each place and name.
    """
    names = tuple(names)
    torch = sys.modules.get("torch")
    if not names or torch is None:
        return nullcontext()
    is_compiling = torch.compiler.is_compiling
    functions = {name: operator.attrgetter(name.removeprefix("torch."))(torch) for name in names}
    by_function = {function: name for name, function in functions.items()}
    # Functions that torch does not announce, because they only call others, are known by their code.
    by_code = {code: name for name, function in functions.items() if (code := _code(function)) is not None}

    def note(function: Any, frame: FrameType | None) -> None:
        name = by_function.get(function, "")
        while frame is not None:
            code = frame.f_code
            name = by_code.get(code, name)
            file = code.co_filename
            if file.startswith(_TESTS):
                return
            if not _is_library(file):
                remark = (
                    f"{file.removeprefix(folder + os.sep)}, line {frame.f_lineno}, calls {_ruled_out(name)}"
                )
                if name and remark not in remarks:
                    remarks.append(remark)
                return
            frame = frame.f_back

    class Watch(torch.overrides.TorchFunctionMode):  # a base class that is there only once torch is
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            # torch.compile reads this method too, and cannot go where frames are looked at.
            if not is_compiling() and (by_code or func in by_function):
                note(func, sys._getframe(1))
            return func(*args, **(kwargs or {}))

    return Watch()


def _code(function: Any) -> CodeType | None:
    return getattr(inspect.unwrap(getattr(function, "step", function)), "__code__", None)


def _is_library(file: str) -> bool:
    made = file.startswith("<")  # by torch.compile, or by a decorator
    return made or file.startswith(STANDARD_LIBRARY) or any(name in file for name in LIBRARIES)


def find_classes(names: Iterable[str], given: Iterable[tuple[str, type]]) -> list[str]:
    """Remarks on classes that the adapters returned, which are of torch or made from one of torch.

    Args:
        names: as for `watch`.
        given: adapters, and the class that each returned.
    """
    names = frozenset(names)
    # A class of torch has a longer name, the module's, and calls itself by the short one.
    found = [
        (adapter, f"torch.{cls.__module__.split('.')[1]}.{cls.__name__}", each is cls)
        for adapter, each in given
        for cls in each.__mro__
        if cls.__module__.startswith("torch.")
    ]
    return [
        f"{adapter} returns {'' if itself else 'a class made from '}{_ruled_out(name)}"
        for adapter, name, itself in dict.fromkeys(found)
        if name in names
    ]


def _ruled_out(name: str) -> str:
    return f"{name}, which writeup/code.md rules out"
