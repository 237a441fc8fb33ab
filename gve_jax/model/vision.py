"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL on dense, static shapes.

Each frame pair is an independent image of P patch slots: even the "full" blocks of the reference
attend within one frame pair only (its cu_seqlens are per time step), so no variable-length kernel
is needed. Patches are in window order, or in raster order of merged tokens if no block has windows;
the four patches of a 2x2 merged token are adjacent (transformers 4.49,
`modeling_qwen2_5_vl.py: Qwen2_5_VisionTransformerPretrainedModel`, `modeling_qwen2_vl.py:
Qwen2VisionTransformerPretrainedModel`; 5.23, `modeling_qwen3_vl.py: Qwen3VLVisionModel`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from gve_jax.model import rope
from gve_jax.model.attention import attend
from gve_jax.model.config import VisionConfig
from gve_jax.model.layers import (
    MLP,
    LayerNorm,
    Linear,
    RMSNorm,
    SwiGLU,
    permute,
    scan_layers,
    shard_batch,
    stack,
)

_NORMS = {"rms": RMSNorm, "layer": LayerNorm}


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

        if windows is None:
            return self.proj(full(query, key, value))
        return self.proj(jax.lax.cond(is_full, full, windowed, query, key, value))


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
        width, inner, norm = cfg.hidden_size, cfg.intermediate_size, _NORMS[cfg.norm]
        self.norm1 = norm(width, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.norm2 = norm(width, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.attn = Attention(cfg, dtype=dtype, kernel=kernel, rngs=rngs)
        if cfg.mlp == "swiglu":
            self.mlp = SwiGLU(width, inner, bias=True, dtype=dtype, rngs=rngs)
        else:
            self.mlp = MLP(width, inner, cfg.mlp, dtype=dtype, rngs=rngs)

    def __call__(self, x, cos_sin, mask, windows, is_full):
        x = x + self.attn(self.norm1(x), cos_sin, mask, windows, is_full)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Norm, concatenation of four patches, and a GELU MLP to the decoder's width; with `norm_last`
    the concatenation comes before the norm."""

    def __init__(self, cfg: VisionConfig, *, norm_last: bool = False, dtype, rngs: nnx.Rngs):
        self.unit, self.norm_last = cfg.merge_unit, norm_last
        inner = cfg.hidden_size * self.unit
        size = inner if norm_last else cfg.hidden_size
        self.ln_q = _NORMS[cfg.norm](size, cfg.rms_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp_0 = Linear(inner, inner, bias=True, dtype=dtype, rngs=rngs)
        self.mlp_2 = Linear(inner, cfg.out_hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "G P D"]) -> Float[Array, "G V out"]:
        pairs, patches, width = x.shape
        x = x if self.norm_last else self.ln_q(x)
        x = x.reshape(pairs, patches // self.unit, width * self.unit)
        x = self.ln_q(x) if self.norm_last else x
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Maps uint8 patches to merged visual tokens of the decoder's width."""

    def __init__(
        self, cfg: VisionConfig, *, dtype, param_dtype, remat: str, kernel: str, rngs: nnx.Rngs
    ):
        self.cfg, self.dtype, self.remat = cfg, dtype, remat
        # The reference's bias-free Conv3d with kernel == stride is this matrix product.
        self.patch_embed = Linear(
            cfg.patch_dim, cfg.hidden_size, bias=cfg.patch_bias, dtype=param_dtype, rngs=rngs
        )
        shape = (cfg.position_side**2, cfg.hidden_size)
        init = nnx.initializers.normal(stddev=0.02)
        self.pos_embed = (
            nnx.Param(init(rngs.params(), shape, param_dtype)) if cfg.position_side else None
        )
        self.blocks = stack(
            lambda r: Block(cfg, dtype=param_dtype, kernel=kernel, rngs=r), cfg.depth, rngs
        )
        self.merger = Merger(cfg, dtype=param_dtype, rngs=rngs)
        self.deepstack = (
            stack(
                lambda r: Merger(cfg, norm_last=True, dtype=param_dtype, rngs=r),
                len(cfg.deepstack),
                rngs,
            )
            if cfg.deepstack
            else None
        )

    def __call__(
        self,
        patches: UInt8[Array, "G P patch_dim"],
        mask: Bool[Array, "G P"],
        coords: Int[Array, "G P 2"],
        window_slots: Int[Array, "G S"],
        window_inverse: Int[Array, "G P"],
    ) -> Float[Array, "G V out"]:
        """Encodes G frame pairs of P patch slots in window order to V = P / 4 merged tokens each.

        A token's deepstack features, one for each of `cfg.deepstack`, are beside it: `out` is then
        (1 + taps) times the decoder's width.

        Args:
          coords: (row, column) of each patch.
          window_slots: the patches of each window, `window_side`**2 slots per window, -1 for slots
            without a patch, as in windows at the edge.
          window_inverse: the window slot of each patch.
        """
        cfg = self.cfg
        x = self.patch_embed(normalise(patches, cfg).astype(self.dtype))
        if self.pos_embed is not None:
            x = x + interpolate_positions(self.pos_embed[...], coords, mask).astype(self.dtype)
        x = shard_batch(x)
        cos_sin = rope.vision_cos_sin(coords, cfg.hidden_size // cfg.num_heads, cfg.rope_theta)
        is_full = jnp.asarray(np.isin(np.arange(cfg.depth), cfg.fullatt_block_indexes))
        windows = None
        if cfg.has_windows:
            windows = (window_slots, window_inverse, cfg.window_side**2)
        if self.deepstack is None:

            def body(block, x, full):
                return shard_batch(block(x, cos_sin, mask, windows, full))

            return self.merger(scan_layers(self.blocks, x, body, is_full, remat=self.remat))

        def body_with_taps(block, carry, full, tap):
            x, taps = carry
            x = shard_batch(block(x, cos_sin, mask, windows, full))
            # One scanned stack: a scan up to each tap would need copies of the weights.
            keep = jax.lax.dynamic_update_index_in_dim
            taps = jax.lax.cond(
                tap >= 0, lambda: keep(taps, x, jnp.maximum(tap, 0), axis=0), lambda: taps
            )
            return x, taps

        tap = np.full(cfg.depth, -1)
        tap[list(cfg.deepstack)] = np.arange(len(cfg.deepstack))
        carry = x, jnp.zeros((len(cfg.deepstack), *x.shape), x.dtype)
        x, taps = scan_layers(
            self.blocks, carry, body_with_taps, is_full, jnp.asarray(tap), remat=self.remat
        )
        merged = [self.merger(x)]
        graph, mergers = nnx.split(self.deepstack)
        for index in range(len(cfg.deepstack)):
            merger = nnx.merge(graph, jax.tree.map(lambda leaf, i=index: leaf[i], mergers))
            merged.append(merger(taps[index]))
        return jnp.concatenate(merged, axis=-1)


def interpolate_positions(
    table: Float[Array, "positions D"], coords: Int[Array, "G P 2"], mask: Bool[Array, "G P"]
) -> Float[Array, "G P D"]:
    """Learned positions of a square grid, interpolated bilinearly with aligned corners to the grid
    of each frame pair, float32 (transformers 5.23, Qwen3-VL's `fast_pos_embed_interpolate`)."""
    side = math.isqrt(len(table))
    grid = jnp.max(jnp.where(mask[..., None], coords, 0), axis=1, keepdims=True)  # [G, 1, 2]
    step = np.float32(side - 1) / jnp.maximum(grid, 1).astype(jnp.float32)
    place = jnp.clip(coords.astype(jnp.float32) * step, 0, side - 1)
    below = jnp.floor(place)
    weight = place - below  # of the next row or column
    below = below.astype(jnp.int32)
    above = jnp.minimum(below + 1, side - 1)
    total = jnp.float32(0)
    for rows, row_weight in ((below, 1 - weight), (above, weight)):
        for columns, column_weight in ((below, 1 - weight), (above, weight)):
            entries = table[rows[..., 0] * side + columns[..., 1]].astype(jnp.float32)
            total += entries * (row_weight[..., 0] * column_weight[..., 1])[..., None]
    return total


def normalise(
    patches: UInt8[Array, "*B patch_dim"], cfg: VisionConfig
) -> Float[Array, "*B patch_dim"]:
    """uint8 levels -> the reference's normalised float32 pixels; a patch is channel-major."""
    repeat = cfg.patch_dim // cfg.in_channels
    mean = np.repeat(np.float32(cfg.pixel_mean), repeat) * 255
    std = np.repeat(np.float32(cfg.pixel_std), repeat) * 255
    return (patches.astype(jnp.float32) - mean) / std
