"""Sampled frames of a video of any kind."""

import contextlib
import dataclasses
import functools
import os

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gve_jax.media import animation, frames, seek
from gve_jax.media.container import check_size, open_video, read_index
from gve_jax.media.decoder import FORGIVING, Damaged, listen
from gve_jax.media.errors import MediaError
from gve_jax.media.item import source_name
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME
from gve_jax.media.picture_headers import Headers
from gve_jax.media.sampling import Sampling, Timeline, sample
from gve_jax.media.timeline import timeline


@dataclasses.dataclass(frozen=True)
class Clip:
    """Sampled frames uint8 [T, H, W, 3] and `fps`, their number a second of the video."""

    frames: np.ndarray
    fps: float


def load_video(
    source,
    sampling: Sampling | int,
    fps: float | None = None,
    limits: Limits | None = None,
    exif: bool = False,
) -> Clip:
    """Samples a video.

    Args:
      source: a path of a video, of a GIF, or of a folder of images; encoded bytes; uint8
        [T, H, W, 3]; a list of images.
      sampling: which frames; a number stands for that many, uniformly.
      fps: frames a second of an array, a list or a folder (2 where absent, as in the reference).
      limits: what the video may cost.
      exif: turn pictures as their EXIF orientation says: frames that are images, and animations.

    Raises:
      MediaError: an unreadable, empty or damaged video: never a shorter clip in silence, where
        the container states a length at all (MPEG-TS and program streams, fragments and live
        recordings do not).
    """
    limits = limits or Limits()
    if not isinstance(sampling, Sampling):
        sampling = Sampling(num_frames=sampling)
    name = source_name(source)
    if not isinstance(source, str | os.PathLike | bytes) or os.path.isdir(source):
        return Clip(*frames.load(source, name, sampling, fps or 2.0, limits, exif))
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"{name}: no such file")
    try:
        if animation.is_animation(source):
            return Clip(*animation.load(source, name, sampling, limits, exif))
        return _load(source, name, sampling, limits)
    except seek.Fewer as error:
        raise MediaError(f"{name}: damaged, {error}") from error
    except Damaged as error:
        refused = isinstance(error.__cause__, av.FFmpegError)
        what = "not a readable video" if refused else "damaged"
        raise MediaError(f"{name}: {what} ({error})") from error
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise MediaError(f"{name}: not a readable video ({error})") from error


def _load(source, name: str, sampling: Sampling, limits: Limits) -> Clip:
    with open_video(source, name, limits) as opened:
        video = _Video(opened, source, name, limits)
        while True:
            places, fps = sample(sampling, video.timeline(), name)
            try:
                return Clip(video.frames(places), fps)
            except (Damaged, seek.Fewer) as error:
                if not video.look_closer(error):
                    raise


