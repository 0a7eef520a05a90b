"""A view of records: which of a folder it shows, in which tables, and the command that measures them.

A view chooses the records of its experiment that were measured as it needs them (`plain`), and where it
compares something (`varies`) only cases that were measured both ways. What a measured block asks for replaces
the view's own choice of that setting.
"""

import dataclasses
import difflib
import json
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cs_systems.bench.measured import Measured, latest_of_each_case
from cs_systems.bench.record import BenchmarkRecord
from cs_systems.model.presets import ALIASES, PRESETS
from cs_systems.report.origins import load_of_records, origins_of_records, without_origin
from cs_systems.tables import Table

Where = Mapping[str, Any]
"""Settings that must match: one value, or a list of those allowed."""

_CLOCK = ("warmup_steps", "steps", "max_seconds")
_FLAG_OF_SETTING = {"passes": "pass"}


@dataclass(frozen=True)
class MissingMeasurement:
    """A table that no record fills, and how to measure it."""

    view: str
    command: str
    of: str = ""
    """What of the view is missing, such as `model xl`; empty for all of it."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        what = f"{self.view} ({self.of})" if self.of else self.view
        return f"{what} is not measured yet; run: {self.command}"


@dataclass(frozen=True)
class Figure:
    """A plot that was drawn."""

    path: pathlib.Path
    """The SVG; a PNG lies beside it."""
    title: str


@dataclass
class Shown:
    """What comes in the place of a measured block."""

    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    """Device, torch, commit and date of what is shown."""
    commands: list[str] = field(default_factory=list)
    """What was typed to measure it."""
    missing: list[MissingMeasurement] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What a reader has to know besides: what was not drawn, what a recording lacks."""
    problems: list[str] = field(default_factory=list)
    """What went wrong."""


Draw = Callable[[Sequence[BenchmarkRecord], pathlib.Path], tuple[list[pathlib.Path], list[str]]]


@dataclass(frozen=True)
class RecordView:
    """A view of the records of one experiment."""

    name: str
    title: str
    experiment: str
    settings: frozenset[str]
    """Names that a measured block may restrict."""
    program: str
    """What follows `python` in the command."""
    flags: Where
    """What to measure on a small machine."""
    file: str
    """File of the records within the folder."""
    tables: Callable[[Sequence[BenchmarkRecord]], list[Table]]
    draw: Draw | None = None
    plain: Where = field(default_factory=dict)
    """What the setting of a case must be, unless a block asks for something else."""
    varies: str | None = None
    """Setting in which cases must differ, so that there is something to compare."""
    warmest: bool = False
    """Of cases that differ in nothing but the clock, show the one with the most warm-up."""

    def command(self, folder: pathlib.Path, where: Where) -> str:
        """What to type to measure the view, or those cases of it that `where` asks for."""
        words = ["python", *self.program.split()]
        for name, values in {**self.flags, **where}.items():
            words += [f"--{flag_of(name)}", ",".join(_typed(value) for value in listed(values))]
        return shlex.join([*words, "--output", str(folder / self.file), "--resume"])

    def missing(self, measured: Measured, where: Where) -> list[MissingMeasurement]:
        """What of the view no record fills.

        Raises:
            ValueError: in one line, when `where` names what the experiment does not have.
        """
        return self._missing(self._choose(measured.records, where), measured.folder, where)

    def show(self, measured: Measured, where: Where, figures: pathlib.Path) -> Shown:
        """Tables and plots of the records, and what is missing; raises as `missing` does."""
        chosen = self._choose(measured.records, where)
        shown = Shown(missing=self._missing(chosen, measured.folder, where))
        if not chosen:
            return shown
        shown.tables = [without_origin(table, chosen) for table in self.tables(chosen)]
        if not shown.tables:
            shown.missing = self._missing([], measured.folder, where)
            return shown
        notes = [note for table in shown.tables for note in table.notes]
        shown.origins = origins_of_records(chosen)
        if not any("other programs" in note for note in notes):
            shown.origins += load_of_records(chosen)
        shown.commands = list(dict.fromkeys(record.provenance.command for record in chosen))
        if self.draw is not None:
            self._add_figures(shown, self.draw, chosen, figures)
        return shown

    def _missing(
        self, chosen: Sequence[BenchmarkRecord], folder: pathlib.Path, where: Where
    ) -> list[MissingMeasurement]:
        if not chosen:
            return [MissingMeasurement(self.name, self.command(folder, where))]
        missing = []
        for name, value in ((name, value) for name, values in where.items() for value in listed(values)):
            if not any(_matches(record, name, value) for record in chosen):
                needed = [listed(self.flags[name])[0], value] if name == self.varies else [value]
                command = self.command(folder, {**where, name: list(dict.fromkeys(needed))})
                missing.append(MissingMeasurement(self.name, command, f"{name} {_typed(value)}"))
        return missing

    def _choose(self, records: Sequence[BenchmarkRecord], where: Where) -> list[BenchmarkRecord]:
        check_settings(where, self.settings)
        if self.varies is not None and self.varies in where and len(listed(where[self.varies])) < 2:
            raise ValueError(f"{self.name} compares values of {self.varies}, so name two or more, or none")
        wanted = {**self.plain, **where}
        usual = {name: value for name, value in self.plain.items() if not isinstance(value, tuple)}
        chosen = latest_of_each_case(
            dataclasses.replace(record, case={**usual, **record.case})  # from before a setting existed
            for record in records
            if record.experiment == self.experiment
            and all(_matches(record, name, values, name in where) for name, values in wanted.items())
        )
        if self.warmest:
            groups = _grouped(chosen, _CLOCK)
            chosen = [max(group, key=_warmth) for group in groups]
        if self.varies is not None:
            groups = _grouped(chosen, (self.varies,))
            several = (group for group in groups if len({str(r.case.get(self.varies)) for r in group}) > 1)
            chosen = [record for group in several for record in group]
        return _in_order(chosen)

    def _add_figures(
        self, shown: Shown, draw: Draw, chosen: Sequence[BenchmarkRecord], figures: pathlib.Path
    ) -> None:
        try:
            figures.mkdir(parents=True, exist_ok=True)
            files, remarks = draw(chosen, figures)
        except (ValueError, OSError) as error:  # no matplotlib, or a full disk: the tables stand
            shown.problems.append(f"{self.name}: not drawn, {error}")
            return
        shown.figures += [Figure(file, self.title) for file in files if file.suffix == ".svg"]
        shown.remarks += remarks


