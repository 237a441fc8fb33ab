"""The one walk through a folder: what is passed over, how links are followed, what is an error."""

import os

# Folders and files that systems and file servers leave beside their users' own, in lower case.
_SYSTEM = frozenset((
    "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot",  # NAS
    "__macosx", "icon\r",  # archives and folders of macOS
    "system volume information", "$recycle.bin", "recycler",  # Windows
    "lost+found",
))  # fmt: skip


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a system's own, and so nobody's data:
    `._clip.mp4` (macOS), `.Trash-1000`, `.ipynb_checkpoints`, `@eaDir`, `__MACOSX`, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM


def list_folder(folder: str | os.PathLike) -> list[str]:
    """The paths in a folder but for those that are passed over, by name."""
    names = sorted(name for name in os.listdir(folder) if not is_passed_over(name))
    return [os.path.join(folder, name) for name in names]
