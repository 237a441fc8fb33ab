"""The training step: sharded moments, decay by table, the same losses on any mesh."""

import functools

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from gve_jax.distributed.sharding import make_mesh, param_shardings, path_name, place_batch
from gve_jax.inputs.batch import Bucket
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import EVERYTHING, decays, make_optimizer, make_schedule
from gve_jax.learning.state import init_state, state_shardings
from gve_jax.learning.step import make_train_step
from tests.model.embedder_test import BUCKET, CFG, ROWS, make_batch

TEXT = Bucket(0, 0, 0, 40)
SETTINGS = ConfigDict(
    dict(
        learning_rate=1e-2,
        warmup_steps=2,
        b1=0.9,
        b2=0.98,
        weight_decay=0.1,
        clip_norm=1.0,
        rates=EVERYTHING,
    )
)
TX = make_optimizer(SETTINGS, 10)


def arrays():
    """Texts with a video or an image find texts."""
    rows = [ROWS[n % len(ROWS)] for n in range(8)]
    texts = [ROWS[3:][n % len(ROWS[3:])] for n in range(8)]
    query, positive = make_batch(rows, BUCKET), make_batch(texts, TEXT)
    for seed, batch in enumerate((query, positive)):
        for n, length in enumerate(batch.length):
            draw = np.random.default_rng((seed, n))
            batch.tokens[n, :length] = draw.integers(0, 300, length)
    return {
        "query": query,
        "positive": positive,
        "negatives": [make_batch(texts, TEXT)],
        "valid": np.ones(8, bool),
        "query_id": np.arange(8, dtype=np.int32),
        "positive_id": np.arange(8, dtype=np.int32),
        "negative_id": np.arange(8, 16, dtype=np.int32)[:, None],
    }


MESHES = {"data": {"data": 8}, "fsdp": {"fsdp": 8}, "mixed": {"data": 2, "fsdp": 2, "tensor": 2}}


@functools.cache
def losses(name: str) -> list[float]:
    """Of four steps on one batch, on a mesh by its name."""
    mesh = make_mesh(MESHES[name])
    state, frozen = init_state(CFG, TX, mesh, seed=3)
    step = make_train_step(CFG, TX, LossConfig(), mesh)
    batch, found = place_batch(arrays(), mesh), []
    for number in range(4):
        state, scalars = step(state, frozen, batch, number)
        found.append(float(scalars["loss"]))
    # A step must keep the sharding of the state: else the next step is compiled again.
    placed = jax.tree.leaves(state_shardings(state["params"], TX, mesh))
    for leaf, sharding in zip(jax.tree.leaves(state), placed, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return found


def test_the_loss_falls_on_one_batch():
    assert losses("data")[-1] < 0.9 * losses("data")[0]


@pytest.mark.parametrize("name", [pytest.param("fsdp", marks=pytest.mark.slow), "mixed"])
def test_losses_do_not_depend_on_the_mesh(name):
    assert losses(name) == pytest.approx(losses("data"), rel=1e-4)


def test_moments_are_sharded_like_their_parameters(mesh):
    state, _ = init_state(CFG, TX, mesh, seed=0)
    adam = state["opt"][1][0]
    kernel = state["params"]["language"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "fsdp", "tensor")
    for moments in (adam.mu, adam.nu):
        jax.tree.map(_same_sharding, moments, state["params"])
    shapes = jax.eval_shape(lambda: state["params"])
    expected = jax.tree.leaves(state_shardings(shapes, TX, mesh))
    for leaf, sharding in zip(jax.tree.leaves(state), expected, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def _same_sharding(a, b):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_matrices_decay_and_nothing_else(mesh):
    shapes = jax.eval_shape(lambda: init_state(CFG, TX, mesh, 0)[0]["params"])
    for path, decay in jax.tree_util.tree_leaves_with_path(decays(shapes)):
        assert decay == path_name(path).endswith("kernel")


def test_a_parameter_without_a_rule_is_an_error(mesh):
    strange = {"language": {"scale": jax.ShapeDtypeStruct((4,), np.float32)}}
    with pytest.raises(ValueError, match="language/scale"):
        param_shardings(strange, mesh)
    with pytest.raises(ValueError, match="language/scale"):
        decays(strange)


def test_first_update_is_adamws(mesh):
    """After warm-up's first step Adam moves every weight by lr x sign(g), decay aside."""
    settings = ConfigDict(SETTINGS.to_dict() | {"warmup_steps": 0, "weight_decay": 0.0})
    tx = make_optimizer(settings, 10)
    params = {"visual/patch_embed/kernel": np.array([1.0, -2.0], np.float32)}
    grads = {"visual/patch_embed/kernel": np.array([0.3, -0.2], np.float32)}
    updates, _ = tx.update(grads, tx.init(params), params)
    (moved,) = optax.apply_updates(params, updates).values()
    np.testing.assert_allclose(moved, [1 - 1e-2, -2 + 1e-2], atol=1e-6)


def test_schedule_warms_up_then_falls_as_a_cosine():
    schedule = make_schedule(SETTINGS, 10)
    cosine = [5e-3 * (1 + np.cos(np.pi * t / 8)) for t in range(9)]
    expected = [0, 5e-3, *cosine]
    assert [float(schedule(t)) for t in range(11)] == pytest.approx(expected, abs=1e-7)
