"""The index of the rows of JSONL files by source: one pass checks every row, then it is stored."""

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
    MODALITY_PAIR,
    MOST_NEGATIVES,
    Reject,
    judge_pair,
    modalities,
    parse_line,
    read_lines,
)

VERSION = 2  # of the stored index and of the checks
PROGRESS_MIN_BYTES = 64 * 2**20  # less is read without a progress bar
_COLUMNS = ("file", "start", "length", "line")  # int64 each
_NAME = re.compile(r"[A-Za-z0-9_]+")
_SHARD = re.compile(r"[-_.](\d+-of-\d+|\d{3,})$")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of rows.

    Attributes:
      path: absolute.
      called: the name in messages, as the user wrote it.
      media: whether rows may name files in its folder; False for a copy of a file on GCS.
    """

    path: str
    called: str
    media: bool = True

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    def roots(self) -> tuple[str, ...] | None:
        if not self.media:
            return None
        forms = (self.folder, os.path.realpath(self.folder))
        return tuple(dict.fromkeys(form.rstrip("/") + "/" for form in forms))


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """The rows [first, first + size) of an index, in the order of files and lines."""

    first: int
    size: int
    bytes: int  # of the lines
    digest: str  # of the lines
    negatives: int  # that every row has
    duplicates: int  # negatives equal to their pair's query or positive, judged by the rows alone


@dataclasses.dataclass(frozen=True)
class Index:
    """Pickles by its path where it has one, so that workers share its pages.

    Attributes:
      stamps: (bytes, nanoseconds of the last change) of each file, when it was read.
      parts: the rows of each source, by sorted name.
      rows: int64 [rows, 4] in the order of `_COLUMNS`; lines count from 1.
      path: of the stored index; None if it is only in memory.
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
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def open_index(files: Sequence[File], folder: Path) -> Index:
    """The index of all files together.

    It is read from `folder` if an index of files with the same sizes and times of change is stored
    there, and stays in memory if `folder` cannot be written.

    Raises:
      UserError: no such file; a row that is not a pair or does not fit its source, with file and
        line; no pair at all.
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
        raise UserError(f"data.pairs: {files[0].called}: changed while it was read")
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
    found: dict[str, _Rows] = {}
    with progress_bar("bytes", transient=True, disable=total < PROGRESS_MIN_BYTES) as progress:
        bar = progress.add_task("rows", total=total)
        for number, file in enumerate(files):
            with open(file.path, "rb") as opened:
                check_lfs_pointer(opened.peek(64), f"data.pairs: {file.called}")
                check_encoding(f"{file.called}:1", opened.peek(64))
                _scan(opened, number, file, found, lambda read: progress.advance(bar, read))
    if not found:
        raise UserError(f"data.pairs: {files[0].called}: contains no pair")
    parts, first = {}, 0
    for name, rows in sorted(found.items()):
        digest = rows.digest.hexdigest()[:16]
        parts[name] = SourceRows(
            first, rows.size, rows.bytes, digest, rows.negatives, rows.duplicates
        )
        first += rows.size
    columns = [np.frombuffer(rows.columns, np.int64) for _, rows in sorted(found.items())]
    return parts, np.concatenate(columns).reshape(-1, len(_COLUMNS))


def _scan(opened: BinaryIO, number: int, file: File, found: dict[str, _Rows], tick) -> None:
    roots, offset, reported = file.roots(), 0, 0
    known: dict[tuple[str, ...], _Rows] = {}
    for count, line in enumerate(read_lines(opened), 1):
        start, offset = offset, offset + len(line)
        if line.isspace():
            continue
        try:
            _, task, items = judge_pair(parse_line(line), roots)
            key = task, *items[0], "", *items[1]  # the modalities, without computing them
            rows = known.get(key)
            if rows is None:
                pair = f"{modalities(items[0])}2{modalities(items[1])}"
                name = _source_name(task, file, pair)
                least = min(MOST_NEGATIVES, len(items) - 2)
                rows = found.setdefault(name, _Rows(least, f"{file.called}:{count}"))
                known[key] = rows
            if len(items) - 2 < rows.negatives:
                raise Reject(
                    "too few negatives",
                    f"{len(items) - 2} negatives; the first pair of its source, "
                    f"{rows.location}, has {rows.negatives}",
                )
        except Reject as error:
            raise UserError(f"{file.called}:{count}: {error}") from error
        rows.columns.extend((number, start, len(line), count))
        rows.size += 1
        rows.bytes += len(line)
        if rows.negatives:
            rows.duplicates += _duplicates(items[: 2 + rows.negatives])
        rows.digest.update(line)
        if offset - reported > 2**22:
            tick(offset - reported)
            reported = offset
    tick(offset - reported)


def _duplicates(items: list[dict]) -> int:
    """Negatives with the text and media of the query or of the positive."""
    contents = [{key: item[key] for key in item if key != "instruction"} for item in items]
    return sum(content in contents[:2] for content in contents[2:])


def _source_name(task: str, file: File, pair: str) -> str:
    """The source of a row: its task, or the name of its file without the number of a shard. The
    modality pair of the row is put before a name that begins with none."""
    name = task
    if not task:
        stem = _SHARD.sub("", Path(file.path).stem)
        name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_") or "rows"
    if not _NAME.fullmatch(name):
        detail = f"task {task!r} is not a source name: use letters, digits and _"
        raise Reject("wrong type", detail)
    named = name.split("_")[0]
    if not MODALITY_PAIR.fullmatch(named):
        return f"{pair}_{name}"
    if named != pair:
        raise Reject("another modality pair", f"row is {pair} but its source is named {name}")
    return name
