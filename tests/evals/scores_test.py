"""Abilities and averages from scores by set, and the table of sets."""

import numpy as np
import pytest

from data.uvrb.tasks import NAMES, TASKS, choose
from evals.uvrb.scores import ABILITIES, AVERAGES, abilities, averages, cells
from gve_jax.errors import UserError
from gve_jax.retrieval.metrics import chance


def test_missing_set_leaves_its_abilities_open():
    scores = {name: 0.5 for name in NAMES if name != "CMRB"}
    known = abilities(scores)
    assert {a for a, value in known.items() if value is None} == {"T", "FG", "TXT"}
    assert averages(scores) == {"AVG-A": None, "AVG-D": None}


def test_arrays_of_resamples_go_through_the_same_arithmetic():
    rng = np.random.default_rng(0)
    drawn = {name: rng.random(3) for name in NAMES}
    found = cells(drawn)
    assert list(found) == [*ABILITIES, *AVERAGES]
    for place in range(3):
        alone = cells({name: float(one[place]) for name, one in drawn.items()})
        assert {name: one[place] for name, one in found.items()} == pytest.approx(alone)
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


def test_choose_keeps_the_order_and_names_the_unknown():
    assert [t.name for t in choose("CMRB, MSRVTT")] == ["MSRVTT", "CMRB"]
    assert choose(None) == TASKS
    with pytest.raises(UserError, match="unknown set 'MSR-VTT'"):
        choose("MSRVTT,MSR-VTT")
