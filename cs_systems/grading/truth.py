"""`find_truth`: what is true of one item, derived when it is asked.

Nothing true is stored. The modules `truth_*` hold one function an item: closed forms of the estimator, the
numbers of a problem, a snippet that is run, or the student's own records and profiles.
"""

from collections.abc import Mapping
from typing import Any

from cs_systems.grading import (
    truth_accounting,
    truth_attention,
    truth_dtypes,
    truth_leaderboard,
    truth_memory,
    truth_parallel,
    truth_peaks,
    truth_profile,
    truth_timing,
)
from cs_systems.grading.evidence import Evidence
from cs_systems.grading.items import Truth
from cs_systems.grading.truth_question import Finders, Question

_SUBJECTS = (
    truth_timing,
    truth_profile,
    truth_peaks,
    truth_dtypes,
    truth_memory,
    truth_attention,
    truth_accounting,
    truth_parallel,
    truth_leaderboard,
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
