"""GIF, APNG and animated WebP, with the times their frames state."""

import io
import os

import numpy as np
from PIL import Image

from gve_jax.inputs.errors import LimitError, MediaError
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.pixels import load_image
from gve_jax.inputs.sampling import Sampling, Timeline, sample

_FORMATS = ("GIF", "PNG", "WEBP")
_SHORTEST, _USUAL = 0.01, 0.1  # seconds: browsers show a frame of 0 to 10 ms for 100 ms


def is_animation(source) -> bool:
    """Whether a path or bytes are in a format of this file."""
    if isinstance(source, bytes):
        head = source[:12]
    else:
        with open(source, "rb") as file:
            head = file.read(12)
    webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return head.startswith((b"GIF8", b"\x89PNG\r\n\x1a\n")) or webp


def load(source, name: str, sampling: Sampling, limits: Limits):
    """uint8 [T, H, W, 3], transparency on white, and frames a second.

    Raises:
      MediaError: a picture without motion (a GIF of one frame is a video of one frame), damage.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
        with Image.open(file, formats=_FORMATS) as image:
            return _load(image, name, sampling, limits)
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of things on damaged data
        raise MediaError(f"{name}: not a readable video ({error})") from error


def _load(image, name: str, sampling: Sampling, limits: Limits):
    total = getattr(image, "n_frames", 1)
    if total == 1 and image.format != "GIF":
        raise MediaError(f"{name}: not a readable video (a picture without motion; give it as an "
                         "image)")  # fmt: skip
    if total > limits.frames:
        raise LimitError(f"{name}: {total} frames are above the limit of {limits.frames}")
    if image.width * image.height > limits.frame_pixels:
        raise LimitError(f"{name}: frames of {image.width} x {image.height} are above the limit of "
                         f"{limits.frame_pixels} pixels")  # fmt: skip
    lengths = []
    for number in range(total):
        image.seek(number)
        if image.format == "WEBP":
            image.load()  # Pillow learns a frame's duration when it decodes it
        seconds = image.info.get("duration", 0) / 1000
        lengths.append(seconds if seconds > _SHORTEST else _USUAL)
    times = np.concatenate([[0.0], np.cumsum(lengths)])
    if times[-1] > limits.duration:
        raise LimitError(f"{name}: {times[-1]:.0f} s are above the limit of {limits.duration:g} s")
    even = max(lengths) == min(lengths)
    rate = 1 / lengths[0] if even else float(total / times[-1])
    indices, fps = sample(sampling, Timeline(total, rate, None if even else times), name)
    pictures = []
    for number in indices:
        image.seek(int(number))
        # A GIF's first frame has a palette and the others have none: made alike, its background
        # does not change with the second frame.
        clear = image.has_transparency_data
        pictures.append(load_image(image.convert("RGBA") if clear else image.copy()))
    return np.stack(pictures), fps
