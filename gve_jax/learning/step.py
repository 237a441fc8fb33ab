"""One training step, as pure functions of (state, batch)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gve_jax.learning.loss import info_nce
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params, make_embed
from gve_jax.sharding import param_shardings, replicated


def init_state(cfg: ModelConfig, tx: optax.GradientTransformation, mesh, seed: int) -> dict:
    """`{"params", "opt"}` on the mesh. Moments get their parameters' shardings explicitly: under
    Auto axes `jit(tx.init)` alone would replicate them."""
    shapes = jax.eval_shape(lambda: init_params(cfg, seed)[1])
    shardings = state_shardings(shapes, tx, mesh)
    params = jax.jit(lambda: init_params(cfg, seed)[1], out_shardings=shardings["params"])()
    opt = jax.jit(tx.init, out_shardings=shardings["opt"])(params)
    return {"params": params, "opt": opt}


def state_shardings(params, tx: optax.GradientTransformation, mesh) -> dict:
    """Shardings of a state whose parameters have the shapes of `params`."""
    shardings = param_shardings(params, mesh)
    opt = optax.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, params),
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    return {"params": shardings, "opt": opt}


def make_train_step(
    cfg: ModelConfig, tx: optax.GradientTransformation, temperature: float
) -> Callable:
    """`step(state, arrays) -> (state, scalars)`; the old state's memory is reused.

    Two programs: gradients, compiled for each shape of a batch, and the update, compiled once.
    """
    embed = make_embed(cfg)

    def loss_fn(params, arrays):
        return info_nce(
            embed(params, arrays["query"]),
            embed(params, arrays["positive"]),
            [embed(params, negative) for negative in arrays["negatives"]],
            arrays["valid"],
            arrays["query_id"],
            arrays["positive_id"],
            temperature,
        )

    @jax.jit
    def gradients(params, arrays):
        (loss, scalars), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, arrays)
        return grads, scalars | {"loss": loss, "gradient_norm": optax.tree.norm(grads)}

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, grads):
        updates, opt = tx.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    def step(state, arrays):
        grads, scalars = gradients(state["params"], arrays)
        return update(state, grads), scalars

    return step


def make_probe(cfg: ModelConfig) -> Callable:
    """`probe(params, arrays) -> float32 [B]`: cosine of each query with its positive.

    Each side is a program of its own: as many compiles as shapes, not as pairs of shapes.
    """
    embed = jax.jit(make_embed(cfg))

    def probe(params, arrays):
        return jnp.sum(embed(params, arrays["query"]) * embed(params, arrays["positive"]), axis=-1)

    return probe
