"""`find_truth`: what is true of one item, derived when it is asked.

Nothing true is stored. The modules beside this one hold one function an item: closed forms of the estimator,
the numbers of a problem, a snippet that is run, or the student's own records and profiles.
"""

from collections.abc import Mapping
from typing import Any

from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import Truth
from cs_systems.grading.truths import (
    accounting,
    attention,
    dtypes,
    leaderboard,
    memory,
    parallel,
    peaks,
    profile,
    timing,
)
from cs_systems.grading.truths.question import Finders, Question

_SUBJECTS = (
    timing,
    profile,
    peaks,
    dtypes,
    memory,
    attention,
    accounting,
    parallel,
    leaderboard,
)
FINDERS: Finders = {name: finder for subject in _SUBJECTS for name, finder in subject.FINDERS.items()}
"""The function of every item by part and key."""


def find_truth(part_id: str, key: str, values: Mapping[str, Any], evidence: Evidence) -> Truth:
    """Derive what is true of one item.

    Args:
        part_id: problem and letter, benchmarking_script.b.
        key: the line of the block.
        values: the whole block: it says which model, context length ... the item is about.
        evidence: the records and profiles of the student.

    Raises:
        NotMeasuredError: when no record can tell; in one line with the command that measures it.
        KeyError: for an item that no problem has.
    """
    return FINDERS[f"{part_id} {key}"](Question(part_id, key, values, evidence))
