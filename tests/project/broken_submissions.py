"""Submissions that do what submissions do: hang, crash, leave things behind, meddle with the tests.

All are about one small problem without torch, learning_rate_schedule. Most are right but for one thing, which
happens in the second of its four tests: the others must then pass, before and after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HEAD = "import ctypes, json, math, os, re, shutil, signal, subprocess, sys, threading, time, warnings\n"
SCHEDULE = """
def run_get_lr_cosine_schedule(it, most, least, warm_up, end):
    if it == 20:
        misbehave()
    if it < warm_up:
        return most * it / warm_up
    if it >= end:
        return least
    return least + (most - least) * (1 + math.cos(math.pi * (it - warm_up) / (end - warm_up))) / 2
"""
WRONG = "def run_get_lr_cosine_schedule(it, most, least, warm_up, end):\n    return most / 3\n"
QUICK = ("--timeout-scale", "0.02")
"""1.2 s a test instead of a minute, and 2.4 s for the import."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in a submission."""

    target: str


@dataclass(frozen=True)
class Broken:
    """One submission, and what must come of it."""

    name: str
    """What is wrong with it, in a few words joined by hyphens."""
    files: Mapping[str, str | bytes | Link]
    passed: int
    """How many of the four tests pass."""
    says: str = ""
    """Pattern that the reason of each failed test matches."""
    flags: tuple[str, ...] = ()
    exit_code: int = 0


def adapters(text, **others):
    return {"tests/adapters.py": text, **others}


def misbehaving(body):
    """Right, and in the second test it runs `body`."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return adapters(f"{HEAD}{SCHEDULE}\n\ndef misbehave():\n{lines}\n")


def importing(body):
    """Right, if only the import came to an end."""
    return adapters(f"{HEAD}def misbehave():\n    pass\n{SCHEDULE}\n{body}\n")


def wrong(body="", **others):
    """Returns wrong numbers, and tries something to be called right."""
    return adapters(f"{HEAD}{body}\n{WRONG}", **others)


FORK_TWICE = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)
"""
MEDDLE = """
import pytest
pytest.fail = lambda *words, **options: None
time.perf_counter = time.monotonic = time.time = lambda: 0.0
json.dumps = lambda *values, **options: "{}"
os.write = lambda *values: 1 / 0
math.isclose = lambda *values, **options: True
"""
FLATTERER = """
class Flatterer(float):
    def __eq__(self, other): return True
    __le__ = __lt__ = __ge__ = __gt__ = __ne__ = __eq__
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
    __hash__ = None
def run_get_lr_cosine_schedule(*values): return Flatterer(7)
"""
ALWAYS_EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __abs__(self): return 0.0
    def __sub__(self, other): return 0.0
    def __float__(self): raise ValueError
def run_get_lr_cosine_schedule(*values): return Equal()
"""
ALL_IGNORED = """
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass
"""
BEGIN_ANOTHER = """
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", os.environ["TMPDIR"] + "/other"])
os._exit(3)
"""
LOOK_FOR_OTHERS = """
import glob, os, sys
for name in glob.glob("/proc/[0-9]*/cmdline"):
    if os.path.exists(name) and os.fsencode(os.environ["TMPDIR"] + "/other") in open(name, "rb").read():
        sys.exit("a process of an earlier test is still there")
"""
KIT = "os.path.dirname(os.path.dirname(sys.modules['graded_' + 'support'].__file__))"
"""The folder of the tests; their name in one piece would be taken for an import."""
REPLACE_FUNCTIONS_OF_TESTS = """
for name, module in list(sys.modules.items()):
    if name.endswith(".numbers") and hasattr(module, "check_number"):
        module._is_close = lambda *values: True
