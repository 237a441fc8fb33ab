"""Loads videos that are frames: an array, a list of images, or a folder of images."""

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
) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns frames uint8 [T, H, W, 3], frames per second and the seconds of each frame, from
    frames at `rate` per second.

    Reads sampled frames only; with `exif`, rotates them by their EXIF orientation.

    Raises:
      MediaError: no frame, an unreadable frame, frames of different sizes.
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
        raise MediaError(f"{name}: no frame")
    if total > limits.frames:
        raise LimitError(f"{name}: {total} frames are above the limit of {limits.frames}")
    if total / rate > limits.duration:
        raise LimitError(
            f"{name}: {total / rate:.0f} s are above the limit of {limits.duration:g} s"
        )
    timeline = Timeline(total, rate)
    indices, fps = sample(sampling, timeline, name)
    pictures = [load_image(source[i], limits.frame_pixels, exif) for i in indices]
    if len({picture.shape for picture in pictures}) > 1:
        raise MediaError(f"{name}: the frames of a video differ in size")
    return np.stack(pictures), fps, timeline.at(indices)


def in_order(folder, name: str) -> list[str]:
    """Returns the images in a folder in natural order of their names (2.png before 10.png).

    Hidden files are skipped (`gve_jax.media.walk`). Other files are an error: a folder with other
    files is probably not a folder of frames.
    """
    paths = list_folder(folder)
    for path in paths:
        if "image" not in possible_kinds(path) or not os.path.isfile(path):
            raise MediaError(f"{name}: contains {os.path.basename(path)!r}, which is not an image")
    return sorted(paths, key=lambda path: _natural(os.path.basename(path)))


def _natural(text: str) -> tuple:
    parts = re.split(r"(\d+)", text)  # text and digits alternate, so that types agree
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), text
