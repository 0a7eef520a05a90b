"""What a student measured: every record of one folder, and the profiles in it.

Nothing is read before it is asked for, and nothing is fatal: a line, a file or a profile that cannot be read
becomes one sentence among the problems, and the rest is used.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cs_systems.bench.measured import Measured, Recording, read_measured
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.grading.items import NotMeasuredError
from cs_systems.tracing.attention_table import attention_table
from cs_systems.tracing.kernel_tables import top_kernel_per_forward
from cs_systems.tracing.memory_table import peak_table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import class_by_phase, combined_table
from cs_systems.tracing.trace import Trace

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class ProfiledRun(Recording):
    """A trace that was not opened yet, and what was run. Each table of it is made once, when asked for."""

    @functools.cached_property
    def trace(self) -> Trace:
        """The trace, read once.

        Raises:
            NotMeasuredError: in one line, when the file cannot be read.
        """
        try:
            return read_trace(self.path)
        except (ValueError, OSError) as error:
            raise NotMeasuredError(f"{error}; record it again with python profiling/run.py") from None

    @functools.cached_property
    def classes(self) -> Rows:
        """Rows of the table of work by class and phase."""
        return class_by_phase(self.trace).rows

    @functools.cached_property
    def top_kernels(self) -> Rows:
        """Rows of the table of the costliest kernel of each phase."""
        return top_kernel_per_forward(self.trace).rows

    @functools.cached_property
    def attention(self) -> Rows:
        """Rows of the table of attention in parts."""
        return attention_table(self.trace, self.facts).rows

    @functools.cached_property
    def forward(self) -> Rows:
        """The row that sets forward by the profiler beside the timer."""
        return combined_table([(self.trace, self.facts)]).rows

    @functools.cached_property
    def peaks(self) -> Rows:
        """The row of peaks by phase; none where no allocations were recorded."""
        return peak_table([(self.trace, self.facts)]).rows


@dataclass(frozen=True, eq=False)
class Evidence:
    """The records (`*.jsonl`) of a folder and the profiles in its `profile` folder."""

    folder: pathlib.Path

    @property
    def records(self) -> list[BenchmarkRecord]:
        """All records of the folder, oldest first."""
        return self._measured.records

    @functools.cached_property
    def runs(self) -> list[ProfiledRun]:
        """All profiles whose facts are known, oldest first."""
        return [ProfiledRun(each.path, each.facts) for each in self._measured.recordings]

    @property
    def problems(self) -> list[str]:
        """One sentence for each thing that could not be used, and one where there is nothing at all."""
        return self._measured.problems

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a record nor a profile."""
        return not self.records and not self.runs

    @functools.cached_property
    def _measured(self) -> Measured:
        return read_measured(self.folder)
