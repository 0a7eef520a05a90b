"""Read what a profiler wrote, whichever it was."""

import pathlib

from cs_systems.tracing.attribute import cut_to_measured
from cs_systems.tracing.chrome import read_chrome
from cs_systems.tracing.nsys import read_nsys_report, read_sqlite
from cs_systems.tracing.trace import Trace

_READERS = {
    ".json": read_chrome,
    ".json.gz": read_chrome,
    ".sqlite": read_sqlite,
    ".nsys-rep": read_nsys_report,
}


def read_trace(path: str | pathlib.Path) -> Trace:
    """A Chrome trace of torch.profiler, or an export or a report of nsys, by the suffix of the file.

    Of a run with a range `measured`, only what lies in it.

    Raises:
        ValueError: in one line that names the file and what to do, when it cannot be read.
    """
    path = pathlib.Path(path)
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise ValueError(f"{path}: not a trace by its name; give a {', '.join(_READERS)} file")
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    return cut_to_measured(reader(path))
