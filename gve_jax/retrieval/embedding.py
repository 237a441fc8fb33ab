"""Vectors of many items in a folder of shards, each embedded once, by one or several hosts.

    vectors-00000.npy, ...  float32 [n, D], unit rows
    ids-00000.jsonl, ...    a record of each row, see `gve_jax.retrieval.shards`
    settings.json           model and prompt of the vectors; compared when the command is repeated
    manifest.json           the same with the list of items and shards; written last

A repeated command brings the folder up to date with its items: it embeds what is new or has other
content, copies rows whose content is the same under another name or time, and drops the rest.
`gve_jax.retrieval.vectors.StoredVectors` reads it.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.media.item import Item
from gve_jax.media.quarantine import Quarantine, merge_quarantines
from gve_jax.progress import progress_bar
from gve_jax.retrieval.shards import (
    MANIFEST,
    Contents,
    Shard,
    free_numbers,
    gather_rows,
    read_contents,
    remove_shards,
    reusable_rows,
    tidy,
)
from gve_jax.storage.files import check_record, read_json, write_json
from gve_jax.storage.locks import is_free

FORMAT = "gve_jax vectors 2"
CHUNK = 128  # items passed to the encoder at once, and a step of the progress bar
SMALLEST, LARGEST = 512, 4096  # items of a shard
SHARDS = 1024  # of an output, unless that takes more than LARGEST items each
DIGESTING = 4  # files whose digests are computed at once
MOST_GONE = 0.5  # share of the stored items that may be missing before it looks like a mistake


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
    contents: Callable[[int], str | None] | None = None,
    metas: Sequence[dict | None] | None = None,
    prompt: str | None = None,
    shard_size: int | None = None,
    batch_size: int = 32,
    allow_removal: bool = False,
    label: str = "embedding",
    report: Callable[[str], object] = lambda line: None,
) -> tuple[int, int]:
    """Brings an output up to date with a list; returns the numbers of its vectors and shards.

    Unreadable items of earlier runs are retried, unless the failure is permanent (see `Quarantine`)
    and the item unchanged. Until all is embedded, the manifest and the rows of an earlier list stay
    as they are.

    All hosts call it with equal arguments, except for the quarantine, which each host has.

    Args:
      ids: unique ids of the items.
      stamps: a text for each item that changes with its content.
      read: returns the items from `start` to `stop`; called for items to embed, a chunk at a time.
      contents: digest of all that the vector of an item depends on, by its position, or None if it
        cannot be read. Rows of the same digest are copied. Default: nothing is copied.
      metas: JSON values that are stored with the rows.
      shard_size: rows of a new shard (default: `items_of_shard`).
      allow_removal: drop stored items that are not in the list, however many they are.
      label: text of the progress bar.
      report: called on host 0 with lines about what changed.

    Raises:
      UserError: the output has other settings, is damaged, or is not shared by all hosts; most of
        its items are missing from the list; too many unreadable items.
    """
    size, dim = shard_size or items_of_shard(len(ids)), model.embedding_dim
    settings = {
        "format": FORMAT,
        "fingerprint": dict(model.fingerprint),
        "prompt": prompt,
    }
    settings = json.loads(json.dumps(settings))
    metas = metas or [None] * len(ids)
    digests = {"items": len(ids), "digest": digest_rows(ids), "content": digest_rows(ids, stamps)}
    hosts.check_same(settings | {"shard_size": size, "input": digests, "meta": digest_rows(metas)})
    hosts.run_on_host0(lambda: check_or_write_settings(output, settings))
    work.check_shared(output)
    quarantine.stamps = dict(zip(ids, stamps, strict=True))
    items = dict(zip(ids, zip(stamps, metas, strict=True), strict=True))
    before = _sandbox_of(output)

    def plan() -> dict:
        """The shards to write, (number, positions of the items) each, on one host: hosts may see
        different states of a network folder."""
        merge_quarantines(quarantine)
        stored = read_contents(output, dim, items)
        _check_removal(output, stored, allow_removal)
        if not stored.records:
            (output / MANIFEST).unlink(missing_ok=True)  # the shards that it lists are lost
        # Left by another list, or by a run that was killed between the two files.
        quarantine.forget([id for id in quarantine.ids if id not in items or id in stored.current])
        missing = [
            n
            for n, (id, stamp) in enumerate(zip(ids, stamps, strict=True))
            if not (id in stored.current or quarantine.is_permanent(id, stamp))
        ]
        if line := _changes(stored, [ids[n] for n in missing], quarantine):
            report(f"{output}: {line}")
        free = free_numbers(stored.records)
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]
        return {
            "parts": [[next(free), part] for part in parts],
            "is_changed": bool(missing) or stored.has_others,
        }

    def finish(written: dict[int, int]) -> list:
        """Commits the rows; returns the number of vectors and the digest of the manifest."""
        if not work.wait_until(lambda: all(Shard(output, n).has(written[n]) for n in written)):
            raise UserError(f"{output}: shards of another host do not appear")
        merge_quarantines(quarantine)
        quarantine.check(len(ids))
        stored = read_contents(output, dim, items)
        if planned["is_changed"]:
            kept, _ = tidy(output, stored, {id: n for n, id in enumerate(ids)}, dim, size)
        else:
            kept = {number: len(records) for number, records in stored.records.items()}
        count = sum(kept.values())
        # Another encoder may decode elsewhere; a run that resumed may have had only texts left.
        held = getattr(model, "sandbox", None) or before
        manifest = settings | {
            "input": digests,
            "dim": dim,
            "vectors": count,
            "quarantined": len(ids) - count,
            **({"sandbox": held} if held else {}),
            "shards": [
                {"vectors": shard.vectors.name, "ids": shard.ids.name, "count": kept[n]}
                for n, shard in ((n, Shard(output, n)) for n in sorted(kept))
            ],
        }
        if not _is_same(output / MANIFEST, manifest):
            write_json(output / MANIFEST, manifest)
        remove_shards(output, kept)
        return [count, len(kept)]

    planned = hosts.run_on_host0(plan)
    quarantine.forget(ids[n] for _, part in planned["parts"] for n in part)
    # Before any work: permanent failures may be too many already.
    hosts.run_on_host0(lambda: quarantine.check(len(ids)))
    own = work.shard_for_host(planned["parts"])
    reusable = reusable_rows(output, dim) if contents and own else {}
    embed = functools.partial(
        model.encode_valid, quarantine=quarantine, prompt=prompt, batch_size=batch_size
    )
    written, reused = {}, 0
    with progress_bar() as progress:
        missing = sum(len(part) for _, part in planned["parts"])
        total = len(ids) - missing + sum(len(part) for _, part in own)
        bar = progress.add_task(label, total=total, completed=len(ids) - missing)
        for number, part in own:
            rows = _Rows(output, dim, reusable, contents, read, embed)
            try:
                for at in range(0, len(part), CHUNK):
                    chunk = part[at : at + CHUNK]
                    rows.add(chunk, ids, stamps, metas)
                    progress.advance(bar, len(chunk))
                    if quarantine.is_exceeded(len(ids)):
                        break
            finally:  # a command that stops here keeps its work
                written |= rows.write(Shard(output, number))
            reused += rows.reused
            quarantine.check(len(ids))
            hosts.set_location(f"after shard {number} of {output}")
    gathered = hosts.gather([list(written.items()), reused], hosts.LONG_S)
    all_written = dict(tuple(pair) for pairs, _ in gathered for pair in pairs)
    if copied := sum(count for _, count in gathered):
        report(f"{output}: {copied:,} vectors copied: same content, another name or time")
    count, shards = hosts.run_on_host0(lambda: finish(all_written))
    if not work.wait_until(lambda: _describes(output / MANIFEST, digests, count)):
        raise UserError(f"{output}: the manifest of host 0 does not appear")
    return count, shards


class _Rows:
    """The rows of a shard to write: copied where the content is stored, embedded elsewhere."""

    def __init__(
        self,
        output: Path,
        dim: int,
        reusable: Mapping,
        contents: Callable[[int], str | None] | None,
        read: Callable[[int, int], list[Item]],
        embed: Callable,
    ):
        self._output, self._dim, self._reusable = output, dim, reusable
        self._contents, self._read, self._embed = contents, read, embed
        self._parts: list[tuple[list[dict], np.ndarray]] = []
        self.reused = 0

    def add(self, chunk: Sequence[int], ids: Sequence, stamps: Sequence, metas: Sequence) -> None:
        """Adds the rows of the readable items at the positions `chunk`."""
        places, contents = {}, {}
        for n in chunk:
            if found := self._reusable.get((ids[n], stamps[n])):  # another meta
                *places[n], contents[n] = found
        others = [n for n in chunk if n not in places]
        if self._contents:
            # Before the items are read: a file that changes meanwhile has the digest of its former
            # content, and is embedded again when the command is repeated.
            with ThreadPoolExecutor(DIGESTING) as pool:
                contents |= zip(others, pool.map(self._contents, others), strict=True)
            for n in others:
                if found := self._reusable.get(contents[n]):
                    places[n] = found[:2]
        others = [n for n in chunk if n not in places]
        items = [item for start, stop in _runs(others) for item in self._read(start, stop)]
        valid = np.zeros(0, bool)
        if others:
            embedded, valid = self._embed(items, [ids[n] for n in others])
        rows = dict(zip(itertools.compress(others, valid), embedded, strict=True)) if others else {}
        copied = gather_rows(self._output, [tuple(place) for place in places.values()], self._dim)
        rows |= zip(places, copied, strict=True)
        records = []
        for n in filter(rows.__contains__, chunk):
            record = {"id": ids[n], "stamp": stamps[n]}
            record |= {"content": contents[n]} if contents.get(n) else {}
            records.append(record | ({"meta": metas[n]} if metas[n] is not None else {}))
        if records:
            self._parts.append((records, np.stack([rows[n] for n in chunk if n in rows])))
        self.reused += len(places)

    def write(self, shard: Shard) -> dict[int, int]:
        """Writes the shard, if it has rows; returns their number by that of the shard."""
        records = [record for part, _ in self._parts for record in part]
        if not records:
            return {}
        shard.write(records, np.concatenate([vectors for _, vectors in self._parts]))
        return {shard.number: len(records)}


def _check_removal(output: Path, stored: Contents, allow_removal: bool) -> None:
    gone = len(stored.gone)
    total = gone + len(stored.current) + len(stored.outdated)
    if gone > MOST_GONE * total and not allow_removal:
        raise UserError(
            f"{output}: {gone:,} of its {total:,} items are not in the input; if the input is "
            "right, drop them with --allow-removal of gve_jax.embed, or delete that folder; else "
            "choose another --output"
        )


def _changes(stored: Contents, missing: Sequence[str], quarantine: Quarantine) -> str:
    """A line about what changed since the rows were stored; "" for nothing, or a new output."""
    if not stored.records:
        return ""
    unreadable = set(quarantine.ids)
    changed = [id for id in missing if id in stored.outdated]
    retried = [id for id in missing if id in unreadable and id not in stored.outdated]
    counts = {
        "new": len(missing) - len(changed) - len(retried),
        "gone": len(stored.gone),
        "changed": len(changed),
        "unreadable to retry": len(retried),
    }
    if not any(counts.values()):
        return ""
    counts["unchanged"] = len(stored.current)
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def items_of_shard(items: int) -> int:
    """Items in a shard: few, so that hosts can divide the work evenly, or more where the output
    would have too many files."""
    return min(SMALLEST * max(1, -(-items // (SMALLEST * SHARDS))), LARGEST)


def digest_rows(*texts: Sequence) -> str:
    digest = hashlib.sha256()
    for row in zip(*texts, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:16]


def _sandbox_of(output: Path) -> dict | None:
    """The `sandbox` entry of a manifest, if there is one."""
    found = _read_manifest(output / MANIFEST)
    return found and found.get("sandbox")


def _read_manifest(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) or None
    except (OSError, ValueError):
        return None


def _is_same(path: Path, manifest: dict) -> bool:
    """Whether a manifest has the same entries. Others, of version 0.2.0, do not matter."""
    old = _read_manifest(path)
    return isinstance(old, dict) and {key: old.get(key) for key in manifest} == manifest


def _describes(path: Path, digests: dict, count: int) -> bool:
    found = _read_manifest(path)
    return isinstance(found, dict) and (found.get("input"), found.get("vectors")) == (
        digests,
        count,
    )


def check_or_write_settings(
    output: Path, settings: dict, remedy: str = "choose another --output"
) -> None:
    """Writes the settings of a new output; raises UserError, naming the field, if they differ.

    Stored fields that are not in `settings` do not matter: version 0.2.0 recorded the list, too."""
    path = output / "settings.json"
    if not path.exists():
        if not is_free(output):
            raise UserError(f"{output} is not empty and has no vectors (no settings.json)")
        write_json(path, settings)
        return
    stored = read_json(path, f"; {remedy}")
    check_record(path, {key: stored.get(key) for key in settings}, settings, remedy)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (first, last + 1) of each run of consecutive numbers."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in run]
        yield run[0], run[-1] + 1
