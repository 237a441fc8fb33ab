"""Loads sampled frames of any kind of video."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gve_jax.media import animation, frames, seek
from gve_jax.media.container import check_size, open_video, read_index
from gve_jax.media.decoder import FORGIVING, Damaged, listen
from gve_jax.media.errors import MediaError
from gve_jax.media.item import is_frames, source_name
from gve_jax.media.limits import Limits
from gve_jax.media.packets import NO_TIME
from gve_jax.media.picture_headers import Headers
from gve_jax.media.sampling import Sampling, Timeline, sample
from gve_jax.media.source import is_file
from gve_jax.media.timeline import timeline


@dataclasses.dataclass(frozen=True)
class Clip:
    """Sampled frames uint8 [T, H, W, 3], their number per second of the video, `fps`, and the
    seconds of each from the beginning of the video, `times`."""

    frames: np.ndarray
    fps: float
    times: Sequence[float] = ()


def load_video(
    source,
    sampling: Sampling | int,
    fps: float | None = None,
    limits: Limits | None = None,
    exif: bool = False,
) -> Clip:
    """Samples a video.

    Args:
      source: the path of a video, an animation or a folder of images; encoded bytes; uint8
        [T, H, W, 3]; a list of images.
      sampling: which frames; a number is a number of uniformly sampled frames.
      fps: frames per second of an array, a list or a folder (default: 2, as in the reference).
      limits: limits of time and memory.
      exif: rotate frames that are images, and animations, by their EXIF orientation.

    Raises:
      MediaError: an unreadable, empty, truncated or damaged video. (MPEG-TS, program streams,
        fragments and live recordings state no length, so that truncation is not detected.)
    """
    limits = limits or Limits()
    if not isinstance(sampling, Sampling):
        sampling = Sampling(num_frames=sampling)
    name = source_name(source)
    if is_frames(source):
        return Clip(*frames.load(source, name, sampling, fps or 2.0, limits, exif))
    if not isinstance(source, bytes) and not is_file(source):
        raise MediaError(f"{name}: no such file")
    with reading(name):
        if animation.is_animation(source):
            return Clip(*animation.load(source, name, sampling, limits, exif))
        return _load(source, name, sampling, limits)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns the errors of FFmpeg and of damaged files into `MediaError`s that name the file."""
    try:
        yield
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
        video = VideoFile(opened, source, name, limits)
        while True:
            shown = video.timeline()
            positions, fps = sample(sampling, shown, name)
            try:
                return Clip(video.frames(positions), fps, shown.at(positions))
            except (Damaged, seek.Fewer) as error:
                if not video.look_closer(error):
                    raise


