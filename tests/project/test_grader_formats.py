"""What the grader writes, for records made by hand: points add up, and each format keeps to its contract."""

import json
from xml.etree import ElementTree

import pytest
from graded_support.formats import (
    FORMATS,
    render_gradescope,
    render_json,
    render_junit,
    render_markdown,
    render_table,
)
from graded_support.record import Record, clean, read_result
from graded_support.rubric import CodeProblem, TestResult

LINEAR = CodeProblem("linear", "a product", points=1, section=1)
FLASH = CodeProblem("flash", "tiles", points=13, section=2)
FSDP = CodeProblem("fsdp", "shards", points=15, section=3, pending="not taught yet")
NASTY = "expected <b>|x|</b> & 3 \ufffd"
RESULTS = [
    TestResult("test_linear.py::test_a", "passed", duration_s=0.25, remarks=("x.py, line 3, calls y",)),
    TestResult("test_linear.py::test_b[x-1]", "failed", NASTY, f"{NASTY}\nline 2"),
    TestResult("hidden/test_linear.py::test_secret", "failed", "the secret", "all of the secret"),
    TestResult("test_flash.py::test_c", "passed"),
    TestResult("test_flash.py::test_gpu", "pending", "needs a GPU"),
    TestResult("test_flash.py::test_d", "not reached", "not reached"),
    TestResult("test_fsdp.py::test_e", "pending", "not taught yet"),
]


@pytest.fixture
def record():
    about = {"seed": 3, "duration_s": 12.6, "versions": {"python": "3.11"}, "kit_sha256": "0123456789abcdef"}
    results = {result.id: result for result in RESULTS}
    return Record((LINEAR, FLASH, FSDP), about, results, tests_known=True, remarks=["something is odd"])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_say_nothing_yet(name):
    record = Record((LINEAR,))
    record.expect_files(["test_linear.py"])
    assert "not reached" in FORMATS[name](record, show_hidden=False)


def test_gradescope_has_what_its_contract_names(record):
    body = json.loads(render_gradescope(record, show_hidden=False))
    top = {"score", "execution_time", "output", "output_format", "test_output_format", "test_name_format"}
    assert set(body) == top | {"visibility", "stdout_visibility", "tests", "extra_data"}
    allowed = {"score", "max_score", "status", "name", "number", "output", "tags", "visibility", "extra_data"}
    assert all(set(test) <= allowed for test in body["tests"])
    assert [test["number"] for test in body["tests"]] == ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1"]
    assert [test.get("status") for test in body["tests"]] == [
        *("passed", "failed", "failed", "passed", None, "failed", None)
    ]
    assert [test["visibility"] for test in body["tests"]] == ["visible"] * 2 + ["after_published"] + [
        "visible"
    ] * 4
    assert body["execution_time"] == 13
    assert not body["extra_data"]["complete"]


def test_gradescope_leaves_the_points_of_pending_tests_open(record):
    body = json.loads(render_gradescope(record, show_hidden=False))
    third = pytest.approx(13 / 3, abs=1e-6)
    assert [(test["score"], test["max_score"]) for test in body["tests"][3:]] == [
        (third, third),
        (0, 0),
        (0, third),
        (0, 0),
    ]
    assert body["tests"][4]["output"] == "Not run: needs a GPU. Its 4.333 points are open, not lost."
    assert body["tests"][4]["name"] == "flash: test_gpu (pending)"
    assert body["score"] == pytest.approx(1 / 3 + 13 / 3, abs=1e-6)
    assert body["score"] == pytest.approx(sum(test["score"] for test in body["tests"]), abs=1e-5)
    total = body["extra_data"]["total"]
    assert total["earned"] + total["pending"] + total["lost"] == pytest.approx(total["points"], abs=1e-5)
    assert total["points"] == 29


def test_gradescope_says_a_reason_once(record):
    outputs = [test["output"] for test in json.loads(render_gradescope(record, show_hidden=False))["tests"]]
    assert outputs[:3] == [
        "remark: x.py, line 3, calls y",
        f"{NASTY}\nline 2",
        "the secret\n\nall of the secret",
    ]


def test_json_keeps_everything(record):
    body = json.loads(render_json(record, show_hidden=True))
    assert [(t["id"], t["status"], t["message"], t["output"]) for t in body["tests"]] == [
        (r.id, r.status, r.message, r.output) for r in RESULTS
    ]
    assert body["num_hidden_tests"] == 1
    assert body["seed"] == 3
    flash = body["problems"][1]
    assert flash["earned"] + flash["pending"] + flash["lost"] == pytest.approx(13, abs=1e-5)
    assert flash["reasons"] == ["needs a GPU", "not reached"]


