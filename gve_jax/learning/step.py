"""One training step, as pure functions of (state, batch)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gve_jax.distributed.sharding import param_shardings
from gve_jax.learning.gradcache import cached_value_and_grad
from gve_jax.learning.loss import LossConfig, info_nce, learned
from gve_jax.learning.state import join, state_shardings
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
    """Returns `step(state, frozen, arrays, number) -> (state, scalars)`, which donates the state.

    It runs two programs: `step.gradients`, compiled for each shape of a batch, and `step.update`,
    compiled once. Dropout depends on `seed`, the step's `number`, the side of the pair and the
    index in the global batch, not on `chunk` or mesh.

    Args:
      chunk: pairs of the global batch that are encoded at a time (GradCache); 0 for all.
    """
    embed = make_embed(cfg)
    drops = cfg.lora is not None and cfg.lora.dropout > 0

    def encode(params, frozen, number, side, batch, rows):
        """Vectors of one side of the pairs at `rows` of the global batch."""
        keys = None
        if drops:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), side)
            keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
        return embed(join(params, frozen), batch, keys)

    def value(vectors, log, arrays):
        query, positive, *negatives = vectors
        ids = [arrays[name] for name in ("valid", "query_id", "positive_id", "negative_id")]
        temperature = None if log is None else learned(log)
        result, scalars = info_nce(
            query, positive, negatives, *ids, loss, mesh=mesh, temperature=temperature
        )
        return result, scalars if log is None else scalars | {"temperature": temperature}

    @jax.jit
    def gradients(params, frozen, arrays, number):
        sides = [arrays["query"], arrays["positive"], *arrays["negatives"]]
        (model, log), loss_of = _split(params), functools.partial(value, arrays=arrays)

        def embed_side(model, side, batch, rows):
            return encode(model, frozen, number, side, batch, rows)

        def loss_of_batch(model, log):
            rows = jnp.arange(len(arrays["valid"]), dtype=jnp.uint32)
            vectors = [embed_side(model, side, batch, rows) for side, batch in enumerate(sides)]
            return loss_of(vectors, log)

        if chunk:
            (result, scalars), grads = cached_value_and_grad(
                embed_side, loss_of, model, log, sides, chunk, mesh
            )
        else:
            value_and_grad = jax.value_and_grad(loss_of_batch, (0, 1), has_aux=True)
            (result, scalars), grads = value_and_grad(model, log)
        grads = _join(*grads)
        grads = jax.lax.with_sharding_constraint(grads, param_shardings(grads, mesh))
        return grads, scalars | {
            "loss": result,
            "gradient_norm": optax.tree.norm(grads),
            "parameter_norm": optax.tree.norm(params),
        }

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, grads):
        updates, opt = tx.update(grads, state["opt"], state["params"])
        new = {"params": optax.apply_updates(state["params"], updates), "opt": opt}
        # Otherwise the compiler may change the sharding of small leaves, and the second step would
        # be compiled again.
        return jax.lax.with_sharding_constraint(new, state_shardings(new["params"], tx, mesh))

    def step(state, frozen, arrays, number):
        grads, scalars = gradients(state["params"], frozen, arrays, number)
        return update(state, grads), scalars

    step.gradients, step.update = gradients, update
    return step


def _split(params: dict) -> tuple[dict, jax.Array | None]:
    """Splits trained parameters into those of the model and the logarithm of the temperature."""
    model = {name: leaf for name, leaf in params.items() if name != "loss"}
    return model, params["loss"]["log_temperature"] if "loss" in params else None


def _join(model: dict, log: jax.Array | None) -> dict:
    return model if log is None else model | {"loss": {"log_temperature": log}}


def make_probe(cfg: ModelConfig) -> Callable:
    """Returns `probe(params, arrays) -> float32 [B]`: cosine of each query with its positive.

    Each side is a separate program, compiled once per shape, not per pair of shapes.
    """
    embed = jax.jit(make_embed(cfg))

    def probe(params, arrays):
        return jnp.sum(embed(params, arrays["query"]) * embed(params, arrays["positive"]), axis=-1)

    return probe
