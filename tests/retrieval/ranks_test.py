"""Ranks and top-k against a numpy brute force, on one and on eight devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gve_jax.errors import UserError
from gve_jax.retrieval import ranks as ranks_module
from gve_jax.retrieval.metrics import chance, evaluate
from gve_jax.retrieval.ranks import check_unit_vectors, rank_positives, top_k


@pytest.fixture(params=[1, 8], ids=["1-device", "8-devices"])
def mesh(request):
    return Mesh(np.array(jax.devices()[: request.param]), ("data",))


def unit(rng, rows, width):
    """Unit rows on a grid of 2^-11: every dot product is exact in float32, so ranks must be."""
    vectors = rng.normal(size=(rows, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (np.round(vectors * 2048) / 2048).astype(np.float32)


def grid_unit(rng, rows, width=64):
    """Unit rows of +-1/8: many dot products are equal."""
    return rng.choice([-1, 1], size=(rows, width)).astype(np.float32) / 8


def brute_force(queries, corpus, positives, ids):
    """Sorted lists, as trec_eval makes them: {(query, document): (rank, pessimistic rank)}."""
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    found = {}
    for q, own in enumerate(positives):
        order = sorted(range(len(ids)), key=lambda d: ids[d], reverse=True)
        trec = sorted(order, key=lambda d: -scores[q, d])
        worst = sorted(order, key=lambda d: (-scores[q, d], d in own))
        for d in own:
            found[q, d] = trec.index(d) + 1, worst.index(d) + 1
    return found


def as_dict(ranks):
    places = zip(ranks.rank.tolist(), ranks.pessimistic.tolist(), strict=True)
    pairs = zip(ranks.query.tolist(), ranks.document.tolist(), strict=True)
    return dict(zip(pairs, places, strict=True))


def test_ranks_equal_brute_force_with_ragged_tiles(mesh):
    rng = np.random.default_rng(0)
    queries, corpus = unit(rng, 301, 48), unit(rng, 777, 48)
    ids = [f"v{i}" for i in rng.permutation(777)]
    positives = [rng.choice(777, size=rng.integers(1, 10), replace=False) for _ in range(301)]
    ranks = rank_positives(
        queries, corpus, positives, ids, mesh=mesh, query_tile=128, corpus_tile=256
    )
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)
    assert (ranks.queries, ranks.corpus) == (301, 777)
    scores = np.einsum("nd,nd->n", queries[ranks.query], corpus[ranks.document])
    np.testing.assert_allclose(ranks.score, scores, atol=1e-6)


@pytest.mark.parametrize("most", [1, 7], ids=["one-positive", "several"])
def test_ties_follow_trec_eval_and_pessimistic_order(mesh, most):
    rng = np.random.default_rng(1)
    queries, corpus = grid_unit(rng, 70), grid_unit(rng, 300)
    corpus[rng.integers(0, 300, 150)] = corpus[7]
    ids = [str(i) for i in rng.permutation(300)]  # "9" > "10" as strings
    positives = [rng.choice(300, size=rng.integers(1, most + 1), replace=False) for _ in range(70)]
    ranks = rank_positives(
        queries, corpus, positives, ids, mesh=mesh, query_tile=64, corpus_tile=128
    )
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)
    assert (ranks.pessimistic > ranks.rank).any()
    np.testing.assert_array_equal(ranks.worst().rank, ranks.pessimistic)


@pytest.mark.parametrize("width", [33, 512, 1536])
def test_collapsed_encoder_scores_chance(mesh, width):
    corpus = np.repeat(unit(np.random.default_rng(2), 1, width), 500, axis=0)
    ids = [f"{i:03d}" for i in np.random.default_rng(3).permutation(500)]
    ranks = rank_positives(corpus, corpus, [[i] for i in range(500)], ids, mesh=mesh)
    for metric in ("hit_rate@1", "hit_rate@10", "precision@1", "mrr"):
        expected = chance(metric, np.ones(500, int), 500).mean()
        assert evaluate(metric, ranks).mean() == pytest.approx(expected)
    assert evaluate("hit_rate@10", ranks.worst()).mean() == 0


def test_query_without_positives_has_no_entry(mesh):
    vectors = unit(np.random.default_rng(4), 5, 16)
    ranks = rank_positives(vectors, vectors, [[0], [], [2], [3], [4]], list("abcde"), mesh=mesh)
    np.testing.assert_array_equal(ranks.query, [0, 2, 3, 4])
    np.testing.assert_array_equal(ranks.rank, [1, 1, 1, 1])
    nothing = rank_positives(vectors, vectors, [[]] * 5, list("abcde"), mesh=mesh)
    assert len(nothing.rank) == 0 and nothing.queries == 5


def test_ranks_do_not_depend_on_devices_or_the_mesh_in_use():
    rng = np.random.default_rng(5)
    queries, corpus = unit(rng, 200, 32), unit(rng, 400, 32)
    positives, ids = [[i, 399 - i] for i in range(200)], [str(i) for i in range(400)]
    one = rank_positives(
        queries, corpus, positives, ids, mesh=Mesh(np.array(jax.devices()[:1]), ("data",))
    )
    three_axes = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    with jax.set_mesh(three_axes):
        eight = rank_positives(queries, corpus, positives, ids)
    assert as_dict(one) == as_dict(eight)


def test_sets_of_similar_size_share_one_compilation():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    rng = np.random.default_rng(6)
    ranks_module._rank_step.cache_clear()
    for size in (65, 90, 128):
        vectors = unit(rng, size, 24)
        rank_positives(
            vectors, vectors, [[i] for i in range(size)], [str(i) for i in range(size)], mesh=mesh
        )
    assert ranks_module._rank_step(mesh)._cache_size() == 1


def test_corpus_is_read_tile_by_tile(mesh):
    class Corpus(np.ndarray):
        largest = 0

        def __getitem__(self, key):
            part = np.asarray(super().__getitem__(key))
            Corpus.largest = max(Corpus.largest, len(part) if part.ndim == 2 else 0)
            return part

    rng = np.random.default_rng(7)
    plain = unit(rng, 2000, 8)
    Corpus.largest = 0
    tile = 128
    original, ranks_module.NORM_BLOCK = ranks_module.NORM_BLOCK, tile
    try:
        ranks = rank_positives(
            plain[:100],
            plain.view(Corpus),
            [[i] for i in range(100)],
            [str(i) for i in range(2000)],
            mesh=mesh,
            corpus_tile=tile,
        )
    finally:
        ranks_module.NORM_BLOCK = original
    assert Corpus.largest == tile
    assert (ranks.rank == 1).all()


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_top_k_equals_brute_force_with_ties(mesh, k):
    rng = np.random.default_rng(8)
    queries, corpus = grid_unit(rng, 70), grid_unit(rng, 300)
    corpus[:40] = corpus[50]
    ids = [str(i) for i in rng.permutation(300)]
    places, scores = top_k(queries, corpus, ids, k, mesh=mesh, query_tile=64, corpus_tile=128)
    exact = queries @ corpus.T
    by_id = sorted(range(300), key=lambda d: ids[d], reverse=True)
    for q in range(70):
        expected = sorted(by_id, key=lambda d: -exact[q, d])[:k]
        np.testing.assert_array_equal(places[q], expected)
        np.testing.assert_array_equal(scores[q], exact[q, expected])


def _with(vectors, row, value):
    vectors = vectors.copy()
    vectors[row] = value
    return vectors


GOOD = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (_with(GOOD, (2, 1), np.nan), r"vector 2 \(c\) contains NaN"),
        (_with(GOOD, (1, 1), -np.inf), r"vector 1 \(b\) contains infinite"),
        (_with(GOOD, 3, 0), r"vector 3 \(d\) is all zeros"),
        (_with(GOOD, (0, 0), 1.01), r"vector 0 \(a\) is not of unit length: its norm is 1.01"),
        (GOOD[0], "float matrix"),
        (GOOD.astype(np.int32), "float matrix"),
        (GOOD[:0], "float matrix"),
    ],
)
def test_bad_vectors_are_refused_by_name(vectors, message):
    with pytest.raises(UserError, match=message):
        check_unit_vectors(vectors, "corpus", list("abcd"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "b", "a", "d"]}, "'a' occurs twice"),
        ({"ids": ["a"]}, "1 document ids for 4 vectors"),
        ({"positives": [[4], [1], [2], [3]]}, "outside the corpus"),
        ({"positives": [[-1], [1], [2], [3]]}, "outside the corpus"),
        ({"positives": [[0, 0], [1], [2], [3]]}, "query 0 has the same positive twice"),
        ({"positives": [[0]]}, "1 lists of positives for 4 queries"),
        ({"queries": np.eye(5, dtype=np.float32)[:4]}, "5 dimensions and the corpus 4"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {
        "queries": GOOD,
        "corpus": GOOD,
        "positives": [[0], [1], [2], [3]],
        "ids": list("abcd"),
    }
    with pytest.raises(UserError, match=message):
        rank_positives(**(arguments | change))
