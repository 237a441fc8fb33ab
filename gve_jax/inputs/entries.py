"""The items of a folder of media or of a JSONL file, each with an id and a stamp of its content."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside, path_to_text
from gve_jax.media.item import Item, as_item
from gve_jax.media.suffixes import media_kind, possible_kinds
from gve_jax.media.walk import REMEDY, list_folder, walk
from gve_jax.storage.digests import file_sha256, json_sha256
from gve_jax.storage.files import read_records, unique_id


@dataclass(frozen=True)
class Entry:
    """An item of a folder or a list.

    Attributes:
      id: unique.
      item: its media are real paths.
      stamp: 16 hexadecimal digits that change with the id, options, text, and path, size or time of
        the media.
      meta: the JSON value under `meta` in a list, which is stored with the vector.
    """

    id: str
    item: Item
    stamp: str
    meta: object = None

    def content(self) -> str | None:
        """Digest of all that the vector depends on: text, options and the bytes of the media, which
        are read; None if they cannot be. It does not depend on names and times of files."""
        fields = {
            field.name: value
            for field in dataclasses.fields(Item)
            if field.name not in ("image", "video")
            and (value := getattr(self.item, field.name)) != field.default
        }
        try:
            media = [_media_digest(medium) for medium in (self.item.image, self.item.video)]
        except OSError:
            return None
        return json_sha256([fields, media], sort_keys=True)[:32]


def read_entries(
    path: Path,
    *,
    follow_links: bool = False,
    remedy: str = REMEDY,
    report: Callable[[str], object] = print,
) -> list[Entry]:
    """Reads the items of a folder or a JSONL file.

    Args:
      follow_links: whether links may lead out of the folder, or out of that of the file.
      remedy: end of the line about links that lead out of the folder, which are passed over.
      report: called with lines about files of a folder that are passed over.

    Raises:
      UserError: a path of a file that leads out of its folder; a line that is not an item, with its
        number; no items.
    """
    if path.is_dir():
        entries = list(_read_folder(path, follow_links, remedy, report))
    elif path.is_file() and (kinds := possible_kinds(path)):
        raise UserError(
            f"{path}: a file of the kind {kinds[0]}; give its folder, or a JSONL file with a line "
            f'such as {{"id": "1", "{kinds[0]}": "{path.name}"}}'
        )
    else:
        entries = list(_read_list(path, follow_links))
    if not entries:
        raise UserError(f"{path}: nothing to embed")
    return entries


def _read_list(path: Path, follow_links: bool) -> Iterator[Entry]:
    seen: set[str] = set()
    for location, record in read_records(path):
        id = unique_id(location, record, "id", seen)
        seen.add(id)
        meta = record.pop("meta", None)
        fields, files = {key: value for key, value in record.items() if key != "id"}, []
        for key in ("image", "video"):
            if not fields.get(key):
                continue
            value = fields[key]
            frames = key == "video" and isinstance(value, list)
            names = value if frames else [value]
            paths = [
                str(inside(path.parent, name, f"{location}: {key}", follow_links=follow_links))
                for name in names
            ]
            fields[key] = paths if frames else paths[0]
            files += paths
        try:
            item = as_item(fields)
        except UserError as error:
            raise UserError(f"{location}: {error}") from error
        digest = _digest([record, [stamp(file, path.parent) for file in files]])
        yield Entry(id, item, digest, meta)


def _read_folder(
    folder: Path, follow_links: bool, remedy: str, report: Callable
) -> Iterator[Entry]:
    """The videos and images, in the order of their paths, which are their ids (see
    `path_to_text`)."""
    listing = walk(folder, possible_kinds, follow_links=follow_links, skip_leaving=True)
    for file in listing.files:
        kind = media_kind(os.path.join(folder, file.name))
        item = Item(video=file.path) if kind == "video" else Item(image=file.path)
        yield Entry(path_to_text(file.name), item, _digest([file.name, stamp(file.path, folder)]))
    if others := listing.not_wanted():
        heic = {".heic", ".heif"} & listing.others.keys()
        advice = "; HEIC is not read: convert such images to JPEG" if heic else ""
        report(f"{folder}: passed over {others}, neither videos nor images by their names{advice}")
    if passed_over := listing.passed_over():
        report(f"{folder}: {passed_over}" + (f"; {remedy}" if listing.leaving else ""))


def _media_digest(medium: str | list[str] | None) -> object:
    """Digests of a file, of the files of a list, or of the frames of a folder with their names,
    which order them."""
    if medium is None:
        return None
    if isinstance(medium, list):
        return [file_sha256(frame) for frame in medium]
    if os.path.isdir(medium):
        return {os.path.basename(frame): file_sha256(frame) for frame in list_folder(medium)}
    return file_sha256(medium)


def stamp(file: str, root: str | os.PathLike) -> list:
    """Returns a value that changes with the content of a file or a folder of frames: the path from
    `root`, links resolved, with size and time, or those of each frame. (Reading all content would
    take as long as embedding it.)"""
    path = os.path.relpath(file, os.path.realpath(root))
    if os.path.isdir(file):
        frames = list_folder(file)
        return [path, *([os.path.basename(frame), size_and_time(frame)] for frame in frames)]
    return [path, size_and_time(file)]


def size_and_time(file: str | os.PathLike) -> tuple[int, int] | None:
    """Size in bytes and modification time in ns of a file or a link's target; None if missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _digest(content: object) -> str:
    return json_sha256(content)[:16]
