"""The filter in bfloat16: its bound holds where it is tightest, and ranks are those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from gve_jax.retrieval import rank_positives, screen, tiles
from tests.retrieval.ranks_test import as_dict, brute_force, grid_unit, unit


@pytest.fixture(params=[1, 8], ids=["1-device", "8-devices"])
def mesh(request):
    return Mesh(np.array(jax.devices()[: request.param]), ("data",))


@pytest.fixture
def one():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.fixture
def screened(monkeypatch):
    """Small sets are screened, too; gives what was counted of each call: bool [R]."""
    done, original = [], screen.count_rows

    def count_rows(*args):
        found = original(*args)
        done.append(found[2])
        return found

    monkeypatch.setattr(screen, "worth_screening", lambda rows, corpus: True)
    monkeypatch.setattr(screen, "LEAST_FILLED", 0)
    monkeypatch.setattr(screen, "count_rows", count_rows)
    return done


def random_unit(rng, rows, width):
    vectors = rng.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact(queries, corpus):
    return queries.astype(np.float64) @ corpus.astype(np.float64).T


# ---- the same ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1 / 64, 1 / 16, 1], ids=["few", "some", "all"])
def test_ranks_equal_brute_force_however_many_are_screened(mesh, most, screened, monkeypatch):
    """Up to nine positives a query: of some only one row of several is screened."""
    monkeypatch.setattr(screen, "MAX_UNDECIDED", most)
    rng = np.random.default_rng(0)
    queries, corpus = unit(rng, 301, 48), unit(rng, 777, 48)
    ids = [f"v{i}" for i in rng.permutation(777)]
    positives = [rng.choice(777, size=rng.integers(1, 10), replace=False) for _ in range(301)]
    ranks = rank_positives(
        queries, corpus, positives, ids, mesh=mesh, query_tile=128, corpus_tile=256
    )
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)
    np.testing.assert_allclose(
        ranks.score, exact(queries, corpus)[ranks.query, ranks.document], atol=1e-6
    )
    share = screened[0].mean()
    assert share == 1 if most == 1 else 0.02 < share < 0.98


@pytest.mark.parametrize("most", [1, 7], ids=["one-positive", "several"])
def test_ties_follow_trec_eval_and_pessimistic_order(mesh, most, screened, monkeypatch):
    """Half the documents are one: where it is no positive, the rows are screened."""
    monkeypatch.setattr(screen, "MAX_UNDECIDED", 0.1)
    rng = np.random.default_rng(1)
    queries, corpus = grid_unit(rng, 70), grid_unit(rng, 300)
    corpus[rng.integers(0, 300, 150)] = corpus[7]
    ids = [str(i) for i in rng.permutation(300)]
    positives = [rng.choice(300, size=rng.integers(1, most + 1), replace=False) for _ in range(70)]
    ranks = rank_positives(
        queries, corpus, positives, ids, mesh=mesh, query_tile=64, corpus_tile=128
    )
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)
    assert (ranks.pessimistic > ranks.rank).any()
    assert 0 < screened[0].mean() < 1


def test_copies_of_the_positive_tie_wherever_they_stand(mesh, screened, monkeypatch):
    """In vectors on no grid: another order of a sum, or another program, would break the ties."""
    rng = np.random.default_rng(2)
    queries, corpus = random_unit(rng, 40, 333), random_unit(rng, 900, 333)
    corpus[:40] = 0.4 * queries + np.sqrt(1 - 0.4**2) * corpus[:40]
    corpus[:40] /= np.linalg.norm(corpus[:40], axis=1, keepdims=True)
    copies = np.sort(rng.choice(np.arange(40, 900), (40, 5)))
    corpus[copies] = corpus[:40, None]
    ids = [f"{i:03d}" for i in rng.permutation(900)]
    ranks = rank_positives(
        queries, corpus, np.arange(40)[:, None], ids, mesh=mesh, query_tile=32, corpus_tile=128
    )
    scores = exact(queries, corpus)
    own = np.diagonal(scores)[:, None]
    # float64 tells copies, whose scores are equal, from all others, which are further than 1e-6.
    equal = (corpus[None] == corpus[:40, None]).all(axis=2)
    assert (np.abs(scores - own)[~equal] > 1e-6).all() and (equal.sum(axis=1) > 1).all()
    above = ((scores > own) & ~equal).sum(axis=1)
    places = np.array(ids, object)
    later = np.array([(equal[q] & (places > places[q])).sum() for q in range(40)])
    np.testing.assert_array_equal(ranks.rank, above + later + 1)
    np.testing.assert_array_equal(ranks.pessimistic, above + equal.sum(axis=1))
    assert screened[0].all()


def test_collapsed_encoder_is_left_to_float32(one, screened):
    corpus = np.repeat(random_unit(np.random.default_rng(3), 1, 96), 300, axis=0)
    ids = [f"{i:03d}" for i in np.random.default_rng(4).permutation(300)]
    ranks = rank_positives(corpus, corpus, np.arange(300)[:, None], ids, mesh=one)
    np.testing.assert_array_equal(np.sort(ranks.rank), np.arange(1, 301))
    assert (ranks.pessimistic == 300).all() and not screened[0].any()


def test_rows_that_the_sample_does_not_betray_are_given_up_later(one, screened, monkeypatch):
    """All that ties with the positive lies between the documents of the sample."""
    monkeypatch.setattr(screen, "SAMPLE", 128)
    rng = np.random.default_rng(5)
    queries, corpus = unit(rng, 20, 64), unit(rng, 1280, 64)
    sampled = np.linspace(0, 1279, 128).astype(np.int64)
    hidden = np.setdiff1d(np.arange(1280), sampled)
    corpus[0], corpus[hidden[:400]] = queries[0], queries[0]
    ids = [str(i) for i in rng.permutation(1280)]
    positives = [[0]] + [[d] for d in np.argmax(exact(queries[1:], corpus), axis=1)]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=one, corpus_tile=256)
    assert as_dict(ranks) == brute_force(queries, corpus, positives, ids)
    assert not screened[0].all() and screened[0].any()


# ---- the bound --------------------------------------------------------------------------------


def same_way(rng, rows, width):
    """Equal components: what each loses points the way of the vector, the worst for the bound."""
    return np.repeat(rng.uniform(0.9991, 1.0009, (rows, 1)) / np.sqrt(width), width, axis=1)


def opposed(rng, rows, width):
    return same_way(rng, rows, width) * rng.choice([-1, 1], (rows, 1))


def spikes(rng, rows, width):
    """One component holds nearly all; others are tiny, some subnormal."""
    vectors = rng.choice([1e-44, -1e-40, 1e-30, 1e-8, -1e-4], (rows, width))
    vectors[np.arange(rows), rng.integers(0, 3, rows)] = rng.uniform(0.9991, 1.0009, rows)
    return vectors


def lengths(rng, rows, width):
    return random_unit(rng, rows, width) * rng.uniform(0.9991, 1.0009, (rows, 1))


MAKERS = [same_way, opposed, spikes, lengths]


@pytest.mark.parametrize("make", MAKERS)
def test_margin_holds(one, make):
    """Of every score, for vectors made to break it; and it is not much wider than it must be."""
    rng = np.random.default_rng(6)
    queries, corpus = (make(rng, rows, 250).astype(np.float32) for rows in (128, 512))
    true = exact(queries, corpus)
    half, error = screen._to_bfloat16(one)(jax.device_put(queries))
    halves, errors = screen._to_bfloat16(one)(jax.device_put(corpus))
    lost = corpus - np.asarray(halves).astype(np.float64)
    np.testing.assert_allclose(errors, np.linalg.norm(lost, axis=1), rtol=1e-5)
    own = true[:, :4].astype(np.float32)
    scores, low, high, above, undecided = map(
        np.asarray, screen._screen(one)(half, error, own, halves, errors)
    )
    wide = screen.margin(250, np.asarray(error)[:, None], np.asarray(errors))
    used = np.abs(scores - true) / wide
    assert used.max() < 1
    if make is same_way:
        assert used.max() > 0.9
    true, decided_above, decided_below = (
        true[:, None],
        scores[:, None] > high[..., None],
        (scores[:, None] < low[..., None]),
    )
    assert (true > own[..., None])[decided_above].all()
    assert (true < own[..., None])[decided_below].all()
    np.testing.assert_array_equal(above, decided_above.sum(axis=2))
    between = ~decided_above & ~decided_below
    np.testing.assert_array_equal(undecided, between.reshape(128, 4, -1, 128).sum(axis=3))


@pytest.mark.parametrize("make", MAKERS)
def test_ranks_of_hostile_vectors(one, make, screened, monkeypatch):
    """By counting in float64; scores within float32's rounding may be on either side."""
    monkeypatch.setattr(screen, "MAX_UNDECIDED", 1)
    rng = np.random.default_rng(7)
    queries, corpus = (make(rng, rows, 250).astype(np.float32) for rows in (60, 500))
    positives = rng.integers(0, 500, (60, 1))
    ids = [str(i) for i in range(500)]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=one, corpus_tile=256)
    true = exact(queries, corpus)
    own, near = np.take_along_axis(true, positives, axis=1), 1e-6
    assert ((true > own + near).sum(axis=1) < ranks.rank).all()
    assert (ranks.pessimistic <= (true >= own - near).sum(axis=1)).all()
    assert screened[0].all()


