"""Verdicts on right, wrong, missing, stale and unreadable answers; no message gives the truth away."""

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cs_systems.grading.check import check_item, check_prose
from cs_systems.grading.items import (
    Choice,
    Dtype,
    Item,
    NotMeasuredError,
    Number,
    Order,
    OwnNumber,
    Part,
    Prose,
    Symbolic,
    Text,
    Truth,
)
from cs_systems.grading.units import UNITS

DTYPE = Dtype("loss", "type of the loss")
BYTES = Number("held", "bytes that it holds", "B")
COUNT = Number("num_parameters", "parameters, exactly", rel_tol=0.0)
MEDIAN = OwnNumber("forward_median", "median of forward", "s")
CHOICE = Choice("effect", "how it changes", ("none", "small", "feed-forward"))
ORDER = Order("order", "by time", ("matmul", "softmax", "the rest"))
FORMULA = Symbolic("bytes", "bytes of it", ("B", "S", "d"))
KERNEL = Text("kernel", "name of it")
TRUTHS = {
    DTYPE: Truth("fp32", why={"fp16": "WHY"}, hint="HINT"),
    BYTES: Truth(0.4838 * 2**30, why={"0.2419 GiB": "WHY", "1.0e9": "WHY"}, hint="HINT"),
    COUNT: Truth(128625408.0, why={"96000000": "WHY"}, hint="HINT"),
    MEDIAN: Truth(0.0123, 0.0121, 0.0124, ((0.020, 0.021, "2026-11-20"),), {"0.0369": "WHY"}, "HINT"),
    CHOICE: Truth("small", why={"none": "WHY"}, hint="HINT"),
    ORDER: Truth(("matmul", "softmax", "the rest"), why={"softmax > matmul > the rest": "WHY"}, hint="HINT"),
    FORMULA: Truth("4*B*S*d", why={"2*B*S*d": "WHY"}, hint="HINT"),
    KERNEL: Truth("aten::MM", why={"aten::bmm": "WHY"}, hint="HINT"),
}


def verdict(item, answer, truth=None):
    found = check_item("p.a", item, answer, truth or TRUTHS[item])
    assert (found.part, found.key) == ("p.a", item.key)
    assert "\n" not in found.message
    assert found.message == "" if found.status == "right" else item.key in found.message
    return found


@pytest.mark.parametrize(
    ("item", "answer"),
    [
        *(
            (DTYPE, text)
            for text in ("fp32", "float32", "torch.float32", " FP32 ", "single", "torch.float", "`fp32`")
        ),
        *(
            (BYTES, text)
            for text in ("0.4838 GiB", "0.48 GiB", "519.5 MB", "0.52 GB", "519478000 B", "495 MiB")
        ),
        *((COUNT, text) for text in ("128,625,408", 128625408, 128625408.0, "128.625408 million")),
        *(
            (MEDIAN, text)
            for text in ("12.3 ms", "0.0123 s", "12 ms", "0.012 s", "12.1 ms", "12.4 ms", "12100 us")
        ),
        *((CHOICE, text) for text in ("small", " Small", "`small`")),
        *((ORDER, "matmul" + sep + "softmax" + sep + "The_Rest") for sep in (" > ", ">", ", ")),
        (ORDER, ["matmul", "softmax", "the rest"]),
        *((FORMULA, text) for text in ("4*B*S*d", "2*d*S*(B+B)")),
        *((KERNEL, text) for text in ("aten::mm", "`aten::MM` ")),
    ],
)
def test_right_answers_are_right_however_they_are_written(item, answer):
    assert verdict(item, answer).status == "right"


