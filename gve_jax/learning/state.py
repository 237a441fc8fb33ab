"""Trained and frozen parameters of a model: trees, shardings, initial values.

`params` (trained) and `frozen` are disjoint nested dicts, which together are the tree of the
encoder. A learned temperature is another trained leaf, `loss/log_temperature`.
"""

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.distributed.sharding import param_shardings, replicated
from gve_jax.errors import UserError
from gve_jax.learning.loss import LossConfig, log_temperature
from gve_jax.learning.optimizer import EVERYTHING, Rates, factors
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params

TEMPERATURE = "loss/log_temperature"


def split(params: dict, rates: Rates) -> tuple[dict, dict]:
    """Splits a tree of arrays or shapes into (trained, frozen), by the table `rates`.

    Raises:
      UserError: as in `factors`; no parameter is trained; a learned temperature is frozen.
    """
    flat = flatten_dict(params, sep="/")
    factor = factors(flat, rates)
    trained = {name: leaf for name, leaf in flat.items() if factor[name] > 0}
    frozen = {name: leaf for name, leaf in flat.items() if factor[name] == 0}
    if not trained:
        raise UserError("optimizer.rates freezes every parameter")
    if TEMPERATURE in frozen:
        raise UserError(f"loss.learned_temperature: optimizer.rates freezes {TEMPERATURE}")
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(params: dict, frozen: dict) -> dict:
    """Joins the tree of the encoder, without a learned temperature."""
    flat = flatten_dict(params, sep="/") | flatten_dict(frozen, sep="/")
    return unflatten_dict({k: v for k, v in flat.items() if k != TEMPERATURE}, sep="/")


def make_params(cfg: ModelConfig, loss: LossConfig | None, seed: int) -> dict:
    """Returns random values of all leaves; under `jax.jit`, unused ones are not computed."""
    params = init_params(cfg, seed)[1]
    if loss is not None and loss.learned_temperature:
        params |= {"loss": {"log_temperature": jnp.float32(log_temperature(loss))}}
    return params


def state_shardings(params: dict, tx: optax.GradientTransformation, mesh) -> dict:
    """Returns the shardings of a state whose trained parameters have the shapes of `params`.

    Moments explicitly get the sharding of their parameters: `jit(tx.init)` would replicate them.
    """
    shardings = param_shardings(params, mesh)
    opt = optax.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, params),
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    return {"params": shardings, "opt": opt}


def abstract_state(
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    mesh,
    rates: Rates = EVERYTHING,
    loss: LossConfig | None = None,
) -> tuple[dict, dict]:
    """Returns (state, frozen) as `jax.ShapeDtypeStruct`s with shardings; computes nothing.

    Raises:
      UserError: as in `split`.
    """
    trained, frozen = split(jax.eval_shape(lambda: make_params(cfg, loss, 0)), rates)
    state = {"params": trained, "opt": jax.eval_shape(tx.init, trained)}
    shardings = state_shardings(trained, tx, mesh), param_shardings(frozen, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        (state, frozen),
        shardings,
    )


def random_params(
    cfg: ModelConfig, seed: int, abstract: dict, loss: LossConfig | None = None
) -> dict:
    """Returns those random initial parameters that are in `abstract`; equal for equal seeds."""
    names = flatten_dict(abstract)

    def selected():
        flat = flatten_dict(make_params(cfg, loss, seed))
        return unflatten_dict({name: flat[name] for name in names})

    return jax.jit(selected, out_shardings=_shardings(abstract))()


def init_train_state(params: dict, tx: optax.GradientTransformation, abstract: dict) -> dict:
    """Returns the state before the first step, given trained parameters on the mesh."""
    opt = jax.jit(tx.init, out_shardings=_shardings(abstract["opt"]))(params)
    return {"params": params, "opt": opt}


def init_state(
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    mesh,
    seed: int,
    rates: Rates = EVERYTHING,
    loss: LossConfig | None = None,
) -> tuple[dict, dict]:
    """Returns random (state, frozen) on the mesh."""
    abstract, frozen = abstract_state(cfg, tx, mesh, rates, loss)
    params = random_params(cfg, seed, abstract["params"], loss)
    return init_train_state(params, tx, abstract), random_params(cfg, seed, frozen, loss)


def _shardings(abstract):
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
