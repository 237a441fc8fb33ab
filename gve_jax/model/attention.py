"""Dense masked attention with grouped keys; softmax in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "*B L N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K H"],
    mask: Bool[Array, "*B #L S"],
) -> Float[Array, "*B L N H"]:
    """Softmax attention; `mask` is true where a key may be seen.

    A row that may see nothing gives the mean of all values, never NaN: padding stays finite and
    its result is masked by whoever reads it.
    """
    *batch, length, heads, size = query.shape
    groups, keys = key.shape[-2], key.shape[-3]
    shared = heads // groups
    # Plain batched products over (batch, key head): the query heads that share a key head are
    # stacked as rows, so that no key or value is repeated in memory.
    q = jnp.moveaxis(query.reshape(*batch, length, groups, shared, size), -4, -2)
    q = q.reshape(*batch, groups, shared * length, size)
    k, v = jnp.moveaxis(key, -3, -2), jnp.moveaxis(value, -3, -2)
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
    scores = scores.reshape(*batch, groups, shared, length, keys) * (size**-0.5)
    scores = jnp.where(mask[..., None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.matmul(weights.reshape(*batch, groups, shared * length, keys), v)
    mixed = mixed.reshape(*batch, groups, shared, length, size)
    return jnp.moveaxis(mixed, -2, -4).reshape(*batch, length, heads, size)
