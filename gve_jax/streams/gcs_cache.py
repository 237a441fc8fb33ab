"""Local copies of files on GCS: records are read at random, which GCS is slow at and ArrayRecord's
reader does not support.

`gs://bucket/pairs/x` is copied to CACHE/gs/bucket/pairs/x. A copy appears when it is complete, with
the size and the time of change of its original. Processes that share a cache wait for each other.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.files import atomic_write
from gve_jax.storage.filesystem import as_local_path, as_path

CACHE = "~/.cache/gve_jax/pairs"  # the default of `config.data.cache`
THREADS = 16  # files copied at once
BLOCK = 8 * 2**20  # bytes of each file in memory
PROGRESS_MIN_BYTES = 64 * 2**20  # less is copied without a progress bar
_MAGIC = frozenset("*?[")


@dataclasses.dataclass(frozen=True)
class RemoteDirectory:
    """A GCS directory and the names of its entries."""

    url: str
    names: frozenset[str]


def cache_folder(cache: str | os.PathLike) -> Path:
    """The folder that `config.data.cache` names.

    Raises:
      UserError: not a local folder.
    """
    try:
        return Path(os.path.abspath(as_local_path(cache)))
    except UserError as error:
        raise UserError(f"data.cache {cache!r} must be a local folder") from error


def local_path(url: str, cache: Path) -> Path:
    """The path of the copy of `url`. UserError for a URL that would lead out of the cache."""
    parts = url.removeprefix("gs://").rstrip("/").split("/")
    if not parts[0] or {"", ".", ".."} & set(parts):
        raise UserError(f"data.pairs: {url} is not a path in a bucket")
    return cache.joinpath("gs", *parts)


def expand(url: str) -> list[str]:
    """The sorted URLs that match a URL with `*`.

    Raises:
      UserError: no gcsfs, a `*` in the bucket's name, a bucket that cannot be listed.
    """
    parts = url.rstrip("/").split("/")
    first = next(number for number, part in enumerate(parts) if _MAGIC & set(part))
    if first < 3:
        raise UserError(f"data.pairs: {url} has a pattern in the bucket's name")
    with _translate_errors(url):
        found = as_path("/".join(parts[:first])).glob("/".join(parts[first:]))
        return sorted(os.fspath(path) for path in found)


def list_directory(url: str) -> RemoteDirectory:
    """Lists a directory. UserError: no gcsfs, no such directory, a bucket that cannot be listed."""
    url = url.rstrip("/")
    with _translate_errors(url):
        path = as_path(url)
        names = frozenset(found.name for found in path.iterdir()) if path.is_dir() else None
    if not names:
        raise UserError(f"{url}: no such directory of training pairs")
    return RemoteDirectory(url, names)


def copy(wanted: Sequence[tuple[str, Path]]) -> None:
    """Copies each (URL, path) unless the path is a copy already, many at once; shows progress.

    A file appears under its name when it is complete. Complete copies stay after an error, so that
    a repeated call resumes.

    Raises:
      UserError: no gcsfs, a file that is missing or cannot be read, a full disk.
    """
    wanted = [*dict.fromkeys(wanted)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        stamps = _all(pool, _stamp, wanted)
        left = [
            entry
            for entry in zip(wanted, stamps, strict=True)
            if not _is_copy(entry[0][1], entry[1])
        ]
        if not left:
            return
        try:
            for folder in sorted({path.parent for (_, path), _ in left}):
                stack.enter_context(_locked(folder))
                for part in folder.glob("*.part"):  # left by a killed process
                    part.unlink()
            # Another process may have copied them meanwhile.
            if left := _missing(left):
                _check_room(left)
                _copy_all(pool, left)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"data.cache: {error.filename}: {why}") from error


def _all(pool: ThreadPoolExecutor, call, arguments: Sequence, done=lambda _: None) -> list:
    """Calls `call` with each argument in threads. The first failure cancels the calls that have not
    begun."""
    futures = [pool.submit(call, argument) for argument in arguments]
    try:
        for future in as_completed(futures):
            done(future.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return [future.result() for future in futures]


def _stamp(wanted: tuple[str, Path]) -> tuple[int, int]:
    """(bytes, time of change in seconds or 0 if unknown) of a URL."""
    with _translate_errors(wanted[0]):
        found = as_path(wanted[0]).stat()
        return int(found.length), int(found.mtime or 0)


def _missing(entries: Iterable) -> list:
    return [((url, path), stamp) for (url, path), stamp in entries if not _is_copy(path, stamp)]


def _is_copy(path: Path, stamp: tuple[int, int]) -> bool:
    size, changed = stamp
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_size == size and (not changed or int(found.st_mtime) == changed)


def _check_room(left: Sequence) -> None:
    folder, size = left[0][0][1].parent, sum(size for _, (size, _) in left)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"data.cache: {size / 2**30:.1f} GiB do not fit into {folder}: "
            f"{free / 2**30:.1f} GiB are free"
        )


def _copy_all(pool: ThreadPoolExecutor, left: Sequence) -> None:
    stop, total = threading.Event(), sum(size for _, (size, _) in left)
    with progress_bar("bytes", disable=total < PROGRESS_MIN_BYTES) as progress:
        bar = progress.add_task(f"copying {len(left):,} files", total=total)
        try:
            _all(pool, functools.partial(_copy_one, stop, lambda n: progress.advance(bar, n)), left)
        finally:
            stop.set()


def _copy_one(stop: threading.Event, advance, one) -> None:
    (url, path), (size, changed) = one

    def write(file) -> None:
        copied = 0
        with contextlib.ExitStack() as stack:
            with _translate_errors(url):
                source = stack.enter_context(as_path(url).open("rb"))
            while True:
                with _translate_errors(url):
                    block = source.read(BLOCK)
                if not block or stop.is_set():
                    break
                file.write(block)
                copied += len(block)
                advance(len(block))
        if copied != size:
            raise UserError(f"{url}: only {copied:,} of {size:,} bytes arrived; repeat the command")
        file.flush()
        if changed:
            os.utime(file.fileno(), (changed, changed))

    atomic_write(path, write)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates `folder` and holds its lock against other processes that copy into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that copies into {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turns errors of the GCS client, which may be of any class, into a UserError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or directory") from error
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url}: cannot be read ({why})") from error
