"""AdamW with warm-up and cosine decay, float32 moments, and a table of trained parameters."""

import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import optax

from gve_jax.distributed.sharding import path_name, rule_of
from gve_jax.errors import UserError
from gve_jax.learning.patterns import decide

Rates = Sequence[tuple[str, float]]
"""(pattern, factor), in order: the first pattern that matches the path of a parameter gives the
factor of its learning rate. 0 freezes it: no gradient, no moments, not in checkpoints."""

EVERYTHING: Rates = ((".*", 1.0),)
ADAPTERS: Rates = ((r"/lora/[ab]$", 1.0), (".*", 0.0))


def decays(params):
    """Returns a tree of booleans: whether parameters decay, by `distributed.sharding.RULES`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule_of(path_name(path)).decays, params)


def factors(names: Iterable[str], rates: Rates) -> dict[str, float]:
    """Returns the learning rate factor of each parameter.

    Raises:
      UserError: a parameter that no pattern matches, a pattern that is first for no parameter, a
        malformed pattern.
    """
    compiled = _compile(rates)
    chosen, idle = decide([pattern for pattern, _ in compiled], names)
    for name, number in chosen.items():
        if number is None:
            raise UserError(f"optimizer.rates: no pattern matches parameter {name}")
    for number, (pattern, factor) in enumerate(compiled):
        if not 0 <= factor < float("inf"):
            raise UserError(
                f"optimizer.rates: factor {factor} of {pattern.pattern!r} is negative or not finite"
            )
        if number in idle:
            shadowed = any(pattern.search(name) for name in chosen)
            left = "that no earlier pattern matches" if shadowed else "of this model"
            raise UserError(
                f"optimizer.rates: pattern {pattern.pattern!r} matches no parameter {left}"
            )
    return {name: compiled[number][1] for name, number in chosen.items()}


def _compile(rates: Rates) -> list[tuple[re.Pattern, float]]:
    try:
        return [(re.compile(pattern), float(factor)) for pattern, factor in rates]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"optimizer.rates must be pairs of (pattern, factor): {error}") from error


def make_schedule(config, steps: int) -> optax.Schedule:
    """Linear warm-up over `config.warmup_steps`, then cosine decay to zero at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, steps)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW with the options of `config`: learning_rate, warmup_steps, b1, b2, weight_decay,
    clip_norm and rates. For trees of trained parameters only.

    Moments and arithmetic are float32 for any dtype of the parameters: in bfloat16 a second moment
    stops growing at 256 times its smallest addend.
    """
    rates = _compile(config.rates)

    def scale(path, update):
        name = path_name(path)
        return update * next(factor for pattern, factor in rates if pattern.search(name))

    return _in_float32(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.adamw(
                make_schedule(config, steps),
                b1=config.b1,
                b2=config.b2,
                weight_decay=config.weight_decay,
                mask=decays,
            ),
            optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
        )
    )


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    def cast(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    return optax.GradientTransformation(
        lambda params: tx.init(cast(params)),
        lambda grads, state, params: tx.update(cast(grads), state, cast(params)),
    )
