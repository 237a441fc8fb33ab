"""Vectors of many items in a folder of shards, embedded once, by one or several hosts.

    vectors-00000.npy, ...  float32 [n, D], unit rows
    ids-00000.jsonl, ...    {"id", "stamp"} of each row; the stamp shows a changed item
    settings.json           model, prompt and input that the vectors are of; compared on resuming
    manifest.json           the same with the list of shards: written last, when all are complete

`gve_jax.retrieval.vectors.StoredVectors` reads it.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.media.item import Item
from gve_jax.media.quarantine import Quarantine, merge_quarantines
from gve_jax.progress import progress_bar
from gve_jax.storage import files
from gve_jax.storage.files import atomic_write, read_records, write_array, write_json
from gve_jax.storage.locks import is_free

FORMAT = "gve_jax vectors 2"
CHUNK = 512  # items given to the model at once; also how often the progress bar moves
SHARDS, LARGEST = 1024, 4096  # of an output, as long as they have at most so many items each


class Encoder(Protocol):
    """An embedder: `gve_jax.GVE`, or any object with these attributes."""

    fingerprint: Mapping
    embedding_dim: int

    def encode_valid(
        self, inputs, ids: Sequence[str], quarantine: Quarantine, prompt=None, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns unit rows float32 [N valid, D] and valid bool [N]; quarantines the others."""


def embed_all(
    output: Path,
    ids: Sequence[str],
    stamps: Sequence[str],
    read: Callable[[int, int], list[Item]],
    model: Encoder,
    quarantine: Quarantine,
    *,
    prompt: str | None = None,
    shard_size: int | None = None,
    batch_size: int = 32,
    label: str = "embedding",
) -> tuple[int, int]:
    """Embeds what an output lacks; returns the numbers of its vectors and shards.

    Items that an earlier run could not read count as missing, unless the failure is permanent (see
    `Quarantine`) and the content the same; other vectors of the shard are kept as they are.

    All hosts call it with the same arguments, but for the quarantine, which is each one's own.

    Args:
      ids: of the items, unique.
      stamps: of the items; each differs where its item's content does.
      read: the items from `start` to `stop`; called for what is embedded, a chunk at a time.
      shard_size: items of a shard; by default as many as `items_of_shard` says.
      label: of the progress bar.

    Raises:
      UserError: an output of other settings or contents, a damaged one, one that is another folder
        on another host, too many unreadable items.
    """
    size, dim = shard_size or items_of_shard(len(ids)), model.embedding_dim
    settings = {
        "format": FORMAT,
        "fingerprint": dict(model.fingerprint),
        "prompt": prompt,
        "shard_size": size,
        "input": {"items": len(ids), "digest": digest_rows(ids)},
    }
    settings = json.loads(json.dumps(settings))
    hosts.check_same(settings | {"stamps": digest_rows(stamps)})
    hosts.run_on_host0(lambda: check_or_write_settings(output, settings))
    work.check_shared(output)
    quarantine.stamps = dict(zip(ids, stamps, strict=True))
    shards = [
        Shard(output, number, ids[start : start + size], stamps[start : start + size], start)
        for number, start in enumerate(range(0, len(ids), size))
    ]
    counts: dict[int, int] = {}  # vectors of each finished shard, on host 0

    def plan() -> list[tuple[int, list[int]]]:
        """The shards to work on, with the numbers of their items to embed."""
        merge_quarantines(quarantine)
        wanted, stored = [], []
        for n, shard in enumerate(shards):
            made = shard.read(dim)
            here = set(made or ())
            missing = [
                row
                for row, (id, stamp) in enumerate(zip(shard.expected, shard.stamps, strict=True))
                if made is None or not (id in here or quarantine.is_permanent(id, stamp))
            ]
            if made is not None:
                stored += made
                counts[n] = len(made)
            if missing:
                wanted.append((n, missing))
        quarantine.forget(stored)  # a run that was killed between the two files
        return wanted

    def finish(made: dict[int, int]) -> int:
        if not work.wait_until(lambda: all(shards[n].has(made[n], dim) for n in made)):
            raise UserError(f"{output}: shards of another host do not appear")
        merge_quarantines(quarantine)
        quarantine.check(len(ids))
        counts.update(made)
        count = sum(counts.values())
        sums = {"dim": dim, "vectors": count, "quarantined": len(ids) - count}
        content = {"input": settings["input"] | {"content": digest_rows(ids, stamps)}}
        listed = [
            {"vectors": shard.vectors.name, "ids": shard.ids.name, "count": counts[n]}
            for n, shard in enumerate(shards)
        ]
        write_json(output / "manifest.json", settings | content | sums | {"shards": listed})
        return count

    wanted = hosts.run_on_host0(
        plan
    )  # once for all: a network's folder may look different elsewhere
    quarantine.forget(shards[n].expected[row] for n, rows in wanted for row in rows)
    hosts.run_on_host0(
        lambda: quarantine.check(len(ids))
    )  # what is settled may be too much already
    mine, made = work.shard_for_host(wanted), {}
    embed = functools.partial(
        model.encode_valid, quarantine=quarantine, prompt=prompt, batch_size=batch_size
    )
    with progress_bar() as progress:
        others = sum(len(rows) for _, rows in wanted) - sum(len(rows) for _, rows in mine)
        bar = progress.add_task(label, total=len(ids) - others)
        progress.advance(bar, len(ids) - sum(len(rows) for _, rows in wanted))
        for n, rows in mine:
            made[n] = _embed(
                shards[n],
                rows,
                dim,
                len(ids),
                read,
                embed,
                quarantine,
                lambda count: progress.advance(bar, count),
            )
            hosts.set_location(f"after shard {n} of {output}")
    gathered = [pair for pairs in hosts.gather(list(made.items()), hosts.LONG_S) for pair in pairs]
    count = hosts.run_on_host0(lambda: finish(dict(gathered)))
    if not work.wait_until((output / "manifest.json").exists):
        raise UserError(f"{output}: the manifest of host 0 does not appear")
    if not work.wait_until(lambda: all(shard.sealed for shard in shards)):
        raise UserError(f"{output}: shards of another host do not appear")
    return count, len(shards)


