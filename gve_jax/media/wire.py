"""Messages between a caller and its decoding processes: JSON headers and raw bytes.

No pickle: an answer may come from a process that a hostile file has taken over. A message is the
lengths of its two parts, a JSON header, and a body that the header describes.
"""

import json
import os
import struct
from numbers import Integral

import numpy as np
from PIL import Image

from gve_jax.media.item import Item
from gve_jax.media.pixels import load_image

PREFIX = struct.Struct("<IQ")  # bytes of the header, bytes of the body
MAX_HEADER = 1 << 20  # bytes of an answer's header
OUT_OF_MEMORY = 77  # exit status of a process that could not hold a request

_MEDIA = ("image", "video")


def pack(header: dict, body: int = 0) -> bytes:
    """A message up to its body, of which only the length is given."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), body) + text


def pack_item(item: Item, exif: bool = False) -> tuple[dict, list]:
    """(fields, buffers): the fields of an item with descriptions of its media, and their bytes.

    PIL images are sent as arrays, rotated as their EXIF orientation says where `exif` is True.

    Raises:
      MediaError: a PIL image that cannot be read.
    """
    fields, buffers = {}, []
    for key, value in vars(item).items():
        if value is None:
            continue
        if key in _MEDIA:
            value = _pack_medium(value, buffers, exif)
        elif isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)  # JSON does not take numpy's numbers
        elif not isinstance(value, str | bool):
            value = float(value)
        fields[key] = value
    return fields, buffers


def _pack_medium(value, buffers: list, exif: bool) -> dict:
    if isinstance(value, str | os.PathLike):
        return {"path": os.fspath(value)}
    if isinstance(value, list | tuple):
        return {"list": [_pack_medium(entry, buffers, exif) for entry in value]}
    if isinstance(value, Image.Image):
        value = load_image(value, exif=exif)
    if isinstance(value, bytes):
        buffers.append(memoryview(value))
        return {"bytes": len(value)}
    buffers.append(memoryview(np.ascontiguousarray(value)).cast("B"))
    return {"array": list(value.shape)}


def paths(fields: dict) -> list[str]:
    """The files and folders that a packed item names."""
    media = [fields[key] for key in _MEDIA if key in fields]
    media = [entry for medium in media for entry in medium.get("list", [medium])]
    return [entry["path"] for entry in media if "path" in entry]


def unpack_item(fields: dict, body: memoryview) -> Item:
    """The inverse of `pack_item`; arrays are views of `body`."""
    offset = 0

    def medium(value):
        nonlocal offset
        if "list" in value:
            return [medium(entry) for entry in value["list"]]
        if "path" in value:
            return value["path"]
        size = value["bytes"] if "bytes" in value else int(np.prod(value["array"], dtype=np.int64))
        part = body[offset : offset + size]
        offset += size
        if "bytes" in value:
            return bytes(part)
        return np.frombuffer(part, np.uint8).reshape(value["array"])

    media = {key: medium(fields[key]) for key in _MEDIA if key in fields}
    return Item(**(fields | media))
