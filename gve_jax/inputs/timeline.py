"""When the frames of a video file are shown, by the times and durations that the file states."""

import numpy as np

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.index import NO_TIME, Index
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.sampling import Timeline

# Of containers whose clock may restart: a longer step, in seconds and in usual steps, is no time
# that passes (FFmpeg's own program has the same 10 s).
_JUMP_SECONDS, _JUMP_STEPS = 10.0, 10.0
_BACK_SECONDS = 1.0  # what frames out of order do not reach


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
    if (times == NO_TIME).any():  # AVI with B-frames: each frame has the time of another one
        times = index.dts[shown]
    recording = _recordings(index)[shown]
    order = np.lexsort((times, recording))
    times, recording = times[order], recording[order]
    steps, usual, breaks = _steps(times, recording, 1 / (rate * tick) if rate else 0.0)
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


def _steps(times: np.ndarray, recording: np.ndarray, declared: float):
    """The steps from each frame to the next in ticks, the usual one at the end, and the number of
    breaks. The last frame of a recording lasts as long as frames of it mostly do."""
    steps = np.diff(times).astype(float)
    breaks = np.flatnonzero(np.diff(recording))
    inside = np.delete(steps, breaks)
    overall = float(np.median(inside)) if len(inside) else declared
    begin = 0
    for at in breaks.tolist():
        steps[at] = np.median(steps[begin:at]) if at > begin else overall
        begin = at + 1
    return steps, float(np.median(steps[begin:])) if begin < len(steps) else overall, len(breaks)


def _recordings(index: Index) -> np.ndarray:
    """int64 [N], which recording each packet belongs to: a new one begins where the clock goes
    back, or where it jumps ahead in a container whose clock may do so.

    Recordings are stored one after the other; frames that are merely shown in another order than
    they are decoded do not go back in both, the time of decoding and that of showing.
    """
    numbers = np.zeros(len(index.dts), np.int64)
    known = index.dts != NO_TIME
    if not known.any():
        return numbers
    filled = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
    dts = index.dts[np.where(filled < 0, known.argmax(), filled)]
    pts = np.where(index.pts == NO_TIME, dts, index.pts)
    steps, since = np.diff(dts) * index.tick, (pts[1:] - np.maximum.accumulate(pts)[:-1])
    back = (steps < 0) & (since < 0)
    if index.restarts:
        ahead = steps[steps > 0]
        jump = max(_JUMP_SECONDS, _JUMP_STEPS * float(np.median(ahead)) if len(ahead) else 0.0)
        breaks = back & (index.key[1:] | (steps < -_BACK_SECONDS)) | (steps > jump)
    else:
        breaks = back & (since * index.tick < -_BACK_SECONDS)
    numbers[1:] = np.cumsum(breaks)
    return numbers
