"""GradCache (arXiv 2101.06983): the gradient of a loss over a batch of any size, in the memory of
one chunk of it.

The loss couples all pairs, but only through their vectors. So the vectors are computed chunk by
chunk, without residuals; the loss gives the gradient at each vector; and each chunk is recomputed
to propagate that gradient. Every pair has all negatives of the batch, unlike with accumulated
gradients of small batches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gve_jax.distributed.sharding import ROWS, param_shardings
from gve_jax.errors import UserError
from gve_jax.model.batch import Batch


def check_batch_size(size: int, rows: int) -> None:
    """Raises UserError if a batch cannot be split over `rows` = data * fsdp groups of devices."""
    if size % rows:
        raise UserError(f"batch_size {size} must be a multiple of data * fsdp = {rows}")


def check_chunk(chunk: int, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError if chunks of `chunk` pairs do not divide a batch of `batch_size`."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if chunk < 0 or (chunk and (batch_size % chunk or chunk % rows)):
        raise UserError(
            f"gradcache_chunk {chunk} must divide batch_size {batch_size} and be a multiple of "
            f"data * fsdp = {rows}"
        )


def take_chunk(tree, number, chunks: int, mesh: Mesh):
    """Returns chunk `number` of `chunks` of a tree of arrays [B, ...].

    A chunk has an equal share of every device's rows, so no data moves between devices."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]

    def cut(x):
        size, *rest = x.shape
        x = x.reshape(devices, chunks, size // devices // chunks, *rest)
        x = jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False)
        x = x.reshape(size // chunks, *rest)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, ROWS))

    return jax.tree.map(cut, tree)


def merge_chunks(parts, mesh: Mesh):
    """Inverts `take_chunk`: maps stacked arrays [chunks, B / chunks, ...] to [B, ...]."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(x):
        chunks, size, *rest = x.shape
        x = x.reshape(chunks, devices, size // devices, *rest).swapaxes(0, 1)
        x = x.reshape(chunks * size, *rest)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, ROWS))

    return jax.tree.map(put, parts)


def cached_value_and_grad(
    embed: Callable, loss: Callable, params, extra, sides: list[Batch], chunk: int, mesh: Mesh
) -> tuple[tuple, tuple]:
    """Returns ((loss, scalars), (gradient of `params`, gradient of `extra`)).

    Args:
      embed: `embed(params, side, batch, rows)` -> vectors [rows, D]; `side` is an index in `sides`,
        `rows` are indices in the global batch, which decide dropout.
      loss: `loss(vectors of each side, extra) -> (value, scalars)` of all rows.
      sides: batches of B items each.
      chunk: rows of a chunk; see `check_chunk`.
    """
    size = len(sides[0].length)
    chunks = size // chunk
    numbers, all_rows = jnp.arange(chunks), jnp.arange(size, dtype=jnp.uint32)

    def vectors_of(params, side, number):
        batch, rows = take_chunk((sides[side], all_rows), number, chunks, mesh)
        return embed(params, side, batch, rows)

    def forward(_, number):
        return None, [vectors_of(params, side, number) for side in range(len(sides))]

    vectors = merge_chunks(jax.lax.scan(forward, None, numbers)[1], mesh)
    value, (at_vectors, at_extra) = jax.value_and_grad(loss, (0, 1), has_aux=True)(vectors, extra)

    def backward(total, number):
        for side in range(len(sides)):
            _, pull = jax.vjp(lambda params, side=side: vectors_of(params, side, number), params)
            (gradient,) = pull(take_chunk(at_vectors[side], number, chunks, mesh))
            total = jax.tree.map(lambda sum, part: sum + part.astype(sum.dtype), total, gradient)
        return total, None

    # Summed in float32, with the sharding of the parameters, which nothing else implies.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    zeros = jax.lax.with_sharding_constraint(zeros, param_shardings(params, mesh))
    total = jax.lax.scan(backward, zeros, numbers)[0]
    return value, (jax.tree.map(lambda sum, leaf: sum.astype(leaf.dtype), total, params), at_extra)
