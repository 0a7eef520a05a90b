"""Command-line flags made from dataclasses, so that a default and its help are written once.

Every scalar field becomes a kebab-case flag that takes one value or a comma-separated list; lists are
crossed into cases. The help text is the string under the field. Nothing here imports torch: `--help` and a
typo answer at once.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import pathlib
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

from cs_systems.tables import Style

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit code.

    In a starter tree the code of a problem may be missing; its error says which, and that is all that is
    printed: the section it names says where the code belongs.
    """
    try:
        sys.exit(main())
    except NotImplementedError as error:
        if "is not written yet" not in str(error):
            raise
        print(error, file=sys.stderr)
        sys.exit(EXIT_FAILED)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with a suggestion, and whose flags cannot be shortened."""

    def __init__(self, **options: typing.Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Print one line that says what is wrong, and leave with exit code 2."""
        line = " ".join(message.split())  # what was typed may hold a line break
        end = "" if line.endswith("?") else "."
        self.exit(EXIT_USAGE, f"{self.prog}: {line}{end} See '{self.prog} --help'.\n")

    def parse_args(self, args=None, namespace=None):  # noqa: ANN001, ANN201  (argparse's own overloads)
        """Parse, answering an unknown flag with the nearest known one."""
        words = _join_negative(sys.argv[1:] if args is None else args)
        known, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            word = unknown[0].split("=")[0]
            near = difflib.get_close_matches(word.replace("_", "-"), flags, n=1)
            self.error(f"unknown argument {word}" + (f"; did you mean {near[0]}?" if near else ""))
        return known


def parse_command(
    parser: Parser, commands: Mapping[str, Parser], argv: Sequence[str]
) -> tuple[Parser, argparse.Namespace]:
    """The parser that `argv` is for, and what it made of it.

    A command's own parser answers a misspelt flag with the nearest of its own; `parser` would not know them.
    """
    if argv and argv[0] in commands:
        return commands[argv[0]], commands[argv[0]].parse_args(argv[1:])
    return parser, parser.parse_args(argv)


def field_docs(cls: type) -> dict[str, str]:
    """The string literal under each field of a dataclass, by field name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    return {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    title: str,
    defaults: Mapping[str, tuple[typing.Any, ...]] = types.MappingProxyType({}),
) -> None:
    """Add one list-valued flag per field of the dataclass `cls`, under the heading `title`.

    Only what was typed reaches the namespace (as a tuple of values): defaults stay in the dataclass, except
    for those fields that a command runs with a list of values when nothing is typed.
    """
    group = parser.add_argument_group(title)
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flag = "--" + field.name.replace("_", "-")
        parse_one, metavar = _value_parser(hints[field.name])
        values = defaults.get(field.name, (field.default,))
        unknown = any(value in (None, dataclasses.MISSING) for value in values)
        shown = "" if unknown else f" (default: {','.join(_show(value) for value in values)})"
        options: dict[str, typing.Any] = {
            "dest": field.name,
            "default": defaults.get(field.name, argparse.SUPPRESS),
            "type": list_of(parse_one),
            "metavar": metavar,
            "help": (docs[field.name] + shown).replace("%", "%%"),
        }
        if metavar == "on|off":  # a bare `--compile` means on; `--compile off,on` sweeps
            options |= {"nargs": "?", "const": (True,)}
        group.add_argument(flag, **options)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add --format, --output and --resume: where results go, the same for every command that measures."""
    group = parser.add_argument_group("results")
    styles = typing.get_args(Style)
    group.add_argument("--format", type=lambda text: one_of(text, styles), metavar="|".join(styles), help=(
        "how results are printed; table is followed by one line of JSON (default: table)"),
        default="table")  # fmt: skip
    group.add_argument("--output", type=pathlib.Path, metavar="FILE.jsonl", help=(
        "append one record a case, with all samples, as soon as it is measured"))  # fmt: skip
    group.add_argument("--resume", action="store_true", help=(
        "take finished cases from --output instead of measuring them again"))  # fmt: skip


def command_line(program: str, argv: Sequence[str]) -> str:
    """What a user would type to run `program` (a script, or `-m` and a module) with `argv` again."""
    return shlex.join(["python", *program.split(), *argv])


def field_names(*classes: type) -> list[str]:
    """Names of the fields of some dataclasses, in order."""
    return [field.name for cls in classes for field in dataclasses.fields(cls)]


def cross_product(args: argparse.Namespace, names: Iterable[str]) -> Iterator[dict[str, typing.Any]]:
    """Every combination of the values typed for the flags in `names`, the first name varying slowest."""
    typed = {name: getattr(args, name) for name in names if hasattr(args, name)}
    for values in itertools.product(*typed.values()):
        yield dict(zip(typed, values, strict=True))


def only_fields(cls: type, given: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The entries of `given` that are fields of the dataclass `cls`."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in given.items() if name in names}


def _join_negative(words: Iterable[str]) -> list[str]:
    """`--steps -1,2` as `--steps=-1,2`: argparse takes such a value for a flag and misses an argument."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


def _show(default: object) -> str:
    return ("off", "on")[default] if isinstance(default, bool) else str(default)


def _value_parser(hint: typing.Any) -> tuple[Callable[[str], typing.Any], str]:
    """A parser of one value of the annotated type, and how the help calls such a value."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # Optional[X] is parsed as X
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return lambda text: one_of(text, choices), "|".join(choices)
    if hint is bool:
        return _switch, "on|off"
    if hint in (int, float):
        return lambda text: _number(text, hint), {int: "N", float: "X"}[hint]
    return str, "NAME"


def list_of(parse_one: Callable[[str], typing.Any]) -> Callable[[str], tuple[typing.Any, ...]]:
    """A parser of a comma-separated list whose entries `parse_one` reads; a repeated entry counts once."""

    def parse(text: str) -> tuple[typing.Any, ...]:
        parts = text.split(",")
        if not all(part.strip() for part in parts):
            raise argparse.ArgumentTypeError(f"{text!r} has an empty entry; write for example 1,2,4")
        return tuple(dict.fromkeys(parse_one(part.strip()) for part in parts))  # a repeat is one case

    return parse


def _number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        value = kind(text.replace("_", ""))
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if isinstance(value, float) and not math.isfinite(value):  # JSON has neither nan nor inf
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def one_of(text: str, choices: tuple[str, ...]) -> str:
    """`text`, which must be one of the choices; the error suggests the nearest."""
    if text in choices:
        return text
    near = difflib.get_close_matches(text.lower(), choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}{hint}")


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")
    return _SWITCH[text.lower()]
