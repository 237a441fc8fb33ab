"""Checks of vectors, tiles on the mesh and products of tiles, for ranks and top-k.

Query rows are sharded over all axes of the mesh and corpus tiles are replicated, so no product
needs a collective. Several hosts divide the queries; each uses a mesh of its own devices.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gve_jax.errors import UserError
from gve_jax.retrieval.unit import describe_fault, row_label, row_lengths, unit_rows

QUERY_TILE = 1024  # rows of queries in one product
CORPUS_TILE = 4096  # rows of the corpus in one product
SMALLEST_TILE = 128  # small sets are padded to this, so that they share one compilation
RESIDENT_TILES = 4  # corpus tiles kept on the devices
NORM_TOLERANCE = 1e-3  # vectors whose length differs from one by more are refused
NORM_ROUNDING = 1e-5  # rounding of float32; above, vectors are divided by their lengths
NORM_BLOCK = 65536  # rows checked at a time, which bounds the memory


# ---- checks -----------------------------------------------------------------------------------


def check_unit_vectors(vectors: np.ndarray, name: str, ids: Sequence[str] | None = None) -> None:
    """Checks that vectors can be ranked by cosine.

    Args:
      vectors: [N, D], floating point.
      name: of the vectors, for messages.
      ids: N ids, for messages.

    Raises:
      UserError: not a float matrix, empty, or a row that is NaN, infinite, zero or not of unit
        length (tolerance 1e-3); the message names the first such row.
    """
    _largest_error(vectors, name, ids)


def cosine_rows(
    vectors: np.ndarray, name: str, ids: Sequence[str] | None = None
) -> "np.ndarray | UnitRows":
    """Returns `vectors`, or `UnitRows` of them if a length differs from one by more than 1e-5, as
    in float16: the product of two rows is then their cosine.

    Arguments and errors as in `check_unit_vectors`.
    """
    return UnitRows(vectors) if _largest_error(vectors, name, ids) > NORM_ROUNDING else vectors


def _largest_error(vectors: np.ndarray, name: str, ids: Sequence[str] | None) -> float:
    """The largest difference of a row's length from one; see `check_unit_vectors`."""
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind != "f":
        raise UserError(
            f"{name}: expected a non-empty float matrix of vectors, "
            f"got {vectors.dtype} {list(vectors.shape)}"
        )
    largest = 0.0
    for start in range(0, len(vectors), NORM_BLOCK):
        with np.errstate(over="ignore"):  # huge numbers become infinite and are refused below
            block = np.asarray(vectors[start : start + NORM_BLOCK], np.float32)
            error = np.abs(np.sqrt(np.einsum("nd,nd->n", block, block)) - 1)
        bad = np.flatnonzero(~(error <= NORM_TOLERANCE))  # NaN compares false
        if len(bad):
            row = start + int(bad[0])
            first = np.asarray(vectors[row : row + 1])
            fault = describe_fault(first[0]) or (
                f"is not of unit length: its norm is {row_lengths(first)[0]:.6g}"
            )
            raise UserError(f"{row_label(name, row, ids)} {fault}")
        largest = max(largest, float(error.max()))
    return largest


class UnitRows:
    """Rows of a matrix, divided by their lengths on access; float32 [N, D]."""

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, vectors: np.ndarray):
        self._vectors, self.shape = vectors, tuple(vectors.shape)
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        rows = np.asarray(self._vectors[key])
        return unit_rows(rows) if rows.ndim == 2 else unit_rows(rows)[0]


def check(queries: np.ndarray, corpus: np.ndarray, ids: Sequence[str]) -> None:
    """As `check_unit_vectors` for both; also checks that widths agree and ids are complete."""
    check_unit_vectors(queries, "queries")
    check_unit_vectors(corpus, "corpus", ids if len(ids) == len(corpus) else None)
    if queries.shape[1] != corpus.shape[1]:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions and the corpus {corpus.shape[1]}"
        )
    if len(ids) != len(corpus):
        raise UserError(f"{len(ids)} document ids for {len(corpus)} vectors")


