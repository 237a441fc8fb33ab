"""Abilities and averages from scores by set, and the table of sets."""

import numpy as np
import pytest

from data.uvrb.tasks import NAMES, TASKS, choose
from evals.uvrb.scores import ABILITIES, AVERAGES, abilities, averages, cells
from gve_jax.errors import UserError
from gve_jax.retrieval.metrics import chance


def test_abilities_with_a_missing_set_are_none():
    scores = {name: 0.5 for name in NAMES if name != "CMRB"}
    known = abilities(scores)
    assert {a for a, value in known.items() if value is None} == {"T", "FG", "TXT"}
    assert averages(scores) == {"AVG-A": None, "AVG-D": None}


def test_arrays_are_computed_elementwise():
    rng = np.random.default_rng(0)
    drawn = {name: rng.random(3) for name in NAMES}
    found = cells(drawn)
    assert list(found) == [*ABILITIES, *AVERAGES]
    for index in range(3):
        alone = cells({name: float(one[index]) for name, one in drawn.items()})
        assert {name: one[index] for name, one in found.items()} == pytest.approx(alone)
    del drawn["CMRB"]
    assert cells(drawn)["FG"] is None and cells(drawn)["CG"] is not None


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


def test_choose_keeps_order_and_names_unknown_sets():
    assert [t.name for t in choose("CMRB, MSRVTT")] == ["MSRVTT", "CMRB"]
    assert choose(None) == TASKS
    with pytest.raises(UserError, match="unknown set 'MSR-VTT'"):
        choose("MSRVTT,MSR-VTT")