class _Video:
    """A video file and what is known of it before it is decoded."""

    def __init__(self, opened, source, name: str, limits: Limits):
        self._opened, self._name, self._limits = opened, name, limits
        self._open = functools.partial(open_video, source, name, limits)
        self._table, self._strict = True, True
        self._read(opened)

    def _read(self, opened) -> None:
        container, stream, file = opened
        self._forgiving = stream.codec_context.codec.canonical_name in FORGIVING
        self._index = read_index(container, stream, file, self._name, self._limits, self._table)
        self._plan = seek.make_plan(container, stream, self._index, self._open)
        if not len(self._plan.numbers):
            raise MediaError(f"{self._name}: no frame that can be decoded")

    def look_closer(self, error: Exception) -> bool:
        """Whether other frames are to be expected than those that failed to decode: the table of an
        MP4 says nothing of large samples without a picture, and of some codecs no header that we
        read says which packets hold a frame."""
        if self._table:
            before, self._table, self._opened = self._index, False, None
            with self._open() as opened:
                self._read(opened)
            after = self._index
            if not (
                np.array_equal(before.shown, after.shown)
                and np.array_equal(before.holds, after.holds)
            ):
                return True
        if not isinstance(error, seek.Fewer) or not self._may_lack(error.numbers):
            return False
        self._strict = False  # FFmpeg's messages are read: there may be no complaint
        self._plan = dataclasses.replace(self._plan, starts=None, numbers=error.numbers)
        return True

    def timeline(self) -> Timeline:
        return timeline(self._index, self._plan.numbers, self._name, self._limits)

    def _may_lack(self, numbers: np.ndarray) -> bool:
        """Whether it is in order that only these packets gave a frame: no header that we read says
        that the others hold one, or they are leading pictures of the first keyframe without times.
        """
        expected = np.sort(self._plan.numbers)
        if not len(numbers) or not np.isin(numbers, expected).all():
            return False
        missing = np.flatnonzero(~np.isin(expected, numbers))
        leading = (missing == 1 + np.arange(len(missing))).all()
        untimed = (self._index.pts == NO_TIME).any()
        with self._open() as (_, stream, _):
            return not Headers(stream.codec_context).known or bool(leading and untimed)

    def frames(self, places: np.ndarray) -> np.ndarray:
        """The frames at these places in the order of showing, by seeking where that works.

        Raises:
          Damaged: a picture is damaged.
          seek.Fewer: none is, but there are fewer frames than the index says.
        """
        seeks = self._plan.starts is not None
        if seeks:
            try:
                with contextlib.ExitStack() as stack:
                    opened = self._opened or stack.enter_context(self._open())
                    return self._seek(opened, places)
            except seek.Lost:
                seeks = False
            except Damaged:
                if not self._forgiving:
                    seeks = False
        if seeks:
            try:
                with listen() as messages, self._open() as opened:
                    return self._seek(opened, places, messages)
            except (seek.Lost, Damaged):
                pass  # the index may lie: the same frames the long way, or an error
        if self._strict:
            try:
                return self._decode_all(places)
            except Damaged:
                if not self._forgiving:
                    raise
        with listen() as messages:
            return self._decode_all(places, messages)

    def _seek(self, opened, places: np.ndarray, messages: list | None = None) -> np.ndarray:
        pictures, wanted = _Pictures(self._name, self._limits), self._plan.numbers[places].tolist()
        container, stream, _ = opened
        seek.decode_wanted(
            container, stream, self._index, self._plan, wanted, pictures.take, messages
        )
        return pictures.stack(wanted)

    def _decode_all(self, places: np.ndarray, messages: list | None = None) -> np.ndarray:
        pictures, wanted = _Pictures(self._name, self._limits), places.tolist()
        with self._open() as (container, stream, _):
            seek.decode_all(
                container, stream, self._index, self._plan, wanted, pictures.take, messages
            )
        return pictures.stack(wanted)


class _Pictures:
    """Decoded frames as upright RGB, all of one size."""

    def __init__(self, name: str, limits: Limits):
        self._name, self._limits, self._pictures = name, limits, {}
        # One converter for all frames, on one thread: `frame.to_ndarray(format=...)` sets up a
        # converter with a thread pool for every frame, four times the cost of decoding it.
        self._converter = VideoReformatter()

    def take(self, number: int, frame) -> None:
        check_size(frame.width, frame.height, self._name, self._limits)
        picture = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        matrix = frame.side_data.get("DISPLAYMATRIX")
        self._pictures[number] = (
            picture if matrix is None else upright(picture, bytes(matrix), self._name)
        )

    def stack(self, numbers: list[int]) -> np.ndarray:
        chosen = [self._pictures[number] for number in numbers]
        sizes = sorted({picture.shape[:2] for picture in chosen})
        if len(sizes) > 1:
            raise MediaError(
                f"{self._name}: the size changes midway, from {sizes[0]} to {sizes[1]}"
            )
        return np.stack(chosen)


def upright(picture: np.ndarray, matrix: bytes, name: str) -> np.ndarray:
    """uint8 [H, W, 3] as a display matrix (nine int32, row by row) says it is shown.

    It sends column x and row y to a x + c y and b x + d y. Cameras turn by quarters and mirror;
    its scale, and the aspect ratio of pixels, are not applied: the reference has square pixels.

    Raises:
      MediaError: another angle.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    lengths = np.hypot(a, b), np.hypot(c, d)
    if not all(lengths):  # no matrix at all, as some writers leave it
        return picture
    turn = np.array([[a, b], [c, d]]) / np.array(lengths)[:, None]
    exact = turn.round()
    if np.abs(turn - exact).max() > 0.02 or abs(round(np.linalg.det(exact))) != 1:
        degrees = np.degrees(np.arctan2(b, a))
        raise MediaError(f"{name}: turned by {degrees:.0f} degrees, not by quarters")
    (a, b), (c, d) = exact.astype(int)
    if a == 0:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(picture[::down, ::across])
