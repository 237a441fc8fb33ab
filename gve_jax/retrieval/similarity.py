"""Similarities of vectors by Sentence Transformers' names, right for numbers of any size."""

import numpy as np
from jaxtyping import Float

from gve_jax.errors import UserError
from gve_jax.retrieval.unit import as_matrix, check_finite, row_lengths, unit_rows

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_NAMES = ("embeddings1", "embeddings2")  # of the two sides, in messages
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_name(name) -> str:
    """The name of a similarity, also of Sentence Transformers' enumeration; None is cosine.

    Raises:
      UserError: an unknown one.
    """
    name = "cosine" if name is None else getattr(name, "value", name)
    if name not in SIMILARITIES:
        raise UserError(
            f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, not {name!r}"
        )
    return name


def all_pairs(a, b, name: str = "cosine") -> Float[np.ndarray, "Q C"]:
    """Similarity of each row of `a` [Q, D] (or one vector [D]) with each of `b`, float32.

    "euclidean" and "manhattan" are distances with the sign changed: the nearer, the greater.

    Raises:
      UserError: not matrices of one width; a row with NaN or infinite numbers, or, for the cosine,
        without a direction; a value that float32 cannot hold.
    """
    a, b = _matrices(a, b)
    if name == "cosine":
        return unit_rows(a, _NAMES[0]) @ unit_rows(b, _NAMES[1]).T
    if name == "dot":
        return _narrow(_dot(a, b), name)
    found = np.empty((len(a), len(b)), np.float64)
    for row, vector in enumerate(a):
        found[row] = _distances(vector[None], b, name)
    return _narrow(found, name)


def by_rows(a, b, name: str = "cosine") -> Float[np.ndarray, " N"]:
    """Similarity of each row of `a` [N, D] with the same row of `b`, float32; a vector [D] goes
    with every row of the other, and two vectors give a number.

    Raises:
      UserError: as `all_pairs`, and numbers of rows that differ.
    """
    sides = [as_matrix(side, name) for side, name in zip((a, b), _NAMES, strict=True)]
    alone = [np.ndim(side) == 1 for side in (a, b)]
    a, b = _matrices(*sides)
    if len(a) != len(b) and not any(alone):
        raise UserError(
            f"similarity_pairwise takes as many rows on either side, not {len(a)} and {len(b)}"
        )
    if name == "cosine":
        found = np.sum(unit_rows(a, _NAMES[0]) * unit_rows(b, _NAMES[1]), axis=-1)
    elif name == "dot":
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.sum(a.astype(np.float64) * b.astype(np.float64), axis=-1)
    else:
        found = _distances(a, b, name)
    found = _narrow(found, name)
    return found[0] if all(alone) else found


def _matrices(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_matrix(a, _NAMES[0]), as_matrix(b, _NAMES[1])
    if a.shape[1] != b.shape[1]:
        raise UserError(f"similarity takes [Q, D] and [C, D], not {a.shape} and {b.shape}")
    check_finite(a, _NAMES[0])
    check_finite(b, _NAMES[1])
    return a, b


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 where neither the numbers nor a sum can leave it, else float64."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    narrow = all(np.can_cast(side.dtype, np.float32) for side in (a, b))
    kind = np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        if narrow and row_lengths(a).max() * row_lengths(b).max() < _FLOAT32_MAX:
            kind = np.float32
        return a.astype(kind) @ b.astype(kind).T


def _distances(a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
    """float64 [N], the distances of rows with their sign changed."""
    with np.errstate(over="ignore"):
        apart = a.astype(np.float64) - b.astype(np.float64)
        if name == "manhattan":
            return -np.abs(apart).sum(axis=-1)
        return -row_lengths(apart)


def _narrow(found: np.ndarray, name: str) -> np.ndarray:
    """float32 of values that it can hold."""
    fits = np.abs(found) <= _FLOAT32_MAX  # NaN, of infinity less infinity, does not
    if not fits.all():
        where = np.argwhere(~fits)[0].tolist()
        raise UserError(
            f"similarity: the {name} value of rows {where} is beyond float32; "
            "normalize the vectors first"
        )
    return found.astype(np.float32)
