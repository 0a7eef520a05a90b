"""Bytes of real text to train on: a file, a folder, or the sources of Python's own standard library."""

import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

MAX_BYTES = 4 * 2**20
"""Bytes taken at most."""

HELD_OUT_FRACTION = 0.1
"""Share at the end of the text that is never trained on."""

STDLIB = "stdlib"

_PASSED_OVER = ("site-packages", "dist-packages", "node_modules", "__pycache__")
_BYTES_LOOKED_AT = 8000


@dataclass(frozen=True)
class Text:
    """What was read, split into a part to train on and a tail to evaluate on."""

    train: UInt8[Tensor, " train_bytes"]
    held_out: UInt8[Tensor, " held_out_bytes"]
    num_files: int
    sha256: str
    """Of all bytes: another version of Python has another standard library."""

    @property
    def num_bytes(self) -> int:
        """Length of both parts together."""
        return len(self.train) + len(self.held_out)


def read_text(source: str, context_length: int, max_bytes: int = MAX_BYTES) -> Text:
    """Read a file, the text files of a folder joined, or with `stdlib` the sources of Python's library.

    Files come in the order of a hash of their paths: always the same, and the held-out tail is like the rest,
    which the end of the alphabet is not. Files with a zero byte near their beginning count as binary and are
    passed over, as are hidden files and folders of installed packages.

    Raises:
        ValueError: when nothing can be read, or too little for windows of `context_length` bytes.
    """
    pieces, missing = [], max_bytes
    for path in _paths(source):
        piece = _read_start(path, missing)
        if piece:
            pieces.append(piece)
            missing -= len(piece)
        if not missing:
            break
    if not pieces:
        what = "is empty or binary" if pathlib.Path(source).is_file() else "holds no text file"
        raise ValueError(
            f"--text {source} {what}; name a file or folder of plain text, or use --text {STDLIB}"
        )
    data = b"".join(pieces)
    num_held_out = round(HELD_OUT_FRACTION * len(data))
    if num_held_out <= context_length:
        least = int((context_length + 1) / HELD_OUT_FRACTION) + 10
        raise ValueError(
            f"--text {source} has {len(data):,} bytes, too few: a tenth is held out and must be longer than "
            f"--context-length {context_length}; give it {least:,} bytes or more"
        )
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    split = len(values) - num_held_out
    return Text(values[:split], values[split:], len(pieces), hashlib.sha256(data).hexdigest())


def sample_windows(
    data: UInt8[Tensor, " bytes"], num_windows: int, length: int, generator: torch.Generator
) -> Int64[Tensor, "num_windows length"]:
    """Windows of consecutive bytes that start anywhere with equal chance, as token ids."""
    # BEGIN SOLUTION data_loading
    starts = torch.randint(len(data) - length + 1, (num_windows,), generator=generator)
    return data[starts[:, None] + torch.arange(length)].long()
    # END SOLUTION


def spread_windows(
    data: UInt8[Tensor, " bytes"], num_windows: int, length: int
) -> Int64[Tensor, "num_windows length"]:
    """Windows at equal distances from the first byte to the last: the same ones in every evaluation."""
    # BEGIN SOLUTION data_loading
    starts = torch.linspace(0, len(data) - length, num_windows, dtype=torch.float64).long()
    return data[starts[:, None] + torch.arange(length)].long()
    # END SOLUTION


def _paths(source: str) -> list[pathlib.Path]:
    if source == STDLIB:
        return _mixed(pathlib.Path(sysconfig.get_paths()["stdlib"]), ".py")
    path = pathlib.Path(source)
    if not path.exists():
        raise ValueError(f"--text {source}: no such file or folder; --text {STDLIB} is always there")
    return _mixed(path, "") if path.is_dir() else [path]


def _mixed(root: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """All files below `root` whose names end in `suffix`, in the order of a hash of their paths below it."""

    def place(path: pathlib.Path) -> str:
        return hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest()

    return sorted((path for path in _walk(root) if path.name.endswith(suffix)), key=place)


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"--text: cannot read folder {folder} ({error.strerror})") from None
    for path in entries:
        if path.name.startswith(".") or path.name in _PASSED_OVER:
            continue
        if path.is_dir() and not path.is_symlink():  # a link may lead back up
            yield from _walk(path)
        elif path.is_file():
            yield path


def _read_start(path: pathlib.Path, num_bytes: int) -> bytes:
    """The first `num_bytes` of a file; nothing when it is binary."""
    try:
        with path.open("rb") as file:
            start = file.read(min(_BYTES_LOOKED_AT, num_bytes))
            return b"" if b"\0" in start else start + file.read(num_bytes - len(start))
    except OSError as error:
        raise ValueError(f"--text: cannot read {path} ({error.strerror})") from None