@pytest.mark.parametrize(
    ("item", "answer"),
    [
        *((DTYPE, text) for text in ("fp16", "half", "torch.half", "float16", "FP16")),
        *((BYTES, text) for text in ("0.2419 GiB", "0.24 GiB", "247.7 MiB", "1e9 B", "1.00 GB")),
        *((COUNT, text) for text in (96000000, "96M")),
        *((MEDIAN, text) for text in ("36.9 ms", "37 ms")),
        (CHOICE, "None"),
        (ORDER, "softmax > matmul > the rest"),
        (FORMULA, "B*S*(d+d)"),
        (KERNEL, "ATEN::bmm"),
    ],
)
def test_a_known_wrong_answer_is_told_why_one_would_think_so(item, answer):
    found = verdict(item, answer)
    assert found.status == "wrong"
    assert found.message.endswith(": WHY")


@pytest.mark.parametrize(
    ("item", "answer", "words"),
    [
        (DTYPE, "bf16", "is wrong: HINT"),
        (BYTES, "0.3 GiB", "is wrong: HINT"),
        (BYTES, "0.5 GiB", "rounded too far"),
        (BYTES, "0 B", "is wrong: HINT"),
        (COUNT, "126M", "is wrong: HINT"),
        (COUNT, "128625409", "is wrong: HINT"),
        (COUNT, "128.6M", "rounded too far"),
        (MEDIAN, "12.5 ms", "is wrong: HINT"),
        (MEDIAN, "12.05 ms", "is wrong: HINT"),
        (MEDIAN, "0.01 s", "rounded too far"),
        (CHOICE, "feed forward", "is wrong: HINT"),
        (ORDER, "the rest > softmax > matmul", "is wrong: HINT"),
        (FORMULA, "8*B*S*d", "off by a constant factor: HINT"),
        (FORMULA, "4*B*d", "does not depend on S: HINT"),
        (FORMULA, "4*B*S*d + S", "is wrong: HINT"),
        (KERNEL, "aten::add", "is wrong: HINT"),
    ],
)
def test_any_other_wrong_answer_gets_the_hint_and_what_can_be_seen(item, answer, words):
    found = verdict(item, answer)
    assert found.status == "wrong"
    assert words in found.message


def test_a_formula_with_a_name_too_many_is_told_so():
    assert "should not depend on d" in verdict(FORMULA, "B*d", Truth("B")).message
    assert verdict(FORMULA, "B + 1", Truth("B")).message == "bytes is wrong"


@pytest.mark.parametrize(
    ("item", "answer", "words"),
    [
        (BYTES, "0.48 GB", "the number fits GiB (with an i"),
        (BYTES, "0.48 MiB", "the number fits GiB"),
        (BYTES, "0.52 GiB", "the number fits GB (with an i"),
        (BYTES, "4.1 Gb", "bits"),
        (BYTES, "12 ms", "a unit of s"),
        (BYTES, "0.48", "a unit is missing"),
        (BYTES, 519478000, "a unit is missing"),
        (MEDIAN, "12.3 us", "the number fits ms"),
        (MEDIAN, "12.3 s", "the number fits ms"),
        (MEDIAN, 0.0123, "a unit is missing"),
        (COUNT, "128.625408", "the number fits M"),
        (COUNT, "128625408 ms", "asked without a unit"),
    ],
)
def test_the_right_number_with_another_unit_is_told_so(item, answer, words):
    found = verdict(item, answer)
    assert found.status == "wrong unit"
    assert words in found.message


@pytest.mark.parametrize("answer", ["20 ms", "20.5 ms", "0.021 s"])
def test_a_number_of_an_older_run_is_stale_and_says_from_when(answer):
    found = verdict(MEDIAN, answer)
    assert found.status == "stale"
    assert "2026-11-20" in found.message


def test_a_number_that_is_right_by_now_is_not_stale():
    truth = Truth(0.0205, 0.0200, 0.0210, ((0.0190, 0.0220, "2026-11-20"),))
    assert verdict(MEDIAN, "20.1 ms", truth).status == "right"
    assert verdict(MEDIAN, "21.5 ms", truth).status == "stale"


