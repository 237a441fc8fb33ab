"""Turns the rows of a source into stored pairs, by the rules of the source, and counts them."""

import dataclasses
import hashlib
import os
import pickle
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data.pairs import media
from data.pairs.formats import FORMATS
from data.pairs.rows import input_files, read_rows
from gve_jax.errors import UserError
from gve_jax.streams.pairs import item_fields
from gve_jax.streams.rows import (
    MAX_NEGATIVES,
    MODALITY_PAIR,
    Reject,
    check_pair,
    modalities,
)

_NAME = re.compile(r"[A-Za-z0-9_]+")  # of a split of TFDS
_MEDIA = frozenset(("image", "video", "medium"))  # "medium": either, by its content
_ENDS = 2**16  # bytes at each end of a file that are compared


@dataclasses.dataclass(frozen=True)
class Source:
    """One source's rules; pickles, for workers elsewhere.

    Attributes:
      name: of the split; begins with the modality pair: `T2V_mine`.
      files: the files of rows.
      format: a key of FORMATS.
      root: the folder that no path in a row may leave.
      negatives: how many each pair has: a batch has one shape. Further ones are left out.
      by_reference: whether paths are stored instead of media.
      corpus: the documents, by `index_corpus`; None where rows hold all.
    """

    name: str
    files: tuple[Path, ...]
    format: str
    root: Path
    negatives: int
    by_reference: bool = False
    corpus: Path | None = None

    @property
    def modality_pair(self) -> str:
        return self.name.split("_")[0]

    def pairs(self, location: str, row: dict | Reject) -> Iterator[tuple[dict, int] | Reject]:
        """The records of a row (`gve_jax.streams.pairs.pair_features`), each with the number of
        negatives that the row has, and its rejects.

        Args:
          location: `file:number` of the row.
        """
        try:
            drafts = [row] if isinstance(row, Reject) else self._drafts(row)
        except Reject as reject:
            drafts = [reject]
        for number, draft in enumerate(drafts):
            try:
                if isinstance(draft, Reject):
                    raise draft
                yield self._record(draft, f"{location}/{number}" if number else location)
            except Reject as reject:
                yield reject

    def _drafts(self, row: dict) -> list[dict]:
        lookup = None if self.corpus is None else (lambda id: find(self.corpus, id))
        return FORMATS[self.format](row, lookup)

    def _record(self, draft: dict, location: str) -> tuple[dict, int]:
        id, task, items = check_pair(draft, media=_MEDIA)
        count = len(items) - 2
        if count < self.negatives:
            raise Reject("too few negatives", f"{count} of {self.negatives}")
        query, positive, *negatives = [self._item(item) for item in items[: 2 + self.negatives]]
        found = f"{modalities(query)}2{modalities(positive)}"
        if self.modality_pair and found != self.modality_pair:
            raise Reject("another modality pair", f"{found}, not {self.modality_pair}")
        file, _, number = location.rpartition(":")
        record = {
            "id": id or f"{Path(file).name}:{number}",
            "task": task or self.name or found,
            "query": query,
            "positive": positive,
            "negatives": negatives,
        }
        return record, count

    def content(self, item: dict) -> int:
        """64 bits that two items of a record share when they hold the same text and the same files,
        whatever their instructions. Of files that are only referred to, which may be large, the
        size and both ends count."""
        digest = hashlib.blake2b(item["text"].encode(), digest_size=8)
        for key in ("image", "video"):
            medium = item[key]
            if self.by_reference and medium:
                medium = _ends(self.root.resolve() / medium.decode())
            digest.update(hashlib.blake2b(medium).digest())
        return int.from_bytes(digest.digest())

    def _item(self, fields: dict) -> dict:
        item = item_fields()
        for key, value in fields.items():
            if key in _MEDIA:
                found = media.locate(value, self.root)
                key = media.check(found, None if key == "medium" else key)
                value = self._stored(found)
            item[key] = value
        return item

    def _stored(self, found: bytes | Path) -> bytes:
        if not self.by_reference:
            return found if isinstance(found, bytes) else found.read_bytes()
        if isinstance(found, bytes):
            raise Reject("no path to refer to", "the row holds the medium itself")
        return str(found.relative_to(self.root.resolve())).encode()


