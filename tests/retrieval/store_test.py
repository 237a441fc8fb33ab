"""Stores of vectors by content; evaluation's and synthesis' tests use them, too."""

import numpy as np

from gve_jax.retrieval.store import VectorStore


def test_concurrent_commands_do_not_mix_vectors(tmp_path):
    """Both write their first shard: a seal must not belong to the other's vectors."""
    rows = np.eye(3, dtype=np.float32)
    one, other = (VectorStore(tmp_path, {}, 3) for _ in range(2))
    one.write(["a", "b"], rows[:2], [True, True])
    other._read |= {path.name for path in tmp_path.glob("vectors-*")}  # read before that
    other.write(["c", "a"], rows[[2, 0]], [True, True])
    for path in tmp_path.glob("vectors-00-00001-*"):  # so it has the same number
        path.rename(str(path).replace("-00001-", "-00000-"))
    both = VectorStore(tmp_path, {}, 3).read(["c", "b", "a"])
    assert (both.vectors == rows[[2, 1, 0]]).all()


def test_vector_of_a_later_shard_replaces_a_failure(tmp_path):
    store, row = VectorStore(tmp_path, {}, 2), np.eye(2, dtype=np.float32)[:1]
    store.write(["a"], row[:0], [False], {"a": {"path": "p", "reason": "slow", "seconds": 1}})
    assert store.failure("a")["reason"] == "slow" and not store.read(["a"]).valid.any()
    store.write(["a"], row, [True])
    for found in (store, VectorStore(tmp_path, {}, 2)):
        assert found.failure("a") is None and (found.read(["a"]).vectors == row).all()
        assert found.attempts("a") == 2 and found.attempts("b") == 0
