"""Compiled programs that are kept between runs: a run compiles what no run before it has compiled.

They are JAX's persistent compilation cache, in `~/.cache/gve_jax/compiled` (or `XDG_CACHE_HOME`),
bounded. JAX's own limit of its size is not used: after a process was killed between two writes, or
on a full disk, JAX fails to write to such a cache, and to read a damaged file of any, in every
later run.
"""

import hashlib
import os
import platform
import sys
import time
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from gve_jax.storage.filesystem import user_cache

try:
    import zstandard  # if it is installed, JAX compresses with it, otherwise with zlib
except ImportError:
    zstandard = None

LIMIT = 4 << 30  # bytes
LEAST_SECONDS = 0.05  # what compiles faster is not kept
# The user's own decision about the cache.
VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
_CHECKED = "checked"  # its time of modification: files before it are known to be complete


def keep_compiled_programs() -> Path | None:
    """Keeps compiled programs in the user's cache; call it before the first one is compiled.

    Returns:
      The folder; None where the user has configured JAX's cache, or, after a line that says why,
      where the folder cannot be written.
    """
    if any(name in os.environ for name in VARIABLES):
        return None
    folder = user_cache("compiled") / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    except OSError as error:
        print(f"compiled programs are not kept: {folder}: {error.strerror}", file=sys.stderr)
        return None
    _use(folder)
    return folder


def share_compiled_programs(workdir: os.PathLike) -> None:
    """Keeps the programs of a run of several hosts in its folder: JAX writes on the first host
    only, so that a folder of each host would remain empty on the others."""
    if not any(name in os.environ for name in VARIABLES):
        _use(os.path.join(workdir, "compiled", _processor()))


def sweep(folder: Path, limit: int = LIMIT) -> None:
    """Removes incomplete files, then those that were used longest ago, down to `limit` bytes."""
    began, checked, found = time.time(), folder / _CHECKED, []
    known = checked.stat().st_mtime if checked.exists() else 0.0
    for path in folder.glob("*-cache"):
        try:
            status = path.stat()
            # Written in the last minute: perhaps another process is still writing it.
            if known - 60 <= status.st_mtime < began - 60 and not _is_complete(path):
                path.unlink()
                continue
        except FileNotFoundError:  # another process sweeps, too
            continue
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
    checked.touch()


def _use(folder: os.PathLike | str) -> None:
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    compilation_cache.reset_cache()  # a program compiled before has fixed the folder


def _is_complete(path: Path) -> bool:
    """Whether JAX can decompress the file to its end."""
    data = path.read_bytes()
    if not data.startswith(b"\x28\xb5\x2f\xfd"):
        decoder, error = zlib.decompressobj(), zlib.error
    elif zstandard:
        decoder, error = zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError
    else:
        return False
    try:
        decoder.decompress(data)
    except error:
        return False
    return decoder.eof


def _processor() -> str:
    """A name for this kind of processor: programs for a CPU use all its instructions, and a home
    folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    digest = hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