def test_without_an_interval_a_measured_number_may_be_off_by_its_rounding_or_one_percent():
    truth = Truth(0.0123)
    assert [verdict(MEDIAN, f"{ms} ms", truth).status for ms in ("12.2", "12", "12.41", "12.43")] == [
        *["right"] * 3,
        "wrong",
    ]


@pytest.mark.parametrize(
    ("item", "answer", "words"),
    [
        (DTYPE, "float", "write its width"),
        (DTYPE, "bfloot16", "did you mean bfloat16?"),
        (DTYPE, ["fp32"], "not a list"),
        (BYTES, "about half a GiB", "one number"),
        (BYTES, ["1 B"], "not a list"),
        (MEDIAN, "12.3 \u00b1 0.1 ms", "without a range"),
        (CHOICE, "smal", "'smal' is not one of none, small, feed-forward; did you mean small?"),
        (CHOICE, "huge", "not one of none, small, feed-forward"),
        (ORDER, "matmul > softmax", "the rest is missing"),
        (ORDER, "matmul > softmax > softmax > the rest", "softmax stands in it more than once"),
        (ORDER, "matmul > softmax > the rest > norm", "'norm' is not one of"),
        (ORDER, ["matmull", "softmax", "the rest"], "did you mean matmul?"),
        (ORDER, "the rest < softmax < matmul", "greatest first"),
        (FORMULA, "4BSd", "write '4*B*S*d'"),
        (FORMULA, "4*B*x", "'x' is not known"),
        (FORMULA, ["B"], "not a list"),
    ],
)
def test_an_answer_that_cannot_be_read_says_how_to_write_it(item, answer, words):
    found = verdict(item, answer)
    assert found.status == "unreadable"
    assert words in found.message


@pytest.mark.parametrize("answer", [None, "", " \n", []])
@pytest.mark.parametrize("item", TRUTHS)
def test_an_empty_answer_is_missing_whatever_was_measured(item, answer):
    for truth in (TRUTHS[item], NotMeasuredError("no record")):
        found = verdict(item, answer, truth)
        assert found.status == "missing"
        assert item.what in found.message


@pytest.mark.parametrize("item", TRUTHS)
def test_what_was_not_measured_names_the_command(item):
    found = verdict(item, "1 s", NotMeasuredError("no record of small: python benchmark.py makes one"))
    assert found.status == "not measured"
    assert found.message.endswith("python benchmark.py makes one")


def test_a_key_of_why_that_is_no_answer_is_not_blamed_on_the_student():
    assert (
        verdict(DTYPE, "fp16", Truth("fp32", why={"float": "A", "half": "B"})).message == "loss is wrong: B"
    )
    assert verdict(BYTES, "7 B", Truth(3.0, why={"seven": "A"})).message == "held is wrong"


def test_an_item_of_no_known_kind_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="Item has no check"):
        check_item("p.a", Item("key", "what"), "1", Truth("1"))


