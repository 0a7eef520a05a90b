"""What each view shows of a folder of records, what it misses, and that its commands are ones that run."""

import gzip
import importlib
import json
import pathlib
import re
import shlex
import sys

import pytest

from cs_systems.bench.measured import read_measured
from cs_systems.bench.record import append_record
from cs_systems.grading.blocks import MeasuredBlock
from cs_systems.report.record_view import RecordView
from cs_systems.report.views import VIEWS, commands_of, find_view
from cs_systems.tables import Table, render_table
from cs_systems.tracing.trace import RunFacts, write_facts

ROOT = pathlib.Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "amd-epyc-2-cores"
NAMES = [
    "timing", "warmup", "precision", "compile", "memory", "accumulation", "autocast", "layer-norm",
    "training-stability", "attention", "attention-compiled", "flash", "profile-timer", "profile-kernels",
    "profile-kinds", "profile-attention", "profile-memory", "checkpointing",
]  # fmt: skip
PASSES = {"forward": [1.0, 2.0, 3.0], "backward": [2.0, 4.0, 6.0]}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "records"


@pytest.fixture
def store(folder):
    folder.mkdir()

    def append(*records, file="training_step.jsonl"):
        for record in records:
            append_record(folder / file, record)
        return read_measured(folder)

    return append


def show(name, measured, tmp_path, **where):
    return find_view(name).show(measured, where, tmp_path / "figures")


def column(table, key):
    return [row.get(key) for row in table.rows]


def test_the_views_are_those_of_the_contract():
    assert list(VIEWS) == NAMES
    assert all(view.title for view in VIEWS.values())
    with pytest.raises(ValueError, match="no view 'warm-up'; did you mean warmup"):
        find_view("warm-up")


def parsed(words):
    """What the program that a command names makes of its flags."""
    if words[0] == "-m":
        _, name, *words = words
        if name == "cs_systems.mixed_precision":
            module = importlib.import_module(f"{name}.__main__")
            return module.make_parsers()[1][words[0]].parse_args(words[1:])
        return importlib.import_module(name).make_parser().parse_args(words)
    spec = importlib.util.spec_from_file_location("program", ROOT / words[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.make_parser().parse_args(words[1:])
    assert module.make_cases(args)
    return args


@pytest.mark.parametrize("name", NAMES)
def test_each_command_is_understood_by_its_program_and_stores_in_the_folder(name):
    python, *words = shlex.split(VIEWS[name].command(pathlib.Path("some folder"), {}))
    assert python == "python"
    args = parsed(words)
    if words[0] == "profiling/run.py":
        assert args.output_dir == pathlib.Path("some folder/profile")
    else:
        assert args.output.parent == pathlib.Path("some folder")
        assert args.output.suffix == ".jsonl"
        assert args.resume


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("timing", {"model": ["xl", "medium"]}, "--model xl,medium --context-length 128"),
        ("timing", {"mode": "forward"}, "--mode forward"),
        ("attention", {"seq_len": 64, "passes": "forward+backward"}, "--pass forward,backward"),
        ("compile", {}, "--compile off,on"),
        ("accumulation", {"value": 0.1}, "--value 0.1 --steps 1000"),
        ("profile-kinds", {"trace": "medium-256"}, "--model medium --context-length 256"),
        ("profile-kinds", {"trace": "mine"}, "--context-length 128 --steps 2 --name mine"),
        ("profile-memory", {}, "--mode forward,train-step --steps 2 --memory"),
        ("checkpointing", {}, "--checkpoint-blocks 0,1,2,3,4,6 --steps 2 --memory"),
        ("profile-kinds", {"seq_len": 64}, "--model small --context-length 64"),
    ],
)
def test_what_a_block_asks_for_replaces_the_flags(name, where, words):
    assert words in VIEWS[name].command(pathlib.Path("r"), where)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_misses_every_view_in_one_line_with_the_command(name, tmp_path):
    measured = read_measured(tmp_path)
    shown = show(name, measured, tmp_path)
    assert shown.tables == shown.figures == []
    (missing,) = shown.missing
    assert missing.line == f"{name} is not measured yet; run: {VIEWS[name].command(tmp_path, {})}"
    assert VIEWS[name].missing(measured, {}) == shown.missing
    assert measured.problems == [
        f"{tmp_path} holds no records: nothing of your own to show or check; type make measure"
    ]