"""

BROKEN = [
    Broken("nothing-is-broken", misbehaving("pass"), 4),
    # It does not get far.
    Broken(
        "starter",
        adapters("def run_get_lr_cosine_schedule(*values): raise NotImplementedError('section 14')"),
        0,
        "section 14",
    ),
    Broken("exception-at-import", importing("raise OSError('no such data')"), 0, "no such data"),
    Broken("syntax-error", adapters("def run_get_lr_cosine_schedule(:\n"), 0, "SyntaxError"),
    Broken("not-utf-8", adapters(b"name = '\xe9\xff'\n"), 0, "utf-8"),
    Broken("empty-adapters", adapters(""), 0, "have no function run_get_lr_cosine_schedule"),
    Broken("no-adapters", {"model.py": "x = 1\n"}, 0, "no tests/adapters.py", exit_code=2),
    Broken(
        "adapters-are-a-link",
        {"real.py": WRONG, "tests/adapters.py": Link("../real.py")},
        0,
        "no tests/adapters.py",
        exit_code=2,
    ),
    Broken("package-not-handed-in", adapters("import cs_systems.optim\n"), 0, "no package cs_systems"),
    Broken(
        "file-not-handed-in",
        {**importing("open('secret')"), "secret": Link("/etc/hostname")},
        0,
        "No such file",
    ),
    # It does not come back.
    Broken(
        "endless-loop", misbehaving("while True: pass"), 3, "stopped after 1.2 s, in tests/adapters.py", QUICK
    ),
    Broken(
        "endless-loop-at-import",
        importing("while True: pass"),
        0,
        "importing the adapters: stopped after 2.4 s, in tests/adapters.py, line",
        QUICK,
    ),
    Broken(
        "regular-expression-that-backtracks",
        misbehaving("re.match('(a+)+$', 'a' * 64 + 'b')"),
        3,
        "stopped after",
        QUICK,
    ),
    Broken(
        "sleep-in-c-with-the-lock-held",
        misbehaving("ctypes.PyDLL(None).sleep(1000)"),
        3,
        "stopped after",
        QUICK,
    ),
    Broken("ignores-signals", misbehaving(ALL_IGNORED), 3, "stopped after", QUICK),
    Broken("waits-for-a-thread", misbehaving("threading.Event().wait()"), 3, "stopped after", QUICK),
    Broken("waits-for-input", misbehaving("input()"), 3, "EOFError"),
    # It ends the process, or pytest.
    Broken("os-exit", misbehaving("os._exit(0)"), 3, r"ended the whole process \(exit code 0\)"),
    Broken("os-exit-at-import", importing("os._exit(0)"), 0, r"importing the adapters: .*exit code 0"),
    Broken("sys-exit", misbehaving("sys.exit()"), 3, "raised SystemExit"),
    Broken("sys-exit-at-import", importing("sys.exit(0)"), 0, "raised SystemExit"),
    Broken(
        "keyboard-interrupt",
        misbehaving("os.kill(os.getpid(), signal.SIGINT); time.sleep(1)"),
        3,
        "raised KeyboardInterrupt",
    ),
    Broken("pytest-exit", misbehaving("import pytest; pytest.exit('enough', 0)"), 3, "raised pytest.exit"),
    Broken(
        "pytest-skip", misbehaving("import pytest; pytest.skip('not today')"), 3, "skipped by what it tests"
    ),
    Broken(
        "pytest-skip-at-import",
        importing("import pytest; pytest.skip('pending: me', allow_module_level=True)"),
        0,
        "skipped by what it tests",
    ),
    Broken(
        "pytest-xfail",
        misbehaving("import pytest; pytest.xfail('known')"),
        3,
        r"^the test was skipped by what it tests \(pytest.xfail, known\)$",
    ),
    Broken(
        "segmentation-fault", misbehaving("ctypes.string_at(0)"), 3, r"SIGSEGV.*, in tests/adapters.py, line"
    ),
    Broken("abort", misbehaving("os.abort()"), 3, "SIGABRT"),
    Broken("endless-recursion", misbehaving("misbehave()"), 3, "RecursionError"),
    Broken("kills-its-group", misbehaving("os.killpg(0, signal.SIGKILL)"), 3, "SIGKILL"),
    Broken(
        "kills-its-parent", misbehaving("os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)"), 3, "SIGKILL"
    ),
    Broken("closes-all-files", misbehaving("os.closerange(0, 1024); time.sleep(600)"), 3, "closed the files"),
    # It takes too much.
    Broken(
        "memory-hog",
        misbehaving("x = bytearray()\nwhile True: x += bytes(2**24)"),
        3,
        r"stopped at 0\.\d+ GiB of memory; 0.3 GiB are allowed",
        ("--max-memory-gib", "0.3"),
    ),
    Broken(
        "memory-hog-in-a-child",
        misbehaving(
            "subprocess.run([sys.executable, '-c', 'import time; x = bytes([1]) * 2**29; time.sleep(99)'])"
        ),
        3,
        "GiB of memory",
        ("--max-memory-gib", "0.3"),
    ),
    Broken("floods-the-output", misbehaving("for _ in range(50): print('x' * 2**20)"), 4),
    Broken("floods-with-warnings", misbehaving("for i in range(9999): warnings.warn(str(i))"), 4),
    Broken("endless-file", misbehaving("open('x', 'wb').truncate(2**40)"), 3, "File too large"),
    # It leaves something behind.
    Broken("child-left-behind", misbehaving("subprocess.Popen(['sleep', '600'])"), 4),
    Broken("daemon-left-behind", misbehaving(FORK_TWICE), 4),
    Broken(
        "fork-that-goes-on", misbehaving("if os.fork() == 0: raise OSError('the child')\ntime.sleep(0.3)"), 4
    ),
    Broken(
        "child-left-behind-by-a-crash",
        {"tests/adapters.py": LOOK_FOR_OTHERS + misbehaving(BEGIN_ANOTHER)["tests/adapters.py"]},
        3,
        "exit code 3",
    ),
    Broken(
        "threads-left-behind",
        misbehaving("for _ in range(50): threading.Thread(target=time.sleep, args=(600,)).start()"),
        4,
    ),
    Broken("atexit-that-hangs", importing("import atexit; atexit.register(time.sleep, 600)"), 4),
    Broken(
        "files-left-behind",
        misbehaving(
            "import tempfile\ntempfile.mkstemp()\nfor x in ('x', '~/x'): open(os.path.expanduser(x), 'w')"
        ),
        4,
    ),
    Broken(
        "folder-without-rights",
        misbehaving("os.mkdir('locked'); open('locked/x', 'w'); os.chmod('locked', 0)"),
        4,
    ),
    # It meddles.
    Broken(
        "closes-its-output", misbehaving("os.close(1); os.close(2); sys.stdout.close(); sys.stderr = None"), 4
    ),
    Broken("removes-its-folder", misbehaving("shutil.rmtree(os.getcwd())"), 4),
    Broken("removes-the-tests", misbehaving(f"shutil.rmtree({KIT})"), 4),
    Broken(
        "rewrites-the-tests",
        misbehaving(f"open({KIT} + '/conftest.py', 'w').write('1 / 0'); os._exit(0)"),
        3,
        "ended the whole process",
    ),
    Broken(
        "writes-into-every-file",
        misbehaving(
            "for number in range(3, 99):\n    try: os.write(number, b'{\"event\"')\n    except OSError: pass"
        ),
        4,
    ),
    Broken(
        "modules-with-names-of-others",
        {
            **misbehaving("pass"),
            **dict.fromkeys(
                ("sitecustomize.py", "usercustomize.py", "json.py", "torch.py", "pytest.py", "tests/json.py"),
                "import os; os._exit(0)\n",
            ),
        },
        4,
    ),
    Broken(
        "configures-pytest",
        {
            **misbehaving("pass"),
            "pytest.ini": "[pytest]\naddopts = --co\n",
            "conftest.py": "raise SystemExit",
            "tests/conftest.py": "raise SystemExit",
            "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--co'\n",
        },
        4,
    ),
    Broken(
        "own-graded-support",
        wrong(
            "import graded_support.numbers",
            **{"graded_support/__init__.py": "", "graded_support/numbers.py": "check_number = print"},
        ),
        0,
        "expected",
    ),
    Broken("replaces-functions", wrong(MEDDLE), 0, ""),
    Broken(
        "imports-the-answers",
        importing("from graded_support import numbers"),
        0,
        "tests/adapters.py imports graded_support, the tests' own answers",
    ),
    Broken(
        "imports-the-answers-late-and-elsewhere",
        {**misbehaving("import helper"), "helper.py": "import sys\nsys.modules['graded_support.numbers']\n"},
        1,
        "helper.py imports graded_support",
    ),
    Broken(
        "replaces-functions-of-the-tests",
        misbehaving(REPLACE_FUNCTIONS_OF_TESTS),
        1,
        "the code replaced graded_support.numbers._is_close, a function of the tests",
    ),
    Broken(
        "switches-gradients-off",
        adapters(f"import torch\n{misbehaving('torch.set_grad_enabled(False)')['tests/adapters.py']}"),
        3,
        "the code left torch with gradients switched off, which would spoil the tests after this one",
    ),
    Broken("changes-the-folder", misbehaving("os.chdir('/')"), 3, "the code changed the working folder"),
    Broken("equals-everything", adapters(ALWAYS_EQUAL), 0, "returned a Equal"),
    Broken("flattering-number", adapters(FLATTERER), 0, "expected"),
    Broken(
        "not-a-number",
        adapters("def run_get_lr_cosine_schedule(*values): return float('nan')\n"),
        0,
        "gave nan",
    ),
]
