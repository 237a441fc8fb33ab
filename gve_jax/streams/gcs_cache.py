"""Local copies of what lies in a bucket: record files are read at random, which a bucket is bad at,
and ArrayRecord's reader cannot do at all.

`gs://bucket/pairs/x` is copied to CACHE/gs/bucket/pairs/x; a file there is whole, of the size and
the time of change of its original. Processes that share a cache wait for each other.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.files import atomic_write
from gve_jax.storage.filesystem import as_local_path, as_path

CACHE = "~/.cache/gve_jax/pairs"  # the default of `config.data.cache`
THREADS = 16  # files copied at once
BLOCK = 8 * 2**20  # bytes of each in memory
SHOWN = 64 * 2**20  # bytes from which on progress is shown
_MAGIC = frozenset("*?[")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A directory in a bucket, and the names of what it holds."""

    url: str
    names: frozenset[str]


def cache_folder(cache: str | os.PathLike) -> Path:
    """The folder that `config.data.cache` names.

    Raises:
      UserError: none, or one in a bucket.
    """
    try:
        return Path(os.path.abspath(as_local_path(cache)))
    except UserError as error:
        raise UserError(f"data.cache {cache!r} must be a local folder") from error


def local_path(url: str, cache: Path) -> Path:
    """Where the copy of `url` is. UserError for a URL that would lead out of the cache."""
    parts = url.removeprefix("gs://").rstrip("/").split("/")
    if not parts[0] or {"", ".", ".."} & set(parts):
        raise UserError(f"data.pairs: {url} is no path in a bucket")
    return cache.joinpath("gs", *parts)


def expand(url: str) -> list[str]:
    """The sorted URLs that a URL with `*` matches; no `*` in the bucket's name.

    Raises:
      UserError: no gcsfs, a bucket that cannot be listed.
    """
    parts = url.rstrip("/").split("/")
    first = next(number for number, part in enumerate(parts) if _MAGIC & set(part))
    if first < 3:
        raise UserError(f"data.pairs: {url} has a pattern in the bucket's name")
    with _told(url):
        found = as_path("/".join(parts[:first])).glob("/".join(parts[first:]))
        return sorted(os.fspath(path) for path in found)


def list_bucket(url: str) -> Bucket:
    """UserError: no gcsfs, no such directory, a bucket that cannot be listed."""
    url = url.rstrip("/")
    with _told(url):
        path = as_path(url)
        names = frozenset(found.name for found in path.iterdir()) if path.is_dir() else None
    if not names:
        raise UserError(f"{url}: no such directory of training pairs")
    return Bucket(url, names)


def copy(wanted: Sequence[tuple[str, Path]]) -> None:
    """Copies each (URL, path) whose path does not hold it yet, many at once; shows progress.

    A file appears under its name when it is whole. What was copied stays when another cannot be:
    repeated, it goes on from there.

    Raises:
      UserError: no gcsfs, a file that is not there or cannot be read, a full disk.
    """
    wanted = [*dict.fromkeys(wanted)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        stamps = _all(pool, _stamp, wanted)
        left = [one for one in zip(wanted, stamps, strict=True) if not _is_copy(one[0][1], one[1])]
        if not left:
            return
        try:
            for folder in sorted({path.parent for (_, path), _ in left}):
                stack.enter_context(_locked(folder))
                for part in folder.glob("*.part"):  # of a killed process
                    part.unlink()
            # Another process may have copied them meanwhile.
            if left := [one for one in left if not _is_copy(one[0][1], one[1])]:
                _check_room(left)
                _copy_all(pool, left)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"data.cache: {error.filename}: {why}") from error


def _all(pool: ThreadPoolExecutor, call, arguments: Sequence, done=lambda _: None) -> list:
    """`call` of each argument, in threads. The first failure ends all: `call` of those that have
    not begun is not made."""
    futures = [pool.submit(call, argument) for argument in arguments]
    try:
        for future in as_completed(futures):
            done(future.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return [future.result() for future in futures]


def _stamp(one: tuple[str, Path]) -> tuple[int, int]:
    """(bytes, time of change in seconds, 0 if unknown) of a URL."""
    with _told(one[0]):
        found = as_path(one[0]).stat()
        return int(found.length), int(found.mtime or 0)


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
            f"data.cache: {size / 2**30:.1f} GiB are to be copied to {folder}, where "
            f"{free / 2**30:.1f} GiB are free"
        )


def _copy_all(pool: ThreadPoolExecutor, left: Sequence) -> None:
    stop, total = threading.Event(), sum(size for _, (size, _) in left)
    with progress_bar("bytes", disable=total < SHOWN) as progress:
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
            with _told(url):
                source = stack.enter_context(as_path(url).open("rb"))
            while True:
                with _told(url):
                    block = source.read(BLOCK)
                if not block or stop.is_set():
                    break
                file.write(block)
                copied += len(block)
                advance(len(block))
        if copied != size:
            raise UserError(f"{url}: {copied:,} of {size:,} bytes came; repeat the command")
        file.flush()
        if changed:
            os.utime(file.fileno(), (changed, changed))

    atomic_write(path, write)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that copy into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that copies to {folder}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What a file system of a bucket raises, which may be anything, as one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or directory") from error
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url}: cannot be read ({why})") from error
