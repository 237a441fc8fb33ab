"""The frames of the windows of media, decoded once, as items for an encoder."""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from gve_jax.index.shots import SIZE, find_cuts
from gve_jax.index.windows import Window, Windows, divide, span
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.item import ALL_FRAMES, Item
from gve_jax.media.outline import Outline
from gve_jax.media.sandbox import Sandbox

REQUEST = 128  # frames of a request; bounds the memory


@dataclasses.dataclass(frozen=True)
class Moment:
    """An item of an index: an image, or a window of a video.

    Attributes:
      start_sec, end_sec: 0 for an image.
      item: its frames, decoded and resized.
    """

    start_sec: float
    end_sec: float
    item: Item


def image_moment(sandbox: Sandbox, path: str | os.PathLike, spec: InputSpec) -> Moment:
    """Raises MediaError for an unreadable image."""
    return Moment(0.0, 0.0, Item(image=sandbox.frames(Item(image=path), spec).frames[0]))


def video_moments(
    sandbox: Sandbox, path: str | os.PathLike, policy: Windows, spec: InputSpec
) -> tuple[float, Iterator[Moment]]:
    """The duration of a video, and its moments in the order of their begins.

    Raises:
      MediaError: an unreadable video; also while the moments are read.
    """
    outline = sandbox.outline(path)
    cuts = np.zeros(0, np.int64)
    if policy.kind == "shots":
        cuts = find_cuts(outline, lambda at: sandbox.pictures(path, at, outline, size=SIZE))
    windows = divide(policy, outline, cuts, spec)
    return outline.seconds, read_windows(sandbox, path, outline, windows, spec)


def span_moment(
    sandbox: Sandbox,
    path: str | os.PathLike | bytes,
    start: float | None,
    end: float | None,
    spec: InputSpec,
    name: str,
) -> Moment:
    """The moment of a span of a video; None: from its begin, to its end.

    Raises:
      MediaError: an unreadable video, or no frame in the span.
    """
    outline = sandbox.outline(path)
    window = span(outline, start, end, spec, name)
    (moment,) = read_windows(sandbox, path, outline, [window], spec)
    return moment


def read_windows(
    sandbox: Sandbox,
    path: str | os.PathLike | bytes,
    outline: Outline,
    windows: list[Window],
    spec: InputSpec,
) -> Iterator[Moment]:
    """The moments of windows, whose frames are decoded once, however the windows overlap.

    A request ends where decoding begins anew, at a keyframe, unless a group of pictures has more
    than `REQUEST` frames of windows.
    """
    held: dict[int, np.ndarray] = {}  # frames of the windows to come, by position
    # Where a budget of pixels is for all frames, a frame's size depends on their number.
    counts = {len(window.positions) for window in windows} if spec.total_pixels else {0}
    for count in sorted(counts, reverse=True):
        chosen = [w for w in windows if not count or len(w.positions) == count]
        needed = np.unique(np.concatenate([window.positions for window in chosen]))
        requests = outline.requests(needed, REQUEST)
        for window in chosen:
            while window.positions[-1] not in held:
                at = next(requests)
                size = count or len(window.positions)
                pictures = sandbox.pictures(path, at, outline, spec=spec, count=size)
                held |= zip(at.tolist(), pictures, strict=True)
            frames = np.stack([held[position] for position in window.positions.tolist()])
            item = Item(video=frames, fps=window.fps, num_frames=ALL_FRAMES)
            yield Moment(window.start_sec, window.end_sec, item)
            for position in [at for at in held if at < window.positions[0]]:
                del held[position]
        held.clear()
