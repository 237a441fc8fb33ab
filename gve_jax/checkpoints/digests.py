"""What tells one set of weights from another, and whether weights are numbers at all.

Both are computed where the weights are, in a few megabytes: whole-array reductions of integers are
not fused on a CPU and would hold a parameter once more, at twice its size.
"""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gve_jax.distributed.sharding import path_name
from gve_jax.model.hashing import mixed

_CHUNK = 1 << 21  # numbers mixed at a time
_SAMPLES, _SAMPLE = 64, 1 << 16  # blocks of a file that are read, and bytes of each


def file_digest(path: str | os.PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def sampled_digest(folder: str | os.PathLike) -> str:
    """Of the names, sizes and some blocks of all files of a folder: in a second it tells one
    checkpoint of many gigabytes from another, but not from one of which a few numbers differ."""
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
    """Paths of the parameters that hold NaN or infinite numbers."""
    finite = jax.tree_util.tree_leaves_with_path(jax.tree.map(_is_finite, params))
    return [path_name(path) for path, good in finite if not good]


def is_finite(leaf: jax.Array) -> jax.Array:
    """Whether all numbers are finite; integers are. For use under `jax.jit`."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.bool_(True)
    # Zero times NaN or infinity is NaN. The barrier keeps this a sum along rows, which is fused.
    rows = jax.lax.optimization_barrier(jnp.sum(leaf.astype(jnp.float32) * 0, axis=-1))
    return jnp.isfinite(rows).all()


_is_finite = jax.jit(is_finite)


def weights_digest(params) -> str:
    """Of all parameters by name, the same on any mesh. Every process of a job must call it, where
    they are spread over processes; a process that holds them all needs no other."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = [jax.device_get(_sums(leaf)) for _, leaf in leaves]
    here = np.array([sum(map(int, found)) % 2**32 for found in sums], np.uint32)
    if all(leaf.is_fully_addressable for _, leaf in leaves):
        everywhere = here[None]  # those of other processes are copies, and would count again
    else:
        everywhere = multihost_utils.process_allgather(here).reshape(-1, len(leaves))
    totals = everywhere.sum(axis=0, dtype=np.uint64) % 2**32
    text = "".join(
        f"{path_name(path)} {total}\n" for (path, _), total in zip(leaves, totals, strict=True)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sums(leaf: jax.Array) -> list[jax.Array]:
    """Parts of the sum, modulo 2**32, of each number's bits mixed with its place in `leaf`."""
    parts, width = [], leaf.shape[-1]
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        *rows, columns = (
            range(*s.indices(n)) for s, n in zip(shard.index, leaf.shape, strict=True)
        )
        places = np.zeros(1, np.int64)
        for axis, size in zip(rows, leaf.shape, strict=False):
            places = (places[:, None] * size + np.arange(axis.start, axis.stop)).reshape(-1)
        places = (places * width + columns.start).astype(np.uint32)
        step = max(1, _CHUNK // len(columns))
        for start in range(0, len(places), step):
            parts.append(_mix(shard.data, start, places[start : start + step]))
    return parts


@jax.jit
def _mix(shard: jax.Array, start, places: jax.Array) -> jax.Array:
    shard = shard.reshape(-1, shard.shape[-1])
    rows = jax.lax.dynamic_slice_in_dim(shard, start, len(places))
    bits = jax.lax.bitcast_convert_type(rows, f"uint{8 * rows.dtype.itemsize}").astype(jnp.uint32)
    place = places[:, None] + jnp.arange(rows.shape[1], dtype=jnp.uint32)
    return jnp.sum(mixed(bits + place * np.uint32(0x9E3779B9)), dtype=jnp.uint32)