NUMBERS = st.sampled_from(
    ["{}", "{} ms", "{} s", "{} GB", "{} GiB", "{} MiB", "{} Gb", "{} %", "{} quux", "~{} s"]
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.floats(101.0, 1e12),
    st.sampled_from([BYTES, COUNT, MEDIAN]),
    st.sampled_from([1, 1, 2, 0.5, 1e-3, 1e3, 1e-6, 2**-20, 2**-30, 1.01]),
    NUMBERS,
    st.integers(1, 9),
)
def test_no_message_about_a_number_holds_the_truth_in_any_unit(true, item, factor, layout, digits):
    found = verdict(item, layout.format(f"{true * factor:.{digits}g}"), Truth(true))
    numbers = [float(text) for text in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", found.message)]
    for number in numbers:
        for size in UNITS[item.unit].values():
            assert abs(number * size - true) > 0.05 * true


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from([DTYPE, CHOICE, ORDER, KERNEL]),
    st.permutations(range(3)),
    st.permutations(range(3)),
    st.sampled_from(
        ["fp64", "huge", "x > y", "none", "the rest > matmul > softmax", "aten::add", "bf16", "smal"]
    ),
)
def test_messages_about_words_do_not_depend_on_the_truth(item, first, second, answer):
    words = {DTYPE: ("fp32", "fp16", "int64"), KERNEL: ("a", "b", "c")}.get(item) or item.choices
    truths = [
        Truth(tuple(words[n] for n in order) if item is ORDER else words[order[0]])
        for order in (first, second)
    ]
    verdicts = [verdict(item, answer, truth) for truth in truths]
    assume("right" not in [found.status for found in verdicts])
    assert verdicts[0] == verdicts[1]
    if item in (DTYPE, KERNEL):
        assert str(truths[0].value) not in verdicts[0].message.removeprefix(item.key).split()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.sampled_from(["4*B*S*d", "6*B*S", "B*log2(S)", "max(B, S)*d"]),
    st.sampled_from(["B", "2*B*S*d", "3*B*S", "S*d", "B*S*x", "4*", "B*log(S)", "min(B, S)"]),
)
def test_messages_about_formulas_do_not_hold_the_truth(truth, answer):
    message = verdict(FORMULA, answer, Truth(truth)).message
    squeezed = message.replace(" ", "")
    assert truth.replace(" ", "") not in squeezed
    assert not re.search(r"\d", message.replace("log2", ""))  # nor the factor


PART = Part("p.a", (), Prose(2, 3))


@pytest.mark.parametrize(
    ("prose", "num"),
    [
        ("One.", 1),
        ("One. Two! Three? Four.", 4),
        ("One", 1),
        ("One.\nTwo.", 2),
        ("One paragraph\n\nTwo paragraphs", 2),
        ("It takes 0.5 ms, i.e. half, e.g. for nn.Linear (cf. Fig. 3, approx. 2 vs. 3).", 1),
        ("Kernels, copies, etc. take 3.5 s. Dao et al. say so. It is slow etc. And wide.", 4),
        ("It grows ... slowly. Then it stops...", 2),
        ("We use `a. b. C` and $x = 1. Y$ and https://example.com/a.b?c. Then [see. This](http://x.y).", 3),
        ("We have\n\n$$ x = 1. Y. $$\n\nwhich is large.", 1),
        ("It is:\n\n- first\n- second\n\nand so on.", 2),
        ("1. It warms up.\n2. It runs.", 2),
        ("It says\n\n```python\na. B. C.\n```", 1),
        ("| A. | B. |\n|---|---|\n| C. | D. |", 0),
        ("![A. B.](c.svg)", 0),
        ("# A. B.\n---\n", 0),
        ('(One sentence.) **Two.** "Three."', 3),
        ("Really?! Yes.", 2),
        ("", 0),
        ("...", 0),
        ("- \n- \n", 0),
    ],
)
def test_sentences_are_counted_as_people_count_them(prose, num):
    found = check_prose(PART, prose)
    expected = "missing" if num == 0 else "right" if 2 <= num <= 3 else "wrong"
    assert found.status == expected
    if expected == "wrong":
        assert f" {num} " in found.message
        assert "2 to 3 sentences" in found.message


@pytest.mark.parametrize(
    "prose",
    [
        "TO" + "DO",
        "It is fast. TO" + "DO: say why.",
        "TBD.",
        "n/a",
        "None",
        "Your answer here. And here.",
        "?",
        " \n",
    ],
)
def test_a_placeholder_is_a_missing_text(prose):
    found = check_prose(PART, prose)
    assert found.status == "missing"
    assert "write 2 to 3 sentences" in found.message


def test_a_part_without_prose_asks_for_none_and_one_sentence_is_not_plural():
    assert check_prose(Part("p.a"), "").status == "right"
    assert check_prose(Part("p.a", (), Prose(1, 1)), "").message.endswith("write 1 sentence")
    assert check_prose(Part("p.a", (), Prose(2, 2)), "One. Two.").status == "right"