@pytest.mark.parametrize("name", ["table", "md", "json", "junit"])
def test_hidden_details_are_for_instructors(record, name):
    told = FORMATS[name](record, show_hidden=False)
    assert "secret" not in told
    assert "a hidden test failed" in told
    assert "secret" in FORMATS[name](record, show_hidden=True)


@pytest.mark.parametrize("name", ["table", "md", "json", "gradescope"])
def test_remarks_are_told_and_cost_nothing(record, name):
    assert FORMATS[name](record, show_hidden=False).count("x.py, line 3, calls y") == (
        2 if name == "json" else 1
    )
    assert record.scores()[0].earned == pytest.approx(1 / 3)


@pytest.mark.parametrize("show_hidden", [False, True])
def test_gradescope_gets_the_seed_with_the_hidden_tests(record, show_hidden):
    assert ("seed" in render_gradescope(record, show_hidden=show_hidden)) == show_hidden


def test_junit_counts_what_it_holds(record):
    root = ElementTree.fromstring(render_junit(record, show_hidden=True).encode())
    assert [suite.get("name") for suite in root] == ["linear", "flash", "fsdp"]
    for element in [root, *root]:
        counts = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
        assert {name: element.get(name) for name in counts} == {
            name: str(len(list(element.iter(tag)))) for name, tag in counts.items()
        }
    failure = root.find(".//failure")
    assert failure.get("message") == NASTY
    assert failure.text == f"{NASTY}\nline 2"


def test_junit_is_read_by_pytests_own_rules(record):
    """The attributes that pytest's junitxml writes, which CI systems read."""
    case = ElementTree.fromstring(render_junit(record, show_hidden=True)).find(".//testcase")
    assert {"classname", "name", "time"} == set(case.attrib)
    assert float(case.get("time")) == 0.25


def test_markdown_shows_text_as_it_is(record):
    told = render_markdown(record, show_hidden=False)
    assert "| flash | 13 | 4.333 | 4.333 | 4.333 |" in told
    assert "| total | 29 | 4.667 | 19.33 | 5 |" in told
    assert r"linear, test\_b\[x-1\]: expected \<b\>\|x\|\</b\> & 3" in told


def test_table_has_points_reasons_and_origin(record):
    told = render_table(record, show_hidden=False, width=100)
    assert "linear, test_b[x-1]: expected <b>|x|</b> & 3" in told
    assert "flash, test_d: not reached" in told
    assert "fsdp, " not in told  # its reason to be pending stands in its row
    assert "Something is odd." in told
    assert "1 of 7 tests were not reached." in told
    assert "1 of the 7 tests are hidden tests: students do not have them." in told
    assert "Graded with python 3.11, seed 3, tests 0123456789ab." in told
    assert max(map(len, told.splitlines())) <= 100


def test_absent_hidden_tests_are_announced():
    record = Record(
        (LINEAR,), results={RESULTS[0].id: RESULTS[0]}, absent_note="3 further tests are hidden tests."
    )
    assert "3 further tests are hidden tests." in render_table(record, show_hidden=False)


def test_a_table_lists_three_failures_of_a_problem():
    results = {
        f"test_linear.py::t{i}": TestResult(f"test_linear.py::t{i}", "failed", f"why {i}") for i in range(5)
    }
    told = render_table(Record((LINEAR,), results=results, tests_known=True), show_hidden=False)
    assert [word in told for word in ("t1: why 1", "t2: why 2", "t3: why 3")] == [True, True, False]
    assert "linear: 2 further reasons" in told


def test_text_of_submissions_is_harmless():
    assert clean("a\x1b[2Jb\x00\tc\n\ud800é🙂\x85") == "a?[2Jb?\tc\n?é🙂?"
    ElementTree.fromstring(
        f"<x>{clean(''.join(map(chr, range(0x20, 0x300))).replace('<', '').replace('&', ''))}</x>"
    )


def test_a_verdict_that_is_none_is_a_failure():
    for told in (None, 3, {}, {"status": "perfect"}):
        assert read_result("test_x.py::t", told, 1.0).status == "failed"
    result = read_result(
        "test_x.py::t", {"status": "failed", "message": "a\nb" + "c" * 5000, "output": "o" * 9999}, 1.5
    )
    assert (result.status, result.duration_s, len(result.output)) == ("failed", 1.5, 4000)
    assert "\n" not in result.message
    remarks = read_result("test_x.py::t", {"status": "passed", "remarks": ["a\x1b", 3]}, 1.0).remarks
    assert remarks == ("a?", "3")


def test_what_the_rubric_has_as_pending_is_not_lost_when_time_is_over():
    record = Record((LINEAR, FSDP))
    record.expect_files(["test_linear.py", "test_fsdp.py"])
    record.keep_pending()
    assert {score.problem.id: (score.pending, score.lost) for score in record.scores()} == {
        "linear": (0, 1),
        "fsdp": (15, 0),
    }
    assert record.results["test_fsdp.py"].message == "not taught yet"
