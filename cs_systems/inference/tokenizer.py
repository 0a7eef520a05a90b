"""Text to tokens and back: bytes, or the vocabulary in a tokenizer.json. Nothing is downloaded."""

import importlib.util
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
    """What `engine.generate_text` needs."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        ...


class ByteTokenizer:
    """One token a byte of UTF-8: no vocabulary to load, and every text has exactly one encoding."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """The bytes of the text."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8, and ids that are no bytes, come out as U+FFFD."""
        return b"".join(bytes([token]) if 0 <= token < 256 else b"\xff" for token in tokens).decode(
            "utf-8", errors="replace"
        )


class FileTokenizer:
    """A tokenizer.json of the Hugging Face `tokenizers` library. Special tokens are not added.

    Raises:
        ValueError: when the file is missing or of another kind, or the library is not installed.
    """

    def __init__(self, path: pathlib.Path) -> None:
        text = _read(path)
        if importlib.util.find_spec("tokenizers") is None:
            raise ValueError(
                f"--tokenizer {path} needs the package tokenizers: pip install 'cs_systems[peers]', or leave "
                f"the file out to use bytes as tokens"
            )
        from tokenizers import Tokenizer as Library  # of the extra `peers`

        self._library: Any = Library.from_str(text)
        self.vocab_size = self._library.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._library.decode(list(tokens))


def load_tokenizer(path: str | pathlib.Path | None) -> Tokenizer:
    """The tokenizer in the file, or bytes when there is none; errors as in `FileTokenizer`."""
    return ByteTokenizer() if path is None else FileTokenizer(pathlib.Path(path))


def _read(path: pathlib.Path) -> str:
    """The text of the file, after a look at what it holds: the library's own errors name no file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
    except OSError as error:
        raise ValueError(
            f"--tokenizer {path} cannot be read ({error.strerror}); give the tokenizer.json of a model, or "
            f"leave it out to use bytes as tokens"
        ) from None
    except ValueError:
        raise ValueError(f"--tokenizer {path} is not JSON; give the tokenizer.json of a model") from None
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f'--tokenizer {path} is JSON without a "model"; give the tokenizer.json of a model')
    return text
