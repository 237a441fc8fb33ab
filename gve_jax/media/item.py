"""An item to embed: any of text, image, video, with an instruction and sampling options."""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from gve_jax.errors import UserError
from gve_jax.media.source import PassedFile, PassedFolder

ALL_FRAMES = "all"
FRAME_ORDERS = ("forward", "reversed", "shuffled")


@dataclasses.dataclass(frozen=True)
class Item:
    """An item to embed. A text that is a path is still a text: media have keys of their own.

    Attributes:
      text: the text of the user turn.
      image: a path, encoded bytes, a PIL image, or uint8 [H, W, 3].
      video: a path, encoded bytes, uint8 [T, H, W, 3], a list of images, or a folder of them (the
        last three are frames: with `fps`).
      instruction: the system turn (default: that of the model).
      fps: frames per second at which a file is sampled, or of given frames (default: 2).
      num_frames: frames sampled from a video, an even number (default: that of the model). "all"
        takes every frame of an array, a list or a folder; an odd last one is repeated.
      min_frames, max_frames: bounds of the number of frames if sampling by frames per second.
      video_start, video_end: seconds between which frames are sampled.
      min_pixels, max_pixels: bounds of the pixels of a frame or an image after resizing.
        `max_pixels` can only lower the model's, and `min_pixels` must not exceed it.
      total_pixels: pixels of all frames of a video together; a pair of frames counts once.
      exif_orientation: whether images are rotated as their EXIF says (default: that of the model,
        False as in qwen-vl-utils).
      frame_order: "reversed" and "shuffled" are controls that measure the effect of time.
    """

    text: str | None = None
    image: Any = None
    video: Any = None
    instruction: str | None = None
    fps: float | None = None
    num_frames: int | str | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    max_pixels: int | None = None
    frame_order: str = "forward"
    min_pixels: int | None = None
    total_pixels: int | None = None
    exif_orientation: bool | None = None


_FIELDS = {field.name for field in dataclasses.fields(Item)}
# Keys of qwen-vl-utils and their equivalents.
_ELSEWHERE = {
    "nframes": "num_frames",
    "sample_fps": "fps",
    "raw_fps": "fps",
    "image_url": "image",
    "video_url": "video",
    "images": "image",
    "videos": "video",
    "resized_height": "min_pixels and max_pixels, or an image of that size",
    "resized_width": "min_pixels and max_pixels, or an image of that size",
}


def as_item(value: "str | Mapping | Item", allow_empty: bool = False) -> Item:
    """Reads an item from a text, a mapping or an item; empty values count as absent.

    Args:
      value: see `Item` for the keys of a mapping.
      allow_empty: an item without text and media stands for the empty text.

    Raises:
      UserError: an unknown key, a wrong type, or nothing to embed.
    """
    if isinstance(value, Item):
        item = value
    elif isinstance(value, str):
        item = Item(text=value)
    elif isinstance(value, Mapping):
        unknown = sorted(set(value) - _FIELDS, key=str)
        if unknown:
            instead = _ELSEWHERE.get(unknown[0])
            known = f"use {instead}" if instead else f"known: {sorted(_FIELDS)}"
            raise UserError(f"unknown key {unknown[0]!r} in an input; {known}")
        item = Item(**{key: entry for key, entry in value.items() if _present(entry)})
    else:
        raise UserError(f"an input must be a text or a mapping, not {type(value).__name__}")
    if not allow_empty and not _has_content(item):
        raise UserError("nothing to embed: give text, image or video")
    for key in ("text", "instruction"):
        _check_text(key, getattr(item, key))
    _check_numbers(item)
    _check_frames(item)
    if not isinstance(item.exif_orientation, bool | None):
        raise UserError(f"exif_orientation must be True or False, not {item.exif_orientation!r}")
    if item.frame_order not in FRAME_ORDERS:
        raise UserError(f"frame_order must be one of {FRAME_ORDERS}, not {item.frame_order!r}")
    return item


