"""Windows of a video: the moments that an index embeds, and the frames of each."""

import dataclasses

import numpy as np

from gve_jax.errors import UserError
from gve_jax.fields import check_rules, setting
from gve_jax.inputs.preprocess import InputSpec, sampling_of
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.outline import Outline
from gve_jax.media.sampling import sample_between

KINDS = ("shots", "fixed", "whole")
SLACK = 1e-3  # seconds by which times of a window may be rounded


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a video is divided into windows; recorded in an index.

    Raises:
      UserError: a value out of its range; it names the field.
    """

    kind: str = setting("shots", "shots, fixed or whole", choices=KINDS)
    length: float = setting(8.0, "seconds of a window (fixed), at most (shots)", above=0.0)
    stride: float = setting(4.0, "seconds between the begins of windows (fixed)", above=0.0)
    shortest: float = setting(2.0, "seconds; shorter shots join a neighbour (shots)", least=0.0)

    def __post_init__(self):
        try:
            check_rules(self)
        except ValueError as error:
            raise UserError(f"windows: {error}") from error
        if self.kind == "fixed" and self.stride > self.length:
            raise UserError(
                f"windows: stride {self.stride:g} is above length {self.length:g}, which would "
                "leave gaps between windows"
            )
        if self.kind == "shots" and self.shortest > self.length / 2:
            raise UserError(
                f"windows: shortest {self.shortest:g} must be at most half of length "
                f"{self.length:g}"
            )


@dataclasses.dataclass(frozen=True)
class Window:
    """A moment of a video and its sampled frames.

    Attributes:
      start_sec, end_sec: the window has the frames that begin in [start_sec, end_sec).
      positions: int64, of the sampled frames in the outline.
      fps: sampled frames per second.
    """

    start_sec: float
    end_sec: float
    positions: np.ndarray
    fps: float


def divide(policy: Windows, outline: Outline, cuts: np.ndarray, spec: InputSpec) -> list[Window]:
    """The windows of a video, in the order of their begins; they cover every frame.

    Args:
      cuts: positions of the first frames of shots; only used by the policy "shots".
      spec: how a model samples the frames of a video.
    """
    if policy.kind == "whole" or outline.total < 4:
        ranges = [(0, outline.total)]
    elif policy.kind == "fixed":
        ranges = _fixed(policy, outline)
    else:
        ranges = _shots(policy, outline, cuts)
    return [_window(outline, first, stop, spec) for first, stop in ranges]


def span(outline: Outline, start: float | None, end: float | None, spec: InputSpec, name: str):
    """The window with the frames that begin in [start, end) seconds.

    Raises:
      MediaError: there are none.
    """
    first = 0 if start is None else _position(outline, start)
    stop = outline.total if end is None else _position(outline, end)
    if first >= stop:
        raise MediaError(
            f"{name}: no frame between {start or 0:g} s and "
            f"{outline.seconds if end is None else end:g} s of {outline.seconds:.2f} s"
        )
    return _window(outline, first, stop, spec)


def _window(outline: Outline, first: int, stop: int, spec: InputSpec) -> Window:
    sampling = sampling_of(Item(video="file"), spec)
    positions, fps = sample_between(sampling, outline.timeline, first, stop - 1)
    start, end = outline.starts(np.array([first, stop])).tolist()
    return Window(round(start, 3), round(end, 3), positions, fps)


def _position(outline: Outline, seconds: float) -> int:
    """The first frame that begins at `seconds` or later."""
    starts = outline.starts(np.arange(outline.total))
    return int(np.searchsorted(starts, seconds - SLACK))


def _fixed(policy: Windows, outline: Outline) -> list[tuple[int, int]]:
    seconds, length = outline.seconds, policy.length
    if seconds <= length:
        return [(0, outline.total)]
    count = int(np.ceil((seconds - length) / policy.stride - 1e-9))
    # The last window ends with the video: it is not shorter than the others.
    begins = np.append(np.arange(count) * policy.stride, seconds - length)
    starts = outline.starts(np.arange(outline.total))
    first = np.searchsorted(starts, begins - SLACK)
    stop = np.searchsorted(starts, begins + length - SLACK)
    stop[-1] = outline.total
    ranges = zip(first.tolist(), stop.tolist(), strict=True)
    return [(a, b) for a, b in dict.fromkeys(ranges) if a < b]


def _shots(policy: Windows, outline: Outline, cuts: np.ndarray) -> list[tuple[int, int]]:
    """Shots, where those that are too short join their shorter neighbour, and those that are too
    long are divided evenly."""
    edges = np.unique([0, *cuts.tolist(), outline.total])
    times = outline.starts(edges)
    while len(edges) > 2:
        lengths = np.diff(times)
        short = int(lengths.argmin())
        frames = np.diff(edges)
        if lengths[short] >= policy.shortest - SLACK and frames.min() >= 2:
            break
        if lengths[short] >= policy.shortest - SLACK:
            short = int(frames.argmin())
        left = lengths[short - 1] if short else np.inf
        right = lengths[short + 1] if short + 1 < len(lengths) else np.inf
        gone = short if left <= right else short + 1  # the edge between the two
        edges, times = np.delete(edges, gone), np.delete(times, gone)
    starts = outline.starts(np.arange(outline.total))
    ranges = []
    for first, stop, begin, end in zip(edges, edges[1:], times, times[1:], strict=False):
        parts = int(np.ceil((end - begin) / policy.length - 1e-6))
        inner = begin + (end - begin) * np.arange(1, max(1, parts)) / max(1, parts)
        points = [int(first), *np.searchsorted(starts, inner - SLACK).tolist(), int(stop)]
        ranges += [(a, b) for a, b in zip(points, points[1:], strict=False) if a < b]
    return ranges
