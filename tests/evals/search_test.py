"""Scores of search over films: what counts as found, and the commands from films to tables."""

import numpy as np
import pytest

from evals.search import recall
from evals.search.__main__ import main
from evals.search.recall import overlap, score_policies, summarize
from evals.search.shots import match, score_cuts
from gve_jax.index.query import Hit
from tests.index.fake import Model


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    main(["films", "--output", str(folder), "--films", "2", "--minutes", "0.7"])
    return folder


def hit(path: str, start: float, end: float) -> Hit:
    return Hit(1, 0.5, path, "video", start, end, start, end, 60.0, {})


def test_overlap():
    query = {"path": "a", "start_sec": 4.0, "end_sec": 8.0}
    assert overlap(query, hit("a", 4, 8)) == 1 and overlap(query, hit("b", 4, 8)) == 0
    assert overlap(query, hit("a", 6, 10)) == pytest.approx(1 / 3)
    assert overlap(query, hit("a", 5, 6)) == 0.25 and overlap(query, hit("a", 8, 12)) == 0


def test_recall_and_boundaries():
    queries = [
        {"path": "a", "start_sec": 0.0, "end_sec": 4.0, "kind": kind}
        for kind in ("order", "order", "events")
    ]
    hits = [[hit("a", 0, 5)], [hit("b", 0, 4), hit("a", 0, 4)], [hit("a", 8, 12)]]
    found = summarize(queries, hits)
    assert found["R@1 all"] == pytest.approx(1 / 3) and found["R@5 all"] == pytest.approx(2 / 3)
    assert found["R@1 order"] == 0.5 and found["R@1 events"] == 0
    assert found["boundary error"] == 0.5


def test_cuts_are_matched_once_and_exactly():
    assert match([10, 20, 33], [10, 21, 32], [32]).tolist() == [2, 3, 3, 1, 1]
    assert match([10, 10], [10], []).tolist() == [1, 2, 1, 0, 0]
    assert match([], [5], []).tolist() == [0, 0, 1, 0, 0]


def test_cuts_of_films(films):
    ours = score_cuts(films)[0]
    assert ours["detector"] == "gve_jax" and ours["f1"] > 0.6 and ours["precision"] > 0.8


def test_policies_are_scored(films, tmp_path, monkeypatch):
    monkeypatch.setattr(recall, "MERGES", (-1.0,))
    names = ("frames, 1 a second", "fixed 4 s, stride 4")

    class Prompted(Model):
        def encode_query(self, text, prompt=None, prompt_name=None):
            rng = np.random.default_rng(len(text))
            return (vector := rng.normal(size=8)) / np.linalg.norm(vector)

    rows = score_policies(films, tmp_path, Prompted(), names)
    assert [row["windows"] for row in rows] == list(names)
    assert [row["moments"] for row in rows] == [78, 20]
    assert all(0 <= row["R@1 all"] <= row["R@5 all"] <= 1 for row in rows)
    assert rows[0]["R@1 all"] == 0  # a second of four
