"""The items of a folder of media or of a JSONL file, each with an id and a stamp of its content."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import inside, path_to_text
from gve_jax.media.item import Item, as_item
from gve_jax.media.suffixes import media_kind, possible_kinds
from gve_jax.media.walk import REMEDY, list_folder, walk
from gve_jax.storage.digests import json_sha256
from gve_jax.storage.files import read_records, unique_id


@dataclass(frozen=True)
class Entry:
    """One item, its id, and 16 hexadecimal digits that differ where its content does."""

    id: str
    item: Item
    stamp: str


def read_entries(
    path: Path,
    *,
    follow_links: bool = False,
    remedy: str = REMEDY,
    report: Callable[[str], object] = print,
) -> list[Entry]:
    """The items of a folder or a JSONL file, at least one.

    Args:
      follow_links: links below the folder, or that of the file, may lead out of it.
      remedy: what the error about a link that leaves the folder says to do.
      report: called with a line about files of a folder that are skipped.

    Raises:
      UserError: a file of the list, or a link, that leads out of the folder; a line that is no
        item, by its number; nothing to embed.
    """
    if path.is_dir():
        entries = list(_read_folder(path, follow_links, remedy, report))
    else:
        entries = list(_read_list(path, follow_links))
    if not entries:
        raise UserError(f"{path}: nothing to embed")
    return entries


def _read_list(path: Path, follow_links: bool) -> Iterator[Entry]:
    seen: set[str] = set()
    for place, record in read_records(path):
        id = unique_id(place, record, "id", seen)
        seen.add(id)
        fields, files = {key: value for key, value in record.items() if key != "id"}, []
        for key in ("image", "video"):
            if not fields.get(key):
                continue
            value = fields[key]
            frames = key == "video" and isinstance(value, list)
            names = value if frames else [value]
            paths = [
                str(inside(path.parent, name, f"{place}: {key}", follow_links=follow_links))
                for name in names
            ]
            fields[key] = paths if frames else paths[0]
            files += paths
        try:
            item = as_item(fields)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        yield Entry(id, item, _digest([record, [stamp(file, path.parent) for file in files]]))


def _read_folder(
    folder: Path, follow_links: bool, remedy: str, report: Callable
) -> Iterator[Entry]:
    """The videos and images, in the order of their paths, which are their ids (see
    `path_to_text`)."""
    listing = walk(folder, possible_kinds, follow_links=follow_links, remedy=remedy)
    for file in listing.files:
        kind = media_kind(os.path.join(folder, file.name))
        item = Item(video=file.path) if kind == "video" else Item(image=file.path)
        yield Entry(path_to_text(file.name), item, _digest([file.name, stamp(file.path, folder)]))
    if listing.others:
        report(f"{folder}: {listing.others:,} files are neither videos nor images by their names")
    if passed_over := listing.passed_over():
        report(f"{folder}: {passed_over}")


def stamp(file: str, root: str | os.PathLike) -> list:
    """What changes with the content of a file, or of a folder of frames: where it lies from
    `root`, links resolved, and its size and time, or those of each frame. Reading it all would take
    as long as embedding it."""
    place = os.path.relpath(file, os.path.realpath(root))
    if os.path.isdir(file):
        return [place, *([os.path.basename(one), size_and_time(one)] for one in list_folder(file))]
    return [place, size_and_time(file)]


def size_and_time(file: str | os.PathLike) -> tuple[int, int] | None:
    """Bytes and nanoseconds of a file, of the target of a link; None where it does not exist."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _digest(content: object) -> str:
    return json_sha256(content)[:16]
