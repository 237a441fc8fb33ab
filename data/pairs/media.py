"""Locates the media of rows, keeps them inside their folder and reads their headers."""

import base64
import binascii
import os
import re
from pathlib import Path

from data.pairs.rows import Reject
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.media.errors import MediaError
from gve_jax.media.sandbox import Sandbox

_SANDBOX = Sandbox(processes=os.cpu_count() or 1)  # as many as threads ask at once
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA = re.compile(r"data:[\w/+.-]*;base64,")


def is_medium(value: object) -> bool:
    """Whether a value holds a file: bytes, or the `{"bytes", "path"}` of Hugging Face `datasets`
    (its Image and Video features, as Parquet stores them)."""
    return isinstance(value, bytes) or (
        isinstance(value, dict) and bool(value) and value.keys() <= {"bytes", "path"}
    )


def locate(value: object, root: Path) -> bytes | Path:
    """What a row gives as a medium -> its bytes, or the true path of a file inside `root`.

    Args:
      value: a path, absolute or from `root`; a `data:` URI in base64; bytes; `{"bytes", "path"}`,
        where bytes (in JSON: their base64) come before the path.
      root: the folder that no path may leave.

    Raises:
      Reject: another type, a URL, bad base64, a path that leaves `root`, no such file.
    """
    if isinstance(value, dict) and is_medium(value):
        data = value.get("bytes")
        if data is None:
            return locate(value.get("path"), root)
        return _decode(data) if isinstance(data, str) else locate(data, root)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Reject("wrong type", f"a medium is a path or bytes, not {type(value).__name__}")
    if match := _DATA.match(value):
        return _decode(value[match.end() :])
    if _URL.match(value):
        raise Reject("a URL", f"{value}: download it and name the file")
    try:
        path = inside(root, value, "path")
    except UserError as error:
        raise Reject("path outside the media root", error) from error
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise Reject("no such media file", f"{value}: {what}")
    return path


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Reject("bad base64", error) from error


def check(medium: bytes | Path, kind: str | None = None) -> str:
    """Reads the header of an "image" or a "video" in the sandbox; None: as its content says.

    Returns:
      "image" or "video". An animated GIF is a video, any other animation an image.

    Raises:
      Reject: not a format that is accepted, a damaged header, too large a frame. Damage past the
        header is not noticed.
    """
    try:
        return _SANDBOX.header(medium, kind).kind
    except MediaError as error:
        raise Reject(f"unreadable {kind or 'video'}", error) from error
