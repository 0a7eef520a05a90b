"""What the documents tell a reader to type, and the files they name, exist."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "writeup/code.md")
MAKEFILE = (ROOT / "Makefile").read_text()


def read_document(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not written yet")
    return path.read_text()


def fenced_commands(text):
    """Command lines of the fenced bash blocks, continuation lines joined, comments and prompts dropped."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.startswith("#")]


def code_spans(text):
    """The `inline code` outside fenced blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def make_targets(text):
    """Targets named after the word make in commands and inline code: `make bench ARGS=...` names bench."""
    named = set()
    for command in [*fenced_commands(text), *code_spans(text)]:
        words = shlex.split(command, comments=True)
        if words[:1] == ["make"]:
            named |= {word for word in words[1:] if "=" not in word and not word.startswith("-")}
    return named


def python_commands(text):
    """Commands that run a program of this project, as lists of words after the interpreter."""
    commands = []
    for command in [*fenced_commands(text), *code_spans(text)]:
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # VARIABLE=value in front
            words = words[1:]
        runs_script = len(words) > 1 and words[1].endswith(".py")
        runs_module = len(words) > 2 and words[1] == "-m" and words[2].startswith("cs_systems")
        if words[:1] == ["python"] and (runs_script or runs_module):
            commands.append(words[1:])
    return commands


def split_program(words):
    """(program, flags given): the program is all before the first flag, with subcommand and files."""
    first = 2 if words[0] == "-m" else 1
    length = next((i for i in range(first, len(words)) if words[i].startswith("-")), len(words))
    return tuple(words[:length]), {word.split("=")[0] for word in words[length:] if word.startswith("--")}


def named_paths(text):
    """Inline code that looks like a path of the repository: no blank, and a known ending or a last slash."""
    spans = [span for span in code_spans(text) if re.fullmatch(r"[\w./-]+", span)]
    return [span for span in spans if re.search(r"\.(py|md|toml|txt|csv|jsonl)$", span) or span.endswith("/")]


def linked_paths(text):
    """Targets of markdown links and pictures that are files of the repository."""
    return [link for link in re.findall(r"\]\(([^)#]+)", text) if not re.match("[a-z]+:", link)]


def path_exists(name):
    """Whether a path exists from the root; a bare file name may stand for one anywhere in the package."""
    return (ROOT / name).exists() or ("/" not in name and any((ROOT / "cs_systems").rglob(name)))


@functools.cache
def known_flags(program):
    """All flags that the program's --help lists; examples in its description do not count."""
    result = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(program)} --help: {result.stderr}"
    rows = [line.strip().split("  ")[0] for line in result.stdout.splitlines() if re.match(" +-", line)]
    return {flag for row in rows for flag in re.findall(r"--[a-z0-9][\w-]*", row)}


def targets_of(makefile):
    """The targets people type, each with its ## help or None; two `check-...` are conditions of others."""
    found = re.findall(r"^(?!check-(?:system|gpu))([a-z-]+):(?!=)([^\n]*)$", makefile, flags=re.MULTILINE)
    return {name: rest.partition("## ")[2] or None for name, rest in found}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_is_named_exists(document):
    assert make_targets(read_document(document)) - set(targets_of(MAKEFILE)) == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_shown_uses_flags_that_the_program_has(document):
    for words in python_commands(read_document(document)):
        program, flags = split_program(words)
        assert flags - known_flags(program) == set(), " ".join(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_is_named_exists(document):
    text = read_document(document)
    assert [path for path in named_paths(text) + linked_paths(text) if not path_exists(path)] == []


def test_every_make_target_is_explained_and_declared_phony():
    targets = targets_of(MAKEFILE)
    joined = MAKEFILE.replace("\\\n", " ")
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", joined, flags=re.MULTILINE)).split()
    assert [name for name, text in targets.items() if text is None] == []
    assert set(targets) - set(phony) == set()


def test_every_flag_that_the_makefile_passes_exists():
    variables = dict(re.findall(r"^([A-Z_]+) \??= *(.*)$", MAKEFILE, flags=re.MULTILINE))
    commands = re.findall(r"\$\(PYTHON\) (benchmark\.py.*|writeup/run\.py.*|-m cs_systems.*)", MAKEFILE)
    assert commands
    for command in commands:
        expanded = re.sub(r"\$\(([A-Z_]+)\)", lambda found: variables[found[1]], command)
        program, flags = split_program(expanded.split())
        assert flags - known_flags(program) == set(), command


SAMPLE = """
Run `make bench ARGS="--model medium"` or `make nothing`, see `cs_systems/cli.py`, `config.py`, `gone/away.py`
or the [licence](LICENSE), [what](missing.md#x) and [that](https://example.org/y.md).
```bash
make -s setup  # once
python benchmark.py --model small \\
    --no-such-flag 3
```
"""


def test_the_parsers_of_this_file_see_what_a_reader_sees():
    assert make_targets(SAMPLE) == {"bench", "nothing", "setup"}
    assert python_commands(SAMPLE) == [["benchmark.py", "--model", "small", "--no-such-flag", "3"]]
    assert split_program(python_commands(SAMPLE)[0]) == (("benchmark.py",), {"--model", "--no-such-flag"})
    program = ("-m", "cs_systems.report", "table", "runs.jsonl")
    assert split_program([*program, "--by=y"]) == (program, {"--by"})
    assert [path for path in named_paths(SAMPLE) if not path_exists(path)] == ["gone/away.py"]
    assert linked_paths(SAMPLE) == ["LICENSE", "missing.md"]
    assert targets_of("a: b ## does a\nc: d\n$(X): y\nE := f\nV = --g\n.PHONY: a\n") == {
        "a": "does a",
        "c": None,
    }
