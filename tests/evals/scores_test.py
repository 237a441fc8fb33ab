"""The paper's ability table, recomputed from its table of sets."""

import pytest

from evals.uvrb.scores import ABILITIES, AVERAGES, abilities, averages, published
from evals.uvrb.tasks import NAMES, TASKS, choose
from gve_jax.errors import UserError
from gve_jax.retrieval.metrics import chance

MISPRINTS = {"GME-2B": {"AVG-A"}, "VLM2Vec-V2": {"CG", "TXT", "AVG-A", "AVG-D"}}


def recomputed(row):
    scores = {name: row[name] for name in NAMES}
    return abilities(scores) | averages(scores)


@pytest.mark.parametrize("row", published(), ids=lambda row: row["model"])
def test_every_consistent_cell_is_reproduced(row):
    wrong = {
        cell for cell, value in recomputed(row).items() if abs(value - row[cell]) > 0.0011
    }  # both the cells and their parts are rounded to three digits
    assert wrong == MISPRINTS.get(row["model"], set()) == set(row["misprints"])


def test_published_table_is_whole():
    rows = published()
    assert len(rows) == 16
    assert all(set(NAMES + ABILITIES + AVERAGES) <= set(row) for row in rows)
    best = max(rows, key=lambda row: row["AVG-A"])
    assert (best["model"], best["AVG-A"], best["AVG-D"]) == ("GVE-7B", 0.600, 0.573)


def test_missing_set_leaves_its_abilities_open():
    scores = {name: 0.5 for name in NAMES if name != "CMRB"}
    known = abilities(scores)
    assert {a for a, value in known.items() if value is None} == {"T", "FG", "TXT"}
    assert averages(scores) == {"AVG-A": None, "AVG-D": None}


def test_table_of_tasks():
    assert len(set(NAMES)) == 16
    assert [t.name for t in TASKS if t.label == "R@10"] == ["CMRB", "LoVR-TH"]
    assert [t.name for t in TASKS if t.label == "P@1"] == ["MS-TI", "MS-TV"]
    by_name = {t.name: t.instruction for t in TASKS}
    assert len(set(by_name.values())) == 16
    assert all(i.startswith("Find ") and i.endswith(".") for i in by_name.values())
    assert by_name["CRB-T"] == "Find the video according to the temporal description."
    for task in TASKS:
        assert 0 < chance(task.metric, [1], task.corpus)[0] <= 0.1


def test_choose_keeps_the_order_and_names_the_unknown():
    assert [t.name for t in choose("CMRB, MSRVTT")] == ["MSRVTT", "CMRB"]
    assert choose(None) == TASKS
    with pytest.raises(UserError, match="unknown set 'MSR-VTT'"):
        choose("MSRVTT,MSR-VTT")