def test_one_command_serves_views_that_show_the_same_records(tmp_path):
    blocks = [
        MeasuredBlock(name, {}, "", 1) for name in ("timing", "warmup", "profile-kinds", "profile-timer")
    ]
    first, second = commands_of(blocks, tmp_path)
    assert "benchmark.py" in first
    assert "profiling/run.py" in second
    with pytest.raises(ValueError, match="line 7: there is no view 'x'"):
        commands_of([MeasuredBlock("x", {}, "", 7)], tmp_path)


def test_timing_shows_each_plain_case_once_with_the_most_warmup(make_record, store, tmp_path):
    measured = store(
        make_record("medium", warmup={"forward": [9.0] * 5}, **PASSES),
        make_record("small", warmup={"forward": [9.0]}, **PASSES),
        make_record("small", warmup={"forward": [9.0] * 5}, forward=[1.5] * 3, backward=[2.5] * 3),
        make_record("small", precision="bf16", **PASSES),
        make_record("small", attention="sdpa", **PASSES),
        make_record("small", experiment="other", **PASSES),
    )
    shown = show("timing", measured, tmp_path)
    (table,) = shown.tables
    rows = [(row["model"], row["pass"], row["median_s"]) for row in table.rows]
    assert rows[:3] == [
        ("small", "forward", 1.5),
        ("small", "backward", 2.5),
        ("small", "forward_backward", 4.0),
    ]
    assert {row[0] for row in rows[3:]} == {"medium"}
    assert shown.origins == ["Some, 2 threads, torch 2.13.0, commit abc1234def56, 2026-01-02"]
    assert shown.commands == ["python benchmark.py"]
    assert not any("Some" in note for note in table.notes), "said once, below"
    assert [figure.path.is_file() for figure in shown.figures] == [True]
    (bf16,) = show("timing", measured, tmp_path, precision="bf16").tables
    assert set(column(bf16, "precision")) == {"bf16"}


def test_a_case_that_failed_later_keeps_its_times_and_one_that_ran_out_of_memory_its_row(
    make_record, store, tmp_path
):
    measured = store(
        make_record("small", **PASSES),
        make_record("small", mode="forward-backward", status="failed", reason="killed", steps=3),
        make_record("medium", status="skipped", reason="first", time_utc="2026-01-02T05:00:00+00:00"),
        make_record("medium", status="oom", reason="needs 60 GiB", time_utc="2026-01-03T05:00:00+00:00"),
    )
    (table,) = show("timing", measured, tmp_path).tables
    text = render_table(table, "md")
    assert column(table, "status")[:3] == ["ok"] * 3
    assert "| oom |" in text
    assert "needs 60 GiB" in text
    assert "first" not in text


def test_records_of_two_machines_or_commits_are_both_named(make_record, store, tmp_path):
    measured = store(
        make_record(**PASSES),
        make_record(device="Some GPU", device_type="cuda", dirty=True, **PASSES),
        make_record(time_utc="2026-01-05T00:00:00+00:00", metrics={"other_load_cores": 0.8}, **PASSES),
    )
    shown = show("timing", measured, tmp_path)
    assert sorted(shown.origins) == [
        "Some GPU, torch 2.13.0, commit abc1234def56 with changes, 2026-01-02",
        "Some, 2 threads, torch 2.13.0, commit abc1234def56, 2026-01-05",
        "other programs kept up to 0.8 cores busy meanwhile: times may be too long",
    ]
    (table,) = show("timing", measured, tmp_path, device="cuda").tables
    assert len(table.rows) == 3


def test_a_record_from_before_a_setting_existed_counts_as_one_with_it_off(make_record, store, tmp_path):
    measured = store(make_record(warmup={"forward": [1.0]}, **PASSES), make_record(kernels="off", **PASSES))
    (table,) = show("timing", measured, tmp_path).tables
    assert len(table.rows) == 3