class VideoFile:
    """A video file, its index and the plan of decoding it."""

    def __init__(self, opened, source, name: str, limits: Limits, known: "VideoFile | None" = None):
        """`known`: the same file, opened before, whose index is taken."""
        self._opened, self._name, self._limits = opened, name, limits
        self._open = functools.partial(open_video, source, name, limits)
        self._table, self._strict = True, True
        if known is None:
            self._read(opened)
        else:
            self._forgiving, self._index = known._forgiving, known._index
            self._plan = known._plan
            self._table, self._strict = known._table, known._strict

    def _read(self, opened) -> None:
        container, stream, file = opened
        self._forgiving = stream.codec_context.codec.canonical_name in FORGIVING
        self._index = read_index(container, stream, file, self._name, self._limits, self._table)
        self._plan = seek.make_plan(container, stream, self._index, self._open)
        if not len(self._plan.numbers):
            raise MediaError(f"{self._name}: no decodable frame")

    def look_closer(self, error: Exception) -> bool:
        """Whether other frames can be expected after a failure: the table of an MP4 does not reveal
        large samples without a picture, and for some codecs no header that we parse tells which
        packets have a frame."""
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
        self._strict = False  # FFmpeg's log must have no error then
        self._plan = dataclasses.replace(self._plan, starts=None, numbers=error.numbers)
        return True

    def timeline(self) -> Timeline:
        return timeline(self._index, self._plan.numbers, self._name, self._limits)

    def _may_lack(self, numbers: np.ndarray) -> bool:
        """Whether the other packets may be without a frame: no header that we parse tells that they
        have one, or they are leading pictures of the first keyframe without times."""
        expected = np.sort(self._plan.numbers)
        if not len(numbers) or not np.isin(numbers, expected).all():
            return False
        missing = np.flatnonzero(~np.isin(expected, numbers))
        leading = (missing == 1 + np.arange(len(missing))).all()
        untimed = (self._index.pts == NO_TIME).any()
        with self._open() as (_, stream, _):
            return not Headers(stream.codec_context).known or bool(leading and untimed)

    def outline(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each frame, in the order of showing: the number of the packet from which decoding must
        begin for it (0 for all if the file cannot be sought in), the bytes of its packet, and
        whether it is a keyframe."""
        numbers, starts = self._plan.numbers, self._plan.starts
        first = np.zeros(len(numbers), np.int64) if starts is None else starts[numbers]
        return first, self._index.size[numbers], self._index.key[numbers]

    def frames(
        self,
        positions: np.ndarray,
        convert: Callable[[np.ndarray], np.ndarray] | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Returns the frames at these positions in the order of showing, by seeking if possible.

        Args:
          convert: is applied to each frame, uint8 [H, W, 3], once it is decoded.
          size: height and width to which frames are averaged instead, coarsely and unrotated.

        Raises:
          Damaged: a picture is damaged.
          seek.Fewer: no picture is damaged, but there are fewer frames than in the index.
        """
        self._pictures = functools.partial(_Pictures, self._name, self._limits, convert, size)
        seeks = self._plan.starts is not None
        if seeks:
            try:
                with contextlib.ExitStack() as stack:
                    opened = self._opened or stack.enter_context(self._open())
                    return self._seek(opened, positions)
            except seek.Lost:
                seeks = False
            except Damaged:
                if not self._forgiving:
                    seeks = False
        if seeks:
            try:
                with listen() as messages, self._open() as opened:
                    return self._seek(opened, positions, messages)
            except (seek.Lost, Damaged):
                pass  # the index may be wrong: decode all packets for the frames or an error
        if self._strict:
            try:
                return self._decode_all(positions)
            except Damaged:
                if not self._forgiving:
                    raise
        with listen() as messages:
            return self._decode_all(positions, messages)

    def _seek(self, opened, positions: np.ndarray, messages: list | None = None) -> np.ndarray:
        pictures, wanted = self._pictures(), self._plan.numbers[positions].tolist()
        container, stream, _ = opened
        seek.decode_wanted(
            container, stream, self._index, self._plan, wanted, pictures.take, messages
        )
        return pictures.stack(wanted)

    def _decode_all(self, positions: np.ndarray, messages: list | None = None) -> np.ndarray:
        pictures, wanted = self._pictures(), positions.tolist()
        with self._open() as (container, stream, _):
            seek.decode_all(
                container, stream, self._index, self._plan, wanted, pictures.take, messages
            )
        return pictures.stack(wanted)


class _Pictures:
    """Collects decoded frames as upright RGB of one size."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        convert: Callable | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._name, self._limits, self._convert, self._size = name, limits, convert, size
        self._pictures, self._sizes = {}, set()
        # One converter with one thread for all frames: `frame.to_ndarray(format=...)` creates a
        # converter with a thread pool for every frame, at four times the cost of decoding it.
        self._converter = VideoReformatter()

    def take(self, number: int, frame) -> None:
        check_size(frame.width, frame.height, self._name, self._limits)
        options = {"format": "rgb24", "threads": 1}
        if self._size:
            options |= dict(height=self._size[0], width=self._size[1], interpolation="AREA")
        picture = self._converter.reformat(frame, **options).to_ndarray()
        matrix = None if self._size else frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            picture = upright(picture, bytes(matrix), self._name)
        self._sizes.add(picture.shape[:2])
        self._pictures[number] = picture if self._convert is None else self._convert(picture)

    def stack(self, numbers: list[int]) -> np.ndarray:
        chosen = [self._pictures[number] for number in numbers]
        if len(sizes := sorted(self._sizes)) > 1:
            raise MediaError(
                f"{self._name}: the size changes midway, from {sizes[0]} to {sizes[1]}"
            )
        return np.stack(chosen)


def upright(picture: np.ndarray, matrix: bytes, name: str) -> np.ndarray:
    """Rotates and mirrors uint8 [H, W, 3] by a display matrix (nine int32 in row-major order).

    The matrix maps column x and row y to a x + c y and b x + d y. Cameras rotate by multiples of 90
    degrees and mirror. Scale and pixel aspect ratio are ignored, as in the reference.

    Raises:
      MediaError: another angle.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    lengths = np.hypot(a, b), np.hypot(c, d)
    if not all(lengths):  # an empty matrix, as some writers store
        return picture
    turn = np.array([[a, b], [c, d]]) / np.array(lengths)[:, None]
    exact = turn.round()
    if np.abs(turn - exact).max() > 0.02 or abs(round(np.linalg.det(exact))) != 1:
        degrees = np.degrees(np.arctan2(b, a))
        raise MediaError(f"{name}: rotated by {degrees:.0f} degrees, not by a multiple of 90")
    (a, b), (c, d) = exact.astype(int)
    if a == 0:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(picture[::down, ::across])
