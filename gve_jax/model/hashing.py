"""Murmur3's finalizer as a counter-based hash."""

import jax
import numpy as np


def murmur3_mix32(bits: jax.Array) -> jax.Array:
    """Applies the finalizer, a bijection of uint32, to each element."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
