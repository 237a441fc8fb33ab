"""Folders of Google Cloud Storage, `gs://bucket/run`, where a local path may stand.

`as_path` makes of a name what the library opens: a `pathlib.Path`, or for a bucket an `epath.Path`,
which has the same methods. A bucket holds whole objects: one appears when its last byte is there,
so none needs another name first, and nothing can be appended to one (`learning/records.py`).
"""

import argparse
import contextlib
import errno
import fnmatch
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from gve_jax.errors import UserError
from gve_jax.storage.digests import json_sha256

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BLOCK = 1 << 25  # bytes of an object that are sent at a time, and held


def is_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith("gs://")


def as_path(name: str | os.PathLike) -> Path:
    """A local path, with `~` for the home folder, or one of a bucket: the one function that every
    path of a command line or a configuration goes through.

    Raises:
      UserError: an empty path; a URL of another kind; gs:// without its client, or without
        credentials; a home folder that is unknown.
    """
    text = os.fspath(name)
    if not _URL.match(text):
        return as_local_path(text)
    if not is_bucket(text):
        raise UserError(f"{text}: only gs:// URLs can be read and written")
    bucket = text.removeprefix("gs://").partition("/")[0]
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{text}: {bucket!r} is not a bucket name")
    if {".", ".."} & set(text.split("/")):  # names like others there; of a copy they lead elsewhere
        raise UserError(f"{text}: no . and .. in a bucket")
    if "[" in text:  # its client looks for files by patterns
        raise UserError(f"{text}: no [ in a path of a bucket")
    _client()
    return epath.Path(text)


def as_local_path(name: str | os.PathLike) -> Path:
    """As `as_path`, but UserError for a path that is not on this machine."""
    text = os.fspath(name)
    if not text.strip():
        raise UserError(f"{text!r} is not a path: it is empty")
    if "\0" in text:
        raise UserError(f"{text!r} is not a path: it has a NUL character")
    if _URL.match(text):
        raise UserError(f"{text}: must be a local path, not a URL")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.split("/")[0]
        raise UserError(f"{text}: no such directory, as {user} is not a user's home") from error


def any_path(text: str) -> Path:
    """The `type=` of an option of argparse that takes a path, also of a bucket."""
    try:
        return as_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_path(text: str) -> Path:
    """As `any_path`, for a path that must be on this machine."""
    try:
        return as_local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def in_workdir(text: str, workdir: str | os.PathLike) -> str:
    """A path of a configuration with `{workdir}` replaced; other braces are part of the path."""
    return text.replace("{workdir}", os.fspath(workdir))


def write_object(path: epath.Path, write: Callable[[BinaryIO], object]) -> None:
    """`path` holds what it held before or all that `write` writes, which is sent as it comes.

    Raises:
      OSError: it names `path`, and why it could not be written.
    """
    with translate_gcs_errors(path):
        file = _client().open(os.fspath(path), "wb", block_size=_BLOCK)
        try:
            write(file)
        except BaseException:
            # Closing it, which its end would do as well, makes an object of the half that is there.
            file.closed = True
            with contextlib.suppress(Exception):  # what ended the write is reported, not this
                file.discard()
            raise
        file.close()


def local_copy(folder: epath.Path, names: Sequence[str]) -> Path:
    """The objects of `folder`, not of folders in it, that match one of `names`, as local files.

    They are downloaded once, to `~/.cache/gve_jax` (or `XDG_CACHE_HOME`), and again when any of
    them has changed: a copy is of the generations that one listing names.

    Raises:
      UserError: no such object, or the bucket cannot be read.
    """
    client, place = _client(), os.fspath(folder).removeprefix("gs://").rstrip("/")
    try:
        with translate_gcs_errors(folder):
            listed = client.ls(place, detail=True)
    except FileNotFoundError:
        listed = []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    found = {
        entry["name"].removeprefix(f"{place}/"): (entry.get("generation"), entry["size"])
        for entry in listed
        if entry["type"] == "file" and entry["name"].startswith(f"{place}/")
    }
    found = {
        name: state
        for name, state in sorted(found.items())
        if any(fnmatch.fnmatchcase(name, wanted) for wanted in names)
    }
    if not found:
        raise UserError(f"{folder}: no such directory")
    key = json_sha256(found)[:16]
    copy = _cache() / place / key
    if copy.is_dir():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=copy.parent))
    try:
        for name, (_, size) in found.items():
            with translate_gcs_errors(folder / name):
                client.get_file(f"{place}/{name}", os.fspath(part / name))
            if (part / name).stat().st_size != size:
                raise UserError(f"{folder / name}: changed while it was read; repeat the command")
        with contextlib.suppress(OSError):  # another process was faster
            part.rename(copy)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return copy


@contextlib.contextmanager
def translate_gcs_errors(path: str | os.PathLike) -> Iterator[None]:
    """What the client raises becomes an OSError that names `path` and says why in one line."""
    try:
        yield
    except Exception as error:
        if not (found := _reason(error)):
            raise
        number, why = found
        raise OSError(number, why, os.fspath(path)) from error


def _reason(error: Exception) -> tuple[int, str] | None:
    """(errno, one line); None for what is no error of the client."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        if error.errno is not None:  # of this machine
            return None
        if isinstance(error, FileNotFoundError):
            return errno.ENOENT, "no such object, or no such bucket"
        if text.startswith("Forbidden"):
            return errno.EACCES, f"permission denied ({text[:300]})"
        return errno.EIO, text[:300] or type(error).__name__
    # Errors of gcsfs, aiohttp, google-auth and requests have no base in common.
    if type(error).__module__.split(".")[0] in ("gcsfs", "aiohttp", "google", "requests"):
        return errno.EIO, f"the bucket does not answer ({text[:300] or type(error).__name__})"
    return None


@functools.cache
def _client() -> Any:
    """The file system of all buckets, the same that epath uses."""
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError("gs:// paths need pip install 'gve_jax[gcs]'") from error
    # Else epath takes TensorFlow where that is installed, whose files behave in other ways.
    os.environ.setdefault("EPATH_USE_TF", "0")
    # Listings that are kept would not know what Orbax, or another host, has written since.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # It logs a traceback of what it raises, and we raise in one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except Exception as error:  # of google-auth, of requests: no common base
        raise UserError(f"gs://: no usable credentials ({' '.join(str(error).split())})") from error


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gve_jax" / "buckets"
