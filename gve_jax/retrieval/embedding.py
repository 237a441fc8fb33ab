"""Vectors of many items in a folder of shards, embedded once, by one or several hosts.

    vectors-00000.npy, ...  float32 [n, D], unit rows
    ids-00000.jsonl, ...    {"id", "stamp"} of each row; the stamp shows a changed item
    settings.json           model, prompt and input of the vectors; compared when resuming
    manifest.json           the same with the list of shards; written last

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
CHUNK = 512  # items passed to the encoder at once, and a step of the progress bar
SHARDS, LARGEST = 1024, 4096  # shards of an output, unless that takes more than LARGEST items each


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
    """Embeds the items that an output lacks; returns the numbers of its vectors and shards.

    Unreadable items of earlier runs are retried, unless the failure is permanent (see `Quarantine`)
    and the content unchanged. Other vectors of their shards stay.

    All hosts call it with equal arguments, except for the quarantine, which each host has.

    Args:
      ids: unique ids of the items.
      stamps: a text for each item that changes with its content.
      read: returns the items from `start` to `stop`; called for items to embed, a chunk at a time.
      shard_size: items in a shard (default: `items_of_shard`).
      label: text of the progress bar.

    Raises:
      UserError: the output has other settings or contents, is damaged, or is not shared by all
        hosts; too many unreadable items.
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
    before = _sandbox_of(output)
    counts: dict[int, int] = {}  # vectors of each finished shard, on host 0

    def plan() -> list[tuple[int, list[int]]]:
        """Numbers of incomplete shards, with the rows of their items to embed."""
        merge_quarantines(quarantine)
        incomplete, stored = [], []
        for n, shard in enumerate(shards):
            finished = shard.read(dim)
            present = set(finished or ())
            missing = [
                row
                for row, (id, stamp) in enumerate(zip(shard.expected, shard.stamps, strict=True))
                if finished is None or not (id in present or quarantine.is_permanent(id, stamp))
            ]
            if finished is not None:
                stored += finished
                counts[n] = len(finished)
            if missing:
                incomplete.append((n, missing))
        quarantine.forget(stored)  # left by a run that was killed between the two files
        return incomplete

    def finish(written: dict[int, int]) -> int:
        if not work.wait_until(lambda: all(shards[n].has(written[n], dim) for n in written)):
            raise UserError(f"{output}: shards of another host do not appear")
        merge_quarantines(quarantine)
        quarantine.check(len(ids))
        counts.update(written)
        count = sum(counts.values())
        sums = {"dim": dim, "vectors": count, "quarantined": len(ids) - count}
        content = {"input": settings["input"] | {"content": digest_rows(ids, stamps)}}
        # Another encoder may decode elsewhere; a run that resumed may have had only texts left.
        held = getattr(model, "sandbox", None) or before
        listed = [
            {"vectors": shard.vectors.name, "ids": shard.ids.name, "count": counts[n]}
            for n, shard in enumerate(shards)
        ]
        decoded = {"sandbox": held} if held else {}
        write_json(
            output / "manifest.json", settings | content | sums | decoded | {"shards": listed}
        )
        return count

    # On one host, since hosts may see different states of a network folder.
    incomplete = hosts.run_on_host0(plan)
    quarantine.forget(shards[n].expected[row] for n, rows in incomplete for row in rows)
    # Before any work: permanent failures may be too many already.
    hosts.run_on_host0(lambda: quarantine.check(len(ids)))
    assigned, written = work.shard_for_host(incomplete), {}
    embed = functools.partial(
        model.encode_valid, quarantine=quarantine, prompt=prompt, batch_size=batch_size
    )
    with progress_bar() as progress:
        missing = sum(len(rows) for _, rows in incomplete)
        own = sum(len(rows) for _, rows in assigned)
        bar = progress.add_task(label, total=len(ids) - missing + own)
        progress.advance(bar, len(ids) - missing)
        for n, rows in assigned:
            written[n] = _embed(
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
    gathered = hosts.gather(list(written.items()), hosts.LONG_S)
    all_written = dict(pair for pairs in gathered for pair in pairs)
    count = hosts.run_on_host0(lambda: finish(all_written))
    if not work.wait_until((output / "manifest.json").exists):
        raise UserError(f"{output}: the manifest of host 0 does not appear")
    if not work.wait_until(lambda: all(shard.sealed for shard in shards)):
        raise UserError(f"{output}: shards of another host do not appear")
    return count, len(shards)


def items_of_shard(items: int) -> int:
    """Items in a shard: a chunk, so that hosts can divide the work evenly, or more chunks where the
    output would have too many files."""
    return min(CHUNK * max(1, -(-items // (CHUNK * SHARDS))), LARGEST)


class Shard:
    """Two files of an output: the vectors of the `expected` ids, beginning with item `start`.

    The file of ids is written last and seals the shard.
    """

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
        """Whether this host sees the shard finished with `count` vectors."""
        try:
            return len(self.read(dim) or ()) == count and self.sealed
        except UserError:  # a network folder may show one new and one old file
            return False

    def read(self, dim: int) -> list[str] | None:
        """Returns the ids of the stored vectors, or None for an unfinished shard.

        Raises:
          UserError: damaged files, files of other items, an item whose content has changed.
        """
        if not self.ids.exists():
            return None
        records = [record for _, record in read_records(self.ids)]
        ids = [record.get("id") for record in records]
        shape = self._load().shape
        remaining = iter(self.expected)  # `in` consumes it: ids must be in order, some may lack
        if shape != (len(ids), dim) or not all(id in remaining for id in ids):
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
        """Adds vectors of the items `rows`; returns the number of stored vectors."""
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


def _sandbox_of(output: Path) -> dict | None:
    """The `sandbox` entry of a manifest, if there is one."""
    try:
        found = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        return found.get("sandbox")
    except (OSError, ValueError, AttributeError):
        return None


def check_or_write_settings(
    output: Path, settings: dict, remedy: str = "choose another --output"
) -> None:
    """Writes the settings of a new output; raises UserError, naming the field, if they differ."""
    path = output / "settings.json"
    if not path.exists() and not is_free(output):
        raise UserError(f"{output} is not empty and has no vectors (no settings.json)")
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
    """Embeds the items `rows` of a shard; returns the number of stored vectors."""
    vectors, readable_rows = [np.zeros((0, dim), np.float32)], []
    for at in range(0, len(rows), CHUNK):
        chunk = rows[at : at + CHUNK]
        items = [
            item
            for start, stop in _runs(chunk)
            for item in read(shard.start + start, shard.start + stop)
        ]
        embedded, valid = embed(items, [shard.expected[row] for row in chunk])
        vectors.append(embedded)
        readable_rows += [row for row, readable in zip(chunk, valid, strict=True) if readable]
        advance(len(chunk))
        if chunk[-1] != rows[-1]:
            quarantine.check(total)
    count = shard.write(readable_rows, np.concatenate(vectors), dim)
    quarantine.check(total)  # after the write: a command that stops here has stored its work
    return count


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (first, last + 1) of each run of consecutive numbers."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in run]
        yield run[0], run[-1] + 1
