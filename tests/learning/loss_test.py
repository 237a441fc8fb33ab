"""InfoNCE against loops over single pairs, written from the paper's equation 1."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gve_jax.distributed.sharding import make_mesh, place_batch
from gve_jax.learning.loss import FORMS, LossConfig, info_nce, learned
from tests.situations import situation

B, D, TAU = 16, 12, 0.03
PLAIN = LossConfig(temperature=TAU, duplicate_cosine=None)


def draw(seed=0, negatives=2):
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    vectors = [unit(rng.standard_normal((B, D))).astype(np.float32) for _ in range(2 + negatives)]
    ids = np.arange(B, dtype=np.int32)
    negative_id = 200 + np.arange(B * negatives, dtype=np.int32).reshape(B, negatives)
    return vectors[0], vectors[1], vectors[2:], np.ones(B, bool), ids, ids + 100, negative_id


def by_loops(
    query,
    positive,
    negatives,
    valid,
    query_id,
    positive_id,
    negative_id,
    near=None,
    margin=None,
    cut=None,
):
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    short = [unit(x[..., :cut]) for x in (query, positive, *negatives)]
    total, count = 0.0, 0
    for i in range(B):
        if not valid[i]:
            continue
        own = query[i] @ positive[i]
        at = lambda x, y: x @ y / TAU  # noqa: E731
        forward, backward = [at(short[0][i], short[1][i])], [at(short[0][i], short[1][i])]
        for j in range(B):
            twin = query_id[i] == query_id[j] or positive_id[i] == positive_id[j]
            twin = twin or query_id[i] == positive_id[j] or positive_id[i] == query_id[j]
            if near is not None:
                twin = twin or positive[i] @ positive[j] >= 1 - near
                twin = twin or query[i] @ query[j] >= 1 - near
            if j == i or not valid[j] or twin:
                continue
            if margin is None or query[i] @ positive[j] <= own + margin:
                forward.append(at(short[0][i], short[1][j]))
            if margin is None or query[j] @ positive[i] <= own + margin:
                backward.append(at(short[0][j], short[1][i]))
        positives = {positive_id[j] for j in range(B) if valid[j] and query_id[j] == query_id[i]}
        for hard, hard_short, hard_id in zip(negatives, short[2:], negative_id[i], strict=True):
            if hard_id in positives | {query_id[i], positive_id[i]}:
                continue
            if near is not None and positive[i] @ hard[i] >= 1 - near:
                continue
            if margin is None or query[i] @ hard[i] <= own + margin:
                forward.append(at(short[0][i], hard_short[i]))
        total += sum(
            (-side[0] + math.log(sum(math.exp(x - max(side)) for x in side)) + max(side)) / 2
            for side in (forward, backward)
        )
        count += 1
    return total / count


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_value_equals_loops(negatives):
    arrays = draw(negatives=negatives)
    loss, _ = info_nce(*arrays, PLAIN)
    assert float(loss) == pytest.approx(by_loops(*map(_double, arrays)), rel=1e-5)


def _double(x):
    if isinstance(x, list):
        return [n.astype(np.float64) for n in x]
    return x.astype(np.float64) if x.dtype == np.float32 else x


def test_unreadable_pairs_and_twins_take_no_part():
    arrays = draw()
    query, _, _, valid, query_id, positive_id, _ = arrays
    valid[[3, 8]] = False
    query_id[5], positive_id[9] = query_id[4], positive_id[2]
    loss, scalars = info_nce(*arrays, PLAIN)
    assert float(loss) == pytest.approx(by_loops(*map(_double, arrays)), rel=1e-5)
    # What an unreadable pair's row holds must not matter, nor receive a gradient.
    moved = query.copy()
    moved[3] = -query[0]
    again, scalars_again = info_nce(moved, *arrays[1:], PLAIN)
    assert float(again) == float(loss)
    assert jax.tree.map(float, scalars) == jax.tree.map(float, scalars_again)
    grad = jax.grad(lambda q: info_nce(q, *arrays[1:], PLAIN)[0])(query)
    assert np.abs(grad[3]).max() == 0 and np.abs(grad[0]).max() > 0


@situation(
    "Training data",
    "a hard negative has the content of its pair's positive or query (trained with LoRA dropout)",
    "left out of the loss by content, not by vectors that dropout makes differ",
    since="0.2.0",
)
@situation(
    "Training data",
    "a query has the content of another pair's positive",
    "neither pair is a negative of the other, in both directions",
    since="0.2.0",
)
@pytest.mark.parametrize("case", ["own positive", "own query", "twin's positive", "crossed"])
def test_the_content_of_a_pair_is_not_its_negative(case):
    arrays = draw(5)  # vectors all differ, as dropout makes them
    query, _, negatives, valid, query_id, positive_id, negative_id = arrays
    for hard in negatives:
        hard[4] = query[4] + 0.1 * hard[4]
        hard[4] /= np.linalg.norm(hard[4])
    plain = by_loops(*map(_double, arrays))
    if case == "own positive":
        negative_id[4, 1] = positive_id[4]
    elif case == "own query":
        negative_id[4, 0] = query_id[4]
    elif case == "twin's positive":
        query_id[6], negative_id[4, 0] = query_id[4], positive_id[6]
    else:
        query_id[4] = positive_id[11]
    loss, scalars = info_nce(*arrays, PLAIN)
    expected = by_loops(*map(_double, arrays))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - plain) > 1e-4
    assert float(scalars["duplicate_negatives"]) == pytest.approx((case != "crossed") / B)
    # The twin's positive is unknown where the twin cannot be read.
    if case == "twin's positive":
        valid[6] = False
        assert float(info_nce(*arrays, PLAIN)[1]["duplicate_negatives"]) == 0


def test_scalars():
    query, positive, negatives, *rest = draw(negatives=1)
    _, scalars = info_nce(query, query, [-query], *rest, PLAIN)
    assert float(scalars["accuracy"]) == 1
    assert float(scalars["positive_similarity"]) == pytest.approx(1, abs=1e-6)
    cosine = query @ query.T
    expected = (cosine.sum() - np.trace(cosine)) / (B * (B - 1))
    assert float(scalars["negative_similarity"]) == pytest.approx(expected, abs=1e-5)
    _, worse = info_nce(query, -query, [query], *rest, PLAIN)
    assert float(worse["accuracy"]) == 0


def test_all_vectors_equal_is_no_better_than_guessing():
    query = np.tile(draw()[0][:1], (B, 1))
    loss, _ = info_nce(query, query, [], *draw()[3:], PLAIN)
    assert float(loss) == pytest.approx(math.log(B), rel=1e-5)


# What each setting adds to the arrays of `hard_case`, and the same for the loops.
SETTINGS = {
    "ids": ({}, {}),
    "cosine": ({"duplicate_cosine": 1e-5}, {"near": 1e-5}),
    "margin": ({"false_negative_margin": 0.1}, {"margin": 0.1}),
    "both": (
        {"duplicate_cosine": 1e-5, "false_negative_margin": 0.1},
        {"near": 1e-5, "margin": 0.1},
    ),
    "cut": ({"matryoshka": (5,), "false_negative_margin": 0.1}, {"cut": 5, "margin": 0.1}),
}


def hard_case():
    """Duplicates in value only, an unreadable pair, twins by id, false negatives, two negatives."""
    query, positive, negatives, valid, query_id, positive_id, negative_id = draw(3)
    positive = (positive + 2 * query) / np.linalg.norm(positive + 2 * query, axis=1)[:, None]
    positive[6], query[11], negatives[0][2] = positive[1], query[12], positive[2]
    positive[4], negatives[1][5] = query[3], query[5]  # better than their own positives
    valid[8], query_id[14] = False, query_id[13]
    positive_id[7], negative_id[9, 0] = query_id[0], positive_id[9]
    negative_id[10, 1], negative_id[13, 0] = query_id[10], positive_id[14]
    return query, positive, negatives, valid, query_id, positive_id, negative_id


@pytest.mark.parametrize("setting", SETTINGS)
def test_excluded_negatives(setting):
    ours, settings = SETTINGS[setting]
    arrays, cfg = hard_case(), dataclasses.replace(PLAIN, **ours)
    loss, _ = info_nce(*arrays, cfg)
    expected = by_loops(*map(_double, arrays), **settings)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    if setting != "ids":  # the setting matters in this case
        assert abs(float(loss) - float(info_nce(*arrays, PLAIN)[0])) > 1e-2


def test_matryoshka_is_a_weighted_mean_over_cuts():
    arrays = hard_case()
    cfg = dataclasses.replace(PLAIN, matryoshka=(D, 4), matryoshka_weights=(1.0, 3.0))
    whole, short = (by_loops(*map(_double, arrays), cut=cut) for cut in (None, 4))
    assert float(info_nce(*arrays, cfg)[0]) == pytest.approx((whole + 3 * short) / 4, rel=1e-5)


def test_a_learned_temperature_has_the_gradient_of_the_loss_and_returns_from_its_bounds():
    arrays, step = hard_case(), 1e-3

    def at(log):
        return info_nce(*arrays, PLAIN, temperature=learned(log))[0]

    log = math.log(TAU)
    slope = (at(log + step) - at(log - step)) / (2 * step)
    assert float(jax.grad(at)(log)) == pytest.approx(float(slope), rel=1e-2)
    assert float(learned(math.log(0.001))) == pytest.approx(0.01)
    assert float(learned(math.log(7.0))) == pytest.approx(1.0)
    assert float(jax.grad(at)(math.log(0.001))) != 0


FULL = dataclasses.replace(
    PLAIN,
    duplicate_cosine=1e-5,
    false_negative_margin=0.1,
    matryoshka=(D, 5),
    matryoshka_weights=(2.0, 1.0),
)


def value_and_gradients(cfg, mesh, tau=TAU):
    def loss(query, positive, negatives, tau, *rest):
        return info_nce(query, positive, negatives, *rest, cfg, mesh=mesh, temperature=tau)

    value = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
    query, positive, negatives, *rest = place_batch(hard_case(), mesh)
    return value(query, positive, negatives, jnp.float32(tau), *rest), value


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_in_value_and_gradient_on_any_mesh(form, axes):
    (expected, grads), _ = value_and_gradients(FULL, make_mesh({"data": 8}))
    cfg = dataclasses.replace(FULL, form=form)
    (found, found_grads), _ = value_and_gradients(cfg, make_mesh(axes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, expected)
    # In-batch negatives on other devices get their gradient, too.
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads[:3]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale, rtol=2e-5),
        found_grads,
        grads,
    )


def test_gradients_are_slopes():
    (_, grads), value = value_and_gradients(FULL, make_mesh({"data": 8}))
    arrays, rng, step = hard_case(), np.random.default_rng(0), 1e-3
    for number in (0, 1):
        way = rng.standard_normal((B, D)).astype(np.float32) / 10
        # Not the rows that are each other's duplicates or at a margin: a step would part them.
        way[[1, 2, 3, 4, 5, 6, 11, 12]] = 0
        ends = []
        for sign in (1, -1):
            moved = list(arrays)
            moved[number] = arrays[number] + sign * step * way
            query, positive, negatives, *rest = moved
            ends.append(float(value(query, positive, negatives, jnp.float32(TAU), *rest)[0][0]))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(np.sum(np.asarray(grads[number]) * way)) == pytest.approx(slope, rel=2e-2)


def test_the_ring_holds_one_block_and_moves_it_around():
    mesh = make_mesh({"data": 8})
    for form, has, has_not in (
        ("ring", "collective-permute", "all-gather"),
        ("all_gather", "all-gather", "collective-permute"),
    ):
        _, value = value_and_gradients(dataclasses.replace(FULL, form=form), mesh)
        query, positive, negatives, *rest = place_batch(hard_case(), mesh)
        text = value.lower(query, positive, negatives, jnp.float32(TAU), *rest).compile().as_text()
        assert has in text and has_not not in text


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 0),
        ("form", "star"),
        ("duplicate_cosine", -1),
        ("false_negative_margin", -0.1),
        ("matryoshka", (0,)),
        ("matryoshka", (4, 4)),
        ("matryoshka_weights", (1.0,)),
    ],
)
def test_a_setting_that_cannot_be_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        LossConfig(**{field: value})


def test_a_cut_longer_than_the_vectors_is_an_error():
    with pytest.raises(ValueError, match="matryoshka 99"):
        info_nce(*draw(), dataclasses.replace(PLAIN, matryoshka=(99,)))
