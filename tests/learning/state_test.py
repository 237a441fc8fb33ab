"""What trains and what is frozen: the split, the dtypes, the shardings, adapters on every mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from gve_jax.distributed.sharding import AXES, make_mesh, param_shardings, place_batch
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.optimizer import ADAPTERS, EVERYTHING, factors, make_optimizer
from gve_jax.learning.state import abstract_state, init_state, join, split
from gve_jax.learning.step import make_train_step
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params
from gve_jax.running.checkpoint import Checkpoints
from tests.model.embedder_test import CFG, ROWS, make_batch

SETTINGS = dict(
    learning_rate=1e-2, warmup_steps=0, b1=0.9, b2=0.98, weight_decay=0.1, clip_norm=1.0
)
LORA = dataclasses.replace(CFG, lora=LoraConfig(rank=4, dropout=0.25))
TEXT = Bucket(0, 0, 0, 40)


def optimizer(rates, **more):
    return make_optimizer(ConfigDict(SETTINGS | dict(rates=rates) | more), 10)


def names(tree):
    return set(flatten_dict(tree, sep="/"))


def shapes_of(cfg):
    return jax.eval_shape(lambda: init_params(cfg, 0)[1])


def test_a_split_by_the_table_joins_again():
    params = shapes_of(LORA)
    rates = ((r"^visual/merger/", 0.1), (r"/lora/[ab]$", 1.0), (".*", 0))
    trained, frozen = split(params, rates)
    assert names(trained) == {
        name for name in names(params) if "lora" in name or name.startswith("visual/merger/")
    }
    assert names(trained) | names(frozen) == names(params)
    assert not names(trained) & names(frozen)
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(params)
    assert split(params, EVERYTHING)[1] == {}


@pytest.mark.parametrize(
    "rates, message",
    [
        ((("lora", 1.0),), "no pattern matches parameter language/embed_tokens"),
        (
            (("lora", 1.0), ("projektor", 1.0), (".*", 0)),
            "'projektor' matches no parameter of this",
        ),
        (((".*", 1.0), ("lora", 0)), "'lora' matches no parameter that no earlier pattern matches"),
        (((".*", -1.0),), "factor -1.0 of '.*' is negative"),
        ((("(", 1.0),), "must be pairs of"),
        (("lora", ".*"), "must be pairs of"),
        (((".*", 0),), "freezes every parameter"),
    ],
)
def test_a_table_that_cannot_be_meant_is_an_error(rates, message):
    with pytest.raises(UserError, match=re.escape(message)):
        split(shapes_of(LORA), rates)


def test_a_factor_scales_the_whole_update():
    params = {name: jnp.array([1.0, -2.0]) for name in ("a/kernel", "b/kernel", "c/kernel")}
    params = {
        f"visual/merger/mlp_0/{n}/lora/{x}": v
        for (n, v), x in zip(params.items(), "aba", strict=True)
    }
    slow = r"mlp_0/b/"
    grads = {name: jnp.array([0.3, -0.2]) for name in params}
    tx = optimizer(((slow, 0.25), (".*", 1.0)))
    (fast, slower, third) = tx.update(grads, tx.init(params), params)[0].values()
    np.testing.assert_allclose(slower, 0.25 * fast, rtol=1e-6)
    np.testing.assert_array_equal(third, fast)
    # AdamW's first update, weight decay included: -lr (sign(g) + 0.1 w).
    np.testing.assert_allclose(
        fast, -1e-2 * (np.array([1, -1]) + 0.1 * np.array([1, -2])), rtol=1e-4
    )


def test_every_factor_is_the_first_patterns():
    rates = ((r"/lora/b$", 16.0), (r"/lora/", 1.0), (r"language/", 0.5), (".*", 0))
    found = factors(
        ["language/q/lora/b", "language/q/lora/a", "language/q/kernel", "visual/x"], rates
    )
    assert list(found.values()) == [16.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "cfg, rates",
    [
        (LORA, ADAPTERS),
        (CFG, EVERYTHING),
        (LORA, (("merger|lora", 1.0), (".*", 0))),
    ],
)
def test_moments_are_float32_and_of_trained_parameters_only(mesh, cfg, rates):
    cfg = dataclasses.replace(cfg, dtype="bfloat16", param_dtype="bfloat16")
    tx = optimizer(rates)
    state, frozen = abstract_state(cfg, tx, mesh, rates)
    trained = names(state["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} <= {jnp.dtype("bfloat16")}
    for name, leaf in flatten_dict(state["params"], sep="/").items():
        assert leaf.dtype == ("float32" if "lora" in name else "bfloat16"), name
    _, (adam, *_), _ = state["opt"]
    for moments in (adam.mu, adam.nu):
        assert names(moments) == trained
        assert {leaf.dtype for leaf in jax.tree.leaves(moments)} == {jnp.dtype("float32")}
    # An update keeps all of these dtypes, gradients in bfloat16 or not.
    updates, opt = jax.eval_shape(tx.update, state["params"], state["opt"], state["params"])
    assert jax.tree.map(lambda x: x.dtype, opt) == jax.tree.map(lambda x: x.dtype, state["opt"])


def test_frozen_leaves_get_no_gradients(mesh):
    tx = optimizer(ADAPTERS)
    state, frozen = abstract_state(LORA, tx, mesh, ADAPTERS)
    step = make_train_step(LORA, tx, LossConfig(), mesh)
    grads, _ = jax.eval_shape(step.gradients, state["params"], frozen, arrays(), 0)
    assert names(grads) == names(state["params"])
    assert all("/lora/" in name for name in names(grads))


def test_a_learned_temperature_is_a_trained_leaf(mesh):
    loss = LossConfig(temperature=0.05, learned_temperature=True)
    rates = (("loss/", 1.0), *ADAPTERS)
    state, frozen = abstract_state(LORA, optimizer(rates), mesh, rates, loss)
    assert "loss/log_temperature" in names(state["params"])
    assert names(join(state["params"], frozen)) == names(shapes_of(LORA))
    with pytest.raises(UserError, match="rates freezes loss/log_temperature"):
        abstract_state(LORA, optimizer(ADAPTERS), mesh, ADAPTERS, loss)


def arrays():
    rows = [ROWS[3]] * 8
    query, positive = make_batch(rows, TEXT), make_batch(rows, TEXT)
    for n in range(8):
        length, draw = query.length[n], np.random.default_rng(n)
        query.tokens[n, :length] = draw.integers(0, 300, length)
        positive.tokens[n, :length] = draw.integers(0, 300, length)
    return {
        "query": query,
        "positive": positive,
        "negatives": [],
        "valid": np.ones(8, bool),
        "query_id": np.arange(8, dtype=np.int32),
        "positive_id": np.arange(8, dtype=np.int32),
        "negative_id": np.empty((8, 0), np.int32),
    }


class Run:
    """Adapters that train on one mesh, over frozen weights from seed 3, with dropout."""

    def __init__(self, mesh, first):
        self.mesh, self.tx = mesh, optimizer(ADAPTERS)
        self.abstract, frozen = abstract_state(LORA, self.tx, mesh, ADAPTERS)
        places = jax.tree.map(lambda leaf: leaf.sharding, (self.abstract, frozen))
        self.start, self.frozen = jax.device_put(first, places)  # a copy
        self.step = make_train_step(LORA, self.tx, LossConfig(), mesh, seed=3)
        self.batch = place_batch(arrays(), mesh)

    def train(self, state, first, last):
        """The state after steps [first, last), and their losses."""
        found = []
        for number in range(first, last):
            state, scalars = self.step(state, self.frozen, self.batch, number)
            found.append(float(scalars["loss"]))
        return state, found


MESHES = {
    "data": lambda: make_mesh({"data": 8}),
    "fsdp": lambda: make_mesh({"fsdp": 8}),
    "mixed": lambda: make_mesh({"data": 2, "fsdp": 2, "tensor": 2}),
    "one": lambda: jax.make_mesh(
        (1, 1, 1), AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3
    ),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fsdp", "one")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by mesh; a function of a mesh's name to the losses of its four steps; and the
    checkpoint of `data` after two."""
    first = init_state(LORA, optimizer(ADAPTERS), MESHES["data"](), 3, ADAPTERS)
    first = jax.tree.map(np.asarray, first)
    runs = {name: Run(make(), first) for name, make in MESHES.items()}
    saved = tmp_path_factory.mktemp("saved")
    state, first = runs["data"].train(runs["data"].start, 0, 2)
    with Checkpoints(saved, keep=1, fingerprint={}) as checkpoints:
        checkpoints.save(2, state, {})
    _, rest = runs["data"].train(state, 2, 4)

    @functools.cache
    def losses(name: str) -> list[float]:
        return first + rest if name == "data" else runs[name].train(runs[name].start, 0, 4)[1]

    return runs, losses, saved


