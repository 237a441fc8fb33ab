"""Durations of frames that the container states, without those that FFmpeg estimates.

Most frames last until the next one. The durations are needed for the last frame, which may be held
much longer than the others (a slide, the end of a GIF).
"""

import numpy as np

from gve_jax.media import mp4
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.timeline import median
from gve_jax.media.truncation import asf_is_live

_TRIES = 100  # offsets in a table at which packets may begin


def durations(
    container, stream, file, index: Index, samples: mp4.Samples | None, last: int
) -> np.ndarray:
    """Returns durations int64 [N] in ticks; 0 where the file states none.

    Args:
      samples: samples of an MP4 whose tables could be read.
      last: number of the last frame of an AVI, including frames without a chunk.
    """
    kind = container.format.name
    if "mp4" in kind:
        return _end_edit(_of_frames(_of_samples(index, samples), index), index, samples)
    stated = np.zeros_like(index.duration)
    if kind == "avi":  # its times count frames, or parts of frames
        held = last + 1 - index.dts[-1] if index.dts[-1] != NO_TIME else 0
        stated[-1] = held if held > _usual(index.dts) else 0
        return stated
    number = _last_shown(index)
    if number is None or not ("matroska" in kind or kind in ("ogg", "flv", "asf")):
        return stated
    pts = index.pts[index.shown]
    usual = _usual(pts)
    if "matroska" in kind:
        stated = index.duration.copy()
        # FFmpeg estimates missing durations: that of a parser (GIF's is 10 ms for every frame), or
        # that of the frame rate.
        estimated = stated == np.median(stated)
        if index.rate:
            estimated |= np.abs(stated - 1 / (index.rate * index.tick)) <= 1
        stated[estimated & (stated < usual / 2)] = 0
        stated = _of_frames(stated, index)
    end = _end(container, stream, file, index)
    # Ends are rounded, and relative to the first frame or to a time before it: a last frame counts
    # as held only if it is at least half longer than usual.
    left = 0 if end is None else round(end / index.tick) - index.pts[number]
    if left > max(stated[number], usual) + usual / 2 + max(pts.min(), 0):
        stated[number] = left
    return stated


def _usual(times: np.ndarray) -> float:
    """Median step between frames, in ticks; 0 for a single frame."""
    return median(np.diff(np.sort(times)))


def _end(container, stream, file, index: Index) -> float | None:
    """End of the video in seconds by the header; None if the header has none for this stream."""
    kind = container.format.name
    whole = None if container.duration is None else container.duration / 1e6
    if kind == "ogg":  # the granule position of the last page, relative to the first frame
        first = index.pts[index.shown].min() * index.tick
        length = stream.duration
        return None if length is None else first + float(length * stream.time_base)
    if whole is None or kind == "asf" and _asf_is_live(file):
        return None
    if "matroska" in kind and "DURATION" in stream.metadata:
        end = _seconds(stream.metadata["DURATION"])
        return end if end is not None and end < whole + 0.01 else None
    alone = sum(s.type in ("video", "audio", "subtitle") for s in container.streams) == 1
    return whole if alone and ("matroska" in kind or kind in ("flv", "asf")) else None


def _asf_is_live(file) -> bool:
    offset = file.tell()
    try:
        return asf_is_live(file)
    finally:
        file.seek(offset)


def _seconds(text: str) -> float | None:
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _last_shown(index: Index) -> int | None:
    shown = np.flatnonzero(index.shown)
    if not len(shown) or (index.pts[shown] == NO_TIME).any():
        return None
    return int(shown[index.pts[shown].argmax()])


def _of_samples(index: Index, samples: mp4.Samples | None) -> np.ndarray:
    """Durations in the sample table of the packets that an edit list leaves, found by sizes and
    times. FFmpeg's parsers (such as VP9's) replace them by those of a constant rate."""
    count = len(index.size)
    if samples is None or count > len(samples.sizes):
        return index.duration
    if count == len(samples.sizes):
        return samples.durations.copy() if (samples.sizes == index.size).all() else index.duration
    table, sizes, steps, at = samples.sizes.tobytes(), index.size.tobytes(), np.diff(index.dts), -1
    for _ in range(_TRIES):
        at = table.find(sizes, at + 1)
        if at < 0:
            break
        found = samples.durations[at // 8 : at // 8 + count]
        if at % 8 == 0 and (found[:-1] == steps).all():
            return found.copy()
    return index.duration


def _of_frames(stated: np.ndarray, index: Index) -> np.ndarray:
    """Durations of frames whose fields are two packets, assigned to the packet of the first
    field."""
    second, stated = np.flatnonzero(index.second), stated.copy()
    step = index.pts[second] - index.pts[second - 1]
    timed = (index.pts[second] != NO_TIME) & (index.pts[second - 1] != NO_TIME) & (step > 0)
    first = np.where(timed & (stated[second] > 0), step, stated[second - 1])
    stated[second - 1] = first + stated[second]
    return stated


def _end_edit(stated: np.ndarray, index: Index, samples: mp4.Samples | None) -> np.ndarray:
    """Limits the end of the last frame to that of the edit list. Durations are for decoding: if the
    last frame is decoded before others, only the edit list states its duration."""
    last, stated = _last_shown(index), stated.copy()
    if last is None:
        return stated
    end = None if samples is None or samples.edits is None else samples.edits.end
    left = 0 if end is None else round(end / index.tick) - index.pts[last]
    rounding = 0.002 / index.tick  # ends are in units of the movie, a millisecond mostly
    if last + index.second[last + 1 : last + 2].sum() < len(stated) - 1:
        if abs(left - stated[last]) > rounding:
            stated[last] = max(left, 0)
    elif 0 < left < stated[last] - rounding:
        stated[last] = left
    return stated