def _check_text(key: str, text) -> None:
    if not isinstance(text, str | None):
        raise UserError(f"{key} must be a text, not {type(text).__name__}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # an unpaired surrogate, as in truncated JSON escapes
        raise UserError(f"{key} is not valid Unicode: {error}") from error


def _check_numbers(item: Item) -> None:
    for key, least, kind in (
        ("min_frames", 1, "a whole number above 0"),
        ("max_frames", 2, "a whole number above 1"),
        ("min_pixels", 1, "a whole number above 0"),
        ("max_pixels", 1, "a whole number above 0"),
        ("total_pixels", 1, "a whole number above 0"),
    ):
        value = getattr(item, key)
        if value is not None and not (is_whole(value) and least <= value < 2**63):
            raise UserError(f"{key} must be {kind}, not {value!r}")
    for key, least, kind in (
        ("fps", math.ulp(0.0), "a number above 0"),
        ("video_start", 0.0, "a number of seconds from 0"),
        ("video_end", math.ulp(0.0), "a number of seconds above 0"),
    ):
        value = getattr(item, key)
        real = isinstance(value, Real) and not isinstance(value, bool)
        # Integers may exceed the largest float.
        if value is not None and not (real and least <= value <= sys.float_info.max):
            raise UserError(f"{key} must be {kind}, not {value!r}")
    start, end = item.video_start, item.video_end
    if None not in (start, end) and start >= end:
        raise UserError(f"video_start {start!r} is not before video_end {end!r}")
    least, most = item.min_pixels, item.max_pixels
    if None not in (least, most) and least > most:
        raise UserError(f"min_pixels {least!r} is above max_pixels {most!r}")


def _check_frames(item: Item) -> None:
    count = item.num_frames
    if count is None:
        return
    if isinstance(count, str) and count == ALL_FRAMES:
        # A missing folder is reported when it is read.
        missing = isinstance(item.video, str | os.PathLike) and not os.path.exists(item.video)
        if not (item.video is None or is_frames(item.video) or missing):
            raise UserError(
                f"num_frames {ALL_FRAMES!r} is for an array, a list or a folder of "
                "frames; for a file, set the number of frames, or fps"
            )
    elif not (is_whole(count) and count >= 2 and count % 2 == 0):
        raise UserError(
            f"num_frames must be an even number above 0, not {count!r}; {ALL_FRAMES!r} "
            "takes every frame of an array, a list or a folder"
        )
    for key in ("min_frames", "max_frames"):
        if getattr(item, key) is not None:
            raise UserError(
                f"num_frames and {key} exclude each other: {key} bounds the frames of "
                "sampling by fps"
            )
    if item.fps is not None and item.video is not None and not is_frames(item.video):
        raise UserError(
            "fps and num_frames exclude each other: both set the number of sampled frames of a file"
        )


def is_whole(value) -> bool:
    """Whether a value is an integer, of Python or numpy, and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_frames(video) -> bool:
    """Whether a video consists of frames (then `fps` is their rate) and is not a file."""
    if isinstance(video, str | os.PathLike):
        return os.path.isdir(video)
    return not isinstance(video, bytes | PassedFile)


def _has_content(item: Item) -> bool:
    if _present(item.image) or _present(item.video):
        return True
    # White space alone counts as absent.
    return not (item.text is None or (isinstance(item.text, str) and not item.text.strip()))


def _present(entry) -> bool:
    if entry is None:
        return False
    return len(entry) > 0 if isinstance(entry, str | bytes | list | tuple) else True


def source_name(media) -> str:
    """The name of a medium in messages: its path, or its type and size."""
    if isinstance(media, str | os.PathLike):
        return os.fspath(media)
    if isinstance(media, PassedFile | PassedFolder):
        return media.name
    if isinstance(media, bytes):
        return f"<{len(media)} bytes>"
    return f"<{type(media).__name__}>"
