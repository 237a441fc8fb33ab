"""Lists in the order of counted ranks, whatever program sorted them."""

import itertools

import numpy as np
import pytest

from gve_jax.retrieval import evaluate, ranked_lists, spare_documents
from gve_jax.retrieval.ranks import Ranks
from gve_jax.retrieval.tiles import id_order

pytrec_eval = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier is in the dev extra")


def count(scores, positives, ids):
    """`Ranks` by sorting whole rows of scores, by loops."""
    found = []
    for query, own in enumerate(positives):
        order = sorted(range(len(ids)), key=lambda d, q=query: (scores[q, d], ids[d]), reverse=True)
        found += [(query, d, scores[query, d], order.index(d) + 1) for d in sorted(own)]
    query, document, score, rank = map(np.array, zip(*found, strict=True))
    return Ranks(query, document, score, rank, rank, len(positives), len(ids))


def sort(scores, ids):
    """Whole lists by other scores, best first."""
    return [
        np.array(sorted(range(len(ids)), key=lambda d, r=row: (r[d], ids[d]), reverse=True))
        for row in scores
    ]


@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("steps", [0, 1, 40], ids=["equal", "last bits", "far apart"])
def test_lists_have_the_metrics_of_the_ranks(k, steps):
    """Two programs round the same scores in two ways; trec_eval reads the list of one with the
    ranks of the other."""
    rng = np.random.default_rng(steps)
    ids = [f"d{n}" for n in rng.permutation(60)]
    values = np.float32([-0.5, -0.0, 0.0, 0.25, 0.7, 0.9999])
    counted = rng.choice(values, (40, 60))
    sorted_by = counted.copy()
    for _ in range(steps):  # each time up to one float up or down
        sorted_by = np.nextafter(sorted_by, rng.choice(np.float32([-2, 2]), counted.shape))
    positives = [rng.choice(60, rng.integers(1, 7), replace=False).tolist() for _ in range(40)]
    ranks = count(counted, positives, ids)
    spare = spare_documents(ranks)
    assert spare == max(map(len, positives))
    lists = [one[: k + spare] for one in sort(sorted_by, ids)]
    cosines = [row[one] for row, one in zip(sorted_by, lists, strict=True)]
    documents, scores = ranked_lists(ranks, range(40), lists, cosines, id_order(ids), k)
    for query, (one, own) in enumerate(zip(documents, scores, strict=True)):
        assert len(one) == len(set(one.tolist())) == min(k, 60) and own.dtype == np.float32
        keys = [(float(s), ids[d]) for s, d in zip(own, one, strict=True)]
        assert all(a > b for a, b in itertools.pairwise(keys))  # sorting gives the list back
        at = ranks.query == query
        for document, rank in zip(ranks.document[at], ranks.rank[at], strict=True):
            assert (one[rank - 1] == document) if rank <= k else (document not in one)
    qrels = {str(q): {ids[d]: 1 for d in own} for q, own in enumerate(positives)}
    run = {
        str(q): {ids[d]: float(s) for d, s in zip(documents[q], scores[q], strict=True)}
        for q in range(40)
    }
    cut = min(k, 10)
    measures = {f"success.{cut}", f"recall.{cut}", f"ndcg_cut.{cut}", f"P.{cut}"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for ours, name in (
        ("hit_rate", "success"),
        ("recall", "recall"),
        ("ndcg", "ndcg_cut"),
        ("precision", "P"),
    ):
        expected = [theirs[str(q)][f"{name}_{cut}"] for q in range(40)]
        np.testing.assert_allclose(evaluate(f"{ours}@{cut}", ranks), expected, atol=1e-9)


def test_scores_of_lists_that_agree_are_kept():
    ids = list("abcd")
    scores = np.float32([[0.5, 0.25, 0.5, -0.125]])
    ranks = count(scores, [[0, 3]], ids)
    lists = sort(scores, ids)
    documents, found = ranked_lists(ranks, [0], lists, [scores[0][lists[0]]], id_order(ids), 4)
    assert documents[0].tolist() == [2, 0, 1, 3] and found[0].tolist() == [0.5, 0.5, 0.25, -0.125]


def test_a_query_without_positives_and_one_that_is_not_asked_for():
    ids = list("abc")
    scores = np.float32([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.3, 0.2]])
    ranks = count(scores, [[0], [], [0]], ids)
    lists = sort(scores, ids)
    cosines = [row[one] for row, one in zip(scores, lists, strict=True)]
    documents, _ = ranked_lists(ranks, [1, 2], lists[1:], cosines[1:], id_order(ids), 2)
    assert [one.tolist() for one in documents] == [[0, 1], [1, 2]]


def test_a_list_that_is_too_short_is_a_bug():
    ids = list("abcd")
    scores = np.float32([[0.4, 0.3, 0.2, 0.1]])
    ranks = count(scores, [[3]], ids)
    with pytest.raises(RuntimeError, match="does not fit its ranks"):
        ranked_lists(ranks, [0], [np.array([0])], [scores[0][:1]], id_order(ids), 4)
