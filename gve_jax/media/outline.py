"""Frames of a video file by their positions: first an outline of the file, then any of its frames.

Several windows of a video may share frames. Whoever knows the outline can choose the frames of all
windows, and ask for each of them once, in the order of decoding.
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media import animation, seek
from gve_jax.media.container import open_video
from gve_jax.media.decoder import Damaged
from gve_jax.media.errors import MediaError
from gve_jax.media.item import source_name
from gve_jax.media.limits import Limits
from gve_jax.media.sampling import Timeline
from gve_jax.media.video import VideoFile, reading


@dataclasses.dataclass(frozen=True)
class Outline:
    """The T frames of a video in the order of showing; nothing is decoded for it.

    Attributes:
      timeline: when they are shown.
      first: int64 [T], equal for frames for which decoding begins at the same packet.
      bytes: int64 [T], of the packet of each frame; 0 in animations.
      key: bool [T], whether a frame is a keyframe.
    """

    timeline: Timeline
    first: np.ndarray
    bytes: np.ndarray
    key: np.ndarray

    @property
    def total(self) -> int:
        return self.timeline.total

    @property
    def seconds(self) -> float:
        """Duration of the video."""
        return float(self.starts(np.array([self.total]))[0])

    def starts(self, positions: np.ndarray) -> np.ndarray:
        """Seconds at which frames begin, float64; the position T has the end of the video."""
        return self.timeline.at(np.asarray(positions))

    def requests(self, positions: np.ndarray, most: int) -> Iterator[np.ndarray]:
        """Divides ascending positions into parts of at most `most`. A part ends where decoding
        begins anew, so that no frame is decoded for two parts, unless more than `most` positions
        need the same beginning."""
        start = 0
        while start < len(positions):
            stop = min(start + most, len(positions))
            if stop < len(positions):
                begins = np.flatnonzero(np.diff(self.first[positions[start : stop + 1]])) + 1
                stop = start + int(begins[-1]) if len(begins) else stop
            yield positions[start:stop]
            start = stop


def read_outline(source: str | os.PathLike | bytes, limits: Limits) -> Outline:
    """The outline of a video file or an animation.

    Raises:
      MediaError: see `gve_jax.media.video.load_video`.
    """
    name = _existing(source)
    with reading(name):
        if animation.is_animation(source):
            shown, _ = animation.read_timeline(animation.read_bytes(source), name, limits)
            none = np.zeros(shown.total, np.int64)
            return Outline(shown, none, none, np.arange(shown.total) == 0)
        with open_video(source, name, limits) as opened:
            video = VideoFile(opened, source, name, limits)
            return Outline(video.timeline(), *video.outline())


def read_pictures(
    source: str | os.PathLike | bytes,
    positions: np.ndarray,
    total: int,
    limits: Limits,
    spec: InputSpec | None = None,
    count: int = 1,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Frames of a video, uint8 [N, H, W, 3].

    Args:
      positions: distinct and ascending.
      total: number of frames in the outline that the positions are from.
      spec: resizes frames as for a model, as `count` frames of an item.
      size: height and width to which frames are averaged instead, coarsely and unrotated.

    Raises:
      MediaError: see `gve_jax.media.video.load_video`; a file that does not fit its outline.
    """
    name, preprocess = _existing(source), Preprocessor(None, spec, limits) if spec else None

    def convert(picture: np.ndarray) -> np.ndarray:
        return preprocess.resize_frame(picture, count) if preprocess else picture

    with reading(name):
        if animation.is_animation(source):
            data = animation.read_bytes(source)
            found = animation.pictures(data, positions, name, limits)
            if size:
                return np.stack([_averaged(picture, size) for picture in found])
            return np.stack([convert(picture) for picture in found])
        with open_video(source, name, limits) as opened:
            video = VideoFile(opened, source, name, limits)
            while True:
                if video.timeline().total != total:
                    raise MediaError(f"{name}: damaged, its table has frames that do not decode")
                try:
                    return video.frames(positions, convert if spec else None, size)
                except (Damaged, seek.Fewer) as error:
                    if not video.look_closer(error):
                        raise


def _averaged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized)


def _existing(source) -> str:
    name = source_name(source)
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"{name}: no such file")
    return name
