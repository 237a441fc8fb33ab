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
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
# FFmpeg looks at these before a demuxer reads a byte: a playlist opens what it names at once.
_OPEN = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
MAX_FRAMES = 200_000
MAX_FRAME_PIXELS = 8192 * 8192
_COVER = av.stream.Disposition.attached_pic  # the cover of a song is no video


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
      MediaError: an unreadable, empty or damaged video: never a shorter clip in silence, where
        the container states a length at all (MPEG-TS, fragments and live recordings do not).
    """
    if isinstance(source, str | os.PathLike | bytes):
        return _decode(source, num_frames)
    if isinstance(source, np.ndarray):
        frames = source
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise MediaError(f"a video array must be uint8 [T, H, W, 3], not {frames.dtype} "
                             f"{list(frames.shape)}")  # fmt: skip
    elif not isinstance(source, list | tuple):
        raise MediaError(f"a video must be a path, bytes, a uint8 array or a list of images, not "
                         f"{type(source).__name__}")  # fmt: skip
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
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"{name}: no such file")
    try:
        # PyAV reads a file object, so that no protocol of FFmpeg's is used.
        file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
        with file:
            _check_segment(file, name)
            with av.open(file, mode="r", options=_OPEN) as container:
                return _sample(container, name, num_frames)
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise MediaError(f"{name}: not a readable video ({error})") from error


def _sample(container, name: str, num_frames: int) -> Clip:
    streams = [s for s in container.streams.video if not s.disposition & _COVER]
    if not streams:
        raise MediaError(f"{name}: no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaError(f"{name}: an unknown video codec")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise MediaError(f"{name}: frames of {stream.width} x {stream.height} are above the limit")
    stream.thread_type = "NONE"  # workers are the parallelism; threads of FFmpeg would compete
    stream.codec_context.options = {"err_detect": "explode"}

    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if rate <= 0:
        raise MediaError(f"{name}: no frame rate")
    total, start = _count(container, stream, name, rate)
    if not 0 < total <= MAX_FRAMES:
        raise MediaError(f"{name}: {total} frames")
    container.seek(start, stream=stream)
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
    return Clip(np.stack([frames[i] for i in wanted]), len(wanted) / total * rate)


def _count(container, stream, name: str, rate: float) -> tuple[int, int]:
    """Frames that will be shown, and the earliest timestamp (in the stream's units).

    Containers lie about their frame count; packets do not, and counting them decodes nothing. An
    edit list discards packets: a clip cut without encoding it again begins with some.
    """
    total = packets = start = last = shown = 0
    for packet in container.demux(stream):
        if packet.dts is None and not packet.size:
            continue  # the end of the stream
        packets += 1
        start, last = min(start, packet.dts or 0), max(last, packet.dts or 0)
        if packet.size and not packet.is_discard:
            total += 1
            shown += packet.duration or 0

    # A file that was cut off between two packets reads without an error.
    kind, found, declared = container.format.name, 0, 0
    if kind == "avi":  # its timestamps count frames, those too that were dropped at recording
        found, declared = last + 1, stream.frames
    elif "mp4" in kind:
        found, declared = packets, len(stream.index_entries)
    if found < declared:
        raise MediaError(f"{name}: cut off, {found} of {declared} frames")
    if "mp4" in kind and stream.duration:  # a damaged table of samples; durations are not exact
        seconds, whole = float(shown * stream.time_base), float(stream.duration * stream.time_base)
        if seconds < 0.95 * whole - 1 / rate:
            raise MediaError(f"{name}: damaged, frames for {seconds:.2f} of {whole:.2f} s")
    return total, start


def _check_segment(file, name: str) -> None:
    """A Matroska file that was cut off is shorter than its segment; FFmpeg reads it as if whole."""
    head, size = file.read(4096), file.seek(0, os.SEEK_END)
    file.seek(0)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if not head.startswith(b"\x1a\x45\xdf\xa3") or not 4 <= at < len(head) or head[at] == 0:
        return
    length = 9 - head[at].bit_length()  # of the number that follows: as many bytes as leading zeros
    unknown = 2 ** (7 * length) - 1  # of a live recording
    segment = int.from_bytes(head[at : at + length]) & unknown
    if segment != unknown and size < at + length + segment:
        raise MediaError(f"{name}: cut off, {size} of {at + length + segment} bytes")
