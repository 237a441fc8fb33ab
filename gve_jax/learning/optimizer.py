"""AdamW with warm-up and cosine; which parameters decay is a table."""

import re

import jax
import optax

from gve_jax.sharding import path_name

# First match wins, every parameter must match: matrices decay, embeddings, norms and biases do not.
WEIGHT_DECAY: tuple[tuple[str, bool], ...] = (
    (r"embed_tokens$", False),
    (r"kernel$", True),
    (r"(bias|weight)$", False),
    (r"lora/[ab]$", True),
)


def decays(params):
    """A tree of booleans: which parameters decay, by `WEIGHT_DECAY`."""

    def find(path, _):
        name = path_name(path)
        for pattern, decay in WEIGHT_DECAY:
            if re.search(pattern, name):
                return decay
        raise ValueError(f"no weight-decay rule matches parameter {name}")

    return jax.tree_util.tree_map_with_path(find, params)


def make_schedule(config, steps: int) -> optax.Schedule:
    """Linear warm-up over `config.warmup_steps`, then cosine to zero at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, steps)


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """AdamW by `config`: learning_rate, warmup_steps, b1, b2, weight_decay, clip_norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )
