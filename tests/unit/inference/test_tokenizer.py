"""Bytes, tokenizer files, and files that are none."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.inference.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, load_tokenizer


@settings(derandomize=True, deadline=None, max_examples=60)
@given(text=st.text(max_size=20))
def test_bytes_come_back_as_the_text(text):
    tokens = ByteTokenizer().encode(text)
    assert bytes(tokens) == text.encode()
    assert ByteTokenizer().decode(tokens) == text


def test_what_is_no_text_is_marked():
    assert ByteTokenizer().decode([72, 0xC3]) == "H\ufffd"
    assert ByteTokenizer().decode([72, 300, -1, 73]) == "H\ufffd\ufffdI"


def test_bytes_are_the_default():
    tokenizer = load_tokenizer(None)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == 256


def test_a_file_is_read_as_its_library_wrote_it(tmp_path):
    tokenizers = pytest.importorskip(
        "tokenizers", reason="needs the library: pip install 'cs_systems[peers]'"
    )
    vocab = {"[UNK]": 0, "hello": 1, "world": 2, "[CLS]": 3}
    written = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    written.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    written.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A", special_tokens=[("[CLS]", 3)]
    )
    written.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("world hello there") == [2, 1, 0]  # no [CLS]: a prompt is what the user wrote
    assert tokenizer.decode([2, 1]) == "world hello"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, r"cannot be read \(No such file or directory\); give the tokenizer.json of a model, or leave"),
        ("not json", "is not JSON; give the tokenizer.json of a model$"),
        (b"\xff\xfe", "is not JSON"),
        ("[1, 2]", 'is JSON without a "model"; give the tokenizer.json of a model$'),
        (json.dumps({"vocab": {}}), 'is JSON without a "model"'),
    ],
)
def test_another_file_is_refused_in_one_line(contents, message, tmp_path):
    path = tmp_path / "x.json"
    if contents is not None:
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(ValueError, match=message) as caught:
        FileTokenizer(path)
    assert str(caught.value).startswith(f"--tokenizer {path} ")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_message_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {}}))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package tokenizers: pip install 'cs_systems\[peers\]'"):
        FileTokenizer(path)
