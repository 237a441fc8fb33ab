"""Weight digests and finiteness checks, computed on the devices in blocks of a few megabytes.

Reductions over whole integer arrays are not fused on a CPU: they would hold a copy of the parameter
at twice its size.
"""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gve_jax.distributed.sharding import path_name
from gve_jax.model.hashing import murmur3_mix32
from gve_jax.storage.digests import file_sha256

_CHUNK = 1 << 21  # numbers hashed at a time
_SAMPLES, _SAMPLE = 64, 1 << 16  # blocks read of each file, and bytes of a block


def file_digest(path: str | os.PathLike) -> str:
    return file_sha256(path)[:16]


def sampled_digest(folder: str | os.PathLike) -> str:
    """Digest of the names, sizes and some blocks of all files of a folder.

    Distinguishes checkpoints of many gigabytes in a second, but not if few numbers differ."""
    folder, digest = Path(folder), hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = path.stat().st_size
        digest.update(f"{name.as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            for number in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def not_finite(params) -> list[str]:
    """Paths of the parameters with NaN or infinite numbers."""
    finite = jax.tree_util.tree_leaves_with_path(jax.tree.map(_is_finite, params))
    return [path_name(path) for path, good in finite if not good]


def is_finite(leaf: jax.Array) -> jax.Array:
    """Whether all numbers are finite; true for integers. For use under `jax.jit`."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.bool_(True)
    # 0 * NaN and 0 * inf are NaN. The barrier keeps the sum over rows separate, which is fused.
    rows = jax.lax.optimization_barrier(jnp.sum(leaf.astype(jnp.float32) * 0, axis=-1))
    return jnp.isfinite(rows).all()


_is_finite = jax.jit(is_finite)


def weights_digest(params) -> str:
    """Digest of all parameters by name, independent of the mesh.

    All processes must call it if the parameters are sharded across processes."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = [jax.device_get(_sums(leaf)) for _, leaf in leaves]
    local = np.array([sum(map(int, parts)) % 2**32 for parts in sums], np.uint32)
    if all(leaf.is_fully_addressable for _, leaf in leaves):
        by_host = local[None]  # other processes have copies, which must not be counted
    else:
        by_host = multihost_utils.process_allgather(local).reshape(-1, len(leaves))
    totals = by_host.sum(axis=0, dtype=np.uint64) % 2**32
    text = "".join(
        f"{path_name(path)} {total}\n" for (path, _), total in zip(leaves, totals, strict=True)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sums(leaf: jax.Array) -> list[jax.Array]:
    """Partial sums modulo 2**32 of each number's bits hashed with its index in `leaf`."""
    parts, width = [], leaf.shape[-1]
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        *rows, columns = (
            range(*s.indices(n)) for s, n in zip(shard.index, leaf.shape, strict=True)
        )
        indices = np.zeros(1, np.int64)  # of the first number of each row, in the flattened leaf
        for axis, size in zip(rows, leaf.shape, strict=False):
            indices = (indices[:, None] * size + np.arange(axis.start, axis.stop)).reshape(-1)
        indices = (indices * width + columns.start).astype(np.uint32)
        step = max(1, _CHUNK // len(columns))
        for start in range(0, len(indices), step):
            parts.append(_hash_sum(shard.data, start, indices[start : start + step]))
    return parts


@jax.jit
def _hash_sum(shard: jax.Array, start, indices: jax.Array) -> jax.Array:
    shard = shard.reshape(-1, shard.shape[-1])
    rows = jax.lax.dynamic_slice_in_dim(shard, start, len(indices))
    bits = jax.lax.bitcast_convert_type(rows, f"uint{8 * rows.dtype.itemsize}").astype(jnp.uint32)
    index = indices[:, None] + jnp.arange(rows.shape[1], dtype=jnp.uint32)
    return jnp.sum(murmur3_mix32(bits + index * np.uint32(0x9E3779B9)), dtype=jnp.uint32)
