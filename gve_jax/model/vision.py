"""Qwen2.5-VL's vision tower on dense, static shapes.

Each frame pair is an independent image of P patch slots: even the "full" blocks of the reference
attend within one frame pair only (its cu_seqlens are per time step), so no variable-length kernel
is needed. Patches are in window order; the four patches of a 2x2 merged token are adjacent
(transformers 4.49, `modeling_qwen2_5_vl.py: Qwen2_5_VisionTransformerPretrainedModel`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from gve_jax.model import rope
from gve_jax.model.attention import attend
from gve_jax.model.config import PIXEL_MEAN, PIXEL_STD, VisionConfig
from gve_jax.model.layers import Linear, RMSNorm, SwiGLU, permute, scan_layers, shard_batch, stack


class Attention(nnx.Module):
    def __init__(self, cfg: VisionConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        width = cfg.hidden_size
        self.kernel = kernel
        self.qkv = Linear(width, 3 * width, bias=True, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, bias=True, dtype=dtype, rngs=rngs)
        self.heads = cfg.num_heads

    def __call__(self, x, cos_sin, mask, windows, is_full):
        """Maps x [G, P, D] to the same shape; cos_sin is [G, P, head_dim], mask [G, P]."""
        pairs, patches, width = x.shape
        qkv = self.qkv(x).reshape(pairs, patches, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rope.rotate(query, cos_sin), rope.rotate(key, cos_sin)

        def full(q, k, v):
            attended = attend(q, k, v, keys=mask, kernel=self.kernel)
            return attended.reshape(pairs, patches, width)

        def windowed(q, k, v):
            return _windowed_attend(q, k, v, windows)

        attended = jax.lax.cond(is_full, full, windowed, query, key, value)
        return self.proj(attended)


def _windowed_attend(query, key, value, windows):
    """Attention inside windows: rows are gathered to [G, windows, slots] and back."""
    slots, inverse, size = windows
    pairs, patches, heads, dim = query.shape
    packed = jnp.stack([query, key, value], axis=2).reshape(pairs, patches, -1)
    packed = permute(packed, slots, inverse).reshape(pairs, -1, size, 3, heads, dim)
    keys = (slots >= 0).reshape(pairs, -1, size)
    attended = attend(packed[..., 0, :, :], packed[..., 1, :, :], packed[..., 2, :, :], keys=keys)
    return permute(attended.reshape(pairs, -1, heads * dim), inverse, slots)


class Block(nnx.Module):
    def __init__(self, cfg: VisionConfig, *, dtype, kernel: str, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.norm2 = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.attn = Attention(cfg, dtype=dtype, kernel=kernel, rngs=rngs)
        self.mlp = SwiGLU(cfg.hidden_size, cfg.intermediate_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x, cos_sin, mask, windows, is_full):
        x = x + self.attn(self.norm1(x), cos_sin, mask, windows, is_full)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Norm, concatenation of four patches, and a GELU MLP to the decoder's width."""

    def __init__(self, cfg: VisionConfig, *, dtype, rngs: nnx.Rngs):
        self.ln_q = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.unit = cfg.merge_unit
        inner = cfg.hidden_size * self.unit
        self.mlp_0 = Linear(inner, inner, bias=True, dtype=dtype, rngs=rngs)
        self.mlp_2 = Linear(inner, cfg.out_hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "G P D"]) -> Float[Array, "G V out"]:
        pairs, patches, width = x.shape
        x = self.ln_q(x).reshape(pairs, patches // self.unit, width * self.unit)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Maps uint8 patches to merged visual tokens of the decoder's width."""

    def __init__(
        self, cfg: VisionConfig, *, dtype, param_dtype, remat: str, kernel: str, rngs: nnx.Rngs
    ):
        self.cfg, self.dtype, self.remat = cfg, dtype, remat
        # The reference's bias-free Conv3d with kernel == stride is this matrix product.
        self.patch_embed = Linear(
            cfg.patch_dim, cfg.hidden_size, bias=False, dtype=param_dtype, rngs=rngs
        )
        self.blocks = stack(
            lambda r: Block(cfg, dtype=param_dtype, kernel=kernel, rngs=r), cfg.depth, rngs
        )
        self.merger = Merger(cfg, dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        patches: UInt8[Array, "G P patch_dim"],
        mask: Bool[Array, "G P"],
        coords: Int[Array, "G P 2"],
        window_slots: Int[Array, "G S"],
        window_inverse: Int[Array, "G P"],
    ) -> Float[Array, "G V out"]:
        """Encodes G frame pairs of P patch slots in window order to V = P / 4 merged tokens each.

        Args:
          coords: (row, column) of each patch.
          window_slots: the patches of each window, `window_side`**2 slots per window, -1 for slots
            without a patch, as in windows at the edge.
          window_inverse: the window slot of each patch.
        """
        cfg = self.cfg
        x = shard_batch(self.patch_embed(normalise(patches, cfg).astype(self.dtype)))
        cos_sin = rope.vision_cos_sin(coords, cfg.hidden_size // cfg.num_heads, cfg.rope_theta)
        is_full = np.isin(np.arange(cfg.depth), cfg.fullatt_block_indexes)
        windows = (window_slots, window_inverse, cfg.window_side**2)

        def body(block, x, full):
            return shard_batch(block(x, cos_sin, mask, windows, full))

        x = scan_layers(self.blocks, x, body, jnp.asarray(is_full), remat=self.remat)
        return self.merger(x)


def normalise(
    patches: UInt8[Array, "*B patch_dim"], cfg: VisionConfig
) -> Float[Array, "*B patch_dim"]:
    """uint8 levels -> the reference's normalised float32 pixels; a patch is channel-major."""
    repeat = cfg.patch_dim // cfg.in_channels
    mean = np.repeat(np.float32(PIXEL_MEAN), repeat) * 255
    std = np.repeat(np.float32(PIXEL_STD), repeat) * 255
    return (patches.astype(jnp.float32) - mean) / std
