"""Metrics against hand-worked values, enumeration of all orders, trec_eval and ranx."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.retrieval.metrics import chance, evaluate, first_rank, median_rank
from gve_jax.retrieval.ranks import Ranks, rank_positives
from tests.goldens import ranx_metrics as golden
from tests.situations import situation


def ranks_of(*places, corpus=20):
    """Ranks of a list of queries, each a list of the places of its positives."""
    query = np.repeat(np.arange(len(places)), [len(p) for p in places])
    rank = np.array([r for p in places for r in p], np.int64)
    zeros = np.zeros(len(rank))
    return Ranks(query, zeros, zeros, rank, rank, len(places), corpus)


# Query 0 has its one positive at 3; query 1 has three, at 1, 4 and 11; query 2 lost its positives.
RANKS = ranks_of([3], [1, 4, 11], [])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("hit_rate@1", [0, 1, 0]),
        ("hit_rate@3", [1, 1, 0]),
        ("recall@1", [0, 1 / 3, 0]),
        ("recall@10", [1, 2 / 3, 0]),
        ("precision@1", [0, 1, 0]),
        ("precision@5", [1 / 5, 2 / 5, 0]),
        ("mrr", [1 / 3, 1, 0]),
        ("mrr@2", [0, 1, 0]),
        ("mrr@3", [1 / 3, 1, 0]),
        # DCG of query 1 at 10: 1/log2(2) + 1/log2(5); ideal 1/log2(2) + 1/log2(3) + 1/log2(4).
        ("ndcg@10", [0.5, (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 0.5), 0]),
        ("ndcg@2", [0, 1 / (1 + 1 / math.log2(3)), 0]),
    ],
)
def test_metric_equals_the_value_by_hand(metric, expected):
    np.testing.assert_allclose(evaluate(metric, RANKS), expected, atol=1e-12)


def test_first_and_median_rank():
    np.testing.assert_array_equal(first_rank(RANKS), [3, 1, np.inf])
    assert median_rank(RANKS) == 3
    assert median_rank(ranks_of([2], [5, 4])) == 3


@pytest.mark.parametrize("positives", [1, 2, 3])
@pytest.mark.parametrize(
    "metric",
    [
        "hit_rate@1",
        "hit_rate@3",
        "hit_rate@9",
        "recall@2",
        "precision@1",
        "precision@4",
        "precision@9",
        "ndcg@3",
        "ndcg@9",
        "mrr",
        "mrr@2",
        "mrr@9",
    ],
)
def test_chance_is_the_mean_over_all_orders(metric, positives):
    corpus = 6
    orders = ranks_of(*itertools.combinations(range(1, corpus + 1), positives), corpus=corpus)
    expected = chance(metric, np.array([positives]), corpus)
    assert expected[0] == pytest.approx(evaluate(metric, orders).mean(), abs=1e-12)


def test_chance_of_a_query_without_positives_is_zero():
    np.testing.assert_array_equal(chance("hit_rate@1", np.array([0, 1, 0]), 4), [0, 0.25, 0])


@pytest.mark.parametrize("metric", ["R@1", "hit_rate", "hit_rate@", "recall@0", "ndcg@-1", "mrr@"])
def test_unknown_metric_is_refused(metric):
    with pytest.raises(UserError, match="unknown metric"):
        evaluate(metric, RANKS)
    with pytest.raises(UserError, match="unknown metric"):
        chance(metric, np.array([1]), 5)


def test_more_positives_than_documents_is_refused():
    with pytest.raises(UserError, match="7 positives in a corpus of 5"):
        chance("mrr", np.array([1, 7]), 5)


def test_chance_of_each_query_s_own_candidates():
    each = chance("mrr", np.array([1, 2, 1]), np.array([4, 6, 4]))
    expected = [chance("mrr", np.array([own]), size)[0] for own, size in ((1, 4), (2, 6), (1, 4))]
    np.testing.assert_array_equal(each, expected)
    with pytest.raises(UserError, match="3 positives in a corpus of 2"):
        chance("mrr", np.array([1, 3]), np.array([9, 2]))


@situation(
    "Evaluation",
    "documents of equal scores",
    "hit rate, recall, precision, nDCG and MRR are those of trec_eval",
    since="0.1.0",
)
def test_metrics_equal_trec_eval_with_ties():
    trec = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier is in the dev extra")
    rng = np.random.default_rng(0)
    queries = rng.choice([-1, 1], size=(40, 16)).astype(np.float32) / 4
    corpus = rng.choice([-1, 1], size=(90, 16)).astype(np.float32) / 4
    ids = [f"v{i}" for i in rng.permutation(90)]
    positives = [rng.choice(90, size=rng.integers(1, 6), replace=False) for _ in range(40)]
    ranks = rank_positives(queries, corpus, positives, ids)

    scores = queries @ corpus.T
    run = {str(q): dict(zip(ids, scores[q].tolist(), strict=True)) for q in range(40)}
    qrels = {str(q): {ids[d]: 1 for d in positives[q]} for q in range(40)}
    names = {
        "hit_rate@1": "success_1",
        "hit_rate@10": "success_10",
        "recall@10": "recall_10",
        "precision@5": "P_5",
        "ndcg@10": "ndcg_cut_10",
        "mrr": "recip_rank",
    }
    oracle = trec.RelevanceEvaluator(
        qrels, {"success.1,10", "recall.10", "P.5", "ndcg_cut.10", "recip_rank"}
    ).evaluate(run)
    for ours, theirs in names.items():
        expected = [oracle[str(q)][theirs] for q in range(40)]
        np.testing.assert_allclose(evaluate(ours, ranks), expected, atol=1e-9, err_msg=ours)


def test_metrics_equal_ranx():
    """Its values are recorded, by goldens/ranx_metrics.py."""
    queries, corpus, positives = golden.rankings()
    ranks = rank_positives(queries, corpus, positives, [f"d{d}" for d in range(len(corpus))])
    recorded = json.loads(Path(golden.__file__).with_suffix(".json").read_text())
    assert set(recorded) == set(golden.NAMES)
    for name, expected in recorded.items():
        assert len(expected) == len(queries) and 0 < np.mean(expected) < 1
        np.testing.assert_allclose(evaluate(name, ranks), expected, atol=1e-9, err_msg=name)
