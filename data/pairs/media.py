"""The media that rows name: found, kept inside their folder, and looked at without decoding."""

import base64
import binascii
import re
from pathlib import Path

from data.pairs import reader
from data.pairs.rows import Reject
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.media.suffixes import is_animated_gif

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


def kind_of(medium: bytes | Path) -> str:
    """ "image" or "video" by the file's own header, where a format does not say which it is. An
    animated GIF is a video; any other animation counts as an image."""
    if is_animated_gif(medium):
        return "video"
    try:
        check("image", medium)
    except Reject:
        return "video"
    return "image"


def check(kind: str, medium: bytes | Path) -> None:
    """Reads the header of an "image" or a "video", in a process that it may take down; what only
    decoding can find stays unfound.

    Raises:
      Reject: a format that is not accepted, a damaged header, too large a picture.
    """
    if why := reader.ask(kind, medium):
        name = f"<{len(medium)} bytes>" if isinstance(medium, bytes) else str(medium)
        raise Reject(f"unreadable {kind}", why if why.startswith(name) else f"{name}: {why}")
