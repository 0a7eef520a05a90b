"""A view of recorded steps: one trace, or all of them side by side."""

import pathlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cs_systems.bench.measured import PROFILES, Measured, Recording
from cs_systems.report.origins import origin
from cs_systems.report.record_view import MissingMeasurement, Shown, Where, check_settings, flag_of, listed
from cs_systems.tables import Table
from cs_systems.tracing.trace import RunFacts

_ALIASES = {"context_length": "seq_len"}
"""What benchmark.py calls it, and the facts of a run."""
_SETTINGS = frozenset(
    {"trace", *_ALIASES, "model", "seq_len", "batch_size", "mode", "precision", "attention"}
    | {"checkpoint_blocks"}
)
_FLAGS: Where = {"model": "small", "context_length": (128, 256)}
"""What to record on a small machine."""
_NAME = re.compile(r"(?P<model>.+)-(?P<context_length>\d+)")
"""The name that profiling/run.py gives a case with nothing unusual."""


@dataclass(frozen=True)
class TraceView:
    """A view of the traces in the folder `profile` beside the records."""

    name: str
    title: str
    tables: Callable[[Sequence[Recording]], list[Table]]
    flags: Where = field(default_factory=dict)
    """What to record besides, or instead."""
    plain: Where = field(default_factory=dict)
    """What a setting must be, unless a block asks for something else."""
    varies: str | None = None
    """Setting of which two values must have been recorded, so that there is something to compare."""
    memory: bool = False
    """Whether the allocations must have been recorded, too; otherwise recordings without are preferred."""
    side_by_side: bool = False
    """Show all traces that match, rather than the newest."""

    def command(self, folder: pathlib.Path, where: Where) -> str:
        """What to type to record what `where` asks for."""
        wanted = {**_FLAGS, **self.flags, **where}
        if "seq_len" in wanted:
            wanted["context_length"] = wanted.pop("seq_len")
        names = listed(wanted.pop("trace", []))
        name = names[0] if len(names) == 1 else None  # several names are of several commands
        if name and (found := _NAME.fullmatch(str(name))):
            name, wanted = None, wanted | found.groupdict()
        elif name:
            wanted["context_length"] = listed(wanted["context_length"])[0]  # a name is for one case
        words = ["python", "profiling/run.py"]
        for setting, values in wanted.items():
            words += [f"--{flag_of(setting)}", ",".join(map(str, listed(values)))]
        words += ["--steps", "2", *(["--memory"] if self.memory else [])]
        words += ["--name", str(name)] if name else []
        return shlex.join([*words, "--output-dir", str(folder / PROFILES)])

    def missing(self, measured: Measured, where: Where) -> list[MissingMeasurement]:
        """The view itself, when no trace fills it.

        Raises:
            ValueError: in one line, when `where` names what a recorded run does not have.
        """
        return self._fill(measured, where)[0].missing

    def show(self, measured: Measured, where: Where, figures: pathlib.Path) -> Shown:
        """The tables of the newest trace that matches, or of all; raises as `missing` does."""
        shown, chosen = self._fill(measured, where)
        if shown.tables:
            for recording in chosen:
                problems = recording.trace.meta.get("problems", ())
                shown.remarks += [f"{recording.path.name}: {problem}" for problem in problems]
            shown.origins = list(dict.fromkeys(_origin(recording.facts) for recording in chosen))
            shown.commands = list(dict.fromkeys(recording.facts.command for recording in chosen))
        return shown

    def _fill(self, measured: Measured, where: Where) -> tuple[Shown, list[Recording]]:
        """The tables, or what is missing, and the recordings that they are of."""
        check_settings(where, _SETTINGS)
        found = [each for each in measured.recordings if self._suits(each, {**self.plain, **where})]
        chosen = [each for each in found if self.memory or not each.has_memory] or found
        chosen = _newest_of_each(chosen) if self.side_by_side else chosen[-1:]
        if self.varies and len({getattr(each.facts, self.varies) for each in chosen}) < 2:
            chosen = []
        shown = Shown()
        try:
            shown.tables = [table for table in self.tables(chosen) if table.rows] if chosen else []
        except (ValueError, OSError) as error:
            shown.problems.append(f"{self.name}: {error}")
        if not shown.tables:
            shown.missing.append(MissingMeasurement(self.name, self.command(measured.folder, where)))
        elif self.side_by_side:  # all that is named should be there; otherwise one that matches is enough
            for name, value in ((name, value) for name, values in where.items() for value in listed(values)):
                if not any(self._suits(each, {name: value}) for each in chosen):
                    command = self.command(measured.folder, {**where, name: value})
                    shown.missing.append(MissingMeasurement(self.name, command, f"{name} {value}"))
        return shown, chosen

    def _suits(self, recording: Recording, where: Where) -> bool:
        wanted = {_ALIASES.get(name, name): {str(value) for value in listed(values)}
                  for name, values in where.items()}  # fmt: skip
        if recording.name not in wanted.pop("trace", {recording.name}):
            return False
        if self.memory and not recording.has_memory:
            return False
        return all(str(getattr(recording.facts, name)) in values for name, values in wanted.items())


def _newest_of_each(recordings: Sequence[Recording]) -> list[Recording]:
    """Of the recordings of one case the newest."""
    names = sorted({_ALIASES.get(name, name) for name in _SETTINGS} - {"trace"})
    return list({tuple(getattr(each.facts, name) for name in names): each for each in recordings}.values())


def _origin(facts: RunFacts) -> str:
    threads = facts.threads or None
    parts = [f"{facts.model}, {facts.seq_len} tokens, batch {facts.batch_size}, {facts.mode}"]
    parts += [facts.precision, f"{facts.attention} attention"]
    if facts.checkpoint_blocks:
        parts.append(f"{facts.checkpoint_blocks} blocks a checkpoint")
    where = origin(facts.device, threads, facts.torch, facts.commit or "unknown")
    return f"{', '.join(parts)}; {where}, {facts.time_utc[:10]}"
