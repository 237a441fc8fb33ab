"""An index on disk: a journal of changes, and shards of vectors that are only appended to.

    index.json           settings: model, windows, media folder; never changes
    journal.jsonl        a line for each change that is complete: a JSON list of operations
    vectors-00000.bin    rows [n, D] of `dtype`, little endian, without a header
    moments-00000.bin    float64 [n, 2]: start_sec and end_sec of the rows

Rows are written first, then the line of the journal that refers to them: a process that is killed
leaves rows without a line, which the next writer cuts off, or half a line, which readers ignore.
Vectors are mapped into memory and not read when an index is opened.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write, read_json, write_json

FORMAT = "gve_jax index 1"
JOURNAL = "journal.jsonl"
SETTINGS = "index.json"
SHARD_BYTES = 1 << 30  # of vectors; then a new shard begins
COMPACT_ROWS = 1024  # removed rows below which nothing is rewritten


@dataclasses.dataclass(frozen=True)
class Media:
    """A file of an index, and where its vectors are.

    Attributes:
      id: number of the file in the index; never used again.
      path: relative to the media folder, as text (`path_to_text`).
      kind: "video" or "image".
      sha256, size, mtime_ns: of its content.
      duration: seconds; 0 for an image.
      shard, row, count: its rows, in the order of their begins.
    """

    id: int
    path: str
    kind: str
    sha256: str
    size: int
    mtime_ns: int
    duration: float
    shard: int
    row: int
    count: int


def moment_id(media: Media, start_sec: float, end_sec: float) -> str:
    """The id of a moment: the path of an image, `path#12.000-15.000` of a video."""
    return media.path if media.kind == "image" else f"{media.path}#{start_sec:.3f}-{end_sec:.3f}"


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A file that could not be read, and its content then."""

    path: str
    reason: str
    sha256: str
    size: int
    mtime_ns: int


