"""A video of any kind -> sampled frames."""

import dataclasses
import os

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gve_jax.inputs import animation, frames, seek
from gve_jax.inputs.container import check_size, open_video, read_index
from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.item import source_name
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.sampling import Sampling, sample
from gve_jax.inputs.timeline import timeline


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
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise MediaError(f"{name}: not a readable video ({error})") from error


def _load(source, name: str, sampling: Sampling, limits: Limits) -> Clip:
    with open_video(source, name, limits) as (container, stream, file):
        index = read_index(container, stream, file, name, limits)
        plan = seek.make_plan(container, stream, index)
        if not len(plan.numbers):
            raise MediaError(f"{name}: no frame that can be decoded")
        when = timeline(index, plan.numbers, name, limits)
        places, fps = sample(sampling, when, name)
        if plan.starts is not None:
            wanted, pictures = plan.numbers[places].tolist(), _Pictures(name, limits)
            try:
                seek.decode_wanted(container, stream, index, plan, wanted, pictures.take)
                return Clip(pictures.stack(wanted), fps)
            except (seek.Lost, av.FFmpegError):
                pass  # the same frames the long way, or an error
    with open_video(source, name, limits) as (container, stream, _):
        pictures, seen, wanted = _Pictures(name, limits), 0, set(places.tolist())
        for frame in seek.decode_all(container, stream, plan.usable):
            if seen in wanted:
                pictures.take(seen, frame)
            seen += 1
        if seen != len(plan.numbers):
            raise MediaError(f"{name}: damaged, {seen} of {len(plan.numbers)} frames decode")
        return Clip(pictures.stack(places.tolist()), fps)


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
