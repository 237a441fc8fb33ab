"""Shot cuts without decoding the complete video.

Keyframes are decoded first, to pictures of 32 x 18 pixels. Between two keyframes that look alike,
with no packet that stands out by its size (an encoder spends bytes where a picture cannot be
predicted), nothing is decoded. Elsewhere all frames are decoded. A cut is a frame whose difference
from the previous one stands out from the differences around it: motion and light that change for
several frames are no cuts.
"""

from collections.abc import Callable

import numpy as np

from gve_jax.media.outline import Outline

SIZE = (18, 32)  # height and width of the pictures
REQUEST = 2000  # frames of a request, so that it ends in time
SHORT = 600  # frames; shorter videos are decoded completely
ALIKE = 6.0  # levels of 255 by which two keyframes may differ, in the mean over their pixels
STANDS_OUT = 4.0  # times the median packet of a group of pictures
LEAST, RATIO, AROUND = 8.0, 3.0, 2  # levels; times the mean of so many differences on each side

Read = Callable[[np.ndarray], np.ndarray]  # ascending positions to uint8 [N, *SIZE, 3]


def find_cuts(outline: Outline, read: Read) -> np.ndarray:
    """Positions of the first frames of shots, ascending, int64; without 0.

    Args:
      read: decodes frames to small pictures.
    """
    change = np.zeros(outline.total)  # of each frame from the previous one, where both are decoded
    last, picture = -2, None
    for positions in outline.requests(np.flatnonzero(_suspicious(outline, read)), REQUEST):
        pictures = read(positions).reshape(len(positions), -1).astype(np.int16)
        before = pictures[:-1] if picture is None else np.concatenate([[picture], pictures[:-1]])
        at = positions[1:] if picture is None else positions
        difference = np.abs(pictures[len(pictures) - len(at) :] - before).mean(axis=1)
        follows = np.diff(np.concatenate([[last], positions]))[len(positions) - len(at) :] == 1
        change[at[follows]] = difference[follows]
        last, picture = int(positions[-1]), pictures[-1]
    return pick_cuts(change)


def pick_cuts(change: np.ndarray) -> np.ndarray:
    """Positions where a difference is large, and large beside those around it."""
    padded = np.pad(change, AROUND)
    around = sum(
        padded[AROUND + k : len(padded) - AROUND + k] for k in range(-AROUND, AROUND + 1) if k
    ) / (2 * AROUND)
    found = (change >= LEAST) & (change >= RATIO * around)
    found[0] = False
    return np.flatnonzero(found)


def _suspicious(outline: Outline, read: Read) -> np.ndarray:
    """bool [T], the frames to decode."""
    keys = np.flatnonzero(outline.key)
    if outline.total <= SHORT or len(keys) < 3:
        return np.ones(outline.total, bool)
    pictures = np.concatenate(
        [read(keys[start : start + REQUEST]) for start in range(0, len(keys), REQUEST)]
    )
    pictures = pictures.reshape(len(keys), -1).astype(np.int16)
    differs = np.abs(np.diff(pictures, axis=0)).mean(axis=1) > ALIKE
    chosen = np.zeros(outline.total, bool)
    edges = np.append(keys, outline.total)
    for number, (first, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        sizes = outline.bytes[first + 1 : stop]
        jumps = len(sizes) > 0 and sizes.max() > max(
            STANDS_OUT * np.median(sizes), outline.bytes[first] / 4
        )
        if jumps or number == len(differs) or differs[number]:
            chosen[first : stop + 1] = True
    chosen[: keys[0]] = True
    return chosen
