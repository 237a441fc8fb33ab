"""Presentation times of the frames of a video file, from the times and durations it states."""

import numpy as np

from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME, Index
from gve_jax.media.sampling import Timeline

# In containers whose clock may restart, a longer step (in seconds, and in usual steps) is no time
# that passes; FFmpeg's own program has the same 10 s.
_JUMP_SECONDS, _JUMP_STEPS = 10.0, 10.0
# How far back frames may go that are shown in another order than they are decoded in.
_BACK_SECONDS, _BACK_STEPS = 1.0, 16.0


def timeline(index: Index, shown: np.ndarray, name: str, limits: Limits) -> Timeline:
    """When the frames are shown, `shown` being their packets.

    Where all times are within a tick of those of the declared rate, that rate counts (as it does in
    the reference, which knows no other). Otherwise the times count: a frame lasts until the next,
    the last one as long as the file states, or else as frames mostly do. Without times that differ,
    the declared rate is all there is.

    Raises:
      MediaError: a video longer than the limit, or without times and without a rate.
    """
    total, times, tick, rate = len(shown), index.pts[shown], index.tick, index.rate
    if not index.showing or (times == NO_TIME).any():  # each has the time of one decoded with it
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
        if final:  # a last frame that is held is no frame at the declared rate
            late = abs(begins[-1] + final - total / rate)
            even = even and late <= min(2.001 * ticks, 0.5 / rate)
    if not even:
        recent = steps[breaks[-1] + 1 :] if len(breaks) else steps
        last = final or median(recent if len(recent) else steps) * tick
        if not timed or not last:
            raise MediaError(
                f"{name}: no frame rate and no times of frames; to give it a rate: "
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
    """The middle one, 0 of none; of a few numbers numpy's own takes ten times as long."""
    return float(np.sort(steps)[len(steps) // 2]) if len(steps) else 0.0


def _steps(times: np.ndarray, recording: np.ndarray | None, index: Index):
    """The steps from each frame to the next in ticks, and the numbers of those that are breaks:
    where a recording ends, and where the clock jumps ahead in a container whose clock may do so.
    The last frame before a break lasts as long as those before it mostly do."""
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
    """int64 [N], which recording each packet belongs to: a new one begins where the clock goes
    back, both for decoding and for showing, by more than frames out of order do. None for one."""
    known = index.dts != NO_TIME
    if not known.any() or known.all() and not (np.diff(index.dts) < 0).any():
        return None
    before = np.maximum.accumulate(np.where(known, np.arange(len(known)), known.argmax()))
    dts = index.dts[before]  # that of the packet before, where there is none
    pts = np.where(index.pts == NO_TIME, dts, index.pts)
    steps = np.diff(dts)
    if not (steps < 0).any():
        return None
    far = max(_BACK_SECONDS / index.tick, _BACK_STEPS * median(np.abs(steps)))
    numbers, latest, number = np.zeros(len(dts), np.int64), pts[0], 0
    for at, (time, step, key) in enumerate(
        zip(pts[1:].tolist(), steps.tolist(), index.key[1:].tolist(), strict=True), 1
    ):
        # A keyframe is shown after what comes before it: any way back is a new clock.
        near = index.restarts and key
        if step < 0 and time < latest - (0 if near else far):
            number, latest = number + 1, time
        latest = max(latest, time)
        numbers[at] = number
    return numbers
