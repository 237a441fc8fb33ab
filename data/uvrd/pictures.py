"""Decodes frames of untrusted videos in isolated processes; motion scores, images and clips."""

import contextlib
import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from data.uvrd.settings import Settings
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media import video
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Failure, Sandbox, attempt

_THUMBNAIL = (168, 224)  # height and width, at most, in pixels
_MOTION_SIDE = 32  # pixels of the shorter side at which motion is measured


class Clip(video.Clip):
    """uint8 [T, H, W, 3] at `fps` frames per second."""

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def time(self, number: int) -> float:
        """Time of a frame in seconds, where the frames sample the whole video uniformly."""
        return number * (self.seconds - 1 / self.fps) / max(1, len(self.frames) - 1)


class Decoder:
    """Decodes videos and spans of them, `settings.run.decoders` at once; thread-safe.

    Sides of frames are multiples of 28 pixels; a frame has at most `max_pixels`.
    """

    def __init__(self, settings: Settings):
        self._sandbox = Sandbox(settings.limits, settings.run.decoders)
        whole, clip = settings.video, settings.clip
        most = int(clip.most_seconds * clip.fps) // 2 * 2 + 2
        self._video = _spec(
            whole.num_frames, num_frames=whole.num_frames, max_pixels=whole.max_pixels
        )
        self._span = _spec(
            most, fps=clip.fps, min_frames=2, max_frames=most, max_pixels=clip.max_pixels
        )

    def decode(
        self, video: str | bytes, start: float | None = None, end: float | None = None
    ) -> Clip | Failure:
        """`num_frames` frames of the whole video, or frames of a span at `clip.fps`."""
        spec = self._video if start is None else self._span
        item = Item(video=video, video_start=start, video_end=end)
        found = attempt(self._sandbox.frames, item, spec)
        return found if isinstance(found, Failure) else Clip(found.frames, found.fps)

    def close(self) -> None:
        self._sandbox.close()


def _spec(frames: int, **fields) -> InputSpec:
    """A spec whose sequence has room for that many frames."""
    tokens = frames // 2 * (fields["max_pixels"] // 28**2) + 2
    return InputSpec(min_pixels=28 * 28, max_length=tokens, **fields)


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
    with Sandbox() as sandbox:

        def frames_of(kind: str, medium: bytes) -> list[bytes]:
            clip = attempt(sandbox.thumbnails, Item(**{kind: medium}), count, *_THUMBNAIL)
            if isinstance(clip, Failure):
                return []
            return [encode_image(frame, "jpeg", 80) for frame in clip.frames]

        yield frames_of
