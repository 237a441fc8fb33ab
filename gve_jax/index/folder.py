"""What has changed in a media folder since its index was written."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from gve_jax.errors import UserError
from gve_jax.index.filters import METADATA
from gve_jax.index.store import Media, Store
from gve_jax.media.dataset_paths import path_to_text
from gve_jax.media.suffixes import possible_kinds
from gve_jax.media.walk import walk
from gve_jax.storage.digests import file_sha256


@dataclasses.dataclass(frozen=True)
class File:
    """A media file as it was found.

    Attributes:
      path: relative to the media folder, as text.
      real: its path without links.
      size, mtime_ns: then.
      sha256: where it had to be known; None otherwise.
    """

    path: str
    real: str
    size: int
    mtime_ns: int
    sha256: str | None = None

    def is_unchanged(self) -> bool:
        """Whether the file still has the same size and time of modification."""
        try:
            status = os.stat(self.real)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclasses.dataclass
class Comparison:
    """Differences between a folder and its index.

    Attributes:
      pending: files to read, in the order of their paths: new, or with another content.
      moved: files of the index with the path that their content has now.
      touched: files with the same content and another time of modification.
      gone: files of the index that are not in the folder.
      forgotten: paths of unreadable files that are not in the folder.
      busy: paths of files that changed while they were read.
      unchanged: number of files that are as in the index.
    """

    pending: list[File] = dataclasses.field(default_factory=list)
    moved: list[tuple[Media, File]] = dataclasses.field(default_factory=list)
    touched: list[tuple[Media, File]] = dataclasses.field(default_factory=list)
    gone: list[Media] = dataclasses.field(default_factory=list)
    forgotten: list[str] = dataclasses.field(default_factory=list)
    busy: list[str] = dataclasses.field(default_factory=list)
    unchanged: int = 0

    def operations(self) -> list[dict]:
        """The changes of the journal that need no vectors."""
        changes = [
            {"change": media.id, "fields": {"path": file.path, "mtime_ns": file.mtime_ns}}
            for media, file in (*self.moved, *self.touched)
        ]
        removed = [{"remove": media.id} for media in self.gone]
        return removed + changes + [{"forget": path} for path in self.forgotten]


def list_media(
    root: Path, *, follow_links: bool = False, report: Callable[[str], object] = print
) -> list[File]:
    """The videos and images below a folder, by their names' suffixes, in the order of their paths.

    Args:
      follow_links: links are followed, also out of the folder; otherwise they are passed over.
      report: called with lines about what was passed over.

    Raises:
      UserError: no such folder, or one that cannot be listed.
    """
    listing = walk(root, possible_kinds, follow_links=follow_links, skip_links=not follow_links)
    if (root / METADATA).is_file():
        listing.others -= {os.path.splitext(METADATA)[1]: 1}
    if others := listing.not_wanted():
        report(f"{root}: {others}, neither videos nor images by their names")
    if passed_over := listing.passed_over():
        report(f"{root}: {passed_over}")
    files = (look_at(entry.path, entry.name) for entry in listing.files)
    return [file for file in files if file is not None]


def look_at(real: str, name: str) -> File | None:
    """A file as it is now; None if it does not exist any more."""
    try:
        status = os.stat(real)
    except OSError:
        return None
    return File(path_to_text(name), real, status.st_size, status.st_mtime_ns)


def compare(store: Store, files: list[File], root: Path, retry: bool = False) -> Comparison:
    """Compares an index with the files of its folder.

    A file of the same path, size and time of modification is taken for unchanged. Any other whose
    size is that of a file of the index is read for its digest, which tells whether it was touched,
    or is a file of the index under another name.

    Args:
      retry: whether unreadable files that have not changed are read again.

    Raises:
      UserError: the folder has no media, and the index has.
    """
    if not files and store.media:
        raise UserError(
            f"{root} has no videos or images, but its index has {len(store.media):,}: is the "
            "folder mounted? To empty the index, delete it"
        )
    found, present = Comparison(), {file.path for file in files}
    unsure, displaced = [], {m.id: m for m in store.media.values() if m.path not in present}
    for file in files:
        media = store.media.get(store.paths.get(file.path, -1))
        known = media or store.unreadable.get(file.path)
        same = known and (known.size, known.mtime_ns) == (file.size, file.mtime_ns)
        if same and (media or not retry):
            found.unchanged += 1
        else:
            unsure.append((file, media))
    sizes = {media.size for media in store.media.values()}
    new = []
    for file, media in unsure:
        if file.size in sizes:
            try:
                digest = file_sha256(file.real)
            except OSError:
                digest = None  # reading it as a medium will say why
            if digest is not None and not file.is_unchanged():
                found.busy.append(file.path)
                continue
            file = dataclasses.replace(file, sha256=digest)
        if media and media.sha256 == file.sha256:
            found.touched.append((media, file))
            continue
        if media:
            displaced[media.id] = media
        new.append(file)
    by_digest: dict[str, list[Media]] = {}
    for media in reversed(displaced.values()):
        by_digest.setdefault(media.sha256, []).append(media)
    for file in new:
        if matches := by_digest.get(file.sha256):
            media = matches.pop()
            del displaced[media.id]
            found.moved.append((media, file))
        else:
            found.pending.append(file)
    pending = {file.path for file in found.pending}
    # A file whose content has changed stays until its new moments are complete.
    found.gone = [media for media in displaced.values() if media.path not in pending]
    found.forgotten = [path for path in store.unreadable if path not in present]
    return found
