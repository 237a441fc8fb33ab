"""Presentation times of the frames of a video file, from its timestamps and durations."""

import numpy as np

from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.sampling import Timeline

# In containers whose clock may restart, a step that is longer (in seconds, and in usual steps) is a
# discontinuity of the clock; the ffmpeg program uses the same 10 s.
_JUMP_SECONDS, _JUMP_STEPS = 10.0, 10.0
# How far back timestamps may go because frames are shown in another order than decoded.
_BACK_SECONDS, _BACK_STEPS = 1.0, 16.0


def timeline(index: Index, shown: np.ndarray, name: str, limits: Limits) -> Timeline:
    """Returns when the frames of the packets `shown` are shown.

    If all timestamps are within a tick of those of the declared rate, that rate is used, as in the
    reference, which supports nothing else. Otherwise timestamps are used: a frame lasts until the
    next one, the last frame as long as the file states, or as most frames do. Without distinct
    timestamps, the declared rate is used.

    Raises:
      MediaError: a video longer than the limit, or without timestamps and rate.
    """
    total, times, tick, rate = len(shown), index.pts[shown], index.tick, index.rate
    if not index.showing or (times == NO_TIME).any():  # decoding times are those of other frames
        times = index.dts[shown]
    recording = _recordings(index)
    if recording is None:
        order = np.argsort(times, kind="stable")
    else:
        order = np.lexsort((times, recording[shown]))
        recording = recording[shown][order]
    times = times[order]
    steps, breaks = _steps(times, recording, index)
    final = index.duration[shown[order[-1]]] * tick
    begins = np.concatenate([[0.0], np.cumsum(steps)]) * tick
    timed = index.timed and times.min() != NO_TIME and bool((steps > 0).all())
    if not rate:
        even = False
    elif not timed:
        even = True
    else:
        ticks = tick * (1 + len(breaks))
        off = np.abs(begins - np.arange(total) / rate).max()
        even = off <= min(1.001 * ticks, 0.5 / rate)
        if final:  # a last frame that is held deviates from the declared rate
            late = abs(begins[-1] + final - total / rate)
            even = even and late <= min(2.001 * ticks, 0.5 / rate)
    if not even:
        recent = steps[breaks[-1] + 1 :] if len(breaks) else steps
        last = final or median(recent if len(recent) else steps) * tick
        if not timed or not last:
            raise MediaError(
                f"{name}: no frame rate and no timestamps; to set a rate: "
                "ffmpeg -r RATE -i INPUT OUTPUT.mp4"
            )
        begins = np.append(begins, begins[-1] + last)
        rate = total / float(begins[-1])
    if total / rate > limits.duration:
        raise LimitError(
            f"{name}: {total / rate:.0f} s are above the limit of {limits.duration:g} s"
        )
    return Timeline(total, rate, None if even else begins)


def median(steps: np.ndarray) -> float:
    """Upper median; 0 for no steps. For few numbers, np.median takes ten times as long."""
    return float(np.sort(steps)[len(steps) // 2]) if len(steps) else 0.0


def _steps(times: np.ndarray, recording: np.ndarray | None, index: Index):
    """Steps from each frame to the next in ticks, and the indices of breaks: ends of recordings,
    and jumps of the clock in containers whose clock may jump. The last frame before a break gets
    the median duration of the frames before it."""
    steps = np.diff(times).astype(float)
    jump = _JUMP_SECONDS / index.tick
    if recording is None and not (index.restarts and (steps > jump).any()):
        return steps, np.empty(0, np.int64)
    ends = np.zeros(len(steps), bool) if recording is None else np.diff(recording) > 0
    if not ends.all():
        overall = median(steps[~ends])
    else:
        overall = 1 / (index.rate * index.tick) if index.rate else 0.0
    if index.restarts:
        ends |= steps > max(jump, _JUMP_STEPS * overall)
    breaks, begin = np.flatnonzero(ends), 0
    for at in breaks.tolist():
        steps[at] = median(steps[begin:at]) if at > begin else overall
        begin = at + 1
    return steps, breaks


def _recordings(index: Index) -> np.ndarray | None:
    """int64 [N], the recording of each packet; None for a single one. A recording begins where the
    clock goes back, for decoding and showing, by more than reordered frames do."""
    known = index.dts != NO_TIME
    if not known.any() or known.all() and not (np.diff(index.dts) < 0).any():
        return None
    before = np.maximum.accumulate(np.where(known, np.arange(len(known)), known.argmax()))
    dts = index.dts[before]  # missing ones are those of the previous packet
    pts = np.where(index.pts == NO_TIME, dts, index.pts)
    steps = np.diff(dts)
    if not (steps < 0).any():
        return None
    far = max(_BACK_SECONDS / index.tick, _BACK_STEPS * median(np.abs(steps)))
    numbers, latest, number = np.zeros(len(dts), np.int64), pts[0], 0
    for at, (time, step, key) in enumerate(
        zip(pts[1:].tolist(), steps.tolist(), index.key[1:].tolist(), strict=True), 1
    ):
        # Frames before a keyframe are shown before it: any step back is a new clock.
        near = index.restarts and key
        if step < 0 and time < latest - (0 if near else far):
            number, latest = number + 1, time
        latest = max(latest, time)
        numbers[at] = number
    return numbers
