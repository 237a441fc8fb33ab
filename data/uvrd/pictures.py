"""Decodes frames of untrusted videos in isolated processes; motion scores, images and clips."""

import contextlib
import dataclasses
import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from data.uvrd.settings import Settings
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media.isolation import Failure, Isolated
from gve_jax.media.item import Item

_MOTION_SIDE = 32  # pixels of the shorter side at which motion is measured


@dataclasses.dataclass(frozen=True)
class Clip:
    """uint8 [T, H, W, 3] at `fps` frames per second."""

    frames: np.ndarray
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def time(self, number: int) -> float:
        """Time of a frame in seconds, where the frames sample the whole video uniformly."""
        return number * (self.seconds - 1 / self.fps) / max(1, len(self.frames) - 1)


class _Frames(Preprocessor):
    """A `Preprocessor` that returns `Clip`s: it reassembles frames from the patches that decoding
    processes send, so that training and synthesis share one decoder and its limits."""

    def row(self, item: Item, visuals: list[tuple]) -> Clip:
        ((patches, layout, _, seconds),) = visuals
        size, temporal = self.spec.patch_size, self.spec.temporal
        row, column = layout.coords.T
        rows, columns = row.max() + 1, column.max() + 1
        raster = np.empty(len(row), np.int64)
        raster[row * columns + column] = np.arange(len(row))
        shape = (len(patches) * temporal, rows * size, columns * size, 3)
        frames = np.empty(shape, np.uint8)
        grid = frames.reshape(len(patches), temporal, rows, size, columns, size, 3)
        for number, pair in enumerate(patches):  # one colour at a time takes a third of the time
            parts = pair[raster].reshape(rows, columns, 3, temporal, size, size)
            for colour in range(3):
                grid[number, ..., colour] = parts[:, :, colour].transpose(2, 0, 3, 1, 4)
        return Clip(frames, temporal / seconds if seconds else 1.0)  # an image has no frame rate


class Decoder:
    """Decodes videos and spans of them, `settings.run.decoders` at once; thread-safe.

    Sides of frames are multiples of 28 pixels; a frame has at most `max_pixels`.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        video, clip = settings.video, settings.clip
        most = int(clip.most_seconds * clip.fps) // 2 * 2 + 2
        self._videos = self._open(num_frames=video.num_frames, max_pixels=video.max_pixels)
        self._spans = self._open(
            fps=clip.fps, min_frames=2, max_frames=most, max_pixels=clip.max_pixels
        )

    def _open(self, **fields) -> Isolated:
        frames = fields.get("max_frames", fields.get("num_frames"))
        tokens = frames // 2 * (fields["max_pixels"] // 28**2) + 2
        spec = InputSpec(min_pixels=28 * 28, max_length=tokens, **fields)
        return Isolated(_Frames(None, spec, self.settings.limits), self.settings.run.decoders)

    def decode(
        self, video: str | bytes, start: float | None = None, end: float | None = None
    ) -> Clip | Failure:
        """`num_frames` frames of the whole video, or frames of a span at `clip.fps`."""
        if start is None:
            return self._videos.attempt(Item(video=video))
        return self._spans.attempt(Item(video=video, video_start=start, video_end=end))

    def close(self) -> None:
        self._videos.close()
        self._spans.close()


def motion(frames: np.ndarray) -> float:
    """Mean absolute change of brightness between consecutive frames, in [0, 1].

    Frames are reduced to about 32 pixels on the shorter side, which averages noise and grain away
    but not moving objects."""
    factor = max(1, min(frames.shape[1:3]) // _MOTION_SIDE)
    step = 2 if factor >= 4 else 1  # every second row of large frames takes half the time
    box = (factor, max(1, factor // step))
    small = [Image.fromarray(frame[::step]).reduce(box).convert("L") for frame in frames]
    changes = np.diff(np.stack(small).astype(np.float32), axis=0)
    return float(np.abs(changes).mean() / 255) if len(changes) else 0.0


def encode_image(frame: np.ndarray, format: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": quality} if format == "jpeg" else {"compress_level": 1}
    Image.fromarray(frame).save(buffer, format, **options)
    return buffer.getvalue()


def encode_clip(clip: Clip, crf: int) -> bytes:
    """H.264 in MP4; deterministic."""
    buffer = io.BytesIO()
    options = {"preset": "superfast", "tune": "zerolatency", "crf": str(crf), "threads": "1"}
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@contextlib.contextmanager
def thumbnails(count: int):
    """Yields a function of ("image" or "video", bytes) that returns up to `count` small JPEGs, []
    if the bytes cannot be decoded."""
    spec = InputSpec(num_frames=count, min_pixels=28 * 28, max_pixels=168 * 168)
    with Isolated(_Frames(None, spec), 1) as isolated:

        def frames_of(kind: str, medium: bytes) -> list[bytes]:
            clip = isolated.attempt(Item(**{kind: medium}))
            if isinstance(clip, Failure):
                return []
            frames = clip.frames[:1] if kind == "image" else clip.frames
            return [encode_image(frame, "jpeg", 80) for frame in frames]

        yield frames_of