class Store:
    """The files of an index; of several processes, one may write (`gve_jax.storage.locks`).

    Args:
      folder: made by `create_store`.
      write: whether this process holds the lock and will write.

    Attributes:
      settings: content of index.json.
      media: by id, in the order in which they were added.
      paths: ids by path.
      unreadable: by path.

    Raises:
      UserError: not an index, or a damaged one; it names the file.
    """

    def __init__(self, folder: Path, write: bool = False):
        self.folder = folder
        if not (folder / SETTINGS).is_file():
            raise UserError(f"{folder}: not an index (no {SETTINGS})")
        self.settings = read_json(folder / SETTINGS)
        if self.settings.get("format") != FORMAT:
            raise UserError(
                f"{folder / SETTINGS}: format {self.settings.get('format')!r}, not {FORMAT!r}"
            )
        self.dim, self.dtype = int(self.settings["dim"]), np.dtype(self.settings["dtype"])
        self._file = None
        self._read()
        if write:
            self._repair()

    def _read(self) -> None:
        self.media: dict[int, Media] = {}
        self.paths: dict[str, int] = {}
        self.unreadable: dict[str, Unreadable] = {}
        self._next_id, self._rows, self.removed_rows = 0, {0: 0}, 0
        path = self.folder / JOURNAL
        self._inode = None
        try:
            with open(path, "rb") as file:
                self._inode, data = os.fstat(file.fileno()).st_ino, file.read()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        *lines, torn = data.split(b"\n")
        self._journal_bytes = len(data) - len(torn)
        for number, line in enumerate(lines, 1):
            try:
                for operation in json.loads(line):
                    self._apply(operation)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: damaged ({error})") from error

    def _apply(self, operation: dict) -> None:
        (kind,) = operation.keys() - {"fields"}
        value = operation[kind]
        if kind == "add":
            media = Media(**value)
            self.media[media.id] = media
            self.paths[media.path] = media.id
            self._next_id = max(self._next_id, media.id + 1)
            end = media.row + media.count
            self._rows[media.shard] = max(self._rows.get(media.shard, 0), end)
        elif kind == "remove":
            media = self.media.pop(value)
            self.removed_rows += media.count
            if self.paths.get(media.path) == value:
                del self.paths[media.path]
        elif kind == "change":
            media = self.media[value]
            if self.paths.get(media.path) == value:
                del self.paths[media.path]
            media = dataclasses.replace(media, **operation["fields"])
            self.media[value] = media
            self.paths[media.path] = value
        elif kind == "unreadable":
            record = Unreadable(**value)
            self.unreadable[record.path] = record
        elif kind == "forget":
            self.unreadable.pop(value, None)
        elif kind == "next_id":  # of a compacted journal: ids of removed files stay used
            self._next_id = max(self._next_id, value)
        else:
            raise ValueError(f"unknown operation {kind!r}")

    def _repair(self) -> None:
        """Cuts off what a killed process left: half a line, and rows without a line."""
        for path in self.folder.glob("*.part"):
            path.unlink()
        journal = self.folder / JOURNAL
        if journal.exists() and journal.stat().st_size > self._journal_bytes:
            os.truncate(journal, self._journal_bytes)
        for path in self.folder.glob("*-?????.bin"):
            kind, _, number = path.stem.rpartition("-")
            rows = self._rows.get(int(number), 0)
            size = rows * (16 if kind == "moments" else self.dim * self.dtype.itemsize)
            if not rows:
                path.unlink()
            elif path.stat().st_size > size:
                os.truncate(path, size)

    # ---- writing -----------------------------------------------------------------------------

    def add(
        self,
        fields: dict,
        vectors: np.ndarray,
        moments: np.ndarray,
        others: Sequence[dict] = (),
    ) -> Media:
        """Adds a file with its vectors [n, D] and moments float64 [n, 2], in one step with other
        operations.

        Args:
          fields: of `Media`, without id, shard, row and count.
        """
        order = np.lexsort((moments[:, 1], moments[:, 0]))
        shard = max(self._rows)
        row_bytes = self.dim * self.dtype.itemsize
        if self._rows[shard] and (self._rows[shard] + len(vectors)) * row_bytes > SHARD_BYTES:
            shard += 1
        row = self._rows.get(shard, 0)
        vectors = np.ascontiguousarray(vectors[order], self.dtype)
        for name, rows in (("vectors", vectors), ("moments", np.asarray(moments[order], "<f8"))):
            path = self.folder / f"{name}-{shard:05}.bin"
            with open(path, "r+b" if path.exists() else "w+b") as file:
                # Not at the end: rows of a file whose line was not written may be there.
                file.seek(row * rows.strides[0])
                file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())
        media = Media(**fields, id=self._next_id, shard=shard, row=row, count=len(vectors))
        self.commit([*others, {"add": dataclasses.asdict(media)}])
        return media

    def commit(self, operations: Sequence[dict]) -> None:
        """Writes operations as one line, which counts as a whole or not at all."""
        if not operations:
            return
        if self._file is None:
            self._file = open(self.folder / JOURNAL, "ab")
        self._file.write(json.dumps(list(operations)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._inode, self._journal_bytes = os.fstat(self._file.fileno()).st_ino, self._file.tell()
        for operation in operations:
            self._apply(operation)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def compact(self) -> bool:
        """Rewrites the index without removed rows if they are most of its rows; returns whether.

        A reader that has the index open keeps its files.
        """
        live = sum(media.count for media in self.media.values())
        if self.removed_rows < COMPACT_ROWS or self.removed_rows <= live:
            return False
        old, before = dict(self._rows), {shard: self.open_shard(shard) for shard in self._rows}
        shard, row, lines = max(old) + 1, 0, [[{"next_id": self._next_id}]]
        files = {}
        try:
            for media in self.media.values():
                if row and (row + media.count) * self.dim * self.dtype.itemsize > SHARD_BYTES:
                    shard, row = shard + 1, 0
                for name, rows in zip(("vectors", "moments"), before[media.shard], strict=True):
                    key = f"{name}-{shard:05}.bin"
                    if key not in files:
                        files[key] = open(self.folder / key, "wb")
                    files[key].write(rows[media.row : media.row + media.count].tobytes())
                moved = dataclasses.replace(media, shard=shard, row=row)
                lines.append([{"add": dataclasses.asdict(moved)}])
                row += media.count
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files.values():
                file.close()
        lines += [[{"unreadable": dataclasses.asdict(one)}] for one in self.unreadable.values()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.close()
        atomic_write(self.folder / JOURNAL, lambda file: file.write(text.encode()))
        self._read()
        self._repair()
        return True

    # ---- reading -----------------------------------------------------------------------------

    def is_stale(self) -> bool:
        """Whether another process has written since this one read the journal."""
        try:
            with open(self.folder / JOURNAL, "rb") as file:
                if os.fstat(file.fileno()).st_ino != self._inode:
                    return True
                file.seek(self._journal_bytes)
                return b"\n" in file.read()
        except FileNotFoundError:
            return self._journal_bytes > 0

    def open_shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The vectors [n, D], not read from disk yet, and moments [n, 2] of a shard."""
        rows = self._rows.get(shard, 0)
        if not rows:
            return np.zeros((0, self.dim), self.dtype), np.zeros((0, 2))
        arrays = []
        for name, dtype, width in (("vectors", self.dtype, self.dim), ("moments", "<f8", 2)):
            path = self.folder / f"{name}-{shard:05}.bin"
            try:
                arrays.append(np.memmap(path, dtype, "r", shape=(rows, width)))
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: damaged or missing ({error}); index again") from error
        return arrays[0], arrays[1]

    @property
    def shards(self) -> Iterable[int]:
        return sorted(self._rows)


def create_store(folder: Path, settings: dict) -> Store:
    """Makes an index in an empty or absent folder; see `Store` for the files."""
    write_json(folder / SETTINGS, {"format": FORMAT} | settings)
    return Store(folder, write=True)
