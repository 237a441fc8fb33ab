"""Messages between a caller and its decoding processes: JSON headers and raw bytes.

No pickle: an answer may come from a process that a hostile file has taken over. A message is the
lengths of its two parts, a JSON header, and a body that the header describes. The caller opens the
files and passes their descriptors: of a single file with the request, of frames when asked for.
"""

import functools
import json
import os
import struct
from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import numpy as np
from PIL import Image

from gve_jax.media.frames import in_order
from gve_jax.media.item import Item
from gve_jax.media.pixels import load_image
from gve_jax.media.source import PassedFile, PassedFolder

PREFIX = struct.Struct("<IQ")  # bytes of the header, bytes of the body
MAX_HEADER = 1 << 20  # bytes of an answer's header
OUT_OF_MEMORY = 77  # exit status of a process that could not hold a request

_MEDIA = ("image", "video")


def pack(header: dict, body: int = 0) -> bytes:
    """A message up to its body, of which only the length is given."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), body) + text


class Packed(NamedTuple):
    """An item as a message: its fields with descriptions of its media, the bytes of media in
    memory, and the paths of files by their numbers."""

    fields: dict
    buffers: list
    files: list[str]


def pack_item(item: Item, exif: bool = False) -> Packed:
    """Prepares an item for `unpack_item`.

    PIL images are sent as arrays, rotated as their EXIF orientation says where `exif` is True.

    Raises:
      MediaError: a PIL image that cannot be read, a folder with other files than images.
    """
    packed = Packed({}, [], [])
    fields = packed.fields
    for key, value in vars(item).items():
        if value is None:
            continue
        if key in _MEDIA:
            value = _pack_medium(value, packed, exif, key == "video")
        elif isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)  # JSON does not take numpy's numbers
        elif not isinstance(value, str | bool):
            value = float(value)
        fields[key] = value
    return packed


def _pack_medium(value, packed: Packed, exif: bool, may_be_folder: bool = False) -> dict:
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        if may_be_folder and os.path.isdir(path):
            return {"folder": path, "list": [_pack_file(f, packed) for f in in_order(path, path)]}
        return _pack_file(path, packed)
    if isinstance(value, list | tuple):
        return {"list": [_pack_medium(entry, packed, exif) for entry in value]}
    if isinstance(value, Image.Image):
        value = load_image(value, exif=exif)
    if isinstance(value, bytes):
        packed.buffers.append(memoryview(value))
        return {"bytes": len(value)}
    packed.buffers.append(memoryview(np.ascontiguousarray(value)).cast("B"))
    return {"array": list(value.shape)}


def _pack_file(path: str, packed: Packed) -> dict:
    packed.files.append(path)
    return {"file": len(packed.files) - 1, "name": path}


def unpack_item(fields: dict, body: memoryview, fetch: Callable[[int], int]) -> Item:
    """The inverse of `pack_item`; arrays are views of `body`, files are `PassedFile`s.

    Args:
      fetch: returns the descriptor of a file by its number.
    """
    offset = 0

    def medium(value):
        nonlocal offset
        if "list" in value:
            entries = [medium(entry) for entry in value["list"]]
            return PassedFolder(value["folder"], entries) if "folder" in value else entries
        if "file" in value:
            return PassedFile(value["name"], functools.partial(fetch, value["file"]))
        size = value["bytes"] if "bytes" in value else int(np.prod(value["array"], dtype=np.int64))
        part = body[offset : offset + size]
        offset += size
        if "bytes" in value:
            return bytes(part)
        return np.frombuffer(part, np.uint8).reshape(value["array"])

    media = {key: medium(fields[key]) for key in _MEDIA if key in fields}
    return Item(**(fields | media))
