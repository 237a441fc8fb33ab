"""Decodes GIF, APNG and animated WebP, with the durations of their frames."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from gve_jax.media.animation_formats import (
    CLEAR,
    KEEP,
    PNG_SIGNATURE,
    RESTORE,
    Animation,
    Frame,
    parse,
)
from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import check_mode, exif_orientation, load_image, turn
from gve_jax.media.sampling import Sampling, Timeline, sample
from gve_jax.media.source import open_source, read_source

_FORMATS = ("GIF", "PNG", "WEBP")
_SHORTEST, _USUAL = 0.01, 0.1  # seconds: browsers show frames of 0 to 10 ms for 100 ms


def is_animation(source) -> bool:
    """Whether a medium is in one of these formats."""
    with open_source(source) as file:
        head = file.read(12)
    webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return head.startswith((b"GIF8", PNG_SIGNATURE)) or webp


def load(source, name: str, sampling: Sampling, limits: Limits, exif: bool = False):
    """Returns frames uint8 [T, H, W, 3], transparency on white, frames per second, and the
    seconds of each frame.

    Args:
      exif: rotate frames by the file's EXIF orientation.

    Raises:
      MediaError: a still image, or damage. A file that declares an animation is one, even with a
        single frame; every GIF is.
    """
    data = read_source(source)
    shown, _ = read_timeline(data, name, limits)
    positions, fps = sample(sampling, shown, name)
    return np.stack(list(pictures(data, positions, name, limits, exif))), fps, shown.at(positions)


def read_timeline(data: bytes, name: str, limits: Limits) -> tuple[Timeline, np.ndarray]:
    """When the frames are shown; and the begin of each and the end of the last one in seconds,
    float64 [frames + 1]. Errors as in `load`."""
    try:
        animation = read_frames(data, name, limits)
        times = _times(animation, name, limits)
    except MediaError:
        raise
    except Exception as error:  # any exception on damaged data
        raise MediaError(f"{name}: not a readable video ({error})") from error
    lengths, total = np.diff(times), len(animation.frames)
    even = bool(np.ptp(lengths) < 1e-9)
    rate = float(1 / lengths[0] if even else total / times[-1])
    return Timeline(total, rate, None if even else times), times


def pictures(
    data: bytes, positions: np.ndarray, name: str, limits: Limits, exif: bool = False
) -> Iterator[np.ndarray]:
    """Yields the frames at ascending positions, uint8 [H, W, 3]; arguments and errors as in
    `load`."""
    try:
        animation, orientation = read_frames(data, name, limits), 1
        if exif:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                orientation = exif_orientation(image)
        for canvas in _compose(animation, positions.tolist(), name):
            yield turn(load_image(canvas), orientation)
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise any exception on damaged data
        raise MediaError(f"{name}: not a readable video ({error})") from error


def read_frames(data: bytes, name: str, limits: Limits) -> Animation:
    """Parses the frames of a file without decoding them.

    Raises:
      MediaError: a still image, too many or too large frames, damage.
    """
    try:
        animation = parse(data, limits.frames)
        if animation is None:
            raise ValueError("a still image; pass it as an image")
    except ValueError as error:
        raise MediaError(f"{name}: not a readable video ({error})") from error
    if len(animation.frames) > limits.frames:
        raise LimitError(
            f"{name}: at least {len(animation.frames)} frames are above the limit of "
            f"{limits.frames}"
        )
    sizes = [(animation.width, animation.height)] + [frame.box[2:] for frame in animation.frames]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    if width * height > limits.frame_pixels:
        raise LimitError(
            f"{name}: frames of {width} x {height} are above the limit of "
            f"{limits.frame_pixels} pixels"
        )
    return animation


def _times(animation: Animation, name: str, limits: Limits) -> np.ndarray:
    """float64 [frames + 1], the begin of each frame and the end of the last one."""
    lengths = [float(frame.seconds) for frame in animation.frames]
    lengths = [seconds if seconds > _SHORTEST else _USUAL for seconds in lengths]
    times = np.concatenate([[0.0], np.cumsum(lengths)])
    if times[-1] > limits.duration:
        raise LimitError(f"{name}: {times[-1]:.0f} s are above the limit of {limits.duration:g} s")
    return times


def _compose(animation: Animation, wanted: Sequence[int], name: str) -> Iterator[Image.Image]:
    """Yields the canvas (RGBA) at the `wanted` frames, in ascending order. Other frames are decoded
    only if a part of them is visible in a wanted one."""
    frames, size = animation.frames, (animation.width, animation.height)
    canvas, done, before = None, -1, None
    for number in wanted:
        first = number
        while first > done + 1 and not _covers(frames[first], size):
            first -= 1
        for k in range(first, number + 1):
            if k == 0 or k > done + 1 and k == first:
                canvas = Image.new("RGBA", size, animation.fill)
            elif frames[k - 1].dispose == CLEAR:
                canvas.paste(frames[k - 1].fill, _area(frames[k - 1]))
            elif frames[k - 1].dispose == RESTORE:
                canvas.paste(before, _area(frames[k - 1]))
            before = canvas.crop(_area(frames[k])) if frames[k].dispose == RESTORE else None
            _draw(canvas, frames[k], name)
        done = number
        yield canvas


def _covers(frame: Frame, size: tuple[int, int]) -> bool:
    """Whether nothing drawn before this frame is visible, during this frame or after it."""
    return frame.box == (0, 0, *size) and not frame.over and frame.dispose in (KEEP, CLEAR)


def _area(frame: Frame) -> tuple[int, int, int, int]:
    x, y, width, height = frame.box
    return x, y, x + width, y + height


def _draw(canvas: Image.Image, frame: Frame, name: str) -> None:
    with Image.open(io.BytesIO(b"".join(frame.still)), formats=_FORMATS) as image:
        check_mode(image, name)
        if image.size != frame.box[2:]:
            raise ValueError(f"a frame of {image.size}, not {frame.box[2:]} pixels")
        if frame.over:
            canvas.alpha_composite(image.convert("RGBA"), frame.box[:2])
        else:
            canvas.paste(image.convert("RGBA"), frame.box[:2])
