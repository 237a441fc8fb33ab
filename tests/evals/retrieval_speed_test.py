"""The benchmarks of ranks and of mining run, and detect wrong results."""

import json

import numpy as np
import pytest

from evals.speed import harness, mine, rank
from gve_jax.errors import UserError
from gve_jax.retrieval import rank_positives

SMALL = ["--queries", "40", "--corpus", "300", "--width", "32", "--repeats", "1", "--no-memory"]


def test_write_measurements(tmp_path):
    harness.run("rank", [*SMALL, "--no-faiss", "--output", str(tmp_path / "rank.json")])
    harness.run("mine", [*SMALL, "--k", "7", "--output", str(tmp_path / "mine.json")])
    for name, way in (("rank", "ranks"), ("mine", "mining")):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["benchmark"] == name and record["settings"]["corpus"] == 300
        assert record["result"]["product"]["wall s"] >= 0 and "processor s" in record["result"][way]


def test_stop_at_wrong_results():
    corpus = rank.draw_vectors(200, 32, 0)
    queries, documents = rank.draw_queries(corpus, 30)
    ids = [str(i) for i in range(200)]
    ranks = rank_positives(queries, corpus, documents[:, None].tolist(), ids).rank
    assert rank.compare(queries, corpus, documents, ranks) == 0
    with pytest.raises(SystemExit, match="query 3: rank"):
        rank.compare(queries, corpus, documents, ranks + 5 * (np.arange(30) == 3))
    found = mine.search(queries, corpus, 5)
    mine.compare(queries, corpus, found)
    with pytest.raises(SystemExit, match="not the best documents"):
        mine.compare(queries, corpus, (found[0], (found[1] + 1) % 200, found[2]))
    _, found, _ = mine.search(queries, corpus, 5, documents)
    assert not (found == documents[:, None]).any()


def test_refuse_invalid_sizes():
    for name in ("rank", "mine"):
        with pytest.raises(UserError, match="must be at least 1"):
            harness.run(name, ["--queries", "0"])
