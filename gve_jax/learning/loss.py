"""The paper's symmetric InfoNCE (arXiv 2510.27571, equation 1), written once, globally."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What of the loss a configuration decides (`config.loss`)."""

    temperature: float = 0.03
    learned_temperature: bool = False


def info_nce(
    query: Float[Array, "B D"],
    positive: Float[Array, "B D"],
    negatives: list[Float[Array, "B D"]],
    valid: Bool[Array, " B"],
    query_id: Int[Array, " B"],
    positive_id: Int[Array, " B"],
    temperature: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over valid pairs of (L(q -> y) + L(y -> q)) / 2.

    All other valid pairs of the global batch are negatives, with gradients; a query's hard
    negatives are its own. Pairs that share a query or a positive (same content id) are each
    other's duplicates, not negatives.

    Args:
      query, positive: unit vectors.
      negatives: K arrays of hard negatives, one row a query.
      valid: pairs whose media were readable; the others take no part at all.
      query_id, positive_id: content ids.
      temperature: divides the cosines; 0.03 in the paper.

    Returns the loss and scalars: `accuracy` (the positive is the best candidate of its query),
    `positive_similarity`, `negative_similarity` (means of cosines).
    """
    size = query.shape[0]
    cosine = jnp.matmul(query, positive.T, precision=jax.lax.Precision.HIGHEST)
    diagonal = jnp.eye(size, dtype=bool)
    twins = (query_id[:, None] == query_id) | (positive_id[:, None] == positive_id)
    candidate = diagonal | (~twins & valid[None, :])  # symmetric but for `valid`

    logits = jnp.where(candidate, cosine / temperature, -jnp.inf)
    hard = [jnp.sum(query * n, axis=-1, keepdims=True) / temperature for n in negatives]
    forward = jnp.concatenate([logits, *hard], axis=1)
    backward = jnp.where(diagonal | (~twins & valid[None, :]), cosine.T / temperature, -jnp.inf)
    target = jnp.diagonal(cosine) / temperature
    losses = (
        jax.nn.logsumexp(forward, axis=1) + jax.nn.logsumexp(backward, axis=1) - 2 * target
    ) / 2

    def mean(values, mask):
        return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)

    others = candidate & ~diagonal & valid[:, None]
    scalars = {
        "accuracy": mean((target >= forward.max(axis=1)).astype(jnp.float32), valid),
        "positive_similarity": mean(jnp.diagonal(cosine), valid),
        "negative_similarity": mean(cosine, others),
    }
    return mean(losses, valid), scalars
