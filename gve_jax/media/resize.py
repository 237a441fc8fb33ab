"""Resizes frames: bicubic with antialiasing, in the modes of the references."""

import functools

import numpy as np
from PIL import Image

_BICUBIC = Image.Resampling.BICUBIC
_BLOCK = 8  # rows or columns of the output per product: more would multiply more zeros
# Multiplications up to which OpenBLAS uses the calling thread only. Larger products start a thread
# on every core for less than a millisecond of work: ten times slower if other workers are running.
_SERIAL = 4 * 65536
_F32 = np.float32


def resize(frames: np.ndarray, height: int, width: int, kind: str, mode: str) -> np.ndarray:
    """Resizes frames uint8 [T, H, W, 3] to uint8 [T, height, width, 3].

    Args:
      frames: the frames of a video, or one image.
      height, width: the new size; frames of that size are returned unchanged.
      kind: "video" or "image": the reference treats them differently.
      mode: a key of `RESIZE`.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    return RESIZE[mode][kind](frames, height, width)


def _rounded_once(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Computes weighted sums in float32, rounded half to even and clamped at the end, as
    torchvision's `transforms.functional.resize` on uint8, which qwen-vl-utils calls.

    Each block of outputs is a small matrix product with the required inputs. Rows are first, while
    torch begins with columns: sums differ in their last bits, so that about one value in ten
    thousand is rounded differently.
    """
    count, rows, cols, channels = frames.shape
    lines = frames.reshape(count, rows, cols * channels)
    out = np.empty((count, height, width * channels), np.uint8)
    between = np.empty((height, cols * channels), _F32)
    sums = np.empty((height, width * channels), _F32)
    for source, target in zip(lines, out, strict=True):
        for into, taken, weights in _blocks(rows, height, 1):
            _along_rows(weights, source[taken].astype(_F32), between[into])
        for into, taken, weights in _blocks(cols, width, channels):
            _along_columns(between[:, taken], weights.T, sums[:, into])
        np.clip(np.rint(sums, out=sums), 0, 255, out=sums)
        target[:] = sums
    return out.reshape(count, height, width, channels)


def _along_rows(weights: np.ndarray, lines: np.ndarray, out: np.ndarray) -> None:
    """Computes out = weights @ lines in blocks of columns."""
    size = max(1, _SERIAL // weights.size)
    whole = lines.shape[1] // size * size
    if whole:  # views, and one call for all of them
        pieces = lines[:, :whole].reshape(len(lines), -1, size).transpose(1, 0, 2)
        results = out[:, :whole].reshape(len(out), -1, size).transpose(1, 0, 2)
        np.matmul(weights, pieces, out=results)
    np.matmul(weights, lines[:, whole:], out=out[:, whole:])


def _along_columns(lines: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Computes out = lines @ weights in blocks of rows."""
    size = max(1, _SERIAL // weights.size)
    whole = len(lines) // size * size
    if whole:
        pieces = lines[:whole].reshape(-1, size, lines.shape[1])
        np.matmul(pieces, weights, out=out[:whole].reshape(-1, size, out.shape[1]))
    np.matmul(lines[whole:], weights, out=out[whole:])


@functools.lru_cache(maxsize=64)
def _blocks(old: int, new: int, channels: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Returns (outputs, required inputs, weights [outputs, inputs]) along an axis whose entries
    have `channels` interleaved values."""
    first, stop, weights = _weights(old, new)
    blocks = []
    for start in range(0, new, _BLOCK):
        end = min(start + _BLOCK, new)
        low, high = int(first[start]), int(stop[end - 1])
        dense = np.zeros((end - start, high - low), _F32)
        for row in range(start, end):
            taps = stop[row] - first[row]
            dense[row - start, first[row] - low :][:taps] = weights[row, :taps]
        # The weights of a channel, for values that are `channels` apart.
        dense = np.kron(dense, np.eye(channels, dtype=_F32))
        into = slice(start * channels, end * channels)
        blocks.append((into, slice(low * channels, high * channels), dense))
    return blocks


def _weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns first input, last input + 1, and weights [new, taps] of each output: torch's filter
    (a = -0.5, widened by the scale for downsampling), computed in float32 as in torch."""
    scale = _F32(old) / _F32(new)
    wide = max(scale, _F32(1))
    centre = scale * (np.arange(new, dtype=_F32) + _F32(0.5))
    reach = _F32(2) * wide
    first = np.maximum((centre - reach + _F32(0.5)).astype(np.int64), 0)
    stop = np.minimum((centre + reach + _F32(0.5)).astype(np.int64), old)
    tap = np.arange((stop - first).max(), dtype=_F32)
    x = np.abs((tap + (first.astype(_F32) - centre)[:, None] + _F32(0.5)) * (_F32(1) / wide))
    near = (_F32(1.5) * x - _F32(2.5)) * x * x + _F32(1)
    far = (((x - _F32(5)) * x + _F32(8)) * x - _F32(4)) * _F32(-0.5)
    weights = np.where(x < 1, near, np.where(x < 2, far, _F32(0)))
    weights[tap >= (stop - first)[:, None]] = 0
    return first, stop, weights / weights.sum(axis=1, keepdims=True, dtype=_F32)


def _rounded_twice(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes columns first, rounding and clamping to uint8 between the two passes, as Pillow up to
    12, which qwen-vl-utils uses for images, and nearly as torch's uint8 path, which transformers
    uses.

    One call per pass: otherwise Pillow 13 begins with the cheaper one.
    """
    across = (width, frames.shape[1])
    return np.stack(
        [
            np.asarray(
                Image.fromarray(f).resize(across, _BICUBIC).resize((width, height), _BICUBIC)
            )
            for f in frames
        ]
    )


# Functions that resize videos and images, by mode.
RESIZE = {
    # qwen-vl-utils 0.0.8 - 0.0.14: torchvision for videos, Pillow for images.
    "exact": {"video": _rounded_once, "image": _rounded_twice},
    # Processors of transformers from 4.52 on, without qwen-vl-utils.
    "uint8": {"video": _rounded_twice, "image": _rounded_twice},
}
