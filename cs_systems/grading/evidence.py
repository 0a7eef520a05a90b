"""What a student measured: every record of one folder, and the profiles in it.

Nothing is read before it is asked for, and nothing is fatal: a line, a file or a profile that cannot be read
becomes one sentence among the problems, and the rest is used.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cs_systems.bench.record import BenchmarkRecord, read_records
from cs_systems.grading.items import NotMeasuredError
from cs_systems.tracing.attention_table import attention_table
from cs_systems.tracing.kernel_tables import top_kernel_per_forward
from cs_systems.tracing.memory_table import peak_table
from cs_systems.tracing.read import read_trace
from cs_systems.tracing.tables import class_by_phase, combined_table
from cs_systems.tracing.trace import RunFacts, Trace, read_facts

MEASURE_COMMAND = "make measure"
"""What fills an empty folder."""
PROFILES = "profile"
"""The folder of the traces within that of the records."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class ProfiledRun:
    """A trace that was not opened yet, and what was run. Each table of it is made once, when asked for."""

    path: pathlib.Path
    facts: RunFacts

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
    device: str | None = None
    """Use only what was measured on the processor of this name; None uses everything."""

    @property
    def records(self) -> list[BenchmarkRecord]:
        """All records of the folder, oldest first."""
        return self._records_and_problems[0]

    @property
    def runs(self) -> list[ProfiledRun]:
        """All profiles whose facts are known, oldest first."""
        return self._runs_and_problems[0]

    @property
    def problems(self) -> list[str]:
        """One sentence for each thing that could not be used, and one where there is nothing at all."""
        found = [*self._records_and_problems[1], *self._runs_and_problems[1]]
        if self.is_empty:
            found.append(self.nothing_measured())
        return found

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a record nor a profile."""
        return not self.records and not self.runs

    def nothing_measured(self) -> str:
        """What to say when the folder is empty."""
        where = f"{self.folder} holds no records"
        if self.device is not None:
            where += f" of {self.device}"
        return f"{where}: your own numbers cannot be checked; type {MEASURE_COMMAND}"

    @functools.cached_property
    def _records_and_problems(self) -> tuple[list[BenchmarkRecord], list[str]]:
        records, problems = [], []
        for path in sorted(self.folder.glob("*.jsonl")):
            try:
                found, remarks = read_records(path)
            except ValueError as error:
                found, remarks = [], [str(error)]
            records += found
            problems += remarks
        chosen = [record for record in records if self.device in (None, record.provenance.device)]
        return sorted(chosen, key=lambda record: str(record.provenance.time_utc)), problems

    @functools.cached_property
    def _runs_and_problems(self) -> tuple[list[ProfiledRun], list[str]]:
        runs, problems = [], []
        for path in sorted((self.folder / PROFILES).glob("*.json.gz")):
            try:
                facts = read_facts(path)
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            if facts is None:
                problems.append(f"{path} is not used: no .run.json beside it says what was run")
            elif self.device in (None, facts.device):
                runs.append(ProfiledRun(path, facts))
        return sorted(runs, key=lambda run: run.facts.time_utc), problems
