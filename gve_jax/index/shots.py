"""Shot cuts without decoding the complete video.

Keyframes are decoded first, to pictures of 32 x 18 pixels. Between two of them with like colours,
only frames whose packets stand out by their size are decoded with their neighbours: an encoder
spends bytes where it cannot predict a picture. Many encoders also begin a new group of pictures
there: if a group is shorter than others, the next keyframe is the cut. Only groups of full length
whose colours change are decoded as a whole. Small or short videos are decoded completely.

A cut is a frame whose difference from the previous one stands out from the differences around it:
motion and light that change for several frames are no cuts, and slow fades are not found.
"""

from collections.abc import Callable

import numpy as np

from gve_jax.media.outline import Outline

SIZE = (18, 32)  # height and width of the pictures
REQUEST = 2000  # frames of a request
CHEAP = 600 * 1280 * 720  # pixels of all frames of a video that is decoded completely
STANDS_OUT = 2.5  # times the 90th percentile of the packets of a group
BEFORE, AFTER = 8, 4  # frames around such a packet; it may be up to a few B-frames late
OTHER_COLOURS = 0.3  # share of the pixels that are in other bins of a histogram
LEVELS = 12.0  # of 255, in the mean, that a new group differs from the previous one after a cut
LEAST, RATIO, AROUND = 8.0, 3.0, 2  # levels; times the mean of so many differences on each side

Read = Callable[[np.ndarray], np.ndarray]  # ascending positions to uint8 [N, *SIZE, 3]


def find_cuts(outline: Outline, read: Read) -> np.ndarray:
    """Positions of the first frames of shots, ascending, int64; without 0.

    Args:
      read: decodes frames to small pictures.
    """
    keys = np.flatnonzero(outline.key)
    if outline.total * outline.pixels <= CHEAP or len(keys) < 2:
        change, _ = _changes(outline, np.arange(outline.total), read)
        return pick_cuts(change)
    pictures = np.concatenate([read(part) for part in outline.requests(keys, REQUEST)])
    pictures = pictures.reshape(len(keys), -1, 3)
    levels, colours = _distances(pictures[:-1], pictures[1:])
    differs = np.append((levels >= LEVELS) & (colours >= OTHER_COLOURS), False)
    chosen, spikes = np.zeros(outline.total, bool), np.zeros(len(keys), bool)
    edges = np.append(keys, outline.total)
    inserted = np.append(np.diff(keys) < np.diff(keys).max(), False)  # at the end of the group
    for number, (first, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        if differs[number] and not inserted[number]:
            chosen[first : stop + 1] = True
            continue
        for at in first + 1 + _standing_out(outline.bytes[first:stop]):
            spikes[number] = True
            chosen[max(first, at - BEFORE) : min(stop, at + AFTER) + 1] = True
    chosen[: keys[0]] = True
    change, last = _changes(outline, np.flatnonzero(chosen), read)
    cuts = set(pick_cuts(change).tolist())
    for number in np.flatnonzero(inserted[:-1]).tolist():
        key = int(keys[number + 1])
        if chosen[key - 1] and chosen[key]:
            continue  # it was compared with the frame before it
        before = last.get(number, pictures[number]) if spikes[number] else pictures[number]
        (level,), (colour,) = _distances(before[None], pictures[number + 1][None])
        if level >= LEVELS and colour >= OTHER_COLOURS:
            cuts.add(key)
    return np.array(sorted(cuts), np.int64)


def pick_cuts(change: np.ndarray) -> np.ndarray:
    """Positions where a difference is large, and large beside those around it."""
    padded = np.pad(change, AROUND)
    around = sum(
        padded[AROUND + k : len(padded) - AROUND + k] for k in range(-AROUND, AROUND + 1) if k
    ) / (2 * AROUND)
    found = (change >= LEAST) & (change >= RATIO * around)
    found[0] = False
    return np.flatnonzero(found)


def _changes(
    outline: Outline, chosen: np.ndarray, read: Read
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The mean difference of each frame from the previous one, 0 where one of them is not chosen;
    and the last chosen picture of each group, by the number of its keyframe."""
    change, last = np.zeros(outline.total), {}
    group = np.cumsum(outline.key) - 1
    position, picture = -2, None
    for positions in outline.requests(chosen, REQUEST):
        pictures = read(positions).reshape(len(positions), -1, 3)
        for at, now in zip(positions.tolist(), pictures, strict=True):
            if at == position + 1:
                change[at] = np.abs(now.astype(np.int16) - picture).mean()
            position, picture = at, now
            last[int(group[at])] = now
    return change, last


def _standing_out(sizes: np.ndarray) -> np.ndarray:
    """Positions, after the keyframe, of packets that are much larger than others of the group."""
    key, rest = sizes[0], sizes[1:]
    if not len(rest):
        return np.zeros(0, np.int64)
    return np.flatnonzero(rest > max(STANDS_OUT * np.percentile(rest, 90), key / 4))


def _distances(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of pictures uint8 [N, pixels, 3]: the mean of their levels, and the share of
    pixels with other colours. Motion moves colours, a cut brings others."""
    levels = np.abs(one.astype(np.int16) - other).mean(axis=(1, 2))
    pairs = zip(one, other, strict=True)
    colours = [np.abs(_histogram(a) - _histogram(b)).sum() / 2 for a, b in pairs]
    return levels, np.array(colours)


def _histogram(picture: np.ndarray) -> np.ndarray:
    """Shares of 8 x 4 x 4 bins of the colours of a picture."""
    bins = np.array([8, 4, 4])
    index = (picture.astype(np.int64) * bins) // 256
    flat = np.ravel_multi_index(index.T, bins)
    return np.bincount(flat, minlength=bins.prod()) / len(picture)
