"""Abilities and averages from the sets' scores, as the paper computes them.

The paper does not state the rules; these reproduce every printed cell of its ability table from its
table of sets, except the misprints marked in `published.csv`. FG is the mean of its three
sub-domains, not of its seven sets, and TXT the mean of three domains, not of its twelve sets.
"""

from collections.abc import Mapping

from data.uvrb.tasks import NAMES, TASKS

ABILITIES = ("TXT", "CMP", "VIS", "CG", "FG", "LC", "S", "T", "PR")
AVERAGES = ("AVG-A", "AVG-D")

_PARTS = {
    "FG": ("S", "T", "PR"),
    "TXT": ("CG", "FG", "LC"),
    "AVG-A": ("TXT", "CMP", "VIS", "CG", "FG", "LC"),
}
_LEAVES = {
    ability: [t.name for t in TASKS if t.ability == ability]
    for ability in ("CG", "S", "T", "PR", "LC", "CMP", "VIS")
}


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


def cells(scores: Mapping[str, float]) -> dict[str, float | None]:
    """All abilities and averages, of numbers or elementwise of arrays of resamples."""
    return abilities(scores) | averages(scores)


def _mean(values: list[float | None]) -> float | None:
    # `is`: the values may be arrays, which `in` would compare elementwise.
    return None if any(value is None for value in values) else sum(values) / len(values)
