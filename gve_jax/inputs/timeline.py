"""When the frames of a video file are shown, by the times and durations that the file states."""

import numpy as np

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.index import NO_TIME, Index
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.sampling import Timeline

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
    recording = _recordings(index)[shown]
    order = np.lexsort((times, recording))
    times, recording = times[order], recording[order]
    steps, usual, breaks = _steps(times, recording, index)
    final = index.duration[shown[order[-1]]] * tick
    begins = np.concatenate([[0.0], np.cumsum(steps)]) * tick
    timed = index.timed and times.min() != NO_TIME and bool((steps > 0).all())
    if not rate:
        even = False
    elif not timed:
        even = True
    else:
        off = np.abs(begins - np.arange(total) / rate).max()
        even = off <= min(1.001 * tick * (1 + breaks), 0.5 / rate)
        if final:  # a last frame that is held is no frame at the declared rate
            late = abs(begins[-1] + final - total / rate)
            even = even and late <= min(2.001 * tick * (1 + breaks), 0.5 / rate)
    if not even:
        last = final or usual * tick
        if not timed or not last:
            raise MediaError(f"{name}: no frame rate and no times of frames; to give it a rate: "
                             "ffmpeg -r RATE -i INPUT OUTPUT.mp4")  # fmt: skip
        begins = np.append(begins, begins[-1] + last)
        rate = total / float(begins[-1])
    if total / rate > limits.duration:
        raise MediaError(f"{name}: {total / rate:.0f} s are above the limit of "
                         f"{limits.duration:g} s")  # fmt: skip
    return Timeline(total, rate, None if even else begins)


def _steps(times: np.ndarray, recording: np.ndarray, index: Index):
    """The steps from each frame to the next in ticks, the usual one at the end, and the number of
    breaks: where a recording ends, and where the clock jumps ahead in a container whose clock may
    do so. The last frame before a break lasts as long as those before it mostly do."""
    steps = np.diff(times).astype(float)
    ends = np.diff(recording) > 0
    inside = steps[~ends]
    if len(inside):
        overall = float(np.median(inside))
    else:
        overall = 1 / (index.rate * index.tick) if index.rate else 0.0
    if index.restarts:
        ends |= steps > max(_JUMP_SECONDS / index.tick, _JUMP_STEPS * overall)
    breaks, begin = np.flatnonzero(ends), 0
    for at in breaks.tolist():
        steps[at] = np.median(steps[begin:at]) if at > begin else overall
        begin = at + 1
    return steps, float(np.median(steps[begin:])) if begin < len(steps) else overall, len(breaks)


def _recordings(index: Index) -> np.ndarray:
    """int64 [N], which recording each packet belongs to: a new one begins where the clock goes
    back, both for decoding and for showing, by more than frames out of order do."""
    numbers = np.zeros(len(index.dts), np.int64)
    known = index.dts != NO_TIME
    if not known.any():
        return numbers
    before = np.maximum.accumulate(np.where(known, np.arange(len(known)), known.argmax()))
    dts = index.dts[before]  # that of the packet before, where there is none
    pts = np.where(index.pts == NO_TIME, dts, index.pts)
    steps = np.diff(dts)
    if not (steps < 0).any():
        return numbers
    second = 1 / index.tick
    far = max(_BACK_SECONDS * second, _BACK_STEPS * float(np.median(np.abs(steps))))
    latest, number = pts[0], 0
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
