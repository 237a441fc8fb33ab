"""Videos given as frames: an array, a list of images, or a folder of images."""

import os
import re

import numpy as np

from gve_jax.media.errors import LimitError, MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.pixels import load_image
from gve_jax.media.sampling import Sampling, Timeline, sample
from gve_jax.media.suffixes import possible_kinds
from gve_jax.media.walk import list_folder


def load(
    source, name: str, sampling: Sampling, rate: float, limits: Limits, exif: bool = False
) -> tuple[np.ndarray, float]:
    """uint8 [T, H, W, 3] and frames a second, of frames that come at `rate` a second.

    Only the frames that are sampled are read; with `exif` they are turned as theirs says.

    Raises:
      MediaError: no frame, one that cannot be read, frames of differing size.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 4 or source.shape[-1] != 3:
            raise MediaError(
                f"a video array must be uint8 [T, H, W, 3], not {source.dtype} {list(source.shape)}"
            )
    elif isinstance(source, str | os.PathLike):
        source = in_order(source, name)
    elif not isinstance(source, list | tuple):
        raise MediaError(
            f"a video must be a path, bytes, a uint8 array or a list of images, not "
            f"{type(source).__name__}"
        )
    total = len(source)
    if total == 0:
        raise MediaError("a video of no frame" if name.startswith("<") else f"{name}: no frame")
    if total > limits.frames:
        raise LimitError(f"{name}: {total} frames are above the limit of {limits.frames}")
    if total / rate > limits.duration:
        raise LimitError(
            f"{name}: {total / rate:.0f} s are above the limit of {limits.duration:g} s"
        )
    indices, fps = sample(sampling, Timeline(total, rate), name)
    pictures = [load_image(source[i], limits.frame_pixels, exif) for i in indices]
    if len({picture.shape for picture in pictures}) > 1:
        raise MediaError(f"{name}: the frames of a video differ in size")
    return np.stack(pictures), fps


def in_order(folder, name: str) -> list[str]:
    """The images in a folder, by their names with numbers as numbers (2.png before 10.png).

    Hidden files do not count (`gve_jax.media.walk`). Anything else is refused: a folder that holds
    more than frames is likely not the one that was meant.
    """
    paths = list_folder(folder)
    for path in paths:
        if "image" not in possible_kinds(path) or not os.path.isfile(path):
            raise MediaError(f"{name}: holds {os.path.basename(path)!r}, which is not an image")
    return sorted(paths, key=lambda path: _natural(os.path.basename(path)))


def _natural(text: str) -> tuple:
    parts = re.split(r"(\d+)", text)  # text and digits by turns: like is compared with like
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), text
