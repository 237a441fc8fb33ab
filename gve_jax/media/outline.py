"""Frames of a video file by their positions: first an outline of the file, then any of its frames.

Several windows of a video may share frames. Whoever knows the outline can choose the frames of all
windows, and ask for each of them once, in the order of decoding.
"""

import collections
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
from gve_jax.media.source import PassedFile, is_file, read_source
from gve_jax.media.video import VideoFile, reading

REQUEST_PIXELS = 250 * 1280 * 720  # that are decoded for a request
_KEPT = 2  # files whose index stays in memory: their next frames are often asked for soon
_kept: collections.OrderedDict[tuple, VideoFile] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True)
class Outline:
    """The T frames of a video in the order of showing; nothing is decoded for it.

    Attributes:
      timeline: when they are shown.
      first: int64 [T], equal for frames for which decoding begins at the same packet.
      bytes: int64 [T], of the packet of each frame; 0 in animations.
      key: bool [T], whether a frame is a keyframe.
      pixels: of a frame, as the file states them.
    """

    timeline: Timeline
    first: np.ndarray
    bytes: np.ndarray
    key: np.ndarray
    pixels: int = 1

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
        """Divides ascending positions into parts that are decoded in a few seconds, of at most
        `most` positions. A part ends where decoding begins anew, so that no frame is decoded for
        two parts, unless more than `most` positions need the same beginning."""
        part: list[np.ndarray] = []
        count = cost = 0
        ends = np.flatnonzero(np.diff(self.first[positions])) + 1
        for group in np.split(positions, ends) if len(positions) else []:
            begin = int(np.searchsorted(self.first, self.first[group[0]]))
            decoded = max(len(group), int(group[-1]) - begin + 1) * self.pixels
            if part and (count + len(group) > most or cost + decoded > REQUEST_PIXELS):
                yield np.concatenate(part)
                part, count, cost = [], 0, 0
            while len(group) > most:
                yield group[:most]
                group = group[most:]
            part.append(group)
            count, cost = count + len(group), cost + decoded
        if part:
            yield np.concatenate(part)


def read_outline(
    source: str | os.PathLike | bytes | PassedFile, limits: Limits, identity: tuple | None = None
) -> Outline:
    """The outline of a video file or an animation.

    Args:
      identity: equal for later calls with the same content: they read the file's index once.

    Raises:
      MediaError: see `gve_jax.media.video.load_video`.
    """
    name = _existing(source)
    with reading(name):
        if animation.is_animation(source):
            data = read_source(source)
            shown, _ = animation.read_timeline(data, name, limits)
            canvas = animation.read_frames(data, name, limits)
            none = np.zeros(shown.total, np.int64)
            pixels = canvas.width * canvas.height
            return Outline(shown, none, none, np.arange(shown.total) == 0, pixels)
        with open_video(source, name, limits) as opened:
            pixels = opened[1].width * opened[1].height
            video = _open_indexed(opened, source, name, limits, identity)
            return Outline(video.timeline(), *video.outline(), pixels)


def read_pictures(
    source: str | os.PathLike | bytes | PassedFile,
    positions: np.ndarray,
    total: int,
    limits: Limits,
    spec: InputSpec | None = None,
    count: int = 1,
    size: tuple[int, int] | None = None,
    identity: tuple | None = None,
) -> np.ndarray:
    """Frames of a video, uint8 [N, H, W, 3].

    Args:
      positions: distinct and ascending.
      total: number of frames in the outline that the positions are from.
      spec: resizes frames as for a model, as `count` frames of an item.
      size: height and width to which frames are averaged instead, coarsely and unrotated.
      identity: see `read_outline`.

    Raises:
      MediaError: see `gve_jax.media.video.load_video`; a file that does not fit its outline.
    """
    name, preprocess = _existing(source), Preprocessor(None, spec, limits) if spec else None

    def convert(picture: np.ndarray) -> np.ndarray:
        return preprocess.resize_frame(picture, count) if preprocess else picture

    with reading(name):
        if animation.is_animation(source):
            data = read_source(source)
            found = animation.pictures(data, positions, name, limits)
            if size:
                return np.stack([_averaged(picture, size) for picture in found])
            return np.stack([convert(picture) for picture in found])
        with open_video(source, name, limits) as opened:
            video = _open_indexed(opened, source, name, limits, identity)
            while True:
                if video.timeline().total != total:
                    raise MediaError(f"{name}: damaged, its table has frames that do not decode")
                try:
                    return video.frames(positions, convert if spec else None, size)
                except (Damaged, seek.Fewer) as error:
                    if not video.look_closer(error):
                        raise


def _open_indexed(opened, source, name: str, limits: Limits, identity) -> VideoFile:
    """A `VideoFile`, with the index of an earlier call where the file is the same: an index takes
    as long to read as hundreds of frames to decode."""
    if identity is None:
        return VideoFile(opened, source, name, limits)
    key = (*identity, limits)
    video = VideoFile(opened, source, name, limits, _kept.pop(key, None))
    _kept[key] = video
    while len(_kept) > _KEPT:
        _kept.popitem(last=False)
    return video


def _averaged(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized)


def _existing(source) -> str:
    name = source_name(source)
    if not isinstance(source, bytes) and not is_file(source):
        raise MediaError(f"{name}: no such file")
    return name
