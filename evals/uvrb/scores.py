"""Abilities and averages from the sets' scores, as the paper computes them.

The rules are not written in the paper; they reproduce every printed cell of its ability table from
its table of sets but the misprints marked in `published.csv`. FG is the mean of its three
sub-domains, not of its seven sets, and TXT the mean of three domains, not of its twelve sets.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from evals.uvrb.tasks import NAMES, TASKS

ABILITIES = ("TXT", "CMP", "VIS", "CG", "FG", "LC", "S", "T", "PR")
AVERAGES = ("AVG-A", "AVG-D")

_PARTS = {
    "FG": ("S", "T", "PR"),
    "TXT": ("CG", "FG", "LC"),
    "AVG-A": ("TXT", "CMP", "VIS", "CG", "FG", "LC"),
}
_LEAVES = {ability: [t.name for t in TASKS if t.ability == ability] for ability in
           ("CG", "S", "T", "PR", "LC", "CMP", "VIS")}  # fmt: skip


def abilities(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The nine abilities from scores by set; None where a set of the ability was not scored."""
    known: dict[str, float | None] = {
        ability: _mean([scores.get(name) for name in names]) for ability, names in _LEAVES.items()
    }
    for ability in ("FG", "TXT"):
        known[ability] = _mean([known[part] for part in _PARTS[ability]])
    return {ability: known[ability] for ability in ABILITIES}


def averages(scores: Mapping[str, float]) -> dict[str, float | None]:
    """AVG-A, the headline mean over abilities, and AVG-D, the mean over the sixteen sets."""
    known = abilities(scores)
    return {
        "AVG-A": _mean([known[part] for part in _PARTS["AVG-A"]]),
        "AVG-D": _mean([scores.get(name) for name in NAMES]),
    }


def published() -> list[dict]:
    """The paper's sixteen models: tables 1 and 2 joined, one dict a row.

    Keys: `model`, the set names, the abilities and averages (float), and `misprints`, the tuple of
    the cells that contradict the model's other cells.
    """
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "model": row.pop("model"),
            "misprints": tuple(row.pop("misprints").split()),
            **{name: float(value) for name, value in row.items()},
        }
        for row in rows
    ]


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