def test_documents_about_the_margin_are_counted_exactly(mesh, screened, monkeypatch):
    """Scores at -2 to 2 margins from the positive's: bfloat16 alone would count otherwise."""
    monkeypatch.setattr(screen, "MAX_UNDECIDED", 1)
    rng = np.random.default_rng(8)
    queries = random_unit(rng, 16, 256)
    wide, corpus = screen.margin(256, 0.0017, 0.0017), []
    cosines = 0.5 + wide * np.concatenate([[0], np.linspace(-2, 2, 42)])
    for query in queries.astype(np.float64):
        away = rng.normal(size=(len(cosines), 256))
        away -= np.outer(away @ query, query) / (query @ query)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        documents = cosines[:, None] * query + np.sqrt(1 - cosines[:, None] ** 2) * away
        corpus.append(documents * rng.uniform(0.9995, 1.0005))
    corpus = np.concatenate(corpus).astype(np.float32)
    positives = np.arange(16)[:, None] * len(cosines)
    true = exact(queries, corpus)
    own = np.take_along_axis(true, positives, axis=1)
    assert (np.sort(np.abs(true - own), axis=1)[:, 1] > 2e-6).all()
    expected = (true > own).sum(axis=1) + 1
    ids = [str(i) for i in rng.permutation(len(corpus))]
    ranks = rank_positives(queries, corpus, positives, ids, mesh=mesh, corpus_tile=128)
    np.testing.assert_array_equal(ranks.rank, expected)
    np.testing.assert_array_equal(ranks.pessimistic, expected)
    assert screened[0].all()
    coarse = exact(*(np.asarray(jnp.asarray(v, jnp.bfloat16)) for v in (queries, corpus)))
    assert (
        (coarse > np.take_along_axis(coarse, positives, axis=1)).sum(axis=1) + 1 != expected
    ).any()