def listed(values: Any) -> list[Any]:
    """One value as a list of one."""
    return list(values) if isinstance(values, list | tuple) else [values]


def flag_of(setting: str) -> str:
    """The flag of a setting, without the dashes in front."""
    return _FLAG_OF_SETTING.get(setting, setting.replace("_", "-"))


def _check_model(name: Any) -> None:
    """A label of one's own is fine; one that is nearly a preset is a typing error."""
    near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.7)
    if near and name not in (*PRESETS, *ALIASES) and "=" not in str(name):
        raise ValueError(f"there is no model {name!r}; did you mean {near[0]}?")


def check_settings(where: Where, known: frozenset[str]) -> None:
    """Raise a ValueError that names the nearest setting when `where` has one that is not known."""
    for name in where:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"{name!r} is no setting that can be chosen here; {hint}")
    for model in listed(where.get("model", [])):
        _check_model(model)


def _typed(value: Any) -> str:
    """A value as it is typed behind a flag."""
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("+", ",")  # passes are stored as forward+backward


def _matches(record: BenchmarkRecord, name: str, values: Any, required: bool = True) -> bool:
    """Whether the record has one of the values; one from before the setting existed has its default."""
    if name not in record.case:
        return not required
    own = {_typed(record.case[name])}
    if name == "device":
        own.add(record.provenance.device_type)
    return any(_typed(ALIASES.get(value, value)) in own for value in listed(values))


def _grouped(records: Sequence[BenchmarkRecord], apart: Sequence[str]) -> list[list[BenchmarkRecord]]:
    """Records of one device that agree in every setting but those in `apart`."""
    groups: dict[str, list[BenchmarkRecord]] = {}
    for record in records:
        rest = {name: value for name, value in record.case.items() if name not in apart}
        key = json.dumps([record.provenance.device, rest], sort_keys=True)
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def _warmth(record: BenchmarkRecord) -> tuple[bool, int, int, str]:
    case = record.case
    return (
        record.status == "ok",
        case.get("warmup_steps", 0),
        case.get("steps", 0),
        record.provenance.time_utc,
    )


def _in_order(records: Sequence[BenchmarkRecord]) -> list[BenchmarkRecord]:
    """Smaller models and shapes first; what is named comes in the order in which it was first measured."""
    named: dict[str, dict[str, int]] = {}
    for record in records:
        for name, value in record.case.items():
            if isinstance(value, str):
                known = named.setdefault(name, {})
                known.setdefault(value, len(known))

    def position(record: BenchmarkRecord) -> list[float]:
        sizes = [float(record.metrics.get("num_parameters") or 0)]
        last = ("implementation", *_CLOCK)
        names = sorted(record.case, key=lambda name: (name in last, list(record.case).index(name)))
        values = ((name, record.case[name]) for name in names)
        return sizes + [
            float(named[name][value] if isinstance(value, str) else value or 0)
            for name, value in values
            if value is None or isinstance(value, str | int | float)
        ]

    return sorted(records, key=position)
