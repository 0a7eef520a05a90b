"""Flags made from dataclasses: help, lists, switches, suggestions, and errors of one line."""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from cs_systems.cli import (
    EXIT_OK,
    EXIT_USAGE,
    Parser,
    add_flags,
    add_output_flags,
    command_line,
    cross_product,
    field_docs,
    field_names,
    leave_with,
    only_fields,
)
from cs_systems.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An example with a field of each kind."""

    d_model: int = 768
    """Width of the residual stream."""
    warmup_steps: int = 5
    """Steps that are run but not counted."""
    learning_rate: float = 1e-3
    """Step size; 100% of it is used."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the matrix products,
    by autocast."""
    compile: bool = False
    """Compile the model."""
    seed: int | None = None
    """Seed of the weights."""
    name: str = "run"
    """Title of the run."""


def make_parser():
    parser = Parser(prog="bench")
    add_flags(parser, Workload, "workload")
    return parser


def parse(*words):
    return vars(make_parser().parse_args(words))


def usage_error(capsys, *words, parser=None):
    """The single line on stderr of a command that must end with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        (parser or make_parser()).parse_args(words)
    output = capsys.readouterr()
    assert caught.value.code == EXIT_USAGE == 2
    assert output.out == ""
    assert output.err.endswith("See 'bench --help'.\n")
    assert output.err.count("\n") == 1, output.err
    return output.err.removeprefix("bench: ").removesuffix(" See 'bench --help'.\n")


def test_help_is_the_string_under_each_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == EXIT_OK == 0
    assert "--d-model N Width of the residual stream. (default: 768)" in text
    assert "--learning-rate X Step size; 100% of it is used. (default: 0.001)" in text
    assert "--precision fp32|bf16 Type of the matrix products, by autocast. (default: fp32)" in text
    assert "--compile [on|off] Compile the model. (default: off)" in text
    assert "--seed N Seed of the weights. --name NAME Title of the run. (default: run)" in text


def test_every_field_of_the_model_is_documented():
    docs = field_docs(ModelConfig)
    assert list(docs) == field_names(ModelConfig)
    assert all(docs.values())


def test_only_what_was_typed_reaches_the_namespace():
    assert parse() == {}
    assert parse("--d-model", "3") == {"d_model": (3,)}


def test_one_value_is_a_list_of_one_and_lists_keep_their_order():
    assert parse("--warmup-steps", "5,0,1") == {"warmup_steps": (5, 0, 1)}
    assert parse("--learning-rate=1e-3,2") == {"learning_rate": (0.001, 2.0)}
    assert parse("--precision", "bf16,fp32") == {"precision": ("bf16", "fp32")}
    assert parse("--seed", "1_000, 2") == {"seed": (1000, 2)}
    assert parse("--name", "a,b c") == {"name": ("a", "b c")}


def test_a_repeated_value_is_one_case():
    assert parse("--d-model", "1,2,1,01") == {"d_model": (1, 2)}


def test_a_flag_given_again_replaces_the_first():
    assert parse("--d-model", "1,2", "--d-model", "3") == {"d_model": (3,)}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("--compile",), (True,)),
        (("--compile", "on"), (True,)),
        (("--compile=OFF",), (False,)),
        (("--compile", "off,on"), (False, True)),
        (("--compile", "yes,true"), (True,)),
        (("--compile", "--d-model", "4"), (True,)),
    ],
)
def test_switches(words, values):
    assert parse(*words)["compile"] == values


