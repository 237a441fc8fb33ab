"""Two hosts divide the queries and both get what one finds alone."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gve_jax.retrieval import rank_candidates, rank_positives, screen, top_k


def save(folder: str) -> None:
    """What a host of the pair does."""
    np.savez(f"{folder}/{jax.process_index()}.npz", **find(None))


def find(mesh) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    # 7 queries: one host gets more of them than the other.
    queries = rng.choice([-1, 1], size=(7, 64)).astype(np.float32) / 8
    corpus = rng.choice([-1, 1], size=(150, 64)).astype(np.float32) / 8
    ids = [str(i) for i in rng.permutation(150)]
    positives = [rng.choice(20, size=n, replace=False) for n in (1, 6, 0, 2, 3, 1, 1)]
    lists = [range(20 + 10 * n) for n in range(7)]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=mesh)
    among = rank_candidates(queries, corpus, lists, positives, ids, mesh=mesh)
    places, scores = top_k(queries, corpus, ids, 5, mesh=mesh)
    found = {"places": places, "scores": scores}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "worth_screening", lambda rows, corpus: True)
        patch.setattr(screen, "LEAST_FILLED", 0)
        patch.setattr(screen, "MAX_UNDECIDED", 0.05)  # some rows are left to float32
        screened = rank_positives(queries, corpus, positives, ids, mesh=mesh)
    for name, each in {"ranks": ranks, "among": among, "screened": screened}.items():
        for key in ("query", "document", "score", "rank", "pessimistic"):
            found[f"{name}.{key}"] = getattr(each, key)
    return found


def test_two_hosts_equal_one(two_hosts, tmp_path):
    two_hosts.run("tests.retrieval.hosts_test:save", str(tmp_path))
    expected = find(Mesh(np.array(jax.devices()[:1]), ("data",)))
    for key in ("rank", "pessimistic"):  # scores are exact on this grid
        np.testing.assert_array_equal(expected[f"screened.{key}"], expected[f"ranks.{key}"])
    for host in range(2):
        found = np.load(tmp_path / f"{host}.npz")
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"host {host}: {key}")
