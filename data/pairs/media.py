"""Locates the media of rows, keeps them inside their folder and reads their headers."""

from pathlib import Path

from gve_jax.distributed.cores import usable_cores
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside
from gve_jax.media.errors import MediaError
from gve_jax.media.sandbox import Sandbox
from gve_jax.streams.rows import Reject

_SANDBOX = Sandbox(processes=usable_cores())  # as many as threads ask at once


def is_medium(value: object) -> bool:
    """Whether a value holds a file: bytes, or the `{"bytes", "path"}` of Hugging Face `datasets`
    (its Image and Video features, as Parquet stores them)."""
    return isinstance(value, bytes) or (
        isinstance(value, dict) and bool(value) and value.keys() <= {"bytes", "path"}
    )


def locate(medium: str | bytes, root: Path) -> bytes | Path:
    """The true path, inside `root`, of a medium of a row; bytes are returned as they are.

    Raises:
      Reject: a path that leaves `root`, no such file.
    """
    if isinstance(medium, bytes):
        return medium
    try:
        path = inside(root, medium, "path")
    except UserError as error:
        raise Reject("path outside the media root", error) from error
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise Reject("no such media file", f"{medium}: {what}")
    return path


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
