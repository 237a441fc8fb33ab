"""Unit rows of vectors of any magnitude, and vectors that are refused."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.retrieval import check_unit_vectors, row_lengths, unit_rows
from tests.situations import situation


def exact_unit(row):
    """The row divided by its length, by exact fractions and Python's integer square root."""
    exact = [Fraction(float(x)) for x in row]
    total, bits = sum(x * x for x in exact), 1200
    length = Fraction(math.isqrt((total.numerator << (2 * bits)) // total.denominator), 1 << bits)
    return np.array([float(x / length) for x in exact])


@pytest.mark.parametrize(
    "dtype, scale",
    [
        (np.float64, 1.0),
        (np.float64, 1e200),
        (np.float64, 1e-200),
        (np.float64, 5e-324),
        (np.float64, 3e307),
        (np.float32, 1e20),
        (np.float32, 1e-25),
        (np.float32, 1e-44),
        (np.float32, 3e37),
        (np.float16, 2e4),
        (np.float16, 6e-8),
    ],
)
def test_unit_rows_of_any_magnitude(dtype, scale):
    shape = np.random.default_rng(0).uniform(-3, 3, size=(4, 24)).round()
    shape[:, 0] = 3
    vectors = (shape * scale).astype(dtype)
    found = unit_rows(vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [exact_unit(row) for row in vectors], rtol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_lengths_do_not_overflow(scale):
    np.testing.assert_allclose(
        row_lengths(np.array([[3, 4], [0, 0]]) * scale), np.array([5, 0]) * scale, rtol=1e-15
    )
    assert row_lengths(np.full((1, 9), 1e308))[0] == np.inf  # 3e308 is above float64
    np.testing.assert_array_equal(unit_rows(np.full((1, 9), 1e308)), np.float32(1 / 3))


def test_whole_numbers_and_other_libraries_rows():
    for rows in (
        [[3, 4]],
        np.array([[3, 4]], np.int8),
        np.array([[3, 4]], np.uint8),
        jnp.array([[3, 4]], jnp.bfloat16),
        [3.0, 4.0],
    ):
        np.testing.assert_array_equal(unit_rows(rows), np.array([[0.6, 0.8]], np.float32))
    assert unit_rows(np.zeros((0, 5))).shape == (0, 5)


@pytest.mark.parametrize(
    "value, named",
    [
        (np.nan, "contains NaN"),
        (np.inf, "contains infinite values"),
        (0.0, "all zeros"),
    ],
)
def test_a_row_without_a_direction_is_named(value, named):
    vectors = np.ones((20_000, 2))
    vectors[12_345] = value
    with pytest.raises(UserError, match=f"corpus: vector 12345 {named}|vector 12345 is {named}"):
        unit_rows(vectors, "corpus")
    ids = [f"v{n}" for n in range(len(vectors))]
    with pytest.raises(UserError, match=r"corpus: vector 12345 \(v12345\)"):
        unit_rows(vectors, "corpus", ids)


@pytest.mark.parametrize(
    "bad, named",
    [
        ([["a", "b"]], "real numbers, not <U1"),
        ([[1, 2], [3]], "not an array of vectors"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.zeros((1, 2, 3)), r"not \[1, 2, 3\]"),
        ([None, [1, 2]], "vectors"),
    ],
)
def test_values_that_are_not_vectors_are_refused(bad, named):
    with pytest.raises(UserError, match=named):
        unit_rows(bad)


@situation(
    "Evaluation",
    "vectors to rank whose numbers are huge or tiny (1e20, 1e-25)",
    "refused by the row and its true length; they are not called infinite or zero",
    since="0.2.0",
)
@pytest.mark.parametrize("size, norm", [(1e20, "2e[+]20"), (1e-25, "2e-25")])
def test_vectors_to_rank_are_judged_by_their_true_length(size, norm):
    vectors = np.full((3, 4), 0.5, np.float32)
    vectors[2] = size
    with pytest.raises(UserError, match=f"vector 2 is not of unit length: its norm is {norm}"):
        check_unit_vectors(vectors, "corpus")