def test_negative_numbers_are_values_alone_and_in_lists():
    assert parse("--warmup-steps", "-5") == {"warmup_steps": (-5,)}
    assert parse("--warmup-steps", "-1,2") == {"warmup_steps": (-1, 2)}
    assert parse("--warmup-steps=-1,-2") == {"warmup_steps": (-1, -2)}
    assert parse("--learning-rate", "-1e-5") == {"learning_rate": (-1e-5,)}
    assert parse("--learning-rate", "-.5,1", "--d-model", "-1") == {
        "learning_rate": (-0.5, 1.0),
        "d_model": (-1,),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--d-modle", "3"], "unknown argument --d-modle; did you mean --d-model?"),
        (["--d_model", "3"], "unknown argument --d_model; did you mean --d-model?"),
        (["--d_model=3"], "unknown argument --d_model; did you mean --d-model?"),
        (["--no-compile"], "unknown argument --no-compile; did you mean --compile?"),
        (["--warmup", "3"], "unknown argument --warmup; did you mean --warmup-steps?"),  # no abbreviations
        (["--zzzzzz"], "unknown argument --zzzzzz."),
        (["small"], "unknown argument small."),
        (["-5"], "unknown argument -5."),
        (["--d\nmodel"], "unknown argument --d model; did you mean --d-model?"),
        (["--d-model"], "argument --d-model: expected one argument."),
        (["--d-model", "--compile"], "argument --d-model: expected one argument."),
        (["--d-model", "1,,2"], "argument --d-model: '1,,2' has an empty entry; write for example 1,2,4."),
        (["--d-model", ""], "argument --d-model: '' has an empty entry; write for example 1,2,4."),
        (["--d-model", "1,"], "argument --d-model: '1,' has an empty entry; write for example 1,2,4."),
        (["--d-model", "1e3"], "argument --d-model: '1e3' is not a whole number."),
        (["--d-model", "2.0"], "argument --d-model: '2.0' is not a whole number."),
        (["--d-model", "1;2"], "argument --d-model: '1;2' is not a whole number."),
        (["--d-model", "--5"], "argument --d-model: expected one argument."),
        (["--learning-rate", "fast"], "argument --learning-rate: 'fast' is not a number."),
        (["--learning-rate", "1,nan"], "argument --learning-rate: 'nan' is not a finite number."),
        (["--learning-rate", "inf"], "argument --learning-rate: 'inf' is not a finite number."),
        (["--learning-rate", "1e999"], "argument --learning-rate: '1e999' is not a finite number."),
        (
            ["--precision", "bf61"],
            "argument --precision: 'bf61' is not one of fp32, bf16; did you mean bf16?",
        ),
        (
            ["--precision", "BF16"],
            "argument --precision: 'BF16' is not one of fp32, bf16; did you mean bf16?",
        ),
        (["--precision", "double"], "argument --precision: 'double' is not one of fp32, bf16."),
        (["--compile", "maybe"], "argument --compile: 'maybe' is neither on nor off."),
        (["--compile=-1"], "argument --compile: '-1' is neither on nor off."),
    ],
)
def test_a_bad_command_line_is_answered_in_one_line_with_exit_code_2(capsys, words, message):
    assert usage_error(capsys, *words) == message


def test_a_whole_number_of_any_size_is_parsed():
    assert parse("--d-model", "9" * 400) == {
        "d_model": (int("9" * 400),)
    }  # the config says what is too large


def test_the_cross_product_varies_the_last_name_fastest():
    args = make_parser().parse_args(["--compile", "off,on", "--d-model", "1,2"])
    names = field_names(Workload)
    assert list(cross_product(args, names)) == [
        {"d_model": 1, "compile": False},
        {"d_model": 1, "compile": True},
        {"d_model": 2, "compile": False},
        {"d_model": 2, "compile": True},
    ]
    assert next(cross_product(args, ["compile", "d_model"])) == {"compile": False, "d_model": 1}
    assert list(cross_product(argparse.Namespace(), names)) == [{}]  # nothing typed is one case of defaults


def test_only_fields_picks_the_entries_of_a_dataclass():
    assert only_fields(Workload, {"seed": 1, "format": "md", "d_model": 2}) == {"seed": 1, "d_model": 2}


def test_a_parsed_command_line_builds_the_dataclass():
    args = make_parser().parse_args(["--d-model", "64", "--precision", "bf16", "--compile", "--seed", "7"])
    (case,) = cross_product(args, field_names(Workload))
    assert Workload(**case) == Workload(d_model=64, precision="bf16", compile=True, seed=7)


def test_output_flags(capsys):
    parser = Parser(prog="bench")
    add_output_flags(parser)
    plain = parser.parse_args([])
    assert (plain.format, plain.output, plain.resume) == ("table", None, False)
    assert parser.parse_args(["--format", "md", "--output", "a/b.jsonl", "--resume"]).output.name == "b.jsonl"
    message = usage_error(capsys, "--format", "jsno", parser=parser)
    assert (
        message == "argument --format: 'jsno' is not one of table, md, csv, json, latex; did you mean json?"
    )


def test_the_command_line_can_be_pasted_into_a_shell():
    assert command_line("benchmark.py", ["--model", "a,b", "--output", "my runs.jsonl"]) == (
        "python benchmark.py --model a,b --output 'my runs.jsonl'"
    )


def test_parsing_imports_no_torch():
    code = """if True:
        import sys
        from cs_systems import cli
        from cs_systems.model.config import ModelConfig
        parser = cli.Parser(prog="bench")
        cli.add_flags(parser, ModelConfig, "model")
        parser.parse_args(["--d-model", "1024"])
        print({"torch", "numpy", "jaxtyping"} & set(sys.modules))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def open_problem():
    raise NotImplementedError("problem softmax is not written yet: section 6 of writeup/code.md")


@pytest.mark.parametrize(
    ("main", "code", "said"), [(lambda: 2, 2, ""), (open_problem, 1, "problem softmax is")]
)
def test_a_command_that_meets_an_open_problem_says_so_in_one_line(main, code, said, capsys):
    with pytest.raises(SystemExit) as left:
        leave_with(main)
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == code
    assert [line[: len(said)] for line in lines] == [said] * bool(said)


def test_another_missing_implementation_keeps_its_traceback():
    def main():
        raise NotImplementedError("no kernel for this device")

    with pytest.raises(NotImplementedError, match="no kernel"):
        leave_with(main)
