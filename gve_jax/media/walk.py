"""The one walk through a folder: what is passed over, how links are followed, what is an error."""

import dataclasses
import errno
import os
from collections.abc import Callable

from gve_jax.errors import UserError
from gve_jax.media.dataset_paths import allowed_folders, is_within

# Folders that systems and file servers leave beside their users' own, in lower case.
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
MOST_FOLDERS = 100_000  # reached by links: links to each other multiply
REMEDY = "name what it leads to as an input of its own, or copy it"


@dataclasses.dataclass(frozen=True)
class File:
    """A file below a folder: its name from there, with `/`, and its true path, free of links."""

    name: str
    path: str


@dataclasses.dataclass
class Listing:
    """What a walk found.

    Attributes:
      files: those that were wanted, by name; a link to nothing is one, too.
      others: how many files were not wanted.
      hidden: names of hidden and system files and folders, which were not looked into.
      loops: names of links to a folder that they are in.
      dangling: names of links to nothing, of which nobody knows whether they were wanted.
      special: names of pipes, sockets and devices.
    """

    files: list[File] = dataclasses.field(default_factory=list)
    others: int = 0
    hidden: list[str] = dataclasses.field(default_factory=list)
    loops: list[str] = dataclasses.field(default_factory=list)
    dangling: list[str] = dataclasses.field(default_factory=list)
    special: list[str] = dataclasses.field(default_factory=list)

    def passed_over(self) -> str:
        """In a line what is not among the files, but for `others`; "" where that is nothing."""
        kinds = (
            (self.hidden, "hidden or system file or folder", "hidden or system files and folders"),
            (self.loops, "link to a folder that it is in", "links to folders that they are in"),
            (self.dangling, "link to nothing", "links to nothing"),
            (self.special, "pipe, socket or device", "pipes, sockets or devices"),
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
    """Whether a file or folder of this name is hidden or a system's own, and so nobody's data:
    `._clip.mp4` (macOS), `.Trash-1000`, `.ipynb_checkpoints`, `@eaDir`, `__MACOSX`, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_folder(folder: str | os.PathLike) -> list[str]:
    """The paths in a folder but for those that are passed over, by name."""
    names = sorted(name for name in os.listdir(folder) if not is_passed_over(name))
    return [os.path.join(folder, name) for name in names]


def walk(
    folder: str | os.PathLike,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    follow_links: bool = False,
    remedy: str = REMEDY,
) -> Listing:
    """The files below a folder, in the order of their names from there.

    Links to files and to folders are followed, each under its own name, and a folder that several
    links lead to is walked for each; only a link to a folder that it is in is not.

    Args:
      folder: may itself be hidden, or a link.
      wanted: whether a file is, by its name.
      follow_links: links may leave `folder` (see `allowed_folders`).
      remedy: what the error about a link that leaves it says to do.

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
            kind, is_link = _kind(entry), entry.is_symlink()
            real = os.path.realpath(entry.path) if is_link else entry.path
            if kind != "folder" and not wanted(entry.name):
                if kind is None:
                    listing.dangling.append(own)
                else:
                    listing.others += 1
            elif is_link and not follow_links and not is_within(real, homes):
                raise UserError(
                    f"{folder}: {own!r} leaves the folder: it is a link to {real}; {remedy}"
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
    for names in (listing.hidden, listing.loops, listing.dangling, listing.special):
        names.sort()
    return listing


def _entries(folder: str | os.PathLike, name: str, path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
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
