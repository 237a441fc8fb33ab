"""What travels between a caller and its decoding processes: frames of JSON and raw bytes.

No pickle: what comes back is made of a hostile file, perhaps by a process that the file has taken
over. A frame is the lengths of its two parts, a JSON header, and bytes that the header describes.
"""

import dataclasses
import json
import os
import struct
from numbers import Integral

import numpy as np
from PIL import Image

from gve_jax.media.item import Item
from gve_jax.media.pixels import load_image

PREFIX = struct.Struct("<IQ")  # bytes of the header, bytes of the body
MAX_HEADER = 1 << 20  # of an answer
OUT_OF_MEMORY = 77  # exit status of a process that could not hold what it was sent

_MEDIA = ("image", "video")


def pack(header: dict, body: int = 0) -> bytes:
    """A frame up to its body, of which only the length is given."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), body) + text


def pack_item(item: Item, exif: bool = False) -> tuple[dict, list]:
    """(fields, buffers): the item's plain fields and a description of its media, and their bytes.
    PIL images travel as arrays, turned with `exif` as theirs says.

    Raises:
      MediaError: a PIL image that cannot be read.
    """
    fields, buffers = {}, []
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if field.name in _MEDIA and value is not None:
            value = _pack_medium(value, buffers, exif)
        elif isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)  # numpy's numbers are none of JSON's
        elif not isinstance(value, str | bool | None):
            value = float(value)
        fields[field.name] = value
    return fields, buffers


def _pack_medium(value, buffers: list, exif: bool) -> dict:
    if isinstance(value, list | tuple):
        return {"list": [_pack_medium(one, buffers, exif) for one in value]}
    if isinstance(value, str | os.PathLike):
        return {"path": os.fspath(value)}
    if isinstance(value, Image.Image):
        value = load_image(value, exif=exif)
    if isinstance(value, bytes):
        buffers.append(memoryview(value))
        return {"bytes": len(value)}
    buffers.append(memoryview(np.ascontiguousarray(value)).cast("B"))
    return {"array": list(value.shape)}


def paths(fields: dict) -> list[str]:
    """The files and folders that a packed item names."""
    media = [fields["image"], fields["video"]]
    media = [one for medium in media if medium for one in medium.get("list", [medium])]
    return [one["path"] for one in media if "path" in one]


def unpack_item(fields: dict, body: memoryview) -> Item:
    """The item that `pack_item` took apart; arrays are views of `body`."""
    place = 0

    def medium(value):
        nonlocal place
        if "list" in value:
            return [medium(one) for one in value["list"]]
        if "path" in value:
            return value["path"]
        size = value["bytes"] if "bytes" in value else int(np.prod(value["array"], dtype=np.int64))
        part = body[place : place + size]
        place += size
        if "bytes" in value:
            return bytes(part)
        return np.frombuffer(part, np.uint8).reshape(value["array"])

    media = {key: medium(fields[key]) for key in _MEDIA if fields[key] is not None}
    return Item(**(fields | media))