@pytest.mark.parametrize(
    ("name", "setting", "values", "key"),
    [
        ("warmup", "warmup_steps", (0, 1), "warmup_steps"),
        ("precision", "precision", ("fp32", "bf16"), "precision"),
        ("compile", "compile", (False, True), "compile"),
    ],
)
def test_a_comparison_shows_only_cases_measured_both_ways(
    name, setting, values, key, make_record, store, tmp_path
):
    one, other = ({setting: value} for value in values)
    measured = store(
        make_record("small", **one, **PASSES),
        make_record("small", **other, **PASSES, warmup={"forward": [9.0], "backward": [9.0]}),
        make_record("medium", **one, **PASSES),
    )
    shown = show(name, measured, tmp_path)
    for table in shown.tables:
        assert set(column(table, "model")) == {"small"}
        shown_values = {getattr(value, "value", value) for value in column(table, key)}
        assert shown_values == set(values)
    (alone,) = VIEWS[name].missing(store(), {"model": "medium"})
    assert "--model medium" in alone.command
    with pytest.raises(ValueError, match=f"compares values of {setting}"):
        show(name, measured, tmp_path, **{setting: values[0]})


def test_compiled_times_come_with_the_first_step_and_their_ratio(make_record, store, tmp_path):
    measured = store(
        make_record(warmup={"forward": [9.0], "backward": [8.0]}, forward=[2.0] * 6, backward=[4.0] * 6),
        make_record(
            compile=True,
            warmup={"forward": [60.0], "backward": [50.0]},
            forward=[1.0] * 6,
            backward=[3.0] * 6,
        ),
    )
    (table,) = show("compile", measured, tmp_path).tables
    forward, compiled = table.rows[:2]
    assert (forward["compile"], forward["first_s"], forward["ratio"]) == (False, 9.0, 1.0)
    assert (compiled["compile"], compiled["first_s"], compiled["ratio"]) == (True, 60.0, 0.5)
    assert (compiled["ratio_low"], compiled["ratio_high"]) == (0.5, 0.5)


def test_each_value_that_a_block_names_and_no_record_has_is_missing_by_itself(make_record, store, tmp_path):
    measured = store(make_record("small", **PASSES), make_record("2.7B", status="oom", reason="too large"))
    shown = show("timing", measured, tmp_path, model=["small", "xl", "2.7B"])
    assert set(column(shown.tables[0], "model")) == {"small", "2.7B"}
    (missing,) = shown.missing
    assert missing.of == "model xl"
    assert "--model xl --context-length 128" in missing.command


def test_unknown_settings_are_refused_with_the_nearest(tmp_path):
    measured = read_measured(tmp_path)
    for name, where, said in [
        ("timing", {"modell": "small"}, "did you mean model"),
        ("attention", {"seqlen": 1}, "did you mean seq_len"),
        ("profile-kinds", {"tracer": "x"}, "did you mean trace"),
        ("accumulation", {"zzz": 1}, "there are"),
    ]:
        with pytest.raises(ValueError, match=said):
            show(name, measured, tmp_path, **where)


def test_what_cannot_be_read_is_a_sentence_and_the_rest_is_used(make_record, store, folder):
    store(make_record(**PASSES))
    record = make_record(**PASSES)
    (folder / "old.jsonl").write_text(
        record.to_json().replace('"schema_version": 1', '"schema_version": 0') + "\n"
    )
    (folder / "notes.jsonl").write_text("hello\n")
    (folder / "profile").mkdir()
    (folder / "profile" / "a.json.gz").write_bytes(b"")
    measured = read_measured(folder)
    assert len(measured.records) == 1
    assert [problem.partition(": ")[0].rpartition("/")[2] for problem in measured.problems][:2] == [
        "notes.jsonl holds no benchmark records (line 1 ignored",
        "old.jsonl holds no benchmark records (line 1 ignored",
    ]
    assert "schema 0, this program reads 1" in measured.problems[1]
    assert "no .run.json beside it" in measured.problems[2]
    assert read_measured(folder / "none").problems == [
        f"{folder / 'none'} does not exist: nothing of your own to show or check; type make measure"
    ]