def test_adapters_learn(trained):
    _, losses, _ = trained
    assert losses("data")[-1] < losses("data")[0] - 0.05


@pytest.mark.parametrize("name", [*SLOW, "mixed"])
def test_losses_of_adapters_do_not_depend_on_the_mesh(trained, name):
    _, losses, _ = trained
    assert losses(name) == pytest.approx(losses("data"), rel=1e-3, abs=1e-5)


def test_a_checkpoint_has_trained_parameters_only(trained):
    runs, _, saved = trained
    with Checkpoints(saved, keep=1, fingerprint={}) as checkpoints:
        restored = checkpoints.restore(runs["data"].abstract)
    assert all("/lora/" in name for name in names(restored.state["params"]))
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(restored.state))
    on_disk = sum(file.stat().st_size for file in saved.rglob("d/*"))
    assert held / 2 < on_disk < 2 * held  # the frozen rest is many times that
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(runs["data"].frozen)) > 3 * held


@pytest.mark.parametrize("name", [SLOW[1], "mixed"])
def test_training_resumes_on_another_mesh(trained, name):
    runs, losses, saved = trained
    run = runs[name]
    with Checkpoints(saved, keep=1, fingerprint={}) as checkpoints:
        restored = checkpoints.restore(run.abstract)
    assert restored.step == 2
    wanted = param_shardings(restored.state["params"], run.mesh)
    _, (adam, *_), _ = restored.state["opt"]
    for tree in (restored.state["params"], adam.mu, adam.nu):
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    if name == "mixed":
        moment = adam.nu["language"]["layers"]["self_attn"]["q_proj"]["lora"]["a"]
        assert moment.addressable_shards[0].data.shape[1] == moment.shape[1] // 2
    assert run.train(restored.state, 2, 4)[1] == pytest.approx(
        losses("data")[2:], rel=1e-3, abs=1e-5
    )
