"""Softmax attention with grouped keys, by three interchangeable kernels.

| kernel   | runs on             | supports                                              |
| -------- | ------------------- | ----------------------------------------------------- |
| `xla`    | everything          | everything: the reference                             |
| `cudnn`  | NVIDIA GPUs         | 16-bit activations, head sizes in multiples of 8      |
| `splash` | TPUs                | everything; lengths are padded to blocks of 128       |

A kernel that cannot run is an error (`check_kernel`); no other kernel replaces it. The tower's
windows of 64 patches always use `xla`: they are too small for the fused kernels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gve_jax.errors import UserError

KERNELS = {"xla": None, "cudnn": "gpu", "splash": "tpu"}  # with the required platform
_LANES = 128  # splash attention's smallest block of rows


def check_kernel(kernel: str, dtype: str, head_sizes: tuple[int, ...], platform: str) -> None:
    """Raises UserError, with the reason, if the kernel cannot run.

    Args:
      kernel: one of `KERNELS`.
      dtype: dtype of the activations.
      head_sizes: head sizes of tower and decoder.
      platform: "cpu", "gpu" or "tpu", on which the program runs (not on which it is compiled).
    """
    if kernel not in KERNELS:
        raise UserError(f"attention={kernel!r} is unknown; known: {', '.join(KERNELS)}")
    needed = KERNELS[kernel]
    if needed and platform != needed:
        raise UserError(f"attention={kernel!r} needs a {needed.upper()}; this is {platform}")
    if kernel == "cudnn":
        if jnp.dtype(dtype).itemsize != 2:
            raise UserError(f"attention='cudnn' needs bfloat16 or float16 activations, not {dtype}")
        if bad := [size for size in head_sizes if size % 8]:
            raise UserError(f"attention='cudnn' needs head sizes in multiples of 8, not {bad[0]}")


def target_platform() -> str:
    """Returns the platform that programs are compiled for: that of the mesh that is set, which may
    be of another machine (`gve_jax.plan`), or that of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def attend(
    query: Float[Array, "*B L heads head_dim"],
    key: Float[Array, "*B keys kv_heads head_dim"],
    value: Float[Array, "*B keys kv_heads head_dim"],
    *,
    keys: Bool[Array, "*B keys"] | None = None,
    causal: bool = False,
    query_positions: Int[Array, "*B L"] | None = None,
    segments: Int[Array, "*B keys"] | None = None,
    kernel: str = "xla",
) -> Float[Array, "*B L heads head_dim"]:
    """Softmax attention; softmax in float32.

    Args:
      keys: keys that may be attended to (default: all). A row without keys is finite, never NaN:
        it is padding, which the caller masks.
      causal: a query attends to keys up to its position: its index, or `query_positions`.
      query_positions: key index of each query, for the causal mask; kernel "xla" only.
      segments: segment of each key, for several sequences in one row. A query attends to its own
        segment and to segment 0, which all share; "splash" does not support segment 0.
      kernel: see the table of this module.
    """
    if kernel == "xla":
        return _xla(query, key, value, _mask(query, key, keys, causal, query_positions, segments))
    if query_positions is not None:
        raise ValueError("query_positions require kernel 'xla'")
    *batch, length, heads, size = query.shape
    flat = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
    keys, segments = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (keys, segments))
    attended = {"cudnn": _cudnn, "splash": _splash}[kernel](*flat, keys, causal, segments)
    return attended.reshape(*batch, length, heads, size)


def _mask(query, key, keys, causal, query_positions, segments) -> Bool[Array, "*B L keys"] | None:
    """The keys that each query attends to, broadcastable; None for all."""
    length, count = query.shape[-3], key.shape[-3]
    rules = []
    if keys is not None:
        rules.append(keys[..., None, :])
    if causal and query_positions is None:
        rules.append(np.tri(length, count, dtype=bool))
    elif causal:
        rules.append(np.arange(count) <= query_positions[..., None])
    if segments is not None:
        of_query = segments
        if query_positions is not None:
            of_query = jnp.take_along_axis(segments, query_positions, axis=-1)
        of_key = segments[..., None, :]
        rules.append((of_query[..., None] == of_key) | (of_key == 0))
    return functools.reduce(jnp.logical_and, rules) if rules else None


