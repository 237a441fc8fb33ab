"""InfoNCE against loops over single pairs, written from the paper's equation 1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.learning.loss import info_nce
from gve_jax.sharding import make_mesh, place_batch

B, D, TAU = 16, 12, 0.03


def draw(seed=0, negatives=2):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    vectors = [unit(rng.standard_normal((B, D))).astype(np.float32) for _ in range(2 + negatives)]
    ids = np.arange(B, dtype=np.int32)
    return vectors[0], vectors[1], vectors[2:], np.ones(B, bool), ids, ids + 100


def by_loops(query, positive, negatives, valid, query_id, positive_id):
    total, count = 0.0, 0
    for i in range(B):
        if not valid[i]:
            continue
        own = query[i] @ positive[i] / TAU
        forward, backward = [own], [own]
        for j in range(B):
            twin = query_id[i] == query_id[j] or positive_id[i] == positive_id[j]
            if j == i or not valid[j] or twin:
                continue
            forward.append(query[i] @ positive[j] / TAU)
            backward.append(query[j] @ positive[i] / TAU)
        forward += [query[i] @ n[i] / TAU for n in negatives]
        total += sum(
            (-own + math.log(sum(math.exp(x - max(side)) for x in side)) + max(side)) / 2
            for side in (forward, backward)
        )
        count += 1
    return total / count


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_value_equals_loops(negatives):
    arrays = draw(negatives=negatives)
    loss, _ = info_nce(*arrays, TAU)
    assert float(loss) == pytest.approx(by_loops(*map(_double, arrays)), rel=1e-5)


def _double(x):
    if isinstance(x, list):
        return [n.astype(np.float64) for n in x]
    return x.astype(np.float64) if x.dtype == np.float32 else x


def test_unreadable_pairs_and_twins_take_no_part():
    query, positive, negatives, valid, query_id, positive_id = draw()
    valid[[3, 8]] = False
    query_id[5], positive_id[9] = query_id[4], positive_id[2]
    arrays = (query, positive, negatives, valid, query_id, positive_id)
    loss, scalars = info_nce(*arrays, TAU)
    assert float(loss) == pytest.approx(by_loops(*map(_double, arrays)), rel=1e-5)
    # What an unreadable pair's row holds must not matter, nor receive a gradient.
    moved = query.copy()
    moved[3] = -query[0]
    again, scalars_again = info_nce(moved, *arrays[1:], TAU)
    assert float(again) == float(loss)
    assert jax.tree.map(float, scalars) == jax.tree.map(float, scalars_again)
    grad = jax.grad(lambda q: info_nce(q, *arrays[1:], TAU)[0])(query)
    assert np.abs(grad[3]).max() == 0 and np.abs(grad[0]).max() > 0


def test_scalars():
    query, positive, negatives, *rest = draw(negatives=1)
    _, scalars = info_nce(query, query, [-query], *rest, TAU)
    assert float(scalars["accuracy"]) == 1
    assert float(scalars["positive_similarity"]) == pytest.approx(1, abs=1e-6)
    cosine = query @ query.T
    expected = (cosine.sum() - np.trace(cosine)) / (B * (B - 1))
    assert float(scalars["negative_similarity"]) == pytest.approx(expected, abs=1e-5)
    _, worse = info_nce(query, -query, [query], *rest, TAU)
    assert float(worse["accuracy"]) == 0


def test_all_vectors_equal_is_no_better_than_guessing():
    query = np.tile(draw()[0][:1], (B, 1))
    loss, _ = info_nce(query, query, [], *draw()[3:], TAU)
    assert float(loss) == pytest.approx(math.log(B), rel=1e-5)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_value_and_gradient_do_not_depend_on_the_mesh(axes):
    arrays = draw()
    value = jax.value_and_grad(lambda q, p, n, *r: info_nce(q, p, n, *r, TAU)[0], (0, 1, 2))
    expected, grads = value(*map(jnp.asarray, arrays[:2]), arrays[2], *arrays[3:])
    loss, sharded = jax.jit(value)(*place_batch(arrays, make_mesh(axes)))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # In-batch negatives on other devices get their gradient, too.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, grads)
