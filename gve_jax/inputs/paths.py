"""Where the paths that a dataset names may lead: nowhere outside of the dataset's own folder."""

import os
from pathlib import Path

from gve_jax.errors import UserError


def inside(root: str | os.PathLike, path: object, what: str) -> Path:
    """The true path, free of links, of what a dataset calls `path`; it need not exist.

    A manifest is somebody else's text: were it followed anywhere, vectors of private files would
    be made, or a device be read. Links are followed first and judged by where they end, in each
    part of the path, and in the files of a folder that is a video's frames. What is returned has no
    link left that could be pointed elsewhere before the file is opened. A hard link is a file like
    any other: who can make one can read the file.

    Args:
      root: the folder that must not be left; may itself be a link.
      path: relative to `root`, or absolute.
      what: names the path in errors, `data.jsonl:7: video`.

    Raises:
      UserError: no text, an empty one or one with a NUL; a path that leads outside of `root`.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise UserError(f"{what} {path!r} is not a path")
    try:
        home = os.path.realpath(root)
        real = os.path.realpath(os.path.join(home, path))
        entries = os.listdir(real) if os.path.isdir(real) else []
        ends = [real, *(os.path.realpath(os.path.join(real, entry)) for entry in entries)]
    except (OSError, ValueError) as error:  # no permission; halves of surrogate pairs
        raise UserError(f"{what} {path!r} cannot be followed ({error})") from error
    for end in ends:
        if os.path.commonpath([home, end]) != home:
            raise UserError(f"{what} {path!r} leaves the folder {root}")
    return Path(real)