def _xla(query, key, value, mask):
    *batch, length, heads, size = query.shape
    groups, count = key.shape[-2], key.shape[-3]
    shared = heads // groups
    # Batched products over (batch, key head): query heads that share a key head are stacked as
    # rows, so that keys and values are not repeated in memory.
    q = jnp.moveaxis(query.reshape(*batch, length, groups, shared, size), -4, -2)
    q = q.reshape(*batch, groups, shared * length, size)
    k, v = jnp.moveaxis(key, -3, -2), jnp.moveaxis(value, -3, -2)
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
    scores = scores.reshape(*batch, groups, shared, length, count) * (size**-0.5)
    if mask is not None:
        lowest = jnp.finfo(jnp.float32).min
        scores = jnp.where(mask[..., None, None, :, :], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    attended = jnp.matmul(weights.reshape(*batch, groups, shared * length, count), v)
    attended = attended.reshape(*batch, groups, shared, length, size)
    return jnp.moveaxis(attended, -2, -4).reshape(*batch, length, heads, size)


def _cudnn(query, key, value, keys, causal, segments):
    mask = _mask(query, key, keys, False, None, segments)
    if mask is not None:  # cuDNN broadcasts masks over heads, but not over rows
        batch, length, count = len(query), query.shape[1], key.shape[1]
        mask = jnp.broadcast_to(mask, (batch, length, count))[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation="cudnn"
    )


def _splash(query, key, value, keys, causal, segments=None, interpret=False):
    """Pallas' splash attention: [B, heads, L, head_dim], lengths padded to blocks.

    Padding and masked keys get a segment of their own, so that no token attends to them. Kernels
    are opaque to the partitioner: under a mesh, each device runs its rows and heads.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, length, heads, size = query.shape
    count, groups = key.shape[1:3]
    rows, columns = (-(-n // _LANES) * _LANES for n in (length, count))

    def padded(x, to):
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, to - x.shape[1]), (0, 0), (0, 0))), 2, 1)

    of_key = jnp.ones((batch, count), jnp.int32) if segments is None else segments
    of_key = of_key if keys is None else jnp.where(keys, of_key, 0)
    of_key = jnp.pad(of_key, ((0, 0), (0, columns - count)))
    of_query = jnp.ones((batch, length), jnp.int32) if segments is None else segments
    of_query = jnp.pad(of_query, ((0, 0), (0, rows - length)))

    def local(q, k, v, of_query, of_key):
        mask = (splash.CausalMask if causal else splash.FullMask)((rows, columns))
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * q.shape[1]),
            block_sizes=_block_sizes(splash, rows, columns),
            interpret=interpret,
        )
        segments = splash.SegmentIds(of_query, of_key)
        return jax.vmap(kernel)(q, k, v, segment_ids=segments)

    q = padded(query * size**-0.5, rows)
    attended = _per_device(local, heads, groups)(
        q.astype(query.dtype), padded(key, columns), padded(value, columns), of_query, of_key
    )
    return jnp.moveaxis(attended, 1, 2)[:, :length]


def _block_sizes(splash, rows: int, columns: int):
    """Returns the largest blocks, up to 512, that divide the padded lengths."""
    q, kv = (next(b for b in (512, 256, 128) if n % b == 0) for n in (rows, columns))
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )


def _per_device(local, heads: int, groups: int):
    """Maps `local` over rows in (data, fsdp) and heads in tensor, if a mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local
    split = mesh.shape["tensor"]
    tensor = "tensor" if heads % split == 0 and groups % split == 0 else None
    rows = ("data", "fsdp")
    wide, narrow = PartitionSpec(rows, tensor), PartitionSpec(rows)
    return jax.shard_map(
        local, in_specs=(wide, wide, wide, narrow, narrow), out_specs=wide, check_vma=False
    )
