"""Ranks and top-k against a numpy brute force, on one and on eight devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from gve_jax.errors import UserError
from gve_jax.retrieval import (
    check_unit_vectors,
    rank_candidates,
    rank_positives,
    tiles,
    top_k,
    topk,
)
from gve_jax.retrieval.metrics import chance, evaluate


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


def test_positives_in_many_tiles_are_scored_by_themselves(mesh):
    """More tiles hold positives than products are kept."""
    rng = np.random.default_rng(20)
    queries, corpus = grid_unit(rng, 128), grid_unit(rng, 1300)
    corpus[rng.integers(0, 1300, 400)] = corpus[7]
    ids = [str(i) for i in rng.permutation(1300)]
    positives = [rng.choice(1300, size=3, replace=False) for _ in range(128)]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=mesh, corpus_tile=128)
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)


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
    tiles.product.cache_clear()
    for size in (65, 90, 128):
        vectors = unit(rng, size, 24)
        rank_positives(
            vectors, vectors, [[i] for i in range(size)], [str(i) for i in range(size)], mesh=mesh
        )
    assert tiles.product(mesh)._cache_size() == 1


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
    original, tiles.NORM_BLOCK = tiles.NORM_BLOCK, tile
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
        tiles.NORM_BLOCK = original
    assert Corpus.largest == tile
    assert (ranks.rank == 1).all()


@pytest.mark.parametrize("way", ["_on_host", "_on_devices"])
@pytest.mark.parametrize("k", [1, 2, 5, 1000])
def test_top_k_equals_brute_force_with_ties(mesh, k, way, monkeypatch):
    """The ways of a CPU and of other devices, which runs on a CPU too."""
    monkeypatch.setattr(topk, "_on_host", getattr(topk, way))
    rng = np.random.default_rng(8)
    queries, corpus = grid_unit(rng, 70), grid_unit(rng, 900)
    corpus[:40] = corpus[50]
    corpus[600:] = corpus[600]  # whole blocks of equals
    queries[1], queries[2] = corpus[50], corpus[600]
    ids = [str(i) for i in rng.permutation(900)]
    places, scores = top_k(queries, corpus, ids, k, mesh=mesh, query_tile=64, corpus_tile=512)
    exact = queries @ corpus.T
    by_id = sorted(range(900), key=lambda d: ids[d], reverse=True)
    for q in range(70):
        expected = sorted(by_id, key=lambda d: -exact[q, d])[:k]
        np.testing.assert_array_equal(places[q], expected)
        np.testing.assert_array_equal(scores[q], exact[q, expected])


def test_top_k_of_a_collapsed_encoder_is_the_order_of_ids(mesh):
    corpus = np.repeat(unit(np.random.default_rng(2), 1, 33), 700, axis=0)
    ids = [f"{i:03d}" for i in np.random.default_rng(3).permutation(700)]
    places, _ = top_k(corpus[:9], corpus, ids, 20, mesh=mesh, corpus_tile=256)
    expected = sorted(range(700), key=lambda d: ids[d], reverse=True)[:20]
    np.testing.assert_array_equal(places, [expected] * 9)


def test_keys_have_the_order_of_scores_and_ids():
    scores = np.array([-1, -0.5, -1e-40, -0.0, 0, 1e-40, 0.25, 1, -np.inf, np.inf], np.float32)
    keys = topk._key(scores, np.zeros(10, np.uint64))
    np.testing.assert_array_equal(topk._score(keys), scores + 0)
    assert (np.argsort(keys, kind="stable") == np.argsort(scores, kind="stable")).all()
    assert keys[3] == keys[4] and topk._key(scores[3:4], np.ones(1, np.uint64)) > keys[4]


@pytest.mark.parametrize("make", [unit, grid_unit], ids=["distinct", "ties"])
def test_candidates_are_ranked_among_themselves(mesh, make):
    rng = np.random.default_rng(21)
    queries, corpus = make(rng, 75, 64), make(rng, 300, 64)
    if make is grid_unit:
        corpus[rng.integers(0, 300, 150)] = corpus[7]
    ids = [str(i) for i in rng.permutation(300)]
    lists = [rng.choice(300, size=rng.integers(1, 300), replace=False) for _ in range(75)]
    positives = [rng.permutation(own)[: rng.integers(0, 6)] for own in lists]
    ranks = rank_candidates(queries, corpus, lists, positives, ids, mesh=mesh)
    expected = {}
    for q, (own, right) in enumerate(zip(lists, positives, strict=True)):
        names = [ids[d] for d in own]
        places = {int(d): place for place, d in enumerate(own)}
        found = brute_force(
            queries[q : q + 1], corpus[own], [[places[int(d)] for d in right]], names
        )
        expected |= {(q, int(own[place])): value for (_, place), value in found.items()}
    assert as_dict(ranks) == expected
    np.testing.assert_array_equal(ranks.candidates, [len(own) for own in lists])


def test_candidates_that_are_the_corpus_rank_as_it_does(mesh):
    rng = np.random.default_rng(22)
    queries, corpus = unit(rng, 40, 48), unit(rng, 90, 48)
    ids, positives = [str(i) for i in range(90)], [[i, i + 1] for i in range(40)]
    among = rank_candidates(queries, corpus, [range(90)] * 40, positives, ids, mesh=mesh)
    whole = rank_positives(queries, corpus, positives, ids, mesh=mesh)
    assert as_dict(among) == as_dict(whole)
    np.testing.assert_allclose(among.score, whole.score, atol=1e-6)


@pytest.mark.parametrize(
    ("candidates", "positives", "message"),
    [
        ([[0], []], [[0], []], "query 1 has no candidates"),
        ([[0], [1, 1]], [[0], [1]], "query 1 has the same candidate twice"),
        ([[0], [9]], [[0], []], "a candidate is outside the corpus of 4"),
        ([[0], [1, 2]], [[0], [3]], "query 1: positive 'd' is not a candidate"),
        ([[0]], [[0], [1]], "1 lists of candidates for 2 queries"),
    ],
)
def test_candidates_that_cannot_be_are_refused(candidates, positives, message):
    with pytest.raises(UserError, match=message):
        rank_candidates(GOOD[:2], GOOD, candidates, positives, list("abcd"))


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
        # Their squares leave float32, and these two float64 as well.
        (_with(GOOD, 1, 1e20), r"vector 1 \(b\) is not of unit length: its norm is 2e\+20"),
        (_with(GOOD, 1, 1e-25), r"vector 1 \(b\) is not of unit length: its norm is 2e-25"),
        (_with(GOOD.astype(float), 2, 1e200), r"vector 2 \(c\) is not .*: its norm is 2e\+200"),
        (_with(GOOD.astype(float), 2, 1e-200), r"vector 2 \(c\) is not .*: its norm is 2e-200"),
        (GOOD[0], "float matrix"),
        (GOOD.astype(np.int32), "float matrix"),
        (GOOD[:0], "float matrix"),
    ],
)
def test_bad_vectors_are_refused_by_name(vectors, message):
    with pytest.raises(UserError, match=message):
        check_unit_vectors(vectors, "corpus", list("abcd"))


def test_rows_become_unit_rows_where_float32_would_not_do():
    rng = np.random.default_rng(30)
    exact = unit(rng, 9, 40)
    exact = exact / np.linalg.norm(exact.astype(float), axis=1, keepdims=True)
    assert tiles.cosine_rows(exact.astype(np.float32), "corpus").__class__ is np.ndarray
    lengths = np.where(np.arange(9) % 2, 1.0009, 0.9991)[:, None]
    for scaled in ((exact * lengths).astype(np.float32), exact.astype(np.float16), exact * lengths):
        rows = tiles.cosine_rows(scaled, "corpus")
        assert (len(rows), rows.shape, rows.dtype) == (9, (9, 40), np.float32)
        for key in (slice(2, 5), np.array([8, 0, 8]), slice(None)):
            np.testing.assert_allclose(np.linalg.norm(rows[key], axis=1), 1, atol=2e-7)
            np.testing.assert_allclose(rows[key], exact[key], atol=6e-4)
    with pytest.raises(
        UserError, match="corpus: vector 8 is not of unit length: its norm is 1.002"
    ):
        tiles.cosine_rows(_with(exact, 8, 1.002 * exact[8]), "corpus")


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
