"""Similarities are what exact arithmetic gives, for numbers of any size."""

import math
from fractions import Fraction

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.retrieval.similarity import SIMILARITIES, all_pairs, by_rows, check_name
from tests.situations import situation


def exact(x, y, name):
    """By fractions; square roots to 1,000 bits."""
    x, y = ([Fraction(float(n)) for n in side] for side in (x, y))
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if name == "dot":
        return float(dot)
    if name == "manhattan":
        return -float(sum(abs(a - b) for a, b in zip(x, y, strict=True)))
    if name == "euclidean":
        return -float(root(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))))
    return float(dot / root(sum(a * a for a in x)) / root(sum(b * b for b in y)))


def root(x, bits=3000):
    return Fraction(math.isqrt((x.numerator << 2 * bits) // x.denominator), 1 << bits)


@situation(
    "Python API",
    "similarity of vectors of huge or tiny numbers (1e20, 1e-25, 1e200)",
    "the right cosines are returned",
    since="0.2.0",
)
@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(
    "kind, big, small",
    [
        (np.float32, 1, 1),
        (np.float32, 1e20, 1),
        (np.float32, 1e-25, 1),
        (np.float32, 1e-42, 1e-3),
        (np.float32, 1e18, 1e19),
        (np.float64, 1e200, 1e-190),
        (np.float64, 1e-200, 1e-310),
        (np.float16, 1e4, 1e-6),
    ],
)
def test_all_pairs_and_rows(name, kind, big, small):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 17)) * big).astype(kind), (rng.normal(size=(4, 17)) * small)
    b = b.astype(kind)
    expected = np.array([[exact(x, y, name) for y in b] for x in a])
    if np.abs(expected).max() > np.finfo(np.float32).max:
        for compare in (all_pairs, lambda *given: by_rows(*given[:1], given[1][:3], name)):
            with pytest.raises(UserError, match=f"the {name} value of rows .* is beyond float32"):
                compare(a, b, name)
        return
    scale = np.abs(expected).max() + 1e-38  # what is smaller, float32 rounds to 0
    found = all_pairs(a, b, name)
    assert found.dtype == np.float32 and found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6 * scale)
    np.testing.assert_allclose(
        by_rows(a, b[:3], name), expected.diagonal(), rtol=1e-6, atol=2e-6 * scale
    )


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_single_vector_is_a_row(name):
    a, b = np.array([3.0, 4.0]), np.array([[4.0, 3.0], [3.0, 4.0]])
    assert all_pairs(a, b, name).shape == (1, 2)
    np.testing.assert_array_equal(all_pairs(a, b, name)[0], by_rows(a, b, name))
    assert by_rows(a, b[0], name).shape == () and all_pairs(a, b[0], name).shape == (1, 1)
    assert by_rows(a, b[0], name) == all_pairs(a, b, name)[0, 0]
    assert all_pairs(np.zeros((0, 2)), b, name).shape == (0, 2)
    assert all_pairs(b, np.zeros((0, 2)), name).shape == (2, 0)
    assert by_rows(np.zeros((0, 2)), np.zeros((0, 2)), name).shape == (0,)


def test_distances_of_equal_rows_are_zero():
    rows = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    for name in ("euclidean", "manhattan"):
        assert (all_pairs(rows, rows, name).diagonal() == 0).all()


@situation(
    "Python API",
    "similarity of vectors with NaN, infinity or only zeros",
    "refused by the side and the row",
    since="0.2.0",
)
@pytest.mark.parametrize("compare", [all_pairs, by_rows])
@pytest.mark.parametrize("value, what", [(np.nan, "contains NaN"), (-np.inf, "contains infinite")])
def test_invalid_rows_are_named(compare, value, what):
    good, bad = np.ones((4, 3)), np.ones((4, 3))
    bad[2, 1] = value
    for name in SIMILARITIES:
        with pytest.raises(UserError, match=f"embeddings1: vector 2 {what}"):
            compare(bad, good, name)
        with pytest.raises(UserError, match=f"embeddings2: vector 2 {what}"):
            compare(good, bad, name)
    bad[2] = 0
    with pytest.raises(UserError, match="embeddings2: vector 2 is all zeros and has no direction"):
        compare(good, bad)
    assert (compare(good, bad, "dot") >= 0).all()


def test_vectors_that_cannot_be_compared_are_refused():
    a = np.ones((3, 5))
    with pytest.raises(UserError, match=r"\(3, 5\) and \(3, 4\)"):
        all_pairs(a, a[:, :4])
    with pytest.raises(UserError, match="as many rows on either side, not 3 and 2"):
        by_rows(a, a[:2])
    for compare in (all_pairs, by_rows):
        with pytest.raises(UserError, match="embeddings1: not an array of vectors"):
            compare([[1.0, 2.0], [3.0]], a)
    with pytest.raises(UserError, match="embeddings2: vectors must be real numbers"):
        all_pairs(a, a.astype(str))


def test_names():
    class Theirs:  # as a member of Sentence Transformers' enumeration
        value = "dot"

    assert [check_name(name) for name in (None, Theirs, *SIMILARITIES)] == [
        "cosine",
        "dot",
        *SIMILARITIES,
    ]
    for bad in ("maxsim", "cos", 3, ["cosine"]):
        with pytest.raises(UserError, match="must be one of cosine, dot, euclidean, manhattan"):
            check_name(bad)
