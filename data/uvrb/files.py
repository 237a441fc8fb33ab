"""The files of one set: their digests, source and removal.

A set is a folder that the user extracted (`Folder`), or an archive that is extracted into a cache
and may be removed when its embeddings are finished (`Archived`). Digests outlive the files, so that
embeddings are found by content when the content is gone.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax

from data.uvrb import archives
from gve_jax.distributed import hosts
from gve_jax.errors import UserError
from gve_jax.media.walk import is_passed_over
from gve_jax.storage.artifacts import build_folder
from gve_jax.storage.digests import file_sha256, json_sha256
from gve_jax.storage.files import atomic_write, read_json, write_json

SEAL = "files.json"  # in an extracted folder: {"parts": [[name, bytes]], "files": {path: [...]}}
FRAMES_FPS = 8.0  # frames per second of a folder of frames


class Folder:
    """Files below `root`; digests are stored in `record` until a file's size or time changes.

    record: a JSON file, or None to store nothing.
    """

    def __init__(self, root: Path, record: Path | None = None):
        self.root, self._record = root.resolve(), record
        self._known = _read(record) if record is not None and record.exists() else {}
        self._changed = False

    def exists(self, path: Path) -> bool:
        return path.is_file()

    def has_folder(self, path: Path) -> bool:
        return path.is_dir()

    def rate(self, path: Path) -> float | None:
        """Frames per second of a folder of frames; None for a file, which contains its rate."""
        return FRAMES_FPS if self.has_folder(path) else None

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, or of the names and digests in a folder of frames."""
        if self.has_folder(path):
            return json_sha256([(entry, self.digest(path / entry)) for entry in self._list(path)])
        name, stat = self._name(path), path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if self._known.get(name, [])[:2] != stamp:
            self._known[name] = [*stamp, file_sha256(path)]
            self._changed = True
        return self._known[name][2]

    def ensure(self) -> None:
        """Ensures that the files exist; a folder's do."""

    def fetch(self, paths: Iterable[Path]) -> None:
        """Ensures that some of the files exist; a folder's do."""

    def discard(self) -> int:
        """Removes extracted media; a folder's stay. Returns the bytes freed."""
        return 0

    def save(self) -> None:
        """Stores the digests for the next run."""
        if self._changed and self._record is not None:
            write_json(self._record, {"files": self._known})
            self._changed = False

    def _list(self, path: Path) -> list[str]:
        return sorted(entry for entry in os.listdir(path) if not is_passed_over(entry))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


class Listed(Folder):
    """Files known from a list, `{path: [bytes, time, SHA-256]}`; they need not exist."""

    def __init__(self, root: Path, known: dict[str, list]):
        super().__init__(root)
        self._known = known
        self._folders = {parent.as_posix() for name in known for parent in Path(name).parents}

    def exists(self, path: Path) -> bool:
        return self._name(path) in self._known

    def has_folder(self, path: Path) -> bool:
        return self._name(path) in self._folders

    def digest(self, path: Path) -> str:
        if self.has_folder(path):
            return super().digest(path)
        return self._known[self._name(path)][2]

    def _list(self, path: Path) -> list[str]:
        below = self._name(path) + "/"
        names = (name[len(below) :] for name in self._known if name.startswith(below))
        return sorted(name for name in names if "/" not in name and not is_passed_over(name))


class Archived(Listed):
    """A set that is extracted from its archive, and again if it was removed.

    Args:
      name: of the set.
      parts: of the archive; may be empty if `root` was extracted before.
      root: CACHE/UVRB/NAME.
      tick: called during extraction with bytes read and total bytes of the archive.

    Raises:
      UserError: see `archives.scan`; a disk that is too small, an extraction of other parts.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Path],
        root: Path,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.name, self.parts, self._tick = name, list(parts), tick
        if jax.process_index() == 0 and not (root / SEAL).exists():
            extract(self.parts, name, root, tick)
        hosts.barrier()
        seal = root / SEAL
        super().__init__(root, _read(seal))
        now = [[part.name, part.stat().st_size] for part in self.parts]
        if now and now != read_json(seal, "; delete it").get("parts"):
            raise UserError(f"{seal}: extracted from other parts; delete {root}")

    def ensure(self) -> None:
        """Extracts the set again if any file is missing. Every host of the job calls it."""
        if jax.process_index() == 0 and not all(map(self._exists, self._known)):
            if not self.parts:
                raise UserError(f"{self.name}: its files were removed, and so was its archive")
            extract(self.parts, self.name, self.root, self._tick)
        hosts.barrier()
        self._known = _read(self.root / SEAL)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Extracts missing ones of some files, on one host; does nothing without the archive."""
        names = {self._name(path) for path in paths}
        names |= {name for name in self._known if Path(name).parent.as_posix() in names}  # frames
        wanted = {name for name in names & self._known.keys() if not self._exists(name)}

        def take(name: str, size: int, blocks) -> None:
            if name in wanted:
                target = self.root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(target, lambda file: file.writelines(blocks))

        if wanted and self.parts:
            total = sum(part.stat().st_size for part in self.parts)
            archives.scan(self.parts, self.name, take, tick=lambda done: self._tick(done, total))

    def discard(self) -> int:
        """Removes the extracted media; lists and digests stay. Returns the bytes freed."""
        if jax.process_index():
            return 0  # all hosts have finished reading: they waited for each other's embeddings
        freed = 0
        for name, (size, *_) in self._known.items():
            if not name.startswith("jsonl/") and (self.root / name).is_file():
                (self.root / name).unlink()
                freed += size
        return freed

    def _exists(self, name: str) -> bool:
        try:
            return (self.root / name).stat().st_size == self._known[name][0]
        except OSError:
            return False


def extract(
    parts: Sequence[Path],
    name: str,
    root: Path,
    tick: Callable[[int, int], None] = lambda done, total: None,
    limits: archives.Limits | None = None,
) -> None:
    """Extracts an archive into `root` atomically, with the digests of all its files."""
    build_folder(root, lambda building: _extract(parts, name, root, building, tick, limits))


def _extract(parts, name, root, building: Path, tick, limits) -> None:
    total = sum(part.stat().st_size for part in parts)
    building.mkdir()
    free = shutil.disk_usage(building).free
    if free < total:  # gzip does not shrink video
        raise UserError(
            f"{name}: its archive of {total / 1e9:.1f} GB does not fit on the disk of "
            f"{root.parent}, which has {free / 1e9:.1f} GB free"
        )
    found: dict[str, list] = {}

    def take(path: str, size: int, blocks) -> None:
        target = building / path
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{name}: {path!r} is both a file and a folder") from error
        found[path] = [size, digest.hexdigest()]

    archives.scan(parts, name, take, limits, lambda done: tick(done, total))
    files = {
        path: [size, (building / path).stat().st_mtime_ns, digest]
        for path, (size, digest) in found.items()
    }
    sizes = [[part.name, part.stat().st_size] for part in parts]
    write_json(building / SEAL, {"parts": sizes, "files": files})


def _read(path: Path) -> dict[str, list]:
    files = read_json(path, "; delete it").get("files")
    if not isinstance(files, dict) or not all(
        isinstance(entry, list) and len(entry) == 3 for entry in files.values()
    ):
        raise UserError(f"{path}: not a list of files; delete it")
    return files
