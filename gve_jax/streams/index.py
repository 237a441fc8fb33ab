"""Index of the rows of JSONL files by source. One pass checks every row; the index is stored."""

import dataclasses
import hashlib
import json
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gve_jax.errors import UserError
from gve_jax.progress import progress_bar
from gve_jax.storage.files import (
    check_encoding,
    check_lfs_pointer,
    write_array,
    write_json,
)
from gve_jax.streams.rows import (
    MAX_NEGATIVES,
    MODALITY_PAIR,
    Reject,
    check_pair,
    modalities,
    parse_line,
    read_lines,
)

VERSION = 2  # of the stored index and of the checks
PROGRESS_MIN_BYTES = 64 * 2**20  # smaller files are read without a progress bar
_COLUMNS = ("file", "start", "length", "line")  # int64 each
_NAME = re.compile(r"[A-Za-z0-9_]+")
_SHARD = re.compile(r"[-_.](\d+-of-\d+|\d{3,})$")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of rows.

    Attributes:
      path: absolute.
      name: the name in messages, as the user wrote it.
      media: whether rows may name files in its folder; False for a copy of a GCS file.
    """

    path: str
    name: str
    media: bool = True

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    def roots(self) -> tuple[str, ...] | None:
        if not self.media:
            return None
        folders = (self.folder, os.path.realpath(self.folder))
        return tuple(dict.fromkeys(folder.rstrip("/") + "/" for folder in folders))


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """The rows [first, first + size) of an index, in the order of files and lines."""

    first: int
    size: int
    bytes: int  # of the lines
    digest: str  # of the lines
    negatives: int  # number that every row has
    duplicates: int  # negatives with the text and paths of their pair's query or positive


@dataclasses.dataclass(frozen=True)
class Index:
    """Index of the rows of files. Pickles by its path, if any, so that workers share its pages.

    Attributes:
      stamps: (bytes, modification time in ns) of each file when it was read.
      parts: the rows of each source, by sorted name.
      rows: int64 [rows, 4] in the order of `_COLUMNS`; lines count from 1.
      path: path of the stored index; None if it is only in memory.
    """

    files: tuple[File, ...]
    stamps: tuple[tuple[int, int], ...]
    parts: dict[str, SourceRows]
    rows: np.ndarray
    path: str | None = None

    def __reduce__(self):
        if self.path is None:
            return Index, (self.files, self.stamps, self.parts, np.asarray(self.rows))
        return _load, (self.files, self.stamps, self.path)


def stamp(file: int | str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def open_index(files: Sequence[File], folder: Path) -> Index:
    """Returns the index of all files together.

    It is read from `folder` if an index of files with the same sizes and modification times is
    stored there, and stays in memory if `folder` cannot be written.

    Raises:
      UserError: a file is missing; a row, named by file and line, is not a pair or does not fit its
        source; there is no pair.
    """
    files = tuple(files)
    try:
        stamps = tuple(stamp(file.path) for file in files)
    except OSError as error:
        raise UserError(f"data.pairs: {error.filename}: {error.strerror}") from error
    key = json.dumps([VERSION, [(file.path, file.media) for file in files], stamps])
    path = str(folder / hashlib.sha256(key.encode()).hexdigest()[:24])
    try:
        return _load(files, stamps, path)
    except (OSError, ValueError, EOFError, KeyError, TypeError):  # missing or damaged
        pass
    parts, rows = _build(files, sum(size for size, _ in stamps))
    if tuple(stamp(file.path) for file in files) != stamps:
        raise UserError(f"data.pairs: {files[0].name}: changed while it was read")
    try:
        write_array(Path(f"{path}.npy"), rows)
        fields = {name: dataclasses.asdict(part) for name, part in parts.items()}
        write_json(Path(f"{path}.json"), {"files": [file.path for file in files], "parts": fields})
    except OSError:
        return Index(files, stamps, parts, rows)
    return _load(files, stamps, path)


def _load(files, stamps, path: str) -> Index:
    stored = json.loads(Path(f"{path}.json").read_text())["parts"]
    parts = {name: SourceRows(**fields) for name, fields in stored.items()}
    rows = np.load(f"{path}.npy", mmap_mode="r", allow_pickle=False)
    if rows.shape != (sum(part.size for part in parts.values()), len(_COLUMNS)):
        raise ValueError(path)
    return Index(files, stamps, parts, rows, path)


class _Rows:
    """The rows of one source while the files are scanned."""

    def __init__(self, negatives: int, location: str):
        self.negatives, self.location = negatives, location
        self.columns, self.size, self.bytes, self.duplicates = array("q"), 0, 0, 0
        self.digest = hashlib.sha256()


def _build(files: Sequence[File], total: int) -> tuple[dict[str, SourceRows], np.ndarray]:
    sources: dict[str, _Rows] = {}
    with progress_bar("bytes", transient=True, disable=total < PROGRESS_MIN_BYTES) as progress:
        bar = progress.add_task("rows", total=total)
        for number, file in enumerate(files):
            with open(file.path, "rb") as opened:
                check_lfs_pointer(opened.peek(64), f"data.pairs: {file.name}")
                check_encoding(f"{file.name}:1", opened.peek(64))
                _scan(opened, number, file, sources, lambda read: progress.advance(bar, read))
    if not sources:
        raise UserError(f"data.pairs: {files[0].name}: contains no pair")
    parts, first = {}, 0
    for name, rows in sorted(sources.items()):
        digest = rows.digest.hexdigest()[:16]
        parts[name] = SourceRows(
            first, rows.size, rows.bytes, digest, rows.negatives, rows.duplicates
        )
        first += rows.size
    columns = [np.frombuffer(rows.columns, np.int64) for _, rows in sorted(sources.items())]
    return parts, np.concatenate(columns).reshape(-1, len(_COLUMNS))


def _scan(opened: BinaryIO, number: int, file: File, sources: dict[str, _Rows], advance) -> None:
    roots, offset, reported = file.roots(), 0, 0
    known: dict[tuple[str, ...], _Rows] = {}
    for count, line in enumerate(read_lines(opened), 1):
        start, offset = offset, offset + len(line)
        if line.isspace():
            continue
        try:
            _, task, items = check_pair(parse_line(line), roots)
            key = task, *items[0], "", *items[1]  # the modalities, without computing them
            rows = known.get(key)
            if rows is None:
                pair = f"{modalities(items[0])}2{modalities(items[1])}"
                name = _source_name(task, file, pair)
                least = min(MAX_NEGATIVES, len(items) - 2)
                rows = sources.setdefault(name, _Rows(least, f"{file.name}:{count}"))
                known[key] = rows
            if len(items) - 2 < rows.negatives:
                raise Reject(
                    "too few negatives",
                    f"{len(items) - 2} negatives; the first pair of its source, "
                    f"{rows.location}, has {rows.negatives}",
                )
        except Reject as error:
            raise UserError(f"{file.name}:{count}: {error}") from error
        rows.columns.extend((number, start, len(line), count))
        rows.size += 1
        rows.bytes += len(line)
        if rows.negatives:
            rows.duplicates += _duplicates(items[: 2 + rows.negatives])
        rows.digest.update(line)
        if offset - reported > 2**22:
            advance(offset - reported)
            reported = offset
    advance(offset - reported)


def _duplicates(items: list[dict]) -> int:
    """Number of negatives with the text and media of the query or the positive."""
    contents = [{key: item[key] for key in item if key != "instruction"} for item in items]
    return sum(content in contents[:2] for content in contents[2:])


def _source_name(task: str, file: File, pair: str) -> str:
    """Returns the source of a row: its task, or the name of its file without a shard number. If the
    name does not begin with a modality pair, that of the row is added in front."""
    name = task
    if not task:
        stem = _SHARD.sub("", Path(file.path).stem)
        name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_") or "rows"
    if not _NAME.fullmatch(name):
        detail = f"task {task!r} is not a source name: use letters, digits and _"
        raise Reject("wrong type", detail)
    prefix = name.split("_")[0]
    if not MODALITY_PAIR.fullmatch(prefix):
        return f"{pair}_{name}"
    if prefix != pair:
        raise Reject("another modality pair", f"row is {pair} but its source is named {name}")
    return name
