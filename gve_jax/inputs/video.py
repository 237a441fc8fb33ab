"""Video files -> sampled frames, with PyAV."""

import dataclasses
import io
import os

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.item import source_name
from gve_jax.inputs.pixels import load_image

# Containers people have; everything else FFmpeg can open (playlists, concat scripts, devices) can
# point at other files or hosts.
CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "avi", "mpegts"})
MAX_FRAMES = 200_000
MAX_FRAME_PIXELS = 8192 * 8192


@dataclasses.dataclass(frozen=True)
class Clip:
    """Sampled frames uint8 [T, H, W, 3] and `fps`, their number a second of the video."""

    frames: np.ndarray
    fps: float


def load_video(source, num_frames: int, fps: float | None = None) -> Clip:
    """Samples `num_frames` frames uniformly, the first and the last included.

    The frames are at `round(linspace(0, total - 1, n))` (qwen-vl-utils 0.0.14); a video with fewer
    frames gives all of them, an odd last one dropped (one frame alone is kept).

    Args:
      source: a path, encoded bytes, uint8 [T, H, W, 3], or a list of images.
      num_frames: frames wanted, an even number.
      fps: frames a second, for the last two.

    Raises:
      MediaError: an unreadable, empty or damaged video: never a shorter clip in silence.
    """
    if isinstance(source, str | os.PathLike | bytes):
        return _decode(source, num_frames)
    if isinstance(source, np.ndarray):
        frames = source
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise MediaError(f"a video array must be uint8 [T, H, W, 3], not {frames.dtype} "
                             f"{list(frames.shape)}")  # fmt: skip
    else:
        frames = [load_image(frame) for frame in source]
        if len({frame.shape for frame in frames}) > 1:
            raise MediaError("the frames of a video differ in size")
    if len(frames) == 0:
        raise MediaError("a video of no frame")
    indices = uniform_indices(len(frames), num_frames)
    picked = np.stack([frames[i] for i in indices])
    return Clip(picked, len(indices) / len(frames) * (fps or 2.0))


def uniform_indices(total: int, num_frames: int) -> np.ndarray:
    """int64 indices of the sampled frames of a video of `total` frames."""
    count = max(1, min(num_frames, total // 2 * 2))
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _decode(source, num_frames: int) -> Clip:
    name = source_name(source)
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    elif os.path.isfile(source):
        file = open(source, "rb")  # noqa: SIM115: PyAV reads a file object, so no protocol is used
    else:
        raise MediaError(f"{name}: no such file")
    try:
        with file, av.open(file, mode="r") as container:
            return _sample(container, name, num_frames)
    except (av.FFmpegError, EOFError, ValueError) as error:
        raise MediaError(f"{name}: not a readable video ({error})") from error


def _sample(container, name: str, num_frames: int) -> Clip:
    if not CONTAINERS.intersection(container.format.name.split(",")):
        raise MediaError(f"{name}: container {container.format.name!r} is not allowed")
    if not container.streams.video:
        raise MediaError(f"{name}: no video stream")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise MediaError(f"{name}: frames of {stream.width} x {stream.height} are above the limit")
    stream.thread_type = "NONE"  # workers are the parallelism; threads of FFmpeg would compete
    stream.codec_context.options = {"err_detect": "explode"}

    # Containers lie about their frame count; packets do not, and counting them decodes nothing.
    total = sum(1 for packet in container.demux(stream) if packet.size)
    if not 0 < total <= MAX_FRAMES:
        raise MediaError(f"{name}: {total} frames")
    container.seek(0, stream=stream)
    wanted = uniform_indices(total, num_frames)
    keep, frames, seen = set(wanted.tolist()), {}, 0
    # One converter for all frames, on one thread: `frame.to_ndarray(format=...)` sets up a
    # converter with a thread pool for every frame, four times the cost of decoding it.
    converter = VideoReformatter()
    for frame in container.decode(stream):
        if seen in keep:
            frames[seen] = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        seen += 1
    if seen != total:
        raise MediaError(f"{name}: damaged, {seen} of {total} frames decode")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if rate <= 0:
        raise MediaError(f"{name}: no frame rate")
    return Clip(np.stack([frames[i] for i in wanted]), len(wanted) / total * rate)