def items_of_shard(items: int) -> int:
    """At least what the model gets at once, so that hosts can divide them evenly; more where there
    would be too many files."""
    return min(CHUNK * max(1, -(-items // (CHUNK * SHARDS))), LARGEST)


class Shard:
    """Two files of an output, of the expected ids from `start` on; the ids are written last and
    seal it."""

    def __init__(
        self, output: Path, number: int, expected: Sequence[str], stamps: Sequence[str], start: int
    ):
        self.vectors = output / f"vectors-{number:05}.npy"
        self.ids = output / f"ids-{number:05}.jsonl"
        self.expected, self.stamps, self.start = expected, stamps, start
        self._manifest = output / "manifest.json"

    @property
    def sealed(self) -> bool:
        return self.ids.exists() and self.vectors.exists()

    def has(self, count: int, dim: int) -> bool:
        """Whether it is finished with so many vectors, as seen from here."""
        try:
            return len(self.read(dim) or ()) == count and self.sealed
        except UserError:  # one of its files is new and the other one old, for a while
            return False

    def read(self, dim: int) -> list[str] | None:
        """The ids of its vectors, some of those expected; None when it is not finished.

        Raises:
          UserError: files that are damaged or of other items, or of another content of an item.
        """
        if not self.ids.exists():
            return None
        records = [record for _, record in read_records(self.ids)]
        ids = [record.get("id") for record in records]
        shape = self._load().shape
        left = iter(self.expected)
        # Each id is found in what the ids before it have left over: the same order, some missing.
        if shape != (len(ids), dim) or not all(id in left for id in ids):
            raise UserError(
                f"{self.vectors}: {list(shape)} does not fit its ids; delete {self.ids}"
            )
        stamps = dict(zip(self.expected, self.stamps, strict=True))
        for record in records:
            if record.get("stamp") != stamps[record["id"]]:
                raise UserError(
                    f"{self.ids}: the content of {record['id']!r} has changed; choose another "
                    "--output, or delete that file to embed its items again"
                )
        return ids

    def write(self, rows: Sequence[int], vectors: np.ndarray, dim: int) -> int:
        """Adds the vectors of the items of these numbers to those it has; how many it has then."""
        old = self.read(dim)
        if old is not None and not rows:
            return len(old)
        if old:
            number = {id: row for row, id in enumerate(self.expected)}
            rows = [*(number[id] for id in old), *rows]
            vectors = np.concatenate([self._load(), vectors])
            order = np.argsort(rows)
            rows, vectors = np.array(rows)[order].tolist(), vectors[order]
        self._manifest.unlink(missing_ok=True)
        self.ids.unlink(missing_ok=True)
        write_array(self.vectors, vectors)
        lines = [json.dumps({"id": self.expected[row], "stamp": self.stamps[row]}) for row in rows]
        text = "".join(line + "\n" for line in lines)
        atomic_write(self.ids, lambda file: file.write(text.encode()))
        return len(rows)

    def _load(self) -> np.ndarray:
        try:
            return np.load(self.vectors, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:  # EOFError: an empty file
            raise UserError(f"{self.vectors}: unreadable ({error}); delete {self.ids}") from error


def digest_rows(*texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for row in zip(*texts, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def check_or_write_settings(
    output: Path, settings: dict, remedy: str = "choose another --output"
) -> None:
    """Writes the settings of a new output; UserError, naming the field, if it is of others."""
    path = output / "settings.json"
    if not path.exists() and not is_free(output):
        raise UserError(f"{output} is not empty and holds no vectors (no settings.json)")
    files.check_or_write_manifest(path, settings, remedy)


def _embed(
    shard: Shard,
    rows: Sequence[int],
    dim: int,
    total: int,
    read: Callable,
    embed: Callable,
    quarantine: Quarantine,
    advance: Callable[[int], None],
) -> int:
    """Embeds the items of these numbers of a shard; how many vectors it has then."""
    vectors, found = [np.zeros((0, dim), np.float32)], []
    for at in range(0, len(rows), CHUNK):
        chunk = rows[at : at + CHUNK]
        items = [
            item
            for start, stop in _runs(chunk)
            for item in read(shard.start + start, shard.start + stop)
        ]
        made, valid = embed(items, [shard.expected[row] for row in chunk])
        vectors.append(made)
        found += [row for row, readable in zip(chunk, valid, strict=True) if readable]
        advance(len(chunk))
        if chunk[-1] != rows[-1]:
            quarantine.check(total)
    count = shard.write(found, np.concatenate(vectors), dim)
    quarantine.check(total)  # past it the command stops, and keeps this shard
    return count


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each run of numbers that follow each other."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in run]
        yield run[0], run[-1] + 1