def test_without_matplotlib_the_tables_stand(make_record, store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = show("timing", store(make_record("small", **PASSES), make_record("medium", **PASSES)), tmp_path)
    assert len(shown.tables) == 1
    assert shown.figures == []
    assert shown.problems == ["timing: not drawn, plots need matplotlib: pip install 'cs_systems[report]'"]


def test_the_committed_records_fill_the_views_of_attention(tmp_path):
    measured = read_measured(REFERENCE)
    assert measured.problems == []
    (naive,) = show("attention", measured, tmp_path, seq_len=128, causal=True).tables
    assert set(column(naive, "implementation")) == {"naive"}
    (compiled,) = show("attention-compiled", measured, tmp_path, seq_len=[128]).tables
    assert set(column(compiled, "implementation")) == {"naive", "naive-compiled"}
    (flash,) = show("flash", measured, tmp_path).tables
    assert set(column(flash, "implementation")) == {"naive", "flash-torch", "sdpa"}


def record_steps(folder, name, time_utc, **changes):
    """A made-up recording as torch.profiler writes it on a CPU: a forward, a backward, an allocation."""
    folder.mkdir(parents=True, exist_ok=True)
    spans = [
        ("user_annotation", "step", 0, 100), ("user_annotation", "forward", 0, 40),
        ("user_annotation", "attention", 5, 20), ("user_annotation", "attention scores", 6, 10),
        ("user_annotation", "attention softmax", 17, 6), ("user_annotation", "backward", 50, 40),
        ("cpu_op", "aten::bmm", 7, 8), ("cpu_op", "aten::softmax", 18, 4), ("cpu_op", "aten::mm", 60, 20),
    ]  # fmt: skip
    events: list = [
        {"ph": "X", "cat": cat, "name": text, "ts": ts, "dur": dur, "pid": 1, "tid": 1}
        for cat, text, ts, dur in spans
    ]
    memory = {"Device Type": 0, "Device Id": -1, "Bytes": 1024, "Total Allocated": 1024, "Addr": 1}
    events.append({"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": 9, "pid": 1, "tid": 1,
                   "s": "t", "args": memory})  # fmt: skip
    path = folder / f"{name}.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"schemaVersion": 1, "traceEvents": events}).encode()))
    facts = {
        "model": "tiny", "num_layers": 2, "num_heads": 4, "d_head": 32, "batch_size": 4, "seq_len": 64,
        "steps": 1, "mode": "train-step", "precision": "fp32", "attention": "naive", "device": "Some CPU",
        "command": "python profiling/run.py --memory", "timer_s": {"forward": 5e-5}, "commit": "abc1234",
        "time_utc": time_utc, "torch": "2.13.0", "threads": 2, "predicted_bytes": {"forward": 2048},
    }  # fmt: skip
    write_facts(path, RunFacts(**facts | changes))


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("profile-timer", ["Forward pass, by profiler and by timer"]),
        ("profile-kinds", ["Work by class"]),
        ("profile-attention", ["Attention, time of the operators"]),
        ("profile-kernels", ["The operator that takes the most time", "Operators by self time",
                             "Operators by self time in forward", "Operators by self time in backward"]),
    ],
)  # fmt: skip
def test_a_profile_is_shown_in_the_tables_of_its_view(name, titles, folder, tmp_path):
    record_steps(folder / "profile", "tiny-64", "2026-01-02T00:00:00+00:00")
    shown = show(name, read_measured(folder), tmp_path)
    assert [re.sub(r", [\d.]+ us in all", "", table.title) for table in shown.tables] == titles
    assert shown.missing == []
    assert shown.commands == ["python profiling/run.py --memory"]
    assert shown.origins == [
        "tiny, 64 tokens, batch 4, train-step, fp32, naive attention; Some, 2 threads, torch 2.13.0, "
        "commit abc1234, 2026-01-02"
    ]


