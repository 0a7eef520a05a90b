"""profiling/run.py as its users run it: what it prints and writes, and every kind of bad input."""

import csv
import gzip
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest

from cs_systems.bench import profile_case as profile_case_module
from cs_systems.bench.training import TrainingStep
from cs_systems.tracing.trace import read_facts

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    "--num-layers", "1", "--d-model", "32", "--num-heads", "2", "--vocab-size", "50", "--context-length", "8",
    "--batch-size", "2", "--warmup-steps", "0", "--steps", "1", "--threads", "1", "--device", "cpu",
]  # fmt: skip
STEM = "d32-L1+num_heads=2-8"
TITLES = (
    "Ranges", "Work by class", "Attention, time of", "The operator that takes", "Busy and idle", "Memory",
    "Operators by self time,", "Operators by self time in forward", "Operators by self time in optimizer",
)  # fmt: skip
COMBINED = ("Forward pass, by profiler and by timer", "Peak memory of tensors by phase")


@pytest.fixture(autouse=True)
def no_nsys(monkeypatch):
    monkeypatch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)


@pytest.fixture(scope="module")
def program():
    specification = importlib.util.spec_from_file_location("profiling_run", ROOT / "profiling" / "run.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    return program


@pytest.fixture
def run(program, capsys):
    """Call the program: exit code, standard output, standard error."""

    def call(*arguments):
        capsys.readouterr()
        try:
            code = program.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def recorded(program, tmp_path_factory):
    """One case, recorded once for all tests that read it: its folder, its trace and what was printed."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
        patch.setattr(sys, "stdout", stdout := io.StringIO())
        assert program.main([*TINY, "--memory", "--output-dir", str(folder)]) == 0
    return folder, folder / f"{STEM}.json.gz", stdout.getvalue()


@pytest.fixture(scope="module")
def forward(program, tmp_path_factory):
    """The trace of a forward pass alone, which is read in no time."""
    folder = tmp_path_factory.mktemp("forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NSYS_PROFILING_SESSION_ID", raising=False)
        assert program.main([*TINY, "--mode", "forward", "--output-dir", str(folder)]) == 0
    return folder / f"{STEM}-forward.json.gz"


def fail_with_one_line(result, words):
    code, stdout, stderr = result
    assert code == 2
    assert len(stderr.splitlines()) == 1, stderr
    assert words in stderr
    assert stdout == ""


# What is recorded and printed


def test_recording_prints_all_tables_and_writes_a_trace_its_facts_and_a_page(recorded):
    folder, trace, stdout = recorded
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{STEM}.html", f"{STEM}.json.gz", f"{STEM}.run.json",
    ]  # fmt: skip
    at = [stdout.index(f"\n{title}") for title in (*TITLES, *COMBINED)]
    assert at == sorted(at)
    assert stdout.startswith(f"\n{trace}: d32-L1+num_heads=2, 8 tokens, train-step, fp32, naive attention, ")
    assert read_facts(trace).command.startswith("python profiling/run.py --num-layers 1 ")
    page = (folder / f"{STEM}.html").read_text(encoding="utf-8")
    assert "d32-L1+num_heads=2, 8 tokens, train-step" in page
    assert all(title in page for title in TITLES)


def test_the_last_line_is_the_tables_side_by_side_as_json(recorded):
    summary = json.loads(recorded[2].splitlines()[-1])
    assert summary["experiment"] == "profile"
    (forward,), (memory,) = summary["forward"]["rows"], summary["memory"]["rows"]
    assert forward["passes"] == 1
    assert forward["run"] == f"{STEM}.json.gz"
    facts = read_facts(recorded[1])
    assert forward["timer_ns"] == 1e9 * facts.timer_s["forward"]
    assert forward["ratio"] == forward["profiler_ns"] / forward["timer_ns"]
    assert memory["base_bytes"] == facts.base_bytes
    assert memory["predicted_bytes"] == max(facts.predicted_bytes.values())


def test_a_report_of_the_file_prints_what_the_recording_printed(run, recorded, tmp_path):
    folder, trace, printed = recorded
    page = tmp_path / "again.html"
    code, stdout, stderr = run("report", trace, "--html", page)
    assert code == 0
    assert stdout == printed
    assert stderr == f"profiling/run.py: wrote {page}\n"
    assert page.read_bytes() == (folder / f"{STEM}.html").read_bytes()


def test_without_facts_a_report_has_what_the_trace_alone_can_tell(run, forward, tmp_path):
    trace = tmp_path / "a.json.gz"
    trace.write_bytes(forward.read_bytes())
    code, stdout, _ = run("report", trace, "--html", tmp_path / "a.html")
    assert code == 0
    assert f"{trace}: recorded by torch.profiler on cpu" in stdout
    assert all(title in stdout for title in (*TITLES[:5], COMBINED[0]))
    assert json.loads(stdout.splitlines()[-1])["forward"]["rows"][0]["timer_ns"] is None
    assert (tmp_path / "a.html").exists()


def test_a_report_of_several_files_puts_them_side_by_side(run, recorded, forward):
    code, stdout, _ = run("report", forward, recorded[1])
    assert code == 0
    assert stdout.count("\nBusy and idle\n") == 2
    summary = json.loads(stdout.splitlines()[-1])
    assert len(summary["forward"]["rows"]) == 2
    assert [row["mode"] for row in summary["memory"]["rows"]] == ["train-step"]  # the other has no memory


def test_top_reaches_the_tables(run, forward):
    short = run("report", forward, "--top", "1", "--format", "csv")[1]
    long = run("report", forward, "--top", "1000", "--format", "csv")[1]
    assert "others)" in short
    assert "others)" not in long
    assert len(short.splitlines()) < len(long.splitlines())


def test_two_runs_are_compared(run, recorded, forward):
    code, stdout, _ = run("compare", forward, recorded[1], "--format", "json")
    assert code == 0
    by_range, by_class = json_documents(stdout)
    assert [by_range["title"], by_class["title"]] == ["Work of a step by range", "Work of a step by class"]
    rows = {row["name"]: row for row in by_range["rows"]}
    backward = rows["measured > step > backward"]
    assert backward["a_ns"] is None  # forward alone has none, so the files were not exchanged
    assert backward["b_ns"] > 0


def test_saved_lists_what_a_block_keeps_for_each_case(run):
    code, stdout, stderr = run("saved", *TINY, "--attention", "naive,sdpa", "--top", "2")
    assert (code, stderr) == (0, "")
    assert stdout.count("Kept for backward by one block") == 2
    assert stdout.count("+0 to what was found") == 2
    assert "sdpa attention" in stdout


# Formats


def json_documents(text):
    """The JSON documents that stand one after another in `text`."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = decoder.raw_decode(text, at)
        yield document


@pytest.mark.parametrize("command", ["report", "saved"])
def test_json_is_one_document_a_table_and_nothing_else(command, run, recorded):
    arguments = ["report", recorded[1]] if command == "report" else ["saved", *TINY]
    code, stdout, stderr = run(*arguments, "--format", "json")
    assert (code, stderr) == (0, "")
    titles = [document["title"] for document in json_documents(stdout)]
    if command == "report":
        assert all(any(known.startswith(title) for known in titles) for title in (*TITLES, *COMBINED))


def test_csv_is_nothing_but_rows(run, recorded):
    stdout = run("report", recorded[1], "--format", "csv")[1]
    rows = list(csv.reader(io.StringIO(stdout)))
    headings = [i for i, row in enumerate(rows) if not any(map(is_number, row))]
    assert rows[0][:2] == ["range", "instances"]
    assert len(headings) >= len(TITLES) + len(COMBINED)
    width = 0
    for i, row in enumerate(rows):
        width = len(row) if i in headings else width
        assert len(row) == width


def is_number(text):
    return text.replace(".", "").replace("e-", "").isdigit()


def test_markdown_tables_have_as_many_cells_as_headings(run, recorded):
    stdout = run("report", recorded[1], "--format", "md")[1]
    blocks = [block.splitlines() for block in stdout.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= len(TITLES) + len(COMBINED)
    for heading, rule, *rows in blocks:
        assert set(rule) <= set("|:-")
        assert {line.replace("\\|", "").count("|") for line in rows} == {heading.count("|")}
    assert not any(line.startswith("{") for line in stdout.splitlines())


def test_latex_tables_are_closed_and_have_as_many_cells_as_columns(run, recorded):
    stdout = run("report", recorded[1], "--format", "latex")[1]
    tables = stdout.split("\\begin{tabular}")[1:]
    assert len(tables) >= len(TITLES) + len(COMBINED)
    for table in tables:
        layout, *lines = table.split("\\end{tabular}")[0].splitlines()
        rows = [line for line in lines if line.endswith("\\\\")]
        assert {line.replace("\\&", "").count("&") for line in rows} == {len(layout.strip("{}")) - 1}
    assert not any(line.startswith("{") for line in stdout.splitlines())


# Bad input


@pytest.fixture
def broken(tmp_path, forward):
    """Files that hold no run, by name."""
    whole = forward.read_bytes()
    contents = {
        "cut.json.gz": whole[: len(whole) // 2],
        "text.json": b"my diary\n",
        "foreign.json": b'{"a": [1, 2]}',
        "empty.json": b"",
        "empty.json.gz": b"",
        "no-events.json.gz": gzip.compress(b'{"traceEvents": []}'),
        "other.txt": b"my diary\n",
        "diary.sqlite": b"my diary\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.json").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.json.gz", "no such file"),
        ("cut.json.gz", "cut off"),
        ("text.json", "is not JSON"),
        ("foreign.json", "has no 'traceEvents'"),
        ("empty.json", "is empty"),
        ("empty.json.gz", "is empty"),
        ("no-events.json.gz", "holds no operators"),
        ("other.txt", "not a trace by its name"),
        ("diary.sqlite", "diary.sqlite: "),
        ("folder.json", "is a folder"),
    ],
)
def test_a_file_that_is_no_run_is_one_line_and_exit_code_2(name, words, run, forward, broken):
    for command in (["report", broken / name], ["compare", forward, broken / name]):
        result = run(*command)
        fail_with_one_line(result, words)
        assert name in result[2]


def test_one_broken_file_among_several_stops_the_report_before_it_prints(run, forward, broken):
    fail_with_one_line(run("report", forward, broken / "cut.json.gz"), "cut off")


def test_broken_facts_are_one_line(run, recorded, tmp_path):
    (tmp_path / "a.json.gz").write_bytes(recorded[1].read_bytes())
    (tmp_path / "a.run.json").write_text('{"model": "toy"}')
    fail_with_one_line(run("report", tmp_path / "a.json.gz"), "a.run.json")


def test_a_page_shows_one_run(run, recorded, tmp_path):
    result = run("report", recorded[1], recorded[1], "--html", tmp_path / "a.html")
    fail_with_one_line(result, "--html takes one FILE")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top", "0"], "--top: '0' is not a number from 1 on"),
        (["--top", "many"], "--top"),
        (["--format", "xml"], "--format"),
        (["--model", "smal"], "did you mean small?"),
        (["--context-lenght", "8"], "did you mean --context-length?"),
        ([*TINY, "--steps", "0"], "--steps 0 must be at least 1"),
        ([*TINY, "--name", "a", "--context-length", "8,16"], "--name is for one case, and these are 2"),
        ([*TINY, "--threads", "9999"], "--threads 9999"),
        ([*TINY, "--attention", "naive,sdpa", "--threads", "1,9999"], "--threads 9999"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2_and_nothing_is_recorded(arguments, words, run, tmp_path):
    fail_with_one_line(run("--output-dir", tmp_path / "new", *arguments), words)
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize("command", [[], ["saved"]], ids=["record", "saved"])
@pytest.mark.parametrize(
    ("flag", "value"), [("--attention", "flash"), ("--kernels", "all"), ("--optimizer", "triton")]
)
def test_triton_kernels_on_a_cpu_need_the_interpreter(command, flag, value, run, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.chdir(tmp_path)  # where results/local/profile would be made
    fail_with_one_line(run(*command, *TINY, flag, value), f"{flag} {value}: Triton")


@pytest.mark.parametrize("command", ["report", "compare", "saved"])
def test_top_is_checked_by_every_command(command, run):
    fail_with_one_line(run(command, "--top", "0", "a.json", "b.json"), "'0' is not a number from 1 on")


# Where nothing can be written


def test_an_output_folder_that_cannot_be_made_is_bad_usage(run, tmp_path):
    (tmp_path / "file").write_text("")
    fail_with_one_line(run(*TINY, "--output-dir", tmp_path / "file" / "inside"), "file")
    fail_with_one_line(run(*TINY, "--output-dir", tmp_path / "file"), "file")


@pytest.mark.parametrize("ending", [".json.gz", ".run.json", ".html"])
def test_a_full_disk_is_one_line_and_exit_code_1(ending, run, tmp_path):
    (tmp_path / f"a{ending}").symlink_to("/dev/full")
    code, _, stderr = run(*TINY, "--mode", "forward", "--output-dir", tmp_path, "--name", "a")
    assert code == 1
    (said,) = (line for line in stderr.splitlines() if "cannot store" in line)
    assert f"cannot store {tmp_path}/a" in said
    assert said.endswith("No space left on device; choose another --output-dir")


def test_a_page_that_cannot_be_written_is_one_line_after_the_tables(run, forward, tmp_path):
    code, stdout, stderr = run("report", forward, "--html", tmp_path / "no" / "a.html")
    assert code == 1
    assert json.loads(stdout.splitlines()[-1])["forward"]["rows"]
    assert stderr.splitlines() == [
        f"profiling/run.py: cannot write {tmp_path}/no/a.html: No such file or directory"
    ]


# Several cases


def test_a_case_that_does_not_fit_is_told_and_the_others_are_reported(run, tmp_path):
    huge = 10**9
    code, stdout, stderr = run(
        *TINY, "--batch-size", f"{huge},2", "--mode", "forward", "--output-dir", tmp_path
    )
    assert code == 1
    assert f"{STEM}-forward-batch_size_{huge}: skipped, needs " in stderr
    assert (tmp_path / f"{STEM}-forward-batch_size_2.json.gz").exists()
    assert not list(tmp_path.glob(f"*{huge}*"))
    assert len(json.loads(stdout.splitlines()[-1])["forward"]["rows"]) == 1


def test_ctrl_c_in_the_second_case_keeps_the_first(run, monkeypatch, tmp_path):
    original = TrainingStep.prepare

    def prepare(step):
        if step.workload.attention == "sdpa":
            raise KeyboardInterrupt
        original(step)

    monkeypatch.setattr(TrainingStep, "prepare", prepare)
    arguments = ["--attention", "naive,sdpa,flash-torch", "--mode", "forward", "--output-dir", tmp_path]
    code, stdout, stderr = run(*TINY, *arguments)
    assert code == 130
    assert stderr.splitlines()[-1] == "profiling/run.py: interrupted; 1 of 3 cases are complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{STEM}-forward-naive{ending}" for ending in (".html", ".json.gz", ".run.json")
    ]
    (row,) = json.loads(stdout.splitlines()[-1])["forward"]["rows"]
    assert row["attention"] == "naive"


def test_ctrl_c_while_reading_is_told(run, program, monkeypatch):
    def press_ctrl_c(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "read_trace", press_ctrl_c)
    assert run("report", "a.json") == (130, "", "profiling/run.py: interrupted\n")


@pytest.mark.parametrize(
    ("swept", "ends"),
    [
        (
            ["--precision", "fp32,bf16", "--steps", "1,2"],
            [f"{p}-steps_{n}" for p in ("fp32", "bf16") for n in (1, 2)],
        ),
        (["--vocab-size", "50,60"], ["50", "60"]),
        (["--context-length", "8,16"], ["8", "16"]),
        (["--num-heads", "2,4"], ["num_heads=2-8", "num_heads=4-8"]),
        (["--compile", "off,on"], ["compile_False", "compile_True"]),
    ],
)
def test_every_case_has_a_name_of_its_own(swept, ends, program):
    cases = program.make_cases(program.make_parser().parse_args([*TINY, *swept]))
    names = [program.stem(case, cases) for case in cases]
    assert len(set(names)) == len(cases) == len(ends)
    assert all(name.endswith(end) for name, end in zip(names, ends, strict=True))


def test_a_name_of_a_case_is_the_name_of_a_file(program):
    (case,) = program.make_cases(program.make_parser().parse_args(TINY))
    object.__setattr__(case, "label", "folder/my model")
    assert program.stem(case, [case]) == "folder_my_model-8"


# Under nsys


def test_under_nsys_one_case_is_run_and_the_command_for_its_report_is_told(run, monkeypatch, tmp_path):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    monkeypatch.setattr(profile_case_module, "record_with_nsys", lambda *arguments: None)
    code, stdout, stderr = run(*TINY, "--output-dir", tmp_path)
    assert code == 0
    assert stdout == f"python profiling/run.py report {tmp_path / STEM}.nsys-rep\n"
    assert f"-o {tmp_path / STEM}, " in stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"{STEM}.run.json"]


def test_under_nsys_two_cases_are_bad_usage(run, monkeypatch, tmp_path):
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "1")
    result = run(*TINY, "--attention", "naive,sdpa", "--output-dir", tmp_path)
    fail_with_one_line(result, "nsys records one case at a time, and these are 2")


# Help


@pytest.mark.parametrize(
    "command", [[], ["report"], ["compare"], ["saved"]], ids=lambda words: "".join(words)
)
def test_help_of_every_command(command, run):
    code, stdout, _ = run(*command, "--help")
    assert code == 0
    assert "--top" in stdout


def test_help_answers_without_torch():
    code = (
        "import runpy, sys; sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('profiling/run.py', run_name='__main__')\n"
        "except SystemExit as error: assert error.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "--checkpoint-blocks" in shown.stdout
    assert "Exit codes" in shown.stdout
