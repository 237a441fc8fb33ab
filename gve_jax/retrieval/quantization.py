"""Vectors in fewer bytes, with the values of Sentence Transformers' `quantize_embeddings`."""

import numpy as np

from gve_jax.errors import UserError, warn_user
from gve_jax.retrieval.unit import as_matrix, check_finite

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_FEW = 100  # vectors, below which their ranges say little of those to come


def quantize_embeddings(
    embeddings: np.ndarray,
    precision: str,
    ranges: np.ndarray | None = None,
    calibration_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """Quantizes vectors; a float32 dimension becomes a byte or a bit.

    Args:
      embeddings: real [N, D], or one vector [D].
      precision: "int8" and "uint8" divide the range of each dimension into 256 steps; "binary" and
        "ubinary" keep its sign, eight dimensions a byte, as int8 (less 128) or uint8.
      ranges: [2, D], the least and the greatest value of each dimension, for "int8" and "uint8".
        Keep those of the corpus for its queries: vectors of differing ranges cannot be compared.
      calibration_embeddings: [N, D], which give the ranges where there are none; `embeddings`
        themselves when absent.

    Returns:
      float32, int8 or uint8 [N, D] or [D]; [..., ceil(D / 8)] for "binary" and "ubinary".

    Raises:
      UserError: an unknown precision; a single vector to take ranges from; NaN or infinite numbers;
        ranges of another width.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    matrix = as_matrix(embeddings, "embeddings")
    if matrix.dtype.kind in "iub":
        raise UserError(f"embeddings to quantize must be floating point, not {matrix.dtype}")
    check_finite(matrix, "embeddings")
    single = np.ndim(embeddings) == 1 and len(matrix) == 1
    found = _quantize(matrix, precision, ranges, calibration_embeddings)
    return found[0] if single else found


def _quantize(matrix: np.ndarray, precision: str, ranges, calibration) -> np.ndarray:
    if precision == "float32":
        return matrix.astype(np.float32)
    if precision.endswith("binary"):
        bits = np.packbits(matrix > 0, axis=-1)
        return bits if precision == "ubinary" else (bits ^ 0x80).view(np.int8)
    if len(matrix) == 0:
        return np.zeros(matrix.shape, precision)
    low, high = _ranges(matrix, precision, ranges, calibration).astype(np.float32, copy=False)
    steps = (high - low) / 255
    levels = np.floor((matrix - low) / np.where(steps == 0, np.float32(1), steps))
    levels = np.clip(levels, 0, 255)
    return (levels if precision == "uint8" else levels - 128).astype(precision)


def _ranges(matrix: np.ndarray, precision: str, ranges, calibration) -> np.ndarray:
    """[2, D]: the least and the greatest value of each dimension."""
    width = matrix.shape[1]
    if ranges is not None:
        ranges = as_matrix(ranges, "ranges")
        if ranges.shape != (2, width):
            raise UserError(f"ranges must be [2, {width}], not {list(ranges.shape)}")
        check_finite(ranges, "ranges")
        if (ranges[0] > ranges[1]).any():
            raise UserError("ranges must be the least, then the greatest value of each dimension")
        return ranges
    if calibration is None:
        if len(matrix) == 1:
            raise UserError(
                f"{precision} takes the range of each dimension from the vectors, and "
                "one alone has none: give ranges or calibration_embeddings to "
                "gve_jax.retrieval.quantization.quantize_embeddings"
            )
        if len(matrix) < _FEW:
            warn_user(
                f"the {precision} ranges come from {len(matrix)} vectors only; to take "
                "them from more, give ranges or calibration_embeddings to "
                "gve_jax.retrieval.quantization.quantize_embeddings"
            )
        calibration = matrix
    calibration = as_matrix(calibration, "calibration_embeddings")
    if calibration.shape[1] != width or len(calibration) == 0:
        raise UserError(
            f"calibration_embeddings must be [N, {width}], not {list(calibration.shape)}"
        )
    check_finite(calibration, "calibration_embeddings")
    return np.stack([calibration.min(axis=0), calibration.max(axis=0)])
