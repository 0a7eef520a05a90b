"""Is B faster than A? Two files of records, matched case by case, with the uncertainty of the answer.

Cases match when every setting agrees, so what differs is the code, the machine or the day. Each pass of each
case is one row: the ratio of the medians B / A with a 95 % bootstrap interval, the Mann-Whitney p (exact up
to 30 samples a side), and a verdict.

The verdict is "faster" or "slower" when the p value, adjusted for the number of rows, is below 0.05. The
adjustment is that of Benjamini and Hochberg (1995): of all rows so marked at most 5 % are expected to be
there by chance, however many rows the table has. Otherwise the verdict is "~": no difference was shown, which
is no proof that there is none. Under five samples a side no verdict is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cs_systems.bench.record import BenchmarkRecord
from cs_systems.report import cases
from cs_systems.report.observations import FEW_SAMPLES, OTHER_LOAD_CORES
from cs_systems.tables import Column, Table, format_number
from cs_systems.timing.stats import Samples, mann_whitney_p, median_ratio_interval

FALSE_SHARE = 0.05
"""Share of the rows marked faster or slower that may be there by chance."""


@dataclass(frozen=True)
class Comparison:
    """The table, and whether any case was found in both files."""

    table: Table
    num_compared: int
    verdicts: dict[str, int]
    """How often each verdict was given."""


def compare_records(a: Sequence[BenchmarkRecord], b: Sequence[BenchmarkRecord]) -> Comparison:
    """Compare the last measurement of each case in `b` with that in `a`."""
    sides = {"A": a, "B": b}
    notes, latest, found = [], {}, {}
    for side, records in sides.items():
        sides[side], remarks = cases.of_training_step(records)
        latest[side], again = cases.last_ok(sides[side])
        found[side] = {record.key: record for record in sides[side]} | latest[side]
        notes += [f"{side}: {text}" for text in (*remarks, *again)]
    both = found["A"] | found["B"]
    names = dict(zip(both, cases.labels(list(both.values()), machine=False), strict=True))
    pairs = {key: (old, latest["B"][key]) for key, old in latest["A"].items() if key in latest["B"]}
    rows = [row for key, (old, new) in pairs.items() for row in _compare_case(names[key], old, new)]
    _add_verdicts(rows)
    if rows:
        olds, news = zip(*pairs.values(), strict=True)
        rule = f"p below {FALSE_SHARE}, adjusted for {len(rows)} rows (Mann-Whitney, Benjamini-Hochberg)"
        origin = [f"A: {cases.machine(olds)}", f"B: {cases.machine(news)}"]
        notes = [f"faster, slower: {rule}", *origin, *_cautions(olds, news), *notes]
    notes += _not_compared({names[key]: key for key in both if key not in pairs}, found)
    columns = [
        Column("case", "Case", align="left"),
        Column("pass", "Pass", align="left"),
        Column("num_a", "n A"),
        Column("num_b", "n B"),
        Column("median_a_s", "Median A", unit="s"),
        Column("median_b_s", "Median B", unit="s"),
        Column("ratio", "B / A", format="{:.3f}".format),
        Column("ratio_low", "from", format="{:.3f}".format),
        Column("ratio_high", "to", format="{:.3f}".format),
        Column("p", "p", format=lambda p: format_number(p, 2)),
        Column("adjusted_p", "adjusted p", raw_only=True),
        Column("verdict", "B is", align="left"),
    ]
    table = Table("Ratio of medians, with 95 % interval", columns, rows, notes)
    verdicts = [row["verdict"] for row in rows]
    return Comparison(table, len(pairs), {name: verdicts.count(name) for name in dict.fromkeys(verdicts)})


def _compare_case(name: str, old: BenchmarkRecord, new: BenchmarkRecord) -> list[dict]:
    rows = []
    for step in cases.passes_of(old):
        if step not in old.samples_s or step not in new.samples_s:
            continue
        a, b = Samples.from_values(old.samples_s[step]), Samples.from_values(new.samples_s[step])
        row = {"case": name, "pass": step, "num_a": a.num, "num_b": b.num}
        row |= {"median_a_s": a.median, "median_b_s": b.median}
        if a.min > 0:
            low, high = median_ratio_interval(a.values, b.values)
            row |= {"ratio": b.median / a.median, "ratio_low": low, "ratio_high": high}
        if min(a.num, b.num) >= FEW_SAMPLES:
            row["p"] = mann_whitney_p(a.values, b.values)
        rows.append(row)
    return rows


def _add_verdicts(rows: list[dict]) -> None:
    tested = [row for row in rows if "p" in row]
    for row, adjusted in zip(tested, adjust_p([row["p"] for row in tested]), strict=True):
        row["adjusted_p"] = adjusted
    for row in rows:
        if "p" not in row:
            row["verdict"] = "too few samples"
        elif row["adjusted_p"] >= FALSE_SHARE or row["median_a_s"] == row["median_b_s"]:
            row["verdict"] = "~"
        else:
            row["verdict"] = "faster" if row["median_b_s"] < row["median_a_s"] else "slower"


def adjust_p(values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg: reject all rows whose adjusted p is below q, and at most a share q is false.

    The k-th smallest of m values becomes the smallest of p_j * m / j over all j >= k, at most 1.
    """
    adjusted = [1.0] * len(values)
    lowest = 1.0
    for rank, index in sorted(enumerate(sorted(range(len(values)), key=values.__getitem__), 1), reverse=True):
        lowest = min(lowest, values[index] * len(values) / rank)
        adjusted[index] = lowest
    return adjusted


def _cautions(olds: Sequence[BenchmarkRecord], news: Sequence[BenchmarkRecord]) -> list[str]:
    """What besides the code may explain a difference."""
    cautions = []
    for name, what in {
        "device": "devices",
        "threads": "numbers of threads",
        "torch": "torch versions",
    }.items():
        values = [{cases.settings(record)[name] for record in side} for side in (olds, news)]
        if values[0] != values[1]:
            cautions.append(f"A and B ran with different {what}")
    loads = [record.metrics.get("other_load_cores") or 0.0 for record in (*olds, *news)]
    if max(loads) > OTHER_LOAD_CORES:
        cautions.append(
            f"other programs kept up to {max(loads):.2f} cores busy: measure again when it is quiet"
        )
    if all(record.provenance.device_type == "cpu" for record in (*olds, *news)):
        cautions.append(
            "two runs of the same code on a CPU can differ by more than their spread: repeat A and B in turn"
        )
    return cautions


def _not_compared(keys: dict[str, str], found: dict[str, dict[str, BenchmarkRecord]]) -> list[str]:
    """A sentence for each reason why cases, given by name, have no row."""
    reasons: dict[str, list[str]] = {}
    for name, key in keys.items():
        states = (f"{of[key].status if key in of else 'missing'} in {side}" for side, of in found.items())
        reasons.setdefault(", ".join(states), []).append(name)
    return [f"not compared ({states}): {'; '.join(names)}" for states, names in reasons.items()]
