"""The command: its output, exit codes and messages."""

import json
import subprocess
import sys

import pytest

from cs_systems.bench.record import append_record
from cs_systems.report.__main__ import main

BASE = [1.0 + 0.01 * i for i in range(10)]


@pytest.fixture
def file_of(tmp_path):
    def write(name, *records):
        path = tmp_path / name
        for record in records:
            append_record(path, record)
        return str(path)

    return write


def test_table_prints_the_tables_again(make_record, file_of, capsys):
    assert main(["table", file_of("a.jsonl", make_record(forward=BASE))]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Training step: batch 4 x 128 tokens")
    assert json.loads(output.splitlines()[-1])["num_ok"] == 1


def test_table_in_another_format_has_no_last_line_of_json(make_record, file_of, capsys):
    assert main(["table", file_of("a.jsonl", make_record(forward=BASE)), "--format", "md"]) == 0
    assert "{" not in capsys.readouterr().out


def test_a_damaged_line_is_reported_and_the_rest_is_shown(make_record, file_of, capsys):
    path = file_of("a.jsonl", make_record(forward=BASE))
    with open(path, "a") as file:
        file.write('{"schema_ver')
    assert main(["table", path]) == 0
    captured = capsys.readouterr()
    assert "line 2 ignored" in captured.err
    assert "small" in captured.out


def test_compare_prints_verdicts_and_counts_them(make_record, file_of, capsys):
    a = file_of("a.jsonl", make_record(forward=BASE))
    b = file_of("b.jsonl", make_record(forward=[value / 2 for value in BASE]))
    assert main(["compare", a, b]) == 0
    output = capsys.readouterr().out
    assert "faster" in output
    assert json.loads(output.splitlines()[-1]) == {"num_compared": 1, "verdicts": {"faster": 1}}
    assert main(["compare", a, b, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["verdict"] == "faster"


def leaves(argv, capsys):
    """Exit code, standard output and error of a call that may leave by SystemExit."""
    try:
        code = main(argv)
    except SystemExit as leaving:
        code = leaving.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_compare_without_a_common_case_is_an_error_that_says_what_is_where(make_record, file_of, capsys):
    a = file_of("a.jsonl", make_record(forward=BASE))
    b = file_of("b.jsonl", make_record("medium", forward=BASE))
    code, out, err = leaves(["compare", a, b], capsys)
    assert (code, out) == (2, "")
    assert "not compared (ok in A, missing in B): small" in err
    assert "no case in common" in err


def test_plot_prints_the_files_it_made(make_record, file_of, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = file_of("a.jsonl", make_record(forward=BASE))
    assert main(["plot", path, "--output-dir", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    files = json.loads(captured.out.splitlines()[-1])["files"]
    assert captured.out.splitlines()[:-1] == files
    assert (tmp_path / "out" / "warmup.png").read_bytes().startswith(b"\x89PNG")
    assert "model_size: not drawn" in captured.err


def test_plot_of_too_little_says_why_and_fails(make_record, file_of, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = file_of("a.jsonl", make_record(forward=[1.0]))
    code, out, err = leaves(["plot", path, "--output-dir", str(tmp_path / "out")], capsys)
    assert (code, json.loads(out.splitlines()[-1])) == (2, {"files": []})
    assert err.count("not drawn") == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["table", "missing.jsonl"], "missing.jsonl: cannot read"),
        (["table", "x.jsonl", "--formt", "md"], "did you mean --format?"),
        (["tabel", "x.jsonl"], "'tabel'"),
        ([], "COMMAND"),
        (["table", "x.jsonl", "--format", "html"], "html"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(argv, message, capsys):
    code, out, err = leaves(argv, capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_empty_file_is_an_error(tmp_path, capsys):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    code, _, err = leaves(["table", str(path)], capsys)
    assert code == 2
    assert "no records to show" in err


def test_help_and_tables_need_neither_torch_nor_numpy_nor_matplotlib():
    code = (
        "import sys\n"
        "from cs_systems.report.__main__ import main\n"
        "try:\n    main(['plot', '--help'])\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'jaxtyping'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--output-dir" in result.stdout
