"""Reads a set from its released archive: `NAME.tar.gz.part00`, `.part01`, ..., in order.

The parts are read as one stream, without a joined copy. Archives are untrusted: only regular files
and folders below the set's folder are read, under limits.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gve_jax.errors import UserError

BLOCK = 1 << 20
_HEADER_BYTES = 1 << 20  # limit for long names and pax fields, which tarfile reads into memory
_LONG = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

# called with a path inside the set, its size, its content
Take = Callable[[str, int, Iterator[bytes]], None]


@dataclass(frozen=True)
class Limits:
    """Limits for one archive.

    files: number of members. file_bytes: size of one file. expansion: total bytes of files per byte
    of archive; video does not compress, so a larger ratio is a decompression bomb. `spare` bytes
    are always allowed.
    """

    files: int = 4_000_000
    file_bytes: int = 64 << 30
    expansion: float = 20.0
    spare: int = 1 << 30


def find_parts(folder: Path, name: str) -> list[Path]:
    """The parts of a set's archive in `folder`, in order, or `NAME.tar.gz` itself.

    Raises:
      UserError: a part is missing or exists twice, or both parts and `NAME.tar.gz` exist.
    """
    whole = folder / f"{name}.tar.gz"
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = re.fullmatch(re.escape(whole.name) + r"\.part(\d+)", path.name)
        if found is None:
            continue  # such as .part00.incomplete of a download in progress
        number = int(found[1])
        if number in numbered:
            raise UserError(f"{name}: {numbered[number].name} and {path.name} are the same part")
        numbered[number] = path
    if whole.is_file():
        if numbered:
            raise UserError(f"{name}: both {whole.name} and its parts exist; keep one of them")
        return [whole]
    order = sorted(numbered)
    for expected, number in enumerate(order, start=min(order[0], 1) if order else 0):
        if number != expected:
            raise UserError(f"{name}: part {expected:02} is missing before {numbered[number].name}")
    return [numbered[number] for number in order]


class Parts(io.RawIOBase):
    """Concatenated bytes of several files; forward only.

    position: bytes read so far. path: the current file.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths, self._file = iter(paths), None
        self.position, self.path = 0, paths[0]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            if self._file is None:
                path = next(self._paths, None)
                if path is None:
                    return 0
                self._file, self.path = open(path, "rb", buffering=0), path
            if count := self._file.readinto(buffer):
                self.position += count
                return count
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def scan(
    parts: Sequence[Path],
    name: str,
    take: Take,
    limits: Limits | None = None,
    tick: Callable[[int], None] = lambda position: None,
) -> None:
    """Calls `take` with every file of the archive, in the archive's order.

    Args:
      parts: from `find_parts`.
      name: of the set; `UVRB/NAME/` and `NAME/` before a path are its folder.
      take: need not read the content to its end; its exceptions pass through.
      tick: called with the bytes of the parts read so far.

    Raises:
      UserError: an archive that is truncated or damaged, a path that is absolute or leaves the
        folder, a link, a device, a duplicate name, more than `limits` allow.
    """
    limits = limits or Limits()
    stream = Parts(parts)
    allowed = limits.spare + limits.expansion * sum(path.stat().st_size for path in parts)
    seen: set[str] = set()
    total, last = 0, "its beginning"
    try:
        with (
            stream,
            gzip.GzipFile(fileobj=io.BufferedReader(stream, BLOCK)) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Header) as tar,
        ):
            for member in tar:
                tar.members.clear()  # tarfile would store all of them
                path = _inside(member, name)
                if not member.isreg():
                    continue
                if not path or path in seen:
                    raise UserError(f"{name}: the archive contains {member.name!r} twice")
                seen.add(path)
                total += member.size
                if member.size > limits.file_bytes:
                    raise UserError(
                        f"{name}: {path} of {member.size:,} bytes is above the limit "
                        f"of {limits.file_bytes:,}"
                    )
                if total > allowed or len(seen) > limits.files:
                    raise UserError(
                        f"{name}: the archive expands to more than {total:,} bytes in "
                        f"{len(seen):,} files, above the limit"
                    )
                take(path, member.size, _blocks(tar.extractfile(member), member, name))
                last = path
                tick(stream.position)
            # tarfile stops at any unreadable header; gzip checks its checksum at the end only.
            while block := tar.fileobj.read(BLOCK):
                if block.count(0) != len(block):
                    raise UserError(f"{name}: the archive is damaged after {last}")
            tick(stream.position)
    except EOFError as error:
        raise UserError(
            f"{name}: the archive ends too early, in {stream.path.name} after {last}: a part is "
            "truncated, or the last parts are missing"
        ) from error
    except _TooLong as error:
        raise UserError(f"{name}: the archive has a header of {error} bytes after {last}") from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{name}: the archive is damaged in {stream.path.name} after {last} ({error})"
        ) from error


class _TooLong(Exception):
    """A header is too long; `scan` raises a UserError that names the set."""


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, *arguments):
        header = super().frombuf(*arguments)
        if header.type in _LONG and header.size > _HEADER_BYTES:
            raise _TooLong(f"{header.size:,}")
        return header


def _inside(member: tarfile.TarInfo, name: str) -> str:
    """The path of a member inside the set's folder."""
    given = member.name
    parts = [part for part in PurePosixPath(given).parts if part != "."]
    if given.startswith("/") or ".." in parts or "\0" in given:
        raise UserError(f"{name}: the archive's path {given!r} leaves its folder")
    if member.issym() or member.islnk():
        raise UserError(f"{name}: the archive contains a link, {given!r} to {member.linkname!r}")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise UserError(f"{name}: the archive's {given!r} is neither a file nor a folder")
    try:
        tarfile.data_filter(member, "/")  # Python's rules, which may become stricter
    except tarfile.FilterError as error:
        raise UserError(f"{name}: the archive's {given!r} is refused ({error})") from error
    for folder in ("UVRB", name):
        if parts[:1] == [folder]:
            parts = parts[1:]
    return "/".join(parts)


def _blocks(file, member: tarfile.TarInfo, name: str) -> Iterator[bytes]:
    left = member.size
    while left:
        block = file.read(min(BLOCK, left))
        if not block:
            raise UserError(f"{name}: the archive ends too early, in {member.name!r}")
        left -= len(block)
        yield block
