"""Intervals and tests, compared with closed forms and with enumerations of all outcomes."""

import itertools
import math

import numpy as np
import pytest

from evals.uvrb import statistics
from evals.uvrb.statistics import (
    flipped,
    holm,
    interval,
    paired,
    paired_over_sets,
    ranks,
    resampled,
    spearman,
)
from tests.situations import situation


def every_flip(differences):
    """The p-value of all 2**n sign flips."""
    sums = [
        abs(np.dot(signs, differences))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return np.mean(np.array(sums) >= abs(sum(differences)) - 1e-9)


def test_resamples_equal_those_of_drawing_query_by_query():
    values = np.array([0, 0, 0.5, 1, 1, 1, 1])
    means = resampled(values, "x", draws=40_000)
    # All 7**7 resamples have this mean and variance.
    assert means.mean() == pytest.approx(values.mean(), abs=0.003)
    assert means.var() == pytest.approx(values.var() / len(values), rel=0.03)
    assert set(np.round(means * 14)) <= set(range(15))
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, 7, (40_000, 7))].mean(axis=1)
    for low, high in zip(interval(means), interval(drawn), strict=True):
        assert low == pytest.approx(high, abs=0.072)  # the means are multiples of 1/14


def test_interval_of_a_hit_rate_is_binomial():
    values = np.repeat([1.0, 0.0], [300, 700])
    low, high = interval(resampled(values, "MSRVTT"))
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)
    assert interval(resampled(values, "MSRVTT")) == (low, high)  # seeded
    assert interval(resampled(values, "CRB-T")) != (low, high)
    assert interval(resampled(np.ones(5), "x")) == (1, 1)


@pytest.mark.parametrize(
    "differences",
    [
        [1, 1, 1, -1, 0, 0, 1, 1],
        [1, 1, -1, -1],
        [0.5, 0.25, -0.5, 1, 0.25, 0, 0.5],
        [0.3 - 0.2, 0.2 - 0.1, 0.1, -0.7, 0.4],
        [0, 0, 0],
        [1],
    ],
)
def test_exact_p_counts_all_sign_flips(differences):
    found = paired(np.array(differences, float), np.zeros(len(differences)), "x")
    assert found.exact and found.p == pytest.approx(every_flip(differences))
    assert found.difference == pytest.approx(np.mean(differences))


@situation(
    "Evaluation",
    "two models compared by a hit rate",
    "McNemar's exact test, and intervals from resampled queries",
    since="0.1.0",
)
def test_hit_rate_gives_mcnemars_exact_test():
    a = np.repeat([1.0, 0.0, 1.0], [12, 3, 500])
    b = np.repeat([0.0, 1.0, 1.0], [12, 3, 500])
    tail = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert paired(a, b, "x").p == pytest.approx(2 * tail)
    assert paired(b, a, "x").p == paired(a, b, "x").p
    # Thousands of queries: the terms of the binomial must not overflow.
    a, b = np.repeat([1.0, 0.0], [3000, 2800]), np.repeat([0.0, 1.0], [3000, 2800])
    z = (200 - 1) / math.sqrt(5800)
    assert paired(a, b, "x").p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_drawn_flips_agree_with_enumeration(monkeypatch):
    rng = np.random.default_rng(1)
    differences = rng.normal(0.2, 1, 12)
    exact = paired(differences, np.zeros(12), "x")
    assert exact.exact and exact.p == pytest.approx(every_flip(differences))
    monkeypatch.setattr(statistics, "EXACT", 1)
    drawn = paired(differences, np.zeros(12), "x")
    assert not drawn.exact and drawn.p == pytest.approx(exact.p, abs=0.015)
    # Never 0, even for large differences.
    far = paired(np.linspace(1, 2, 30), np.zeros(30), "x")
    assert far.p == pytest.approx(1 / 10_001) and not far.exact


def test_flips_have_the_variance_of_random_signs():
    differences = np.array([1, -1, 1, 0, 0.5])
    means = flipped(differences, "x", draws=40_000)
    assert means.mean() == pytest.approx(0, abs=0.005)
    assert means.var() == pytest.approx((differences**2).sum() / 25, rel=0.03)


def test_sets_have_equal_weights():
    # A small and a large set: the mean of means, not of all queries.
    a = {"s": np.array([1.0, 1, 1, 0]), "l": np.repeat([1.0, 0.0], [60, 40])}
    b = {"s": np.zeros(4), "l": np.repeat([1.0, 0.0], [55, 45])}

    def combine(means):
        return {"AVG": (means["s"] + means["l"]) / 2, "none": None}

    found = paired_over_sets(a, b, combine)
    assert set(found) == {"AVG"}
    one = found["AVG"]
    assert one.difference == pytest.approx((0.75 + 0.05) / 2)
    # All flips: 2**3 of the small set, 2**5 of the large one.
    sums = [
        abs(sum(s) / 4 + sum(t) / 100)
        for s in itertools.product((1, -1), repeat=3)
        for t in itertools.product((1, -1), repeat=5)
    ]
    assert one.p == pytest.approx(np.mean(np.array(sums) >= 0.8 - 1e-9), abs=0.01)
    # The variance of a mean of two means, each of its own resamples.
    low, high = one.interval
    variance = (a["s"] - b["s"]).var() / 4 / 4 + (a["l"] - b["l"]).var() / 100 / 4
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)


def test_equal_models_differ_no_more_often_than_the_level():
    rng = np.random.default_rng(2)
    p = [paired(*rng.integers(0, 2, (2, 60)).astype(float), "x").p for _ in range(300)]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.07  # discrete: fewer than 5 %


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_ranks_and_rank_correlation():
    assert ranks([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]
    a, b = [1, 5, 3, 4, 2], [2, 4, 5, 3, 1]
    squares = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    assert spearman(a, b) == pytest.approx(1 - 6 * squares / (5 * 24))
