"""Frame sampling with the rules of qwen-vl-utils 0.0.14, in numpy."""

import dataclasses
import math

import numpy as np

from gve_jax.media.errors import MediaError

PAIR = 2  # the reference's FRAME_FACTOR: numbers of frames are even, since a patch spans two


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The density and the interval of sampling.

    Attributes:
      num_frames: number of frames, None for all; ignored if `fps` is set.
      fps: frames per second; the number of frames is within `min_frames` and `max_frames`.
      start, end: seconds from the first frame (default: the complete video).
    """

    num_frames: int | None = 8
    fps: float | None = None
    min_frames: int = 4
    max_frames: int = 768
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The times at which the frames of a video are shown.

    Attributes:
      total: number of frames.
      rate: average frames per second.
      times: float64 [total + 1], begin of each frame and end of the last one in seconds, from 0;
        None if all frames have the same duration.
    """

    total: int
    rate: float
    times: np.ndarray | None = None

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Seconds at which frames begin, float64."""
        return indices / self.rate if self.times is None else self.times[indices]


def sample(sampling: Sampling, timeline: Timeline, name: str) -> tuple[np.ndarray, float]:
    """Returns ascending int64 indices of the sampled frames, and their number per second.

    A single frame, which the reference refuses, is sampled alone. A video with fewer frames than
    `num_frames` gives those that it has, without an odd last one. If all frames are requested,
    their number may be odd.

    Raises:
      MediaError: no two frames between `start` and `end`.
    """
    return sample_between(sampling, timeline, *_frame_range(sampling, timeline, name))


def sample_between(
    sampling: Sampling, timeline: Timeline, first: int, last: int
) -> tuple[np.ndarray, float]:
    """`sample` of the frames from `first` to `last`, whatever `start` and `end` say."""
    total, rate = last - first + 1, timeline.rate
    if timeline.times is not None:
        rate = float(total / (timeline.times[last + 1] - timeline.times[first]))
    count = max(1, _count(sampling, total, rate))
    return spread(first, last, count), count / total * rate


def spread(first: int, last: int, count: int) -> np.ndarray:
    """Equals `torch.linspace(first, last, count).round().long()` exactly.

    torch computes in float32, with fused multiply-add, from both ends to the middle; numpy's
    float64 values round one index in about a hundred thousand to its neighbour. Both round half to
    even.
    """
    if count == 1:
        return np.array([first])
    begin, end = np.float32(first), np.float32(last)
    step = float((end - begin) / np.float32(count - 1))
    k = np.arange(count)
    line = np.where(k < count // 2, float(begin) + step * k, float(end) - step * (count - 1 - k))
    return line.astype(np.float32).round().astype(np.int64)


def _count(sampling: Sampling, total: int, rate: float) -> int:
    """`smart_nframes` of the reference."""
    if sampling.fps is None:
        if sampling.num_frames is None:
            return total
        return min(sampling.num_frames, total) // PAIR * PAIR
    least = math.ceil(sampling.min_frames / PAIR) * PAIR
    most = sampling.max_frames // PAIR * PAIR
    wanted = min(max(total / rate * sampling.fps, least), most, total)
    return math.floor(wanted / PAIR) * PAIR


def _frame_range(sampling: Sampling, timeline: Timeline, name: str) -> tuple[int, int]:
    """`calculate_video_frame_range` of the reference; by the times of frames if durations
    differ."""
    start, end, total = sampling.start, sampling.end, timeline.total
    first, last = 0, total - 1
    if start is None and end is None:
        return first, last
    if timeline.times is not None:
        shown = timeline.times[:-1]
        if start is not None:
            first = int(np.searchsorted(shown, start, side="left"))
        if end is not None:
            last = int(np.searchsorted(shown, end, side="right")) - 1
        length = float(timeline.times[-1])
    else:
        length = total / timeline.rate
        if start is not None:
            first = math.ceil(max(0.0, min(start, length)) * timeline.rate)
        if end is not None:
            last = min(math.floor(max(0.0, min(end, length)) * timeline.rate), last)
    if first >= last:
        raise MediaError(
            f"{name}: no two frames between {start or 0:g} s and "
            f"{length if end is None else end:g} s of {length:.2f} s"
        )
    return first, last
