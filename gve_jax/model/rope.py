"""Rotary position embeddings: two axes in the tower, three (M-RoPE) in the decoder. Always float32.

They are the cosines of head_dim / 2 angles, then their sines, computed once for all layers and
heads.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def vision_cos_sin(
    coords: Int[Array, "*B P 2"], head_dim: int, theta: float
) -> Float[Array, "*B P head_dim"]:
    """Embeddings of the tower: the first half of the frequencies rotates with the row, the second
    with the column (transformers 4.49, `rot_pos_emb`)."""
    inverse = theta ** -(np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = coords[..., None].astype(jnp.float32) * inverse  # [*B, P, 2, head_dim / 4]
    return _cos_sin(angles.reshape(*coords.shape[:-1], head_dim // 2))


def mrope_cos_sin(
    positions: Int[Array, "B 3 L"],
    head_dim: int,
    theta: float,
    section: tuple[int, int, int],
    interleaved: bool = False,
) -> Float[Array, "B L head_dim"]:
    """Embeddings of the decoder: of the head_dim / 2 frequencies, the first `section[0]` rotate
    with time, the next with the row, the last with the column (transformers 4.49,
    `apply_multimodal_rotary_pos_emb`).

    If they are interleaved, as many of each three rotate with time, row and column, and the
    remaining ones with time (transformers 4.57, Qwen3-VL's `apply_interleaved_mrope`).
    """
    inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    axis = np.repeat(np.arange(3), section)  # [head_dim / 2]: the position of each frequency
    if interleaved:
        axis = np.zeros_like(axis)
        for one in (1, 2):
            axis[one : 3 * section[one] : 3] = one
    chosen = jnp.take(positions.astype(jnp.float32), axis, axis=1)  # [B, head_dim / 2, L]
    return _cos_sin(chosen.swapaxes(1, 2) * inverse)


def _cos_sin(angles):
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotate(
    x: Float[Array, "*B L heads head_dim"], cos_sin: Float[Array, "*B L head_dim"]
) -> Float[Array, "*B L heads head_dim"]:
    """Rotates each pair (i, i + head_dim / 2) of every head by its angle, in float32."""
    cos, sin = jnp.split(cos_sin[..., None, :], 2, axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
