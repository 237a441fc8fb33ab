"""Keeps the paths that a dataset names inside the folder of the dataset.

Also converts paths to text: a file name is bytes and need not be UTF-8.
"""

import os
import re
from pathlib import Path

from gve_jax.errors import UserError

_HUB = re.compile(r"(?:models|datasets|spaces)--.+")
_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")


def inside(root: str | os.PathLike, path: object, what: str, *, follow_links: bool = False) -> Path:
    """The real path, without links, of a `path` in a dataset; it need not exist.

    A dataset is untrusted: without this check it could make vectors of private files or read a
    device. Links are resolved first and judged by their targets, in each part of the path and in
    the files of a folder of frames. The result contains no link that could be redirected before the
    file is opened. A hard link is a file like any other: whoever can create one can read the file.

    Args:
      root: the folder that contains all files of the dataset; may be a link.
      path: relative to `root`, or absolute.
      what: names the path in errors, `data.jsonl:7: video`.
      follow_links: links below `root` are the user's and may lead anywhere; the path itself may
        not.

    Raises:
      UserError: not a text, an empty one or one with a NUL; a path that leaves `root`.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise UserError(f"{what} {path!r} is not a path")
    homes = allowed_folders(root)
    try:
        real = os.path.realpath(os.path.join(homes[0], path))
        entries = os.listdir(real) if os.path.isdir(real) else []
        ends = [real, *(os.path.realpath(os.path.join(real, entry)) for entry in entries)]
    except (OSError, ValueError) as error:  # no permission; halves of surrogate pairs
        raise UserError(f"{what} {path!r} cannot be followed ({error})") from error
    if follow_links:
        ends = [os.path.normpath(os.path.join(homes[0], path))]
        homes.append(os.path.abspath(root))
    for end in ends:
        if not is_within(end, homes):
            raise UserError(f"{what} {path!r} leaves the folder {root}")
    return Path(real)


def allowed_folders(root: str | os.PathLike) -> list[str]:
    """The real paths of the folders that links below `root` may lead to: `root` itself, and `blobs`
    if `root` is a snapshot in a cache of the Hugging Face Hub.

    There, `datasets--NAME/snapshots/REVISION/clip.mp4` is a link to `datasets--NAME/blobs/HASH`:
    `blobs` contains only files of the same repository.
    """
    home = os.path.realpath(root)
    parts = Path(home).parts
    for n in range(len(parts) - 3, -1, -1):
        if _HUB.fullmatch(parts[n]) and parts[n + 1] == "snapshots":
            return [home, os.path.join(*parts[: n + 1], "blobs")]
    return [home]


def is_within(path: str, folders: list[str]) -> bool:
    """Whether a path without links is one of the folders or lies below one."""
    return any(os.path.commonpath([folder, path]) == folder for folder in folders)


def path_to_text(path: str) -> str:
    """A path as text that any program can write and read: bytes that are not UTF-8 become
    backslash, `x` and two hexadecimal digits, and a backslash becomes two. See `text_to_path`."""
    data = os.fsencode(path).replace(b"\\", b"\\\\")
    return data.decode("utf-8", "backslashreplace")


def text_to_path(text: str) -> str:
    """The inverse of `path_to_text`."""
    data = _ESCAPE.sub(
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\", text.encode()
    )
    return os.fsdecode(data)