# ---- the product ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def product(mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """[Q, D], [C, D] -> [Q, C] in full float32, rows over all axes of the mesh.

    All scores that are compared come from this program in one shape, so that equal documents score
    the same: another order of the sum could round differently.
    """

    def scores(queries, documents):
        return jnp.einsum("qd,cd->qc", queries, documents, precision=jax.lax.Precision.HIGHEST)

    rows = P(mesh.axis_names)
    return jax.jit(jax.shard_map(scores, mesh=mesh, in_specs=(rows, P()), out_specs=rows))


def fetcher(
    mesh: Mesh, corpus: np.ndarray, tile_size: int, permutation: np.ndarray | None = None
) -> Callable[[int], jax.Array]:
    """Returns a function from the number of a tile to its vectors [tile_size, D] on every device.

    The last tile is padded with zeros. A few tiles are cached on the devices. With `permutation`,
    int [C], row n is `corpus[permutation[n]]`.
    """

    @functools.lru_cache(maxsize=RESIDENT_TILES)
    def fetch(tile: int) -> jax.Array:
        window = slice(tile * tile_size, (tile + 1) * tile_size)
        return replicate(
            mesh, corpus[window if permutation is None else permutation[window]], tile_size
        )

    return fetch


def replicate(mesh: Mesh, vectors: np.ndarray, rows: int) -> jax.Array:
    """Replicates `vectors`, padded with zeros to `rows` rows, on every device."""
    vectors = np.asarray(vectors, np.float32)
    return jax.device_put(padded(vectors, rows, 0), NamedSharding(mesh, P()))


def shard_rows(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Shards the rows of `array` over all devices of the mesh."""
    return jax.device_put(array, NamedSharding(mesh, P(mesh.axis_names)))


def tile_size(rows: int, largest: int, devices: int = 1) -> int:
    """The next power of two, at most `largest`, rounded up to a multiple of the devices."""
    size = min(largest, max(SMALLEST_TILE, 1 << max(rows - 1, 0).bit_length()))
    return -(-size // devices) * devices


def padded(array: np.ndarray, rows: int, value: float) -> np.ndarray:
    """`array` with rows of `value` added at the end up to `rows`."""
    missing = rows - len(array)
    if missing == 0:
        return array
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=value)


def id_order(ids: Sequence[str]) -> np.ndarray:
    """Returns int32 [C], the rank of each id in string order; the larger wins a tie.

    Raises:
      UserError: an id occurs twice; the message names it.
    """
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    for one, next_one in itertools.pairwise(by_id):
        if ids[one] == ids[next_one]:
            raise UserError(f"document id {ids[one]!r} occurs twice")
    order = np.empty(len(ids), np.int32)
    order[by_id] = np.arange(len(ids), dtype=np.int32)
    return order


# ---- devices and hosts ------------------------------------------------------------------------


def choose_mesh(mesh: Mesh | None) -> Mesh:
    """Returns `mesh`, or the mesh in use, or one axis over all local devices.

    A mesh that spans several hosts is replaced by an axis over this host's devices.
    """
    if mesh is None:
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            mesh = Mesh(np.array(jax.local_devices()), ("data",))
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mesh if len(own) == mesh.size else Mesh(np.array(own), ("data",))


def host_rows(rows: int) -> slice:
    """Returns the contiguous block of rows that this host computes."""
    share = math.ceil(rows / jax.process_count())
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def allgather_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Gathers `array` [rows, ...], of which each host computed its `host_rows`, on every host."""
    if jax.process_count() == 1:
        return array
    share = math.ceil(rows / jax.process_count())
    gathered = multihost_utils.process_allgather(padded(array[host_rows(rows)], share, 0))
    return np.asarray(gathered).reshape(-1, *array.shape[1:])[:rows]
