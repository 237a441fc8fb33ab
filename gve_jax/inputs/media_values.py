"""Media in the forms of other libraries: URIs, tensors, frames with metadata."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

import numpy as np

from gve_jax.errors import UserError

_DATA = re.compile(r"data:[^,]*?(;base64)?,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def as_medium(value, key: str):
    """Converts an image or a video to a form that `gve_jax.media.item.Item` accepts.

    `file:` URIs become paths and `data:` URIs bytes; arrays of other libraries become numpy arrays,
    also those in a list of frames.

    Args:
      value: the user's value.
      key: its key, for messages.

    Raises:
      UserError: a URL of another kind; a `data:` URI that is not base64; a tensor that numpy cannot
        read.
    """
    if isinstance(value, str):
        return _from_uri(value, key)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, list | tuple):
        return [as_medium(one, key) for one in value]
    return as_array(value, key) if is_array(value) else value


def video_fields(value, key: str) -> dict:
    """Returns the fields of an item for a video: its medium and, for Sentence Transformers'
    `{"array": frames, "video_metadata": {"fps": ...}}`, the frame rate."""
    if not isinstance(value, Mapping):
        return {"video": as_medium(value, key)}
    if "array" not in value or value.keys() - {"array", "video_metadata"}:
        raise UserError(
            f"{key} as a mapping must be {{'array': frames, 'video_metadata': {{'fps': "
            f"...}}}}, not one of {sorted(map(str, value))}"
        )
    fps = (value.get("video_metadata") or {}).get("fps")
    fields = {"video": as_medium(value["array"], key)}
    return fields if fps is None else fields | {"fps": fps}


def is_array(value) -> bool:
    """Whether a value is an array or a tensor of numbers, of any library."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSUT"
    return hasattr(value, "__dlpack__") and hasattr(value, "shape")


def as_array(value, what: str) -> np.ndarray:
    """Converts a tensor on the host to a numpy array; other tensors raise UserError."""
    try:
        return np.asarray(value)
    except Exception as error:  # a tensor of an accelerator, or one with a gradient
        raise UserError(
            f"{what} cannot be read as a numpy array ({error}): move it to the host first"
        ) from error


def _from_uri(value: str, key: str):
    if value.startswith("data:") and (match := _DATA.match(value)):
        try:
            data = base64.b64decode(value[match.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{key}: a data URI must be base64 ({error})") from error
        if not match[1] or not data:
            raise UserError(f"{key}: a data URI must be base64 and not empty")
        return data
    if not (match := _SCHEME.match(value)):
        return value
    if match[1].lower() != "file":
        raise UserError(
            f"{key}: {value!r} is a URL: download it, and give the file's path or bytes"
        )
    path = value[len("file://") :]  # as qwen-vl-utils reads it, which does not undo %20
    return path if os.path.exists(path) else unquote(path)
