"""What pairs are made from: videos with captions, of files or of a folder."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from data.pairs import media
from data.pairs.rows import Reject, input_files, read_rows
from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import path_to_text
from gve_jax.media.item import source_name
from gve_jax.media.suffixes import VIDEOS, media_kind
from gve_jax.media.walk import File, Listing, list_folder, walk

_VIDEO, _CAPTION, _ID = ("video", "path"), ("caption", "text"), ("id", "video_id")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One video as it is given: `index` in the input, `video` a path or encoded bytes; `wrong` is
    why it is none, (reason, detail)."""

    index: int
    id: str
    video: str | bytes
    caption: object
    source: str = ""
    wrong: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return source_name(self.video)

    def data(self) -> bytes:
        return self.video if isinstance(self.video, bytes) else Path(self.video).read_bytes()


def read_entries(path: Path, root: Path | None = None) -> Iterator[Entry]:
    """The videos of a .jsonl or .parquet file or a folder of such (`{"id", "video", "caption",
    "source"}`, or `path`, `text`, `video_id`), or of a folder of videos, which have no captions.

    Paths start from `root`, by default the folder of the file, and may not leave it. A row that is
    none is an entry with `wrong`; an id that was there before makes it one, too.

    Raises:
      UserError: no such file or folder, nothing in it.
    """
    seen: set[bytes] = set()  # of ids: 16 bytes each, not their text
    found = _folder(path) if _holds_videos(path) else _rows(path, root)
    count = 0
    for entry in found:
        mark = hashlib.blake2b(entry.id.encode(errors="replace"), digest_size=16).digest()
        if entry.wrong is None and mark in seen:
            entry = dataclasses.replace(entry, wrong=("an id twice", entry.id))
        seen.add(mark)
        count += 1
        yield entry
    if not count:
        raise UserError(f"{path}: holds no row")


def stamps(path: Path) -> dict[str, list[int]]:
    """Sizes and times of an input's files; of a folder of videos, their sum."""
    if not _holds_videos(path):
        stats = {str(file): file.stat() for file in input_files(path, print)}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    listing = _walk(path)
    if passed_over := listing.passed_over():
        print(f"{path}: {passed_over}")
    digest = hashlib.sha256()
    for file in _videos(path, listing):
        try:
            stat = os.stat(file.path)
            found = f"{stat.st_size} {stat.st_mtime_ns}"
        except FileNotFoundError:  # a link to nothing, which cannot be decoded
            found = "missing"
        digest.update(os.fsencode(f"{path / file.name} {found}\n"))
    return {str(path): [int.from_bytes(digest.digest()[:6])]}


def is_folder_of_videos(path: Path) -> bool:
    return _holds_videos(path)


def _holds_videos(path: Path) -> bool:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return (
        path.is_dir()
        and next(_videos(path, _walk(path)), None) is not None
        and not any(file.endswith((".jsonl", ".parquet")) for file in list_folder(path))
    )


def _walk(folder: Path) -> Listing:
    return walk(folder, lambda name: Path(name).suffix.lower() in {*VIDEOS, ".gif"})


def _videos(folder: Path, listing: Listing) -> Iterator[File]:
    """The videos, those of a folder before those of the folders in it."""

    def order(file: File) -> list[tuple[bool, str]]:
        *above, name = file.name.split("/")
        return [*((True, part) for part in above), (False, name)]

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
        for place, row in read_rows(file):
            try:
                yield _entry(index, place, row, home)
            except Reject as reject:
                id = f"{file.name}:{place.rpartition(':')[2]}"
                yield Entry(index, id, "", None, file.stem, (reject.reason, reject.detail))
            index += 1


def _entry(index: int, place: str, row: dict | Reject, home: Path) -> Entry:
    if isinstance(row, Reject):
        raise row
    file, _, number = place.rpartition(":")
    id = _first(row, _ID)
    id = f"{Path(file).name}:{number}" if id in (None, "") else id
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise Reject("wrong type", f"id is {type(id).__name__}")
    given = _first(row, _VIDEO)
    if given in (None, "", b""):
        raise Reject("missing field", "video")
    found = media.locate(given, home)
    source = row.get("source")
    source = source if isinstance(source, str) else Path(file).stem
    video = found if isinstance(found, bytes) else str(found)
    return Entry(index, str(id), video, _first(row, _CAPTION), source)


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if name in row), None)
