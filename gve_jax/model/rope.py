"""Rotary angles: two axes in the tower, three (M-RoPE) in the decoder. Always float32."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def vision_angles(
    coords: Int[Array, "*B P 2"], head_dim: int, theta: float
) -> Float[Array, "*B P H"]:
    """Angles of the tower: the first half of the frequencies turns with the row, the second with
    the column, then both once more for the rotated half (transformers 4.49, `rot_pos_emb`)."""
    inverse = theta ** -(np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = coords[..., None].astype(jnp.float32) * inverse  # [*B, P, 2, H/4]
    half = angles.reshape(*coords.shape[:-1], head_dim // 2)
    return jnp.concatenate([half, half], axis=-1)


def text_angles(
    positions: Int[Array, "3 B L"], head_dim: int, theta: float, section: tuple[int, int, int]
) -> Float[Array, "B L H"]:
    """Angles of the decoder: of the H/2 frequencies the first `section[0]` turn with time, the
    next with the row, the last with the column (transformers 4.49,
    `apply_multimodal_rotary_pos_emb`)."""
    inverse = theta ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    axis = np.repeat(np.arange(3), section)  # [H/2]: which position drives a frequency
    chosen = jnp.take(positions.astype(jnp.float32), axis, axis=0)  # [H/2, B, L]
    half = jnp.moveaxis(chosen, 0, -1) * inverse
    return jnp.concatenate([half, half], axis=-1)


def rotate(x: Float[Array, "*B L N H"], angles: Float[Array, "*B L H"]) -> Float[Array, "*B L N H"]:
    """Rotates each pair (i, i + H/2) of every head by its angle, in float32."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    x32 = x.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x32 * cos + turned * sin).astype(x.dtype)
