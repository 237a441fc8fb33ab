"""Local copies of GCS files: records are read at random, which is slow on GCS and not supported by
ArrayRecord's reader there.

`gs://bucket/pairs/x` is copied to CACHE/gs/bucket/pairs/x. A copy appears once it is complete, with
size and modification time of the original. Processes that share a cache wait for each other.
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
    """Returns the absolute path of `config.data.cache`.

    Raises:
      UserError: it is not a local folder.
    """
    try:
        return Path(os.path.abspath(as_local_path(cache)))
    except UserError as error:
        raise UserError(f"data.cache {cache!r} must be a local folder") from error


def local_path(url: str, cache: Path) -> Path:
    """Returns the path of the copy of `url`; raises UserError if it would be outside the cache."""
    parts = url.removeprefix("gs://").rstrip("/").split("/")
    if not parts[0] or {"", ".", ".."} & set(parts):
        raise UserError(f"data.pairs: {url} is not a valid gs:// path")
    return cache.joinpath("gs", *parts)


def expand(url: str) -> list[str]:
    """Returns the sorted URLs that match a URL with `*`.

    Raises:
      UserError: gcsfs is not installed; a `*` in the bucket's name; the bucket cannot be listed.
    """
    parts = url.rstrip("/").split("/")
    first = next(number for number, part in enumerate(parts) if _MAGIC & set(part))
    if first < 3:
        raise UserError(f"data.pairs: {url} has a pattern in the bucket's name")
    with _translate_errors(url):
        matches = as_path("/".join(parts[:first])).glob("/".join(parts[first:]))
        return sorted(os.fspath(path) for path in matches)


def list_directory(url: str) -> RemoteDirectory:
    """Lists a directory.

    Raises:
      UserError: gcsfs is not installed; there is no such directory, or it cannot be listed.
    """
    url = url.rstrip("/")
    with _translate_errors(url):
        path = as_path(url)
        names = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else None
    if not names:
        raise UserError(f"{url}: no such directory of training pairs")
    return RemoteDirectory(url, names)


def copy(wanted: Sequence[tuple[str, Path]]) -> None:
    """Copies each (URL, path), several at once, unless the path is a copy already; shows progress.

    A file appears under its name once it is complete. Complete copies stay after an error, so that
    a repeated call resumes.

    Raises:
      UserError: gcsfs is not installed; a file is missing or cannot be read; the disk is full.
    """
    wanted = [*dict.fromkeys(wanted)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        missing = _missing(zip(wanted, _map(pool, _stamp, wanted), strict=True))
        if not missing:
            return
        try:
            for folder in sorted({path.parent for (_, path), _ in missing}):
                stack.enter_context(_locked(folder))
                for part in folder.glob("*.part"):  # from a killed process
                    part.unlink()
            # Another process may have copied them while this one waited for the lock.
            if missing := _missing(missing):
                _check_free_space(missing)
                _copy_all(pool, missing)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"data.cache: {error.filename}: {why}") from error


def _map(pool: ThreadPoolExecutor, function, arguments: Sequence) -> list:
    """Calls `function` with each argument in threads. The first error cancels calls that have not
    started."""
    futures = [pool.submit(function, argument) for argument in arguments]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return [future.result() for future in futures]


def _stamp(wanted: tuple[str, Path]) -> tuple[int, int]:
    """(bytes, modification time in seconds or 0 if unknown) of a URL."""
    with _translate_errors(wanted[0]):
        status = as_path(wanted[0]).stat()
        return int(status.length), int(status.mtime or 0)


def _missing(entries: Iterable) -> list:
    return [((url, path), stamp) for (url, path), stamp in entries if not _is_copy(path, stamp)]


def _is_copy(path: Path, stamp: tuple[int, int]) -> bool:
    size, modified = stamp
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_size == size and (not modified or int(status.st_mtime) == modified)


def _check_free_space(missing: Sequence) -> None:
    folder, size = missing[0][0][1].parent, sum(size for _, (size, _) in missing)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"data.cache: {size / 2**30:.1f} GiB do not fit into {folder}: "
            f"{free / 2**30:.1f} GiB are free"
        )


def _copy_all(pool: ThreadPoolExecutor, missing: Sequence) -> None:
    stop, total = threading.Event(), sum(size for _, (size, _) in missing)
    with progress_bar("bytes", disable=total < PROGRESS_MIN_BYTES) as progress:
        bar = progress.add_task(f"copying {len(missing):,} files", total=total)
        advance = functools.partial(progress.advance, bar)
        try:
            _map(pool, functools.partial(_copy_file, stop, advance), missing)
        finally:
            stop.set()


def _copy_file(stop: threading.Event, advance, entry) -> None:
    (url, path), (size, modified) = entry

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
        if modified:
            os.utime(file.fileno(), (modified, modified))

    atomic_write(path, write)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates `folder` and holds its lock against other processes that copy into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is copying to {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turns errors of the GCS client, which have no common class, into a UserError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or directory") from error
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url}: cannot be read ({why})") from error
