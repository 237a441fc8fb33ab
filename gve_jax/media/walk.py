"""Walks a folder: what is passed over, how links are followed, what is an error."""

import collections
import dataclasses
import errno
import os
from collections.abc import Callable

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import allowed_folders, is_within

# Folders that operating systems and file servers create, in lower case.
_SYSTEM = frozenset(
    (
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "#recycle",
        "#snapshot",  # NAS
        "__macosx",
        "icon\r",  # archives and folders of macOS
        "system volume information",
        "$recycle.bin",
        "recycler",  # Windows
        "lost+found",
    )
)
TOP = 6  # suffixes of files that are not wanted that a message names
MOST_FOLDERS = 100_000  # reached by links: links to each other multiply
REMEDY = "name what it leads to as an input of its own, or copy it"


@dataclasses.dataclass(frozen=True)
class File:
    """A file below a folder: its name relative to the folder, with `/`, and its real path."""

    name: str
    path: str


@dataclasses.dataclass
class Listing:
    """The result of a walk.

    Attributes:
      files: the wanted files, by name, including links to nothing with such a name.
      others: number of files that were not wanted, by suffix in lower case.
      hidden: names of hidden and system files and folders, which are not walked.
      loops: names of links to a folder that contains them.
      dangling: names of links to nothing that are not in `files`.
      special: names of pipes, sockets and devices.
      links: names of links that were not followed.
      leaving: names of links that were not followed because they leave the folder.
    """

    files: list[File] = dataclasses.field(default_factory=list)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    hidden: list[str] = dataclasses.field(default_factory=list)
    loops: list[str] = dataclasses.field(default_factory=list)
    dangling: list[str] = dataclasses.field(default_factory=list)
    special: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)
    leaving: list[str] = dataclasses.field(default_factory=list)

    def not_wanted(self) -> str:
        """The number of files that were not wanted, with the commonest suffixes: `3 files (2 .txt,
        1 .heic)`; "" if there are none."""
        total = self.others.total()
        if not total:
            return ""
        shown = [f"{count:,} {suffix}" for suffix, count in self.others.most_common(TOP)]
        rest = [f"{len(self.others) - TOP:,} other suffixes"] if len(self.others) > TOP else []
        return f"{total:,} file{'s' * (total > 1)} ({', '.join(shown + rest)})"

    def passed_over(self) -> str:
        """A line about what is not in `files`, except `others`; "" if there is nothing."""
        kinds = (
            (self.hidden, "hidden or system file or folder", "hidden or system files and folders"),
            (self.loops, "link to a folder that it is in", "links to folders that they are in"),
            (self.dangling, "link to nothing", "links to nothing"),
            (self.special, "pipe, socket or device", "pipes, sockets or devices"),
            (self.links, "link", "links"),
            (self.leaving, "link out of the folder", "links out of the folder"),
        )
        parts = [
            f"{len(names):,} {several} ({names[0]!r}, ...)"
            if names[1:]
            else f"1 {one} {names[0]!r}"
            for names, one, several in kinds
            if names
        ]
        return "passed over " + ", ".join(parts) if parts else ""


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden or of the system, and so not data:
    `._clip.mp4` (macOS), `.Trash-1000`, `.ipynb_checkpoints`, `@eaDir`, `__MACOSX`, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_folder(folder: str | os.PathLike) -> list[str]:
    """The paths in a folder, by name, without those that are passed over."""
    names = sorted(name for name in os.listdir(folder) if not is_passed_over(name))
    return [os.path.join(folder, name) for name in names]


def walk(
    folder: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    follow_links: bool = False,
    skip_links: bool = False,
    skip_leaving: bool = False,
) -> Listing:
    """The files below a folder, in the order of their names.

    Links to files and folders are followed under their own names, and a folder is walked once for
    each link to it. A link to a folder that contains the link is not followed.

    Args:
      folder: may itself be hidden, or a link.
      wanted: whether a file is wanted, by its name.
      follow_links: links may leave `folder` (see `allowed_folders`).
      skip_links: no link below `folder` is followed; they are counted instead.
      skip_leaving: links that leave `folder` are counted instead of refused.

    Raises:
      UserError: a folder that cannot be listed; a link, to a folder or to a wanted file, that
        leaves `folder`: the folder may be somebody else's, an unpacked archive. It names it.
    """
    homes, listing = allowed_folders(folder), Listing()
    linked = 0
    # Name, path, the folders above, whether a link leads here.
    below: list[tuple[str, str, tuple[str, ...], bool]] = [("", homes[0], (), False)]
    while below:
        name, path, above, by_link = below.pop()
        above += (path,)
        for entry in _entries(folder, name, path):
            if is_passed_over(entry.name):
                listing.hidden.append(name + entry.name)
                continue
            own = name + entry.name
            if skip_links and entry.is_symlink():
                listing.links.append(own)
                continue
            kind, is_link = _kind(entry), entry.is_symlink()
            real = os.path.realpath(entry.path) if is_link else entry.path
            if kind != "folder" and not wanted(entry.name):
                if kind is None:
                    listing.dangling.append(own)
                else:
                    listing.others[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
            elif is_link and not follow_links and not is_within(real, homes):
                if skip_leaving:
                    listing.leaving.append(own)
                    continue
                raise UserError(
                    f"{folder}: {own!r} leaves the folder: it is a link to {real}; {REMEDY}"
                )
            elif kind == "special":
                listing.special.append(own)
            elif kind != "folder":
                listing.files.append(File(own, real))
            elif is_link and any(is_within(parent, [real]) for parent in above):
                listing.loops.append(own)
            else:
                linked += by_link or is_link
                if linked > MOST_FOLDERS:
                    raise UserError(
                        f"{folder}: more than {MOST_FOLDERS:,} folders are reached by "
                        f"links, the last by {own!r}"
                    )
                below.append((own + "/", real, above, by_link or is_link))
    listing.files.sort(key=lambda file: file.name)
    for names in (
        listing.hidden,
        listing.loops,
        listing.dangling,
        listing.special,
        listing.links,
        listing.leaving,
    ):
        names.sort()
    return listing


def _entries(folder: str | os.PathLike, name: str, path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        if name:  # removed since its parent was listed
            return []
        raise UserError(f"{folder}: no such directory") from None
    except OSError as error:
        raise UserError(f"{folder}: {name or '.'!r} cannot be listed ({error.strerror})") from error


def _kind(entry: os.DirEntry) -> str | None:
    """ "folder", "file" or "special", or that of a link's target; None where it does not exist."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    return "special"
