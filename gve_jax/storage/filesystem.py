"""Local paths and paths of Google Cloud Storage (GCS), `gs://bucket/run`.

`as_path` turns a name into a `pathlib.Path`, or for GCS into an `epath.Path`, which has the same
methods. A GCS object appears once its last byte is written, so it needs no temporary name, and
nothing can be appended to it (`running/records.py`).
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

from gve_jax.errors import UserError, install_command
from gve_jax.storage.digests import json_sha256

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BLOCK = 1 << 25  # bytes of an object that are buffered and sent at a time


def is_gcs_path(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith("gs://")


def as_path(name: str | os.PathLike) -> Path:
    """Returns a local path, with `~` expanded, or a GCS path. Every path of a command line or a
    configuration must pass through this function.

    Raises:
      UserError: the path is empty, or a URL other than gs://; gs:// without its client or without
        credentials; an unknown home folder.
    """
    text = os.fspath(name)
    if not _URL.match(text):
        return as_local_path(text)
    if not is_gcs_path(text):
        raise UserError(f"{text}: only gs:// URLs can be read and written")
    bucket = text.removeprefix("gs://").partition("/")[0]
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{text}: {bucket!r} is not a bucket name")
    # Plain names in GCS, but a local copy would be written to another folder.
    if {".", ".."} & set(text.split("/")):
        raise UserError(f"{text}: a gs:// path cannot contain . or ..")
    if "[" in text:  # the client would read it as a glob pattern
        raise UserError(f"{text}: a gs:// path cannot contain [")
    _client()
    return epath.Path(text)


def as_local_path(name: str | os.PathLike) -> Path:
    """As `as_path`, but raises UserError for a URL."""
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
    """The argparse `type=` of an option that takes a local or a GCS path."""
    try:
        return as_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_path(text: str) -> Path:
    """The argparse `type=` of an option that takes a local path."""
    try:
        return as_local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def in_workdir(text: str, workdir: str | os.PathLike) -> str:
    """Replaces `{workdir}` in a path of a configuration; other braces are part of the path."""
    return text.replace("{workdir}", os.fspath(workdir))


def write_object(path: epath.Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `path` with the output of `write`, which is sent in blocks, or leaves it as it was.

    Raises:
      OSError: it names `path` and the reason.
    """
    with translate_gcs_errors(path):
        file = _client().open(os.fspath(path), "wb", block_size=_BLOCK)
        try:
            write(file)
        except BaseException:
            # `close`, which the finalizer calls too, would create an object of the partial data.
            file.closed = True
            with contextlib.suppress(Exception):  # the first error is the one to report
                file.discard()
            raise
        file.close()


def local_copy(folder: epath.Path, names: Sequence[str]) -> Path:
    """Copies the objects in `folder`, without subfolders, that match a pattern of `names`.

    They are downloaded once, to `~/.cache/gve_jax` (or `XDG_CACHE_HOME`), and again when any of
    them has changed: a copy belongs to the generations in one listing. Returns the local folder.

    Raises:
      UserError: no object matches, or the folder cannot be read.
    """
    client, remote = _client(), os.fspath(folder).removeprefix("gs://").rstrip("/")
    try:
        with translate_gcs_errors(folder):
            entries = client.ls(remote, detail=True)
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    objects = {
        entry["name"].removeprefix(f"{remote}/"): (entry.get("generation"), entry["size"])
        for entry in entries
        if entry["type"] == "file" and entry["name"].startswith(f"{remote}/")
    }
    objects = {
        name: version
        for name, version in sorted(objects.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in names)
    }
    if not objects:
        raise UserError(f"{folder}: no such directory")
    key = json_sha256(objects)[:16]
    copy = user_cache("buckets") / remote / key
    if copy.is_dir():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=copy.parent))
    try:
        for name, (_, size) in objects.items():
            with translate_gcs_errors(folder / name):
                client.get_file(f"{remote}/{name}", os.fspath(part / name))
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
    """Turns the client's errors into an OSError with `path` and a reason of one line."""
    try:
        yield
    except Exception as error:
        if not (reason := _reason(error)):
            raise
        raise OSError(*reason, os.fspath(path)) from error


def _reason(error: Exception) -> tuple[int, str] | None:
    """(errno, one line); None if the error does not come from the client."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        if error.errno is not None:  # from the local file system
            return None
        if isinstance(error, FileNotFoundError):
            return errno.ENOENT, "no such object, or no such bucket"
        if text.startswith("Forbidden"):
            return errno.EACCES, f"permission denied ({text[:300]})"
        return errno.EIO, text[:300] or type(error).__name__
    # Errors of gcsfs, aiohttp, google-auth and requests have no common base class.
    if type(error).__module__.split(".")[0] in ("gcsfs", "aiohttp", "google", "requests"):
        return errno.EIO, f"GCS does not answer ({text[:300] or type(error).__name__})"
    return None


@functools.cache
def _client() -> Any:
    """The fsspec file system of GCS, which epath uses too."""
    try:
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise UserError(f"gs:// paths need {install_command('gcs')}") from error
    # Otherwise epath uses TensorFlow's file system, where installed, which behaves differently.
    os.environ.setdefault("EPATH_USE_TF", "0")
    # Cached listings would miss what Orbax, or another host, has written since.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # gcsfs logs a traceback of each error that it raises; we report errors in one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except Exception as error:  # google-auth and requests have no common base class
        raise UserError(f"gs://: no usable credentials ({' '.join(str(error).split())})") from error


def user_cache(name: str) -> Path:
    """A folder of the user's for what can be made again: `~/.cache/gve_jax/NAME`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gve_jax" / name
