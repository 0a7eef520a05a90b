"""Where results go: the file that --output names, and the streams of a caller who may have closed them."""

import os
import pathlib
from typing import IO, Any


class Output:
    """The file of the results, which is replaced in one step: a reader never sees half of it."""

    def __init__(self, path: pathlib.Path) -> None:
        """Links are followed, so that a link stays one.

        Raises:
            ValueError: in one line, when this is no file and no name for one.
        """
        try:
            self.path = path.resolve()
            if path.exists() and not path.is_file():
                raise ValueError("it is a folder, a device or a pipe; name a file, or leave --output out")
            if not self.path.parent.is_dir():
                raise ValueError("name a file in a folder that exists")
        except (OSError, RuntimeError) as error:  # no right to look there, or links that go in circles
            raise ValueError(f"{getattr(error, 'strerror', None) or error}") from None
        self.trouble = ""
        """Why the newest text is not in the file; empty while it is."""

    def write(self, text: str) -> None:
        """Put this into the file; what hinders stands in `trouble`, and the file keeps its older text."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            try:
                beside.write_text(text, encoding="utf-8")
                beside.replace(self.path)
                self.trouble = ""
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            self.trouble = error.strerror or str(error)


def open_standard_files() -> None:
    """Open the null device for standard files that are closed: else a pipe gets the number of one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # a new file gets the lowest number that is free: this one


def say(stream: IO[Any] | None, text: str) -> bool:
    """Print at once; False where nobody can read it: the stream was closed, or its disk is full."""
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # Python would try again at its end what is still in the buffer, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True
