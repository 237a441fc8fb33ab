"""One training step, as pure functions of (state, batch)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gve_jax.learning.loss import LossConfig, info_nce
from gve_jax.learning.state import join
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import make_embed


def make_train_step(
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    loss: LossConfig,
    mesh,
    *,
    chunk: int = 0,
    seed: int = 0,
) -> Callable:
    """`step(state, frozen, arrays, number) -> (state, scalars)`; the old state's memory is reused.

    Two programs: gradients, compiled for each shape of a batch, and the update, compiled once.
    """
    embed = make_embed(cfg)
    drops = cfg.lora is not None and cfg.lora.dropout > 0

    def loss_fn(params, frozen, arrays, number):
        whole = join(params, frozen)
        sides = [arrays["query"], arrays["positive"], *arrays["negatives"]]
        keys = [None] * len(sides)
        if drops:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(sides))
        query, positive, *negatives = [
            embed(whole, side, key) for side, key in zip(sides, keys, strict=True)
        ]
        return info_nce(
            query,
            positive,
            negatives,
            arrays["valid"],
            arrays["query_id"],
            arrays["positive_id"],
            loss.temperature,
        )

    @jax.jit
    def gradients(params, frozen, arrays, number):
        (loss, scalars), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, frozen, arrays, number
        )
        return grads, scalars | {"loss": loss, "gradient_norm": optax.tree.norm(grads)}

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, grads):
        updates, opt = tx.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}

    def step(state, frozen, arrays, number):
        grads, scalars = gradients(state["params"], frozen, arrays, number)
        return update(state, grads), scalars

    step.gradients, step.update = gradients, update
    return step


def make_probe(cfg: ModelConfig) -> Callable:
    """`probe(params, arrays) -> float32 [B]`: cosine of each query with its positive.

    Each side is a program of its own: as many compiles as shapes, not as pairs of shapes.
    """
    embed = jax.jit(make_embed(cfg))

    def probe(params, arrays):
        return jnp.sum(embed(params, arrays["query"]) * embed(params, arrays["positive"]), axis=-1)

    return probe
