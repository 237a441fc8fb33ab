"""Reads the input of a synthesis: videos with captions from files, or a folder of videos."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data.pairs import media
from data.pairs.rows import input_files, read_rows
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import path_to_text
from gve_jax.media.item import source_name
from gve_jax.media.suffixes import media_kind, possible_kinds
from gve_jax.media.walk import File, Listing, list_folder, walk
from gve_jax.streams.rows import Reject, parse_medium

_VIDEO, _CAPTION, _ID = ("video", "path"), ("caption", "text"), ("id", "video_id")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the input.

    Attributes:
      index: its number in the input.
      video: a path or the encoded file.
      problem: (reason, detail) if the row is rejected.
    """

    index: int
    id: str
    video: str | bytes
    caption: object
    source: str = ""
    problem: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return source_name(self.video)

    def data(self) -> bytes:
        return self.video if isinstance(self.video, bytes) else Path(self.video).read_bytes()


def read_entries(path: Path, root: Path | None = None) -> Iterator[Entry]:
    """Reads a .jsonl or .parquet file, a folder of such files, or a folder of videos.

    Rows have `id`, `video`, `caption` and `source`, or `video_id`, `path` and `text`. Videos of a
    folder have no captions. A malformed row and one with an id that occurred before are entries
    with a `problem`.

    Args:
      root: folder that paths start from and may not leave; by default the folder of the file.

    Raises:
      UserError: no such file or folder, or nothing in it.
    """
    seen: set[bytes] = set()  # digests of ids, for constant memory per row
    entries = _folder(path) if is_folder_of_videos(path) else _rows(path, root)
    count = 0
    for entry in entries:
        digest = hashlib.blake2b(entry.id.encode(errors="replace"), digest_size=16).digest()
        if entry.problem is None and digest in seen:
            entry = dataclasses.replace(entry, problem=("an id twice", entry.id))
        seen.add(digest)
        count += 1
        yield entry
    if not count:
        raise UserError(f"{path}: no rows")


def stamps(path: Path) -> dict[str, list[int]]:
    """Sizes and modification times of the input's files; one digest for a folder of videos."""
    if not is_folder_of_videos(path):
        stats = {str(file): file.stat() for file in input_files(path, print)}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    listing = _walk(path)
    if passed_over := listing.passed_over():
        print(f"{path}: {passed_over}")
    digest = hashlib.sha256()
    for file in _videos(path, listing):
        try:
            stat = os.stat(file.path)
            stamp = f"{stat.st_size} {stat.st_mtime_ns}"
        except FileNotFoundError:  # a broken link: rejected when it is decoded
            stamp = "missing"
        digest.update(os.fsencode(f"{path / file.name} {stamp}\n"))
    return {str(path): [int.from_bytes(digest.digest()[:6])]}


def is_folder_of_videos(path: Path) -> bool:
    """Whether a path is a folder with videos and without .jsonl or .parquet files."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return (
        path.is_dir()
        and next(_videos(path, _walk(path)), None) is not None
        and not any(file.endswith((".jsonl", ".parquet")) for file in list_folder(path))
    )


def _walk(folder: Path) -> Listing:
    return walk(folder, lambda name: "video" in possible_kinds(name))


def _videos(folder: Path, listing: Listing) -> Iterator[File]:
    """The videos, files of a folder before those of its subfolders."""

    def order(file: File) -> list[tuple[bool, str]]:
        *folders, name = file.name.split("/")
        return [*((True, folder) for folder in folders), (False, name)]

    for file in sorted(listing.files, key=order):
        if media_kind(folder / file.name) == "video":
            yield file


def _folder(folder: Path) -> Iterator[Entry]:
    for index, file in enumerate(_videos(folder, _walk(folder))):
        yield Entry(index, path_to_text(file.name), file.path, None, folder.name)


def _rows(path: Path, root: Path | None) -> Iterator[Entry]:
    index = 0
    for file in input_files(path):
        home = root or (path if path.is_dir() else file.parent)
        for location, row in read_rows(file):
            try:
                yield _entry(index, location, row, home)
            except Reject as reject:
                id = f"{file.name}:{location.rpartition(':')[2]}"
                yield Entry(index, id, "", None, file.stem, (reject.reason, reject.detail))
            index += 1


def _entry(index: int, location: str, row: dict | Reject, home: Path) -> Entry:
    if isinstance(row, Reject):
        raise row
    file, _, number = location.rpartition(":")
    id = _first(row, _ID)
    id = f"{Path(file).name}:{number}" if id in (None, "") else id
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise Reject("wrong type", f"id is {type(id).__name__}")
    video = _first(row, _VIDEO)
    if video in (None, "", b""):
        raise Reject("missing field", "video")
    video = media.locate(parse_medium(video, "video"), home)
    video = video if isinstance(video, bytes) else str(video)
    source = row.get("source")
    source = source if isinstance(source, str) else Path(file).stem
    return Entry(index, str(id), video, _first(row, _CAPTION), source)


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if name in row), None)
