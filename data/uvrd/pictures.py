"""Frames of untrusted videos, decoded in processes of their own; motion, pictures and clips."""

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

_SIDE = 32  # pixels of the pictures whose change is motion, their shorter side


@dataclasses.dataclass(frozen=True)
class Clip:
    """uint8 [T, H, W, 3] at `fps` frames a second."""

    frames: np.ndarray
    fps: float

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def time(self, number: int) -> float:
        """Seconds at which a frame is shown, of a uniform sampling of the whole video."""
        return number * (self.seconds - 1 / self.fps) / max(1, len(self.frames) - 1)


class _Frames(Preprocessor):
    """Gives `Clip`s where a `Preprocessor` gives rows: the decoding processes send patches, which
    are put together again here. So one decoder, with its limits, serves training and this."""

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
        for number, pair in enumerate(patches):  # a colour at a time: a third of numpy's time
            parts = pair[raster].reshape(rows, columns, 3, temporal, size, size)
            for colour in range(3):
                grid[number, ..., colour] = parts[:, :, colour].transpose(2, 0, 3, 1, 4)
        return Clip(frames, temporal / seconds if seconds else 1.0)  # an image has no rate


class Decoder:
    """Decodes whole videos and spans of them, `settings.run.decoders` at once; from any thread.

    Frames have sides that are multiples of 28 pixels, at most `max_pixels` of them in all.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        whole, part = settings.video, settings.clip
        most = int(part.most_seconds * part.fps) // 2 * 2 + 2
        self._whole = self._open(num_frames=whole.num_frames, max_pixels=whole.max_pixels)
        self._part = self._open(
            fps=part.fps, min_frames=2, max_frames=most, max_pixels=part.max_pixels
        )

    def _open(self, **fields) -> Isolated:
        frames = fields.get("max_frames", fields.get("num_frames"))
        tokens = frames // 2 * (fields["max_pixels"] // 28**2) + 2
        spec = InputSpec(min_pixels=28 * 28, max_length=tokens, **fields)
        return Isolated(_Frames(None, spec, self.settings.limits), self.settings.run.decoders)

    def whole(self, video: str | bytes) -> Clip | Failure:
        return self._whole.attempt(Item(video=video))

    def span(self, video: str | bytes, start: float, end: float) -> Clip | Failure:
        return self._part.attempt(Item(video=video, video_start=start, video_end=end))

    @property
    def pids(self) -> list[int]:
        return self._whole.pids + self._part.pids

    def close(self) -> None:
        self._whole.close()
        self._part.close()


def motion(frames: np.ndarray) -> float:
    """Mean absolute change of brightness between neighbouring frames, 0 to 1, of pictures whose
    shorter side has about 32 pixels: noise and grain are averaged away, a moving thing is not."""
    factor = max(1, min(frames.shape[1:3]) // _SIDE)
    step = 2 if factor >= 4 else 1  # of large frames, every second row: half the time
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
    """H.264 in MP4; the same frames give the same bytes."""
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
    """A function of ("image" or "video", bytes) that gives up to `count` small JPEGs; none of what
    cannot be decoded."""
    spec = InputSpec(num_frames=count, min_pixels=28 * 28, max_pixels=168 * 168)
    with Isolated(_Frames(None, spec), 1) as isolated:

        def frames_of(kind: str, medium: bytes) -> list[bytes]:
            clip = isolated.attempt(Item(**{kind: medium}))
            if isinstance(clip, Failure):
                return []
            frames = clip.frames[:1] if kind == "image" else clip.frames
            return [encode_image(frame, "jpeg", 80) for frame in frames]

        yield frames_of
