"""Unit rows and lengths of rows, right for every finite number: the one owner of both on
the host (`gve_jax.model.layers.unit_rows` is for programs of the device).

The square of a number above 1e19 overflows float32, that of one below 1e-23 becomes 0 (float64:
1e154, 1e-162). Rows are therefore scaled by a power of two, which is exact, before their squares
are summed in float64.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gve_jax.errors import UserError

_BLOCK = 8192  # rows converted to float64 at a time, which bounds the memory


def as_matrix(vectors, name: str) -> np.ndarray:
    """`vectors` as a real matrix [N, D]: of arrays of any library, lists, or one vector [D].

    Args:
      name: what they are, for the message.

    Raises:
      UserError: not real numbers, or not one vector or rows of equal length.
    """
    try:
        matrix = np.asarray(vectors)
    except Exception as error:  # ragged lists; tensors of an accelerator or with a gradient
        raise UserError(f"{name}: not an array of vectors ({error})") from error
    if matrix.size == 0 and matrix.ndim == 1:
        matrix = matrix.reshape(0, 0)
    if not (
        jnp.issubdtype(matrix.dtype, jnp.integer)
        or jnp.issubdtype(matrix.dtype, jnp.floating)
        or matrix.dtype == bool
    ):
        raise UserError(f"{name}: vectors must be real numbers, not {matrix.dtype}")
    matrix = np.atleast_2d(matrix)
    if matrix.ndim != 2:
        raise UserError(f"{name}: vectors must be [N, D] or [D], not {list(matrix.shape)}")
    return matrix


def row_lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths float64 [N] of rows [N, D]; infinite where float64 cannot hold it, NaN or
    infinite where a row is."""
    found = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), _BLOCK):
        _, lengths, exponents = _scaled(vectors[start : start + _BLOCK])
        with np.errstate(over="ignore"):
            found[start : start + _BLOCK] = np.ldexp(lengths, exponents)[:, 0]
    return found


def unit_rows(vectors, name: str = "vectors", ids: Sequence[str] | None = None) -> np.ndarray:
    """Rows divided by their lengths, float32 [N, D].

    Args:
      vectors: [N, D] or [D]; real numbers of any type and size.
      name: what they are, for the message.
      ids: N ids, for the message.

    Raises:
      UserError: not such vectors; a row that has NaN or infinite numbers, or is all zeros.
    """
    vectors = as_matrix(vectors, name)
    check_finite(vectors, name, ids)
    unit = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        scaled, lengths, _ = _scaled(vectors[start : start + _BLOCK])
        if not lengths.all():
            row = int(np.argmin(lengths))
            label = row_label(name, start + row, ids)
            raise UserError(f"{label} {describe_fault(scaled[row])}")
        unit[start : start + _BLOCK] = scaled / lengths
    return unit


def check_finite(vectors: np.ndarray, name: str, ids: Sequence[str] | None = None) -> None:
    """Raises UserError that names the first row [D] of [N, D] with NaN or infinite numbers."""
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float64, copy=False)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            label = row_label(name, start + row, ids)
            raise UserError(f"{label} {describe_fault(block[row])}")


def describe_fault(row: np.ndarray) -> str | None:
    """Why a row [D] has no direction, as the end of a sentence; None where it has one."""
    row = row.astype(np.float64, copy=False)
    if np.isnan(row).any():
        return "contains NaN"
    if np.isinf(row).any():
        return "contains infinite values"
    return None if row.any() else "is all zeros and has no direction"


def row_label(name: str, row: int, ids: Sequence[str] | None = None) -> str:
    """How a message names a row: `corpus: vector 3 (clip.mp4)`."""
    return f"{name}: vector {row}" + (f" ({ids[row]})" if ids is not None else "")


def _scaled(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows divided by 2**exponent, float64 [n, D]; their lengths, float64 [n, 1]; exponents, int
    [n, 1]) so that a row's largest number is in [0.5, 1)."""
    block = block.astype(np.float64, copy=False)
    largest = np.abs(block).max(axis=1, keepdims=True, initial=0.0)
    exponents = np.where(np.isfinite(largest), np.frexp(largest)[1], 0)
    scaled = np.ldexp(block, -exponents)
    with np.errstate(invalid="ignore"):
        return scaled, np.linalg.norm(scaled, axis=1, keepdims=True), exponents