def test_the_newest_profile_is_shown_or_the_one_that_is_named(folder, tmp_path):
    plain = {"command": "python profiling/run.py"}
    record_steps(folder / "profile", "a", "2026-01-03T00:00:00+00:00", seq_len=32, **plain)
    record_steps(folder / "profile", "b", "2026-01-02T00:00:00+00:00", **plain)
    record_steps(folder / "profile", "with memory", "2026-01-04T00:00:00+00:00")
    record_steps(
        folder / "profile", "checkpointed", "2026-01-05T00:00:00+00:00", checkpoint_blocks=2, **plain
    )
    measured = read_measured(folder)

    def tokens(name, **where):
        return [text.split(", ")[1] for text in show(name, measured, tmp_path, **where).origins]

    assert tokens("profile-kinds") == ["32 tokens"]
    assert tokens("profile-kinds", trace="b") == tokens("profile-kinds", context_length=64) == ["64 tokens"]
    assert tokens("profile-timer") == ["64 tokens", "32 tokens"]
    assert tokens("profile-timer", seq_len=[32, 48]) == ["32 tokens"]
    (missing,) = VIEWS["profile-timer"].missing(measured, {"seq_len": [32, 48]})
    assert missing.of == "seq_len 48"
    assert "--context-length 48" in missing.command
    (missing,) = VIEWS["profile-kinds"].missing(measured, {"trace": "c"})
    assert "--name c" in missing.command


def test_memory_is_compared_where_it_was_recorded_both_ways(folder, tmp_path):
    record_steps(folder / "profile", "a", "2026-01-01T00:00:00+00:00", mode="forward")
    record_steps(folder / "profile", "b", "2026-01-02T00:00:00+00:00", command="python profiling/run.py")
    assert len(VIEWS["profile-memory"].missing(read_measured(folder), {})) == 1, "b has no allocations"
    record_steps(folder / "profile", "c", "2026-01-03T00:00:00+00:00")
    record_steps(folder / "profile", "d", "2026-01-04T00:00:00+00:00", checkpoint_blocks=2)
    measured = read_measured(folder)
    shown = show("profile-memory", measured, tmp_path)
    assert [row["mode"] for row in shown.tables[0].rows] == ["forward", "train-step"]
    assert shown.tables[1].title == "Memory of c, phase by phase"
    shown = show("checkpointing", measured, tmp_path)
    assert [row["checkpoint_blocks"] for row in shown.tables[0].rows] == [0, 2]


def test_a_damaged_profile_is_said_and_missing(folder, tmp_path):
    record_steps(folder / "profile", "a", "2026-01-03T00:00:00+00:00")
    (folder / "profile" / "a.json.gz").write_bytes(b"no gzip")
    shown = show("profile-kinds", read_measured(folder), tmp_path)
    assert shown.problems[0].startswith("profile-kinds: ")
    assert "a.json.gz" in shown.problems[0]
    assert len(shown.missing) == 1


def test_tables_that_are_too_long_for_a_write_up_are_left_to_the_command(monkeypatch):
    from cs_systems.report import autocast

    titles = ["Autocast: the toy model", "Operations: toy", "Rules of autocast on a GPU and on a CPU"]
    tables = [Table(title, [], []) for title in titles]
    monkeypatch.setattr(autocast, "tables", lambda records: tables)
    view = VIEWS["autocast"]
    assert isinstance(view, RecordView)
    assert view.tables([]) == tables[:1]


def test_every_view_of_records_matches_what_its_own_command_measures(tmp_path):
    """The flags of a view must not measure what the view then leaves out."""
    for view in VIEWS.values():
        if isinstance(view, RecordView):
            for name, allowed in view.plain.items():
                wanted = view.flags.get(name)
                if wanted is not None:
                    values = wanted if isinstance(wanted, tuple) else (wanted,)
                    assert set(values) <= set(allowed if isinstance(allowed, tuple) else (allowed,)), (
                        view.name
                    )
            if view.varies:
                assert len(view.flags[view.varies]) > 1, view.name


def test_a_misspelt_model_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="no model 'smal'; did you mean small"):
        VIEWS["precision"].missing(read_measured(tmp_path), {"model": ["smal"]})
