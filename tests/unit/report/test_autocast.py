"""Tables of the autocast experiment, from records written by hand."""

import pytest

from cs_systems.bench.record import BenchmarkRecord, Provenance
from cs_systems.report.autocast import draw, summary, tables
from cs_systems.tables import render_table

PROVENANCE = Provenance(
    "python x", "abc", True, "2026-01-01T00:00:00+00:00", "Some CPU", "cpu", 2, {"torch": "2.13.0"}
)
ENTRIES = [
    ("parameter", "layers.0.w", "fp32", "never cast"), ("parameter", "layers.1.w", "fp32", "never cast"),
    ("output", "layers.0", "bf16", "matmul: lower precision"),
    ("output", "layers.1", "bf16", "matmul: lower precision"),
    ("logits", "logits", "bf16", "matmul: lower precision"), ("loss", "loss", "fp32", "exp: fp32"),
    ("gradient", "layers.0.w", "fp32", "its own"), ("gradient", "layers.1.w", "fp32", "its own"),
]  # fmt: skip
CASTS = {"weight_casts": 2, "weight_bytes": 2048, "activation_casts": 3, "activation_bytes": 1024}


@pytest.fixture
def make():
    """A record of a model of two alike blocks."""

    def record(*, course=None, differences=(), entries=ENTRIES, notes=(), **changes):
        case = {"model": "m", "dtype": "bf16", "policy": "cuda", "loss": "cross-entropy"}
        case |= {name: value for name, value in changes.items() if name in case}
        operation = {"op": "matmul", "inputs": ["fp32", "fp32"], "output": "bf16", "why": "tensor cores",
                     "rule": "lower precision", "times": 2}  # fmt: skip
        metrics = {
            "origin": "derived: fake tensors",
            "origins": {"cuda": "derived: fake tensors", "cpu": "measured on this CPU"},
            "course_answers": course,
            "entries": [dict(zip(("kind", "name", "dtype", "rule"), e, strict=True)) for e in entries],
            "operations": [
                operation | {"module": "layers.*.attn"}, operation | {"module": "layers.*", "times": 1},
                operation | {"module": "loss", "op": "float", "why": None},
            ],
            "differences": list(differences),
            "casts": CASTS,
            "casts_second_forward": CASTS | {"weight_casts": changes.get("again", 2)},
            "rules": [{"ops": ["exp", "log"], "cuda": "fp32", "cpu": "not listed", "why": "range"}],
            "rules_differ": changes.get("rules_differ", {"cuda": [], "cpu": []}),
        }  # fmt: skip
        return BenchmarkRecord("autocast", case, "ok", PROVENANCE, metrics=metrics, notes=list(notes))

    return record


def test_alike_tensors_are_one_row(make):
    entries = tables([make()])[0]
    assert entries.title == (
        "Autocast: m, CUDA policy (derived: fake tensors), autocast to bf16, torch's cross-entropy"
    )
    assert [(row["kind"], row["name"], row["dtype"], row["count"]) for row in entries.rows] == [
        ("parameter", "all 2", "fp32", 2), ("output", "layers.*", "bf16", 2), ("logits", "logits", "bf16", 1),
        ("loss", "loss", "fp32", 1), ("gradient", "all 2", "fp32", 2),
    ]  # fmt: skip


def test_a_parameter_of_another_type_is_not_hidden(make):
    entries = [("parameter", "layers.0.w", "fp16", "never cast"), *ENTRIES[1:]]
    rows = tables([make(entries=entries)])[0].rows
    assert [(row["name"], row["dtype"]) for row in rows if row["kind"] == "parameter"] == [
        ("1, layers.*.w first", "fp16"), ("1, layers.*.w first", "fp32"),
    ]  # fmt: skip


def test_operations_with_the_same_types_are_one_row_with_their_places(make):
    operations = tables([make()])[1]
    first, second = operations.rows
    assert (first["op"], first["where"], first["times"]) == ("matmul", "attn, block", 3)
    assert (first["types"], first["why"]) == ("fp32, fp32 -> bf16", "tensor cores")
    assert (second["where"], second["why"]) == ("loss", "the model asks for it")


