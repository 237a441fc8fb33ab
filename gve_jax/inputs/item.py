"""One thing to embed: any of text, image, video, with an instruction and sampling options."""

import dataclasses
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from gve_jax.errors import UserError

FRAME_ORDERS = ("forward", "reversed", "shuffled")


@dataclasses.dataclass(frozen=True)
class Item:
    """What is embedded. A text that is a path is still a text: media go under their own keys.

    Attributes:
      text: the text of the user turn.
      image: a path, encoded bytes, a PIL image, or uint8 [H, W, 3].
      video: a path, encoded bytes, uint8 [T, H, W, 3], or a list of images (the last two with
        `fps`).
      instruction: the system turn; the model's default one when absent.
      fps: frames a second of a video that is given as frames; a file brings its own.
      num_frames: frames sampled from a video, an even number; the model's own when absent.
      max_pixels: pixels of a frame after resizing; can only lower the model's own number.
      frame_order: "reversed" and "shuffled" are controls that measure what time contributes.
    """

    text: str | None = None
    image: Any = None
    video: Any = None
    instruction: str | None = None
    fps: float | None = None
    num_frames: int | None = None
    max_pixels: int | None = None
    frame_order: str = "forward"


_FIELDS = {field.name for field in dataclasses.fields(Item)}


def as_item(value: "str | Mapping | Item") -> Item:
    """Reads an item from a text, a mapping or an item; empty values count as absent.

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
            raise UserError(f"unknown key {unknown[0]!r} in an input; known: {sorted(_FIELDS)}")
        item = Item(**{key: entry for key, entry in value.items() if _present(entry)})
    else:
        raise UserError(f"an input must be a text or a mapping, not {type(value).__name__}")
    if not any(_present(part) for part in (item.text, item.image, item.video)):
        raise UserError("an input has nothing to embed: give text, image or video")
    for key in ("text", "instruction"):
        _check_text(key, getattr(item, key))
    _check_numbers(item)
    if item.frame_order not in FRAME_ORDERS:
        raise UserError(f"frame_order must be one of {FRAME_ORDERS}, not {item.frame_order!r}")
    return item


def _check_text(key: str, text) -> None:
    if not isinstance(text, str | None):
        raise UserError(f"{key} must be a text, not {type(text).__name__}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as cut JSON escapes leave it
        raise UserError(f"{key} is not valid Unicode: {error}") from error


def _check_numbers(item: Item) -> None:
    for key, unit, kind in (("num_frames", 2, "an even"), ("max_pixels", 1, "a whole")):
        value = getattr(item, key)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and value > 0 and value % unit == 0):
            raise UserError(f"{key} must be {kind} number above 0, not {value!r}")
    if item.fps is None:
        return
    if not isinstance(item.fps, Real) or not 0 < item.fps < math.inf:
        raise UserError(f"fps must be a number above 0, not {item.fps!r}")
    if isinstance(item.video, str | os.PathLike | bytes):
        raise UserError("fps is for a video given as frames; a file brings its own (num_frames "
                        "says how many are sampled)")  # fmt: skip


def _present(entry) -> bool:
    if entry is None:
        return False
    return len(entry) > 0 if isinstance(entry, str | bytes | list | tuple) else True


def source_name(media) -> str:
    """How a message names a medium: its path, or its type and size."""
    if isinstance(media, str | os.PathLike):
        return os.fspath(media)
    if isinstance(media, bytes):
        return f"<{len(media)} bytes>"
    return f"<{type(media).__name__}>"
