"""Published UVRB scores, whether they are comparable with a run, and correlations of abilities.

`published.csv` contains tables 1 and 2 of the paper (arXiv 2510.27571), the sixteen models with all
cells as printed; `misprints` names the cells that contradict the model's own other cells. The
abilities of a row with another `source` are computed here from that later paper's table of sets,
since that paper computes them by other rules.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.uvrb.tasks import NAMES, TASKS
from evals.uvrb.scores import ABILITIES, AVERAGES, cells
from evals.uvrb.statistics import pearson, spearman

PAPER = "2510.27571"
CELLS = ABILITIES + AVERAGES
CLIP_GROUP = (
    "CLIP4Clip",
    "ViCLIP",
    "VideoCLIP-XL",
    "LanguageBind",
    "InternVideo2-1B",
    "InternVideo2-6B",
)

# The correlations in the paper's text (4.3), the models that they cover, and the statistic of the
# CSV's rows that gives the number to two digits, None if no statistic does. "recomputed": from
# abilities recomputed without their misprints.
QUOTED = (
    ("MSRVTT", "AVG-A", "all", 0.58, None),  # .08; .59 over the CLIP group
    ("PR", "AVG-A", "all", 0.97, "pearson recomputed"),
    ("S", "T", "all", 0.12, None),  # .61
    ("T", "FG", "all", 0.98, None),  # .74; .98 is Spearman's over the MLLM group
    ("S", "FG", "all", 0.39, None),  # .97
    ("VIS", "AVG-A", "MLLM", 0.26, None),  # .29
    ("S", "CG", "CLIP", 0.99, "spearman printed"),
    ("T", "CG", "CLIP", 0.46, "spearman printed"),
    ("CMP", "VIS", "CLIP", -0.71, "spearman printed"),
    ("T", "LC", "CLIP", -0.14, "spearman printed"),
    ("PR", "CG", "CLIP", 0.70, "spearman printed"),
    ("PR", "CG", "MLLM", 0.98, None),  # Pearson .82, Spearman .93
    ("LC", "T", "MLLM", 0.64, None),  # Pearson .70, Spearman .66
)


def published(later: bool = False) -> list[dict]:
    """The paper's sixteen models, a dict for each row; with `later` also those of other papers.

    Keys: `model`, `source` (arXiv number), the set names, the abilities and averages (float, as
    printed), and `misprints`, the tuple of the cells that contradict the model's other cells.
    """
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if later or row["source"] == PAPER]
    found = []
    for row in rows:
        text = {key: row.pop(key) for key in ("model", "source")}
        misprints = tuple(row.pop("misprints").split())
        numbers = {name: float(value) for name, value in row.items() if value}
        found.append({**recomputed(numbers), **text, "misprints": misprints, **numbers})
    return found


def recomputed(row: Mapping) -> dict[str, float]:
    """The abilities and averages that follow from a row's sixteen sets."""
    return cells({name: row[name] for name in NAMES})


def corrected(row: Mapping) -> dict:
    """A row with its misprinted cells recomputed."""
    return {**row, **{cell: recomputed(row)[cell] for cell in row["misprints"]}}


def group(rows: Sequence[Mapping], name: str) -> list[Mapping]:
    """All rows, those of the "CLIP" group, or the others: the "MLLM" group."""
    if name == "all":
        return list(rows)
    return [row for row in rows if (row["model"] in CLIP_GROUP) == (name == "CLIP")]


def correlations(
    rows: Sequence[Mapping], statistic: Callable = pearson, names: Sequence[str] = CELLS
) -> np.ndarray:
    """float64 [N, N], the correlation over models of each pair of `names` (abilities or sets)."""
    columns = [[row[name] for row in rows] for name in names]
    return np.array([[statistic(a, b) for b in columns] for a in columns])


STATISTICS = {"pearson": pearson, "spearman": spearman}


def differing_sets(datasets: Mapping[str, Mapping]) -> dict[str, str]:
    """The sets that differ from the paper's table: {set: what it has}.

    A set with unreadable items differs too: with fewer documents it is easier. The corpora of MS-TI
    and MS-TV, which the paper prints as 10 and which may be pools, are not compared.
    """
    found = {}
    for task in TASKS:
        if task.name not in datasets:
            continue
        record = datasets[task.name]
        same_corpus = task.corpus == 10 or record["corpus"] == task.corpus
        lost = record.get("quarantined", {})
        if record["queries"] != task.queries or not same_corpus:
            found[task.name] = (
                f"{record['queries']:,} queries and {record['corpus']:,} documents, "
                f"the released set has {task.queries:,} and {task.corpus:,}"
            )
        elif lost.get("queries") or lost.get("documents"):
            found[task.name] = (
                f"{lost['queries']:,} queries and {lost['documents']:,} documents that could not "
                "be read"
            )
    return found


def comparison(datasets: Mapping[str, Mapping]) -> dict:
    """The part of `results.json` on the paper's models: sets that are comparable with theirs.

    `models` are the two with the best AVG-A in the paper, `best` the best of the sixteen on each
    set; both are empty if no set has the released size.
    """
    differ = differing_sets(datasets)
    same = [name for name in datasets if name in NAMES and name not in differ]
    rows = [corrected(row) for row in published()]
    first = sorted(rows, key=lambda row: -row["AVG-A"])[:2]
    best = {name: max(rows, key=lambda row: row[name]) for name in same}
    return {
        "source": f"arXiv {PAPER}",
        "comparable": same,
        "differing": differ,
        "models": {row["model"]: {name: row[name] for name in same} for row in first if same},
        "best": {name: {"model": row["model"], "score": row[name]} for name, row in best.items()},
    }
