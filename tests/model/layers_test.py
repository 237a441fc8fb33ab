"""Unit rows under jit: numbers of any size, and the gradient of the mathematical function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.model.layers import unit_rows

ROWS = np.random.default_rng(0).normal(size=(3, 7))
LENGTHS = np.sqrt((ROWS**2).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30, 1e-20, 3e37])
def test_rows_of_every_size_have_unit_length(size):
    found = jax.jit(unit_rows)(jnp.asarray(ROWS * size, jnp.float32))
    np.testing.assert_allclose(found, ROWS / LENGTHS, rtol=2e-6)


@pytest.mark.parametrize("size", [1.0, 1e15, 1e-15])
def test_the_gradient_is_that_of_the_direction(size):
    """d(u . w) = (w - (u . w) u) / |x| for u = x / |x|."""
    w = np.random.default_rng(1).normal(size=ROWS.shape)
    loss = lambda x: jnp.sum(unit_rows(x) * jnp.asarray(w, jnp.float32))  # noqa: E731
    found = jax.grad(loss)(jnp.asarray(ROWS * size, jnp.float32))
    u = ROWS / LENGTHS
    expected = (w - (u * w).sum(axis=1, keepdims=True) * u) / (LENGTHS * size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 / size)


def test_a_row_of_zeros_stays_one():
    x = jnp.zeros((1, 4))
    assert not np.any(unit_rows(x)) and np.isfinite(jax.grad(lambda x: unit_rows(x).sum())(x)).all()
