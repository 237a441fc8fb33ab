"""Frames to another size: bicubic with antialiasing, in the ways of the references, by name."""

import functools

import numpy as np
from PIL import Image

_BICUBIC = Image.Resampling.BICUBIC
_BLOCK = 8  # rows or columns of the output a product: more would multiply more zeros
# Multiplications of a product up to which OpenBLAS stays on the calling thread. Larger ones wake a
# thread on every core, for less than a millisecond of work: beside other workers, ten times slower.
_SERIAL = 4 * 65536
_F32 = np.float32


def resize(frames: np.ndarray, height: int, width: int, kind: str, mode: str) -> np.ndarray:
    """uint8 [T, H, W, 3] -> uint8 [T, height, width, 3].

    Args:
      frames: the frames of a video, or one image.
      height, width: the size wanted; frames that have it are returned as they are.
      kind: "video" or "image": the reference treats them differently.
      mode: a name of `RESIZE`.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    return RESIZE[mode][kind](frames, height, width)


def _rounded_once(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The weighted sums in float32, rounded (a half to the even number) and clamped at the end:
    torchvision's `transforms.functional.resize` on uint8, which qwen-vl-utils calls.

    Each block of outputs is a small matrix product with the inputs that it needs. Rows go first,
    torch begins with columns: sums differ in their last bits, so that about one value in ten
    thousand is rounded to its other neighbour.
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
    """out = weights @ lines, some columns at a time."""
    size = max(1, _SERIAL // weights.size)
    whole = lines.shape[1] // size * size
    if whole:  # views, and one call for all of them
        pieces = lines[:, :whole].reshape(len(lines), -1, size).transpose(1, 0, 2)
        results = out[:, :whole].reshape(len(out), -1, size).transpose(1, 0, 2)
        np.matmul(weights, pieces, out=results)
    np.matmul(weights, lines[:, whole:], out=out[:, whole:])


def _along_columns(lines: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """out = lines @ weights, some rows at a time."""
    size = max(1, _SERIAL // weights.size)
    whole = len(lines) // size * size
    if whole:
        pieces = lines[:whole].reshape(-1, size, lines.shape[1])
        np.matmul(pieces, weights, out=out[:whole].reshape(-1, size, out.shape[1]))
    np.matmul(lines[whole:], weights, out=out[whole:])


@functools.lru_cache(maxsize=64)
def _blocks(old: int, new: int, channels: int) -> list[tuple[slice, slice, np.ndarray]]:
    """(outputs, the inputs they need, weights [outputs, inputs]) along an axis whose entries are
    of `channels` interleaved values each."""
    first, stop, weights = _weights(old, new)
    blocks = []
    for start in range(0, new, _BLOCK):
        end = min(start + _BLOCK, new)
        low, high = int(first[start]), int(stop[end - 1])
        dense = np.zeros((end - start, high - low), _F32)
        for row in range(start, end):
            taps = stop[row] - first[row]
            dense[row - start, first[row] - low :][:taps] = weights[row, :taps]
        # A channel's weights, spread out over values that stand `channels` apart.
        dense = np.kron(dense, np.eye(channels, dtype=_F32))
        into = slice(start * channels, end * channels)
        blocks.append((into, slice(low * channels, high * channels), dense))
    return blocks


def _weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First input, one past the last, and weights [new, taps] of each output: torch's filter
    (a = -0.5, widened by the scale when shrinking), computed in float32 as torch does."""
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
    """Columns first, rounded and clamped to uint8 between the two passes: Pillow up to 12, which
    qwen-vl-utils uses on images, and nearly torch's own uint8 path, which transformers uses.

    One call a pass: left alone, Pillow 13 takes the cheaper one first.
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


# Mode -> what resizes a video's frames, and what resizes an image.
RESIZE = {
    # qwen-vl-utils 0.0.8 - 0.0.14: torchvision for videos, Pillow for images.
    "exact": {"video": _rounded_once, "image": _rounded_twice},
    # transformers' own processors from 4.52 on, without qwen-vl-utils.
    "uint8": {"video": _rounded_twice, "image": _rounded_twice},
}