@pytest.mark.parametrize(
    ("again", "said"), [(0, "casts no weight again"), (2, "casts 2 weights again: autocast keeps copies of")]
)
def test_the_price_of_casts_is_told(make, again, said):
    note = tables([make(again=again)])[1].notes[-1]
    assert "2 casts of weights to bf16 (2.0 KiB) and 3 of activations (1.0 KiB), kept for backward" in note
    assert said in note


def test_differences_give_their_cause(make):
    rules = {"where": "attn", "cuda": "fp32", "cpu": "bf16", "times": 2}
    differences = [
        rules | {"what": "exp", "cuda_rule": "fp32", "cpu_rule": "not listed"},
        rules | {"what": "div", "cuda_rule": "not listed", "cpu_rule": "not listed"},
    ]
    table = tables([make(differences=differences)])[2]
    assert [row["because"] for row in table.rows] == [
        "CUDA: fp32; CPU: not listed", "its inputs differ already",
    ]  # fmt: skip
    assert "the output of layer norm is bf16 on a CPU and fp32 on a GPU" in table.notes[-1]
    assert not any("no output differs" in note for note in table.notes)
    assert any("no output differs" in note for note in tables([make()])[2].notes)


def test_both_policies_share_one_comparison_and_one_table_of_rules(make):
    found = tables([make(), make(policy="cpu"), make(loss="mse")])
    assert [table.title.split(":")[0] for table in found] == [
        "Autocast", "Operations", "CUDA against CPU", "Autocast", "Operations", "Autocast", "Operations",
        "CUDA against CPU", "Rules of autocast on a GPU and on a CPU",
    ]  # fmt: skip


def test_several_toy_models_come_in_one_table_first(make):
    course = {
        "parameters": "fp32",
        "fc1": "bf16",
        "layer_norm": "fp32",
        "logits": "bf16",
        "gradients": "fp32",
    }
    records = [
        make(model="toy", course=course | {"loss": "fp32"}, notes=["agreed"]),
        make(model="toy", course=course | {"loss": "bf16"}, loss="mean"),
    ]
    table = tables(records)[0]
    assert [(row["loss_function"], row["loss"]) for row in table.rows] == [
        ("cross-entropy", "fp32"), ("mean", "bf16"),
    ]  # fmt: skip
    assert table.notes == [
        "toy, CUDA, bf16: agreed", "Some CPU, 2 threads, torch 2.13.0, commit abc with changes",
    ]  # fmt: skip
    assert tables(records[:1])[0].title.startswith("Autocast: toy")
    assert summary(records[1])["loss"] == "bf16"


@pytest.mark.parametrize(
    ("differ", "said"),
    [
        ([], "CUDA: as torch 2.13.0 does it, each operation tried"),
        (None, "CUDA: from the table alone"),
        (["exp: table fp32, torch unlisted"], "trust torch: exp: table fp32, torch unlisted"),
    ],
)
def test_the_rules_say_whether_torch_confirms_them(make, differ, said):
    notes = tables([make(rules_differ={"cuda": differ, "cpu": []})])[-1].notes
    assert said in notes[0]


def test_records_that_are_not_ok_have_no_tables_and_there_is_no_plot(make, tmp_path):
    skipped = BenchmarkRecord("autocast", {}, "skipped", PROVENANCE, reason="why")
    assert tables([skipped]) == []
    files, (remark,) = draw([make()], tmp_path)
    assert files == list(tmp_path.iterdir()) == []
    assert "autocast has no plot" in remark
    assert summary(make()) == {
        "origin": "derived: fake tensors", "logits": "bf16", "loss": "fp32", "num_differences": 0,
    }  # fmt: skip


@pytest.mark.parametrize("style", ["table", "md", "csv", "json", "latex"])
def test_every_table_renders_in_every_style(make, style):
    assert all(render_table(table, style) for table in tables([make()]))