@pytest.mark.parametrize("width", [33, 1536])
def test_a_pair_scores_the_same_anywhere(mesh, width):
    """Whatever its row, its column and its place among the pairs; and as float64 does."""
    rng = np.random.default_rng(9)
    queries, corpus = random_unit(rng, 256, width), random_unit(rng, 384, width)
    queries[:] = queries[rng.integers(0, 5, 256)]
    corpus[:] = corpus[rng.integers(0, 5, 384)]
    row, column = rng.integers(0, 256, 3000), rng.integers(0, 384, 3000)
    scores = screen._score(
        mesh, tiles.shard_rows(mesh, queries), tiles.replicate(mesh, corpus, 384), row, column
    )
    np.testing.assert_allclose(scores, exact(queries, corpus)[row, column], atol=1e-6)
    pairs = np.concatenate([queries[row], corpus[column]], axis=1)
    _, kind = np.unique(pairs, axis=0, return_inverse=True)
    kinds = kind.reshape(-1).max() + 1
    assert kinds == 25 and len(np.unique(np.stack([kind.reshape(-1), scores]), axis=1).T) == 25


def test_small_sets_are_not_screened():
    assert screen.worth_screening(2048, np.empty((16384, 2048), np.float16))
    for rows, corpus in (
        (100, (16384, 2048)),
        (2048, (4096, 2048)),
        (2048, (16384, 64)),
        (2048, (16384, 1 << 15)),
        (1024, (8192, 256)),
    ):
        assert not screen.worth_screening(rows, np.broadcast_to(np.float16(0), corpus))
