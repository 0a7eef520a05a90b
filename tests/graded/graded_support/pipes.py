"""Pipes from the process under test: what it prints, and the journal of its tests."""

import json
import os
import secrets
import select
from collections.abc import Iterator
from typing import Any


class Pipe:
    """Both ends of a pipe; the writing one is passed on and closed here."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.mark = secrets.token_hex(8)
        """How a line of a journal begins: code that writes into every file it finds cannot know it."""
        self.is_closed = False
        """Whether nobody can write into it any more."""
        self._line = b""

    def __enter__(self) -> "Pipe":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.read_end)
        self.close_write_end()

    def close_write_end(self) -> None:
        """Leave the writing end to the process that was started."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def read(self) -> bytes:
        """What is there, up to 64 KiB."""
        data = os.read(self.read_end, 65536)
        self.is_closed = not data
        return data

    def events(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The JSON of the lines that are complete now and begin with the mark; others are somebody else's."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.startswith(self.mark.encode()):
                yield json.loads(line[len(self.mark) :])


def ready(pipes: list[Pipe], wait_s: float) -> list[Pipe]:
    """Pipes that have something to read; closed ones are not asked, and with none left it just waits."""
    is_open = [pipe for pipe in pipes if not pipe.is_closed]
    ready = select.select([pipe.read_end for pipe in is_open], [], [], wait_s)[0]
    return [pipe for pipe in is_open if pipe.read_end in ready]
