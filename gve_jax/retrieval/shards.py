"""The files of a folder of vectors: shards of rows with their records, and what they hold now.

A shard is a pair of files, `vectors-00000.npy`, float32 [n, D], and `ids-00000.jsonl`, a record for
each row: `id`, `stamp` (changes with the item's name, size or time), `content` (digest of what the
vector depends on, if known) and `meta` (of the caller, if any). The records are written last and
seal the shard. A sealed shard is never changed: rows move to new shards, and the old ones are
removed once the manifest lists the new ones. So a kill at any time loses no row.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import atomic_write, read_records, write_array

MANIFEST = "manifest.json"
SMALL = 8  # more shards than this that are less than half full are merged


class Shard:
    """The two files of a shard."""

    def __init__(self, output: Path, number: int):
        self.number = number
        self.vectors = output / f"vectors-{number:05}.npy"
        self.ids = output / f"ids-{number:05}.jsonl"

    @property
    def is_sealed(self) -> bool:
        return self.ids.exists() and self.vectors.exists()

    def has(self, count: int) -> bool:
        """Whether this host sees `count` rows: a network folder may show files late."""
        try:
            return self.is_sealed and len(self.load()) == count
        except UserError:
            return False

    def records(self, dim: int) -> list[dict]:
        """The records of the rows.

        Raises:
          UserError: damaged files, or rows of another size than `dim`.
        """
        records = [record for _, record in read_records(self.ids)]
        shape = self.load().shape
        named = all(isinstance(record.get(key), str) for record in records for key in _REQUIRED)
        if shape != (len(records), dim) or not named:
            raise UserError(
                f"{self.vectors}: {list(shape)} does not fit its ids; delete {self.ids}"
            )
        return records

    def load(self) -> np.ndarray:
        """The rows, memory-mapped."""
        try:
            return np.load(self.vectors, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
            raise UserError(f"{self.vectors}: unreadable ({error}); delete {self.ids}") from error

    def write(self, records: Sequence[Mapping], vectors: np.ndarray) -> None:
        write_array(self.vectors, vectors)
        text = "".join(json.dumps(record) + "\n" for record in records)
        atomic_write(self.ids, lambda file: file.write(text.encode()))

    def remove(self) -> None:
        self.ids.unlink(missing_ok=True)  # first: rows without records are ignored
        self.vectors.unlink(missing_ok=True)


_REQUIRED = ("id", "stamp")


@dataclass
class Contents:
    """What the sealed shards of a folder hold, compared with a list of items.

    Attributes:
      current: (shard, row) of each item whose row is up to date, by id.
      records: the records of each shard, by its number.
      outdated: ids with rows of another stamp or meta only.
      gone: ids with rows that are not in the list.
    """

    current: dict[str, tuple[int, int]] = field(default_factory=dict)
    records: dict[int, list[dict]] = field(default_factory=dict)
    outdated: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    @property
    def has_others(self) -> bool:
        """Whether there are rows besides the current ones, also copies that a kill left."""
        return sum(map(len, self.records.values())) != len(self.current)


def numbers(output: Path) -> list[int]:
    """Numbers of the sealed shards, ascending."""
    found = (path.stem.removeprefix("ids-") for path in output.glob("ids-*.jsonl"))
    return sorted(int(number) for number in found if number.isdecimal())


def read_contents(output: Path, dim: int, items: Mapping[str, tuple]) -> Contents:
    """Reads the shards of a folder.

    Args:
      items: (stamp, meta) of each item of the list, by id.

    Raises:
      UserError: see `Shard.records`.
    """
    found = Contents()
    for number in numbers(output):
        found.records[number] = Shard(output, number).records(dim)
        for row, record in enumerate(found.records[number]):
            id = record["id"]
            if id not in items:
                found.gone.add(id)
            elif (record["stamp"], record.get("meta")) == items[id]:
                found.current[id] = number, row
            else:
                found.outdated.add(id)
    found.outdated -= found.current.keys()
    return found


def free_numbers(taken: Iterable[int]) -> Iterator[int]:
    """The numbers that are not taken, ascending."""
    taken, number = set(taken), 0
    while True:
        if number not in taken:
            yield number
        number += 1


def reusable_rows(output: Path, dim: int) -> dict[str | tuple[str, str], tuple[int, int, str]]:
    """(shard, row, content) of the stored rows, by content, and by (id, stamp)."""
    rows = {}
    for number in numbers(output):
        for row, record in enumerate(Shard(output, number).records(dim)):
            content = record.get("content")
            rows[record["id"], record["stamp"]] = number, row, content
            if content:
                rows[content] = number, row, content
    return rows


def gather_rows(output: Path, places: Sequence[tuple[int, int]], dim: int) -> np.ndarray:
    """Rows float32 [n, D] at (shard, row)."""
    rows = np.empty((len(places), dim), np.float32)
    by_shard: dict[int, list[int]] = {}
    for n, (number, _) in enumerate(places):
        by_shard.setdefault(number, []).append(n)
    for number, wanted in by_shard.items():
        rows[wanted] = Shard(output, number).load()[[places[n][1] for n in wanted]]
    return rows


def tidy(
    output: Path, contents: Contents, order: Mapping[str, int], dim: int, size: int
) -> tuple[dict[int, int], list[int]]:
    """Copies the current rows of shards that also hold others, and of many small shards, to new
    shards.

    Args:
      order: position of each id in the list.
      size: rows of a full shard.

    Returns:
      The number of rows of each shard to keep, by its number, and the numbers of those to remove.
    """
    live: dict[int, int] = dict.fromkeys(contents.records, 0)
    for number, _ in contents.current.values():
        live[number] += 1
    old = {number for number, records in contents.records.items() if live[number] < len(records)}
    small = {number for number, count in live.items() if number not in old and 2 * count < size}
    if len(small) > SMALL:
        old |= small
    moved = sorted((id for id, at in contents.current.items() if at[0] in old), key=order.get)
    kept = {number: count for number, count in live.items() if number not in old}
    targets = free_numbers(contents.records)
    for start in range(0, len(moved), size):
        part = [contents.current[id] for id in moved[start : start + size]]
        shard = Shard(output, next(targets))
        records = [contents.records[number][row] for number, row in part]
        shard.write(records, gather_rows(output, part, dim))
        kept[shard.number] = len(part)
    return kept, sorted(old)


def remove_shards(output: Path, kept: Iterable[int]) -> None:
    """Removes all shards but those that the manifest lists, arrays without records, and files that
    killed runs did not finish. Nobody else may be writing."""
    names = {Shard(output, number).vectors.name for number in kept}
    for number in set(numbers(output)) - set(kept):
        Shard(output, number).remove()
    for path in output.glob("vectors-*.npy"):
        if path.name not in names:
            path.unlink()
    for kind in ("vectors", "ids"):
        for path in output.glob(f"{kind}-*.part"):
            path.unlink()