def _ends(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return size.to_bytes(8) + head + file.read(_ENDS)


def open_source(
    text: str,
    format: str,
    media_root: Path | None = None,
    negatives: int | None = None,
    by_reference: bool = False,
    corpus: Path | None = None,
) -> Source:
    """The source of `NAME=PATH`.

    Its first pair decides the modality pair of a name without one, and the number of negatives (at
    most MAX_NEGATIVES) where `negatives` is None.

    Raises:
      UserError: not `NAME=PATH`, not a name of a split, no pair in all files.
    """
    name, _, path = text.partition("=")
    if not path or not _NAME.fullmatch(name):
        raise UserError(f"--input {text!r} is not NAME=PATH, NAME of letters, digits and _")
    files = tuple(input_files(path))
    root = media_root or (Path(path) if Path(path).is_dir() else files[0].parent)
    known = MODALITY_PAIR.fullmatch(name.split("_")[0])
    probe = Source(name if known else "", files, format, root, negatives or 0, by_reference, corpus)
    first: Counter = Counter()
    for location, row in _rows(files):
        for found in probe.pairs(location, row):
            if isinstance(found, Reject):
                first[f"{found.reason} ({location}: {found.detail})"] += 1
                continue
            record, count = found
            if not known:
                sides = (modalities(record[side]) for side in ("query", "positive"))
                name = f"{'2'.join(sides)}_{name}"
            if negatives is None:
                negatives = min(MAX_NEGATIVES, count)
            return dataclasses.replace(probe, name=name, negatives=negatives)
        if len(first) > 1000:
            break
    why = next(iter(first), "no row at all")
    raise UserError(f"{path}: no pair of format {format!r} in it; first: {why}")


def _rows(files, tick: Callable[[int], object] = lambda read: None):
    for file in files:
        yield from read_rows(file, tick)


@dataclasses.dataclass
class Tally:
    """What became of one source's rows; `log` takes one line of JSON about each."""

    pairs: int = 0
    bytes: int = 0  # of texts and media, as they are stored
    kept: int = 0  # negatives of each pair, as they are stored
    negatives: Counter = dataclasses.field(default_factory=Counter)  # as the rows have them
    # Left out of the loss because their content is that of a query or positive:
    duplicates: int = 0  # negatives with the content of their pair's own query or positive
    crossed: int = 0  # pairs whose query has the content of another pair's positive
    rejects: Counter = dataclasses.field(default_factory=Counter)  # by reason

    def add(self, line: dict) -> None:
        if "reason" in line:
            self.rejects[line["reason"]] += 1
        else:
            self.pairs += 1
            self.bytes += line["bytes"]
            self.negatives[line["negatives"]] += 1
            self.duplicates += line["duplicates"]
            self.kept = line["kept"]


def outcomes(
    source: Source, location: str, row: dict | Reject
) -> Iterator[tuple[dict | None, dict]]:
    """(record, what the tally counts) of each pair of a row; the record is None for a reject."""
    for found in source.pairs(location, row):
        if isinstance(found, Reject):
            reject = {"place": location, "reason": found.reason, "detail": found.detail}
            yield None, {"source": source.name} | reject
        else:
            record, negatives = found
            items = [record["query"], record["positive"], *record["negatives"]]
            query, positive, *others = [source.content(item) for item in items]
            line = {
                "source": source.name,
                "bytes": sum(len(value) for item in items for value in item.values()),
                "negatives": negatives,
                "kept": source.negatives,
                "duplicates": sum(other in (query, positive) for other in others),
                "contents": [query, positive],
            }
            yield record, line


def count_crossed(contents: Sequence[int]) -> int:
    """Pairs whose query has the content of another pair's positive.

    Args:
      contents: of the query and the positive of each pair in turn, as in the lines of `outcomes`.
    """
    query, positive = np.array(contents, np.uint64).reshape(-1, 2).T
    ordered = np.sort(positive)
    equal = np.searchsorted(ordered, query, "right") - np.searchsorted(ordered, query, "left")
    return int(np.sum(equal > (query == positive)))


def run(
    source: Source, log: Callable[[dict], object], tick: Callable[[int], object]
) -> Iterator[dict]:
    """The records of the source in the order of its rows; `log` is called for every pair."""
    for location, row in _rows(source.files, tick):
        for record, line in outcomes(source, location, row):
            log(line)
            if record is not None:
                yield record


# --- a corpus, by id -----------------------------------------------------------------------------


def index_corpus(paths: list[str], index: Path, log: Callable[[dict], object]) -> Path:
    """Writes the documents of Tevatron's corpora into one file that finds them by `docid`, so that
    memory does not grow with a corpus. Documents that cannot be read are logged.

    Raises:
      UserError: no such corpus, no document in it.
    """
    count = 0
    with sqlite3.connect(index) as table:
        table.execute("CREATE TABLE docs(id TEXT PRIMARY KEY, row BLOB) WITHOUT ROWID")
        for location, row in _rows([file for path in paths for file in input_files(path)]):
            reject = _index(table, row)
            if reject is None:
                count += 1
            else:
                reason = {"reason": reject.reason, "detail": reject.detail}
                log({"source": "(corpus)", "place": location} | reason)
    table.close()
    if not count:
        raise UserError(f"{', '.join(paths)}: no document with a 'docid'")
    return index


def _index(table: sqlite3.Connection, row: dict | Reject) -> Reject | None:
    if isinstance(row, Reject):
        return row
    id = row.get("docid")
    if isinstance(id, bool) or not isinstance(id, str | int):
        return Reject("missing field", f"docid {id!r}")
    try:
        table.execute("INSERT INTO docs VALUES (?, ?)", (str(id), pickle.dumps(row)))
    except sqlite3.IntegrityError:
        return Reject("a docid twice", id)
    return None


@cache
def _table(index: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{index}?mode=ro", uri=True, check_same_thread=False)


def find(index: Path, id: str) -> dict:
    """The document of an id; `Reject` without one."""
    found = _table(index).execute("SELECT row FROM docs WHERE id = ?", (id,)).fetchone()
    if found is None:
        raise Reject("unknown document", f"docid {id!r} is not in the corpus")
    return pickle.loads(found[0])


def close_corpus() -> None:
    _table.cache_clear()
