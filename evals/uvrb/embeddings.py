"""Embeds each distinct content once, and stores finished vectors on disk.

OUTPUT/embeddings/<label>/ contains

    manifest.json, vectors-*  the vectors, see `gve_jax.retrieval.store`; at most SHARD items each
    <SET>.<side>.json         ids, keys and validity of a finished side of a set

A key hashes the content of an item (text, instruction, bytes of image and video, order of the
frames), not its name, so a video of several sets (CRB ships its videos three times) is embedded
once. After a kill, the same command embeds what no shard contains, and retries transient failures
such as too little time. Every unreadable item counts in every command, even if an earlier item or
command failed on its content.

On several hosts, each embeds its share of the missing items into its own shards, in a folder that
all share, and then all wait for each other.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from data.uvrb.files import Folder
from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.media.item import as_item
from gve_jax.media.quarantine import Quarantine, failure
from gve_jax.retrieval import check_unit_vectors
from gve_jax.retrieval.embedding import Encoder
from gve_jax.retrieval.store import StoredRows, VectorStore
from gve_jax.storage.digests import file_sha256, json_sha256
from gve_jax.storage.files import read_json, write_json

SHARD = 512  # items embedded and written together, and a step of the progress bar


class PartlyEncoded(Exception):
    """Raised by an encoder that stopped early, with the results of a part of the items.

    done: their indices. vectors, valid: what `encode_valid` returns for them. reason: the error.
    """

    def __init__(self, done: Sequence[int], vectors, valid, reason: BaseException):
        super().__init__(str(reason))
        self.done, self.vectors, self.valid, self.reason = done, vectors, valid, reason


class Failures:
    """Collects the lines that an encoder writes to a quarantine, by id."""

    def __init__(self):
        self.lines: dict[str, dict] = {}

    def record(self, id: str, path: str, reason: str, seconds: float, **more) -> None:
        self.lines[id] = {"path": path, "reason": reason, "seconds": seconds, **more}


def is_transient(line: Mapping | None) -> bool:
    """Whether a failure may not recur when the command is repeated; False for None, a success."""
    if line is None:
        return False
    if not line["reason"]:
        return True  # the shard has no reasons
    # Other encoders do not set `retry`, but errors of our readers name limits that may be raised.
    return line.get("retry", "(limits." in line["reason"])


class Embedder:
    """One model and its embeddings on disk.

    Args:
      model: the encoder.
      folder: OUTPUT/embeddings/<label>.
      quarantine: records unreadable media.
      total: number of items of the command, for the quarantine's share.

    files: files of the current set, to be set before `embed`. They have digests of removed media,
      and know which videos are folders of frames. None for the files on disk.
    """

    def __init__(self, model: Encoder, folder: Path, quarantine: Quarantine, total: int):
        self.model, self.folder, self.quarantine, self.total = model, folder, quarantine, total
        fingerprint = json.loads(json.dumps(dict(model.fingerprint)))
        self._store = VectorStore(folder, fingerprint, model.embedding_dim)
        work.check_shared(folder)
        self._hashes: dict[Path, str] = {}
        self._tried: set[str] = set()  # keys, in this command
        self.files: Folder | None = None

    def sibling(self, folder: Path) -> "Embedder":
        """An embedder with the same model and vectors that writes its lists to another folder."""
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"folder": folder}
        return other

    def embed(
        self,
        name: str,
        ids: Sequence[str],
        items: Sequence[dict],
        advance: Callable[[int], None],
    ) -> StoredRows:
        """The vectors of one side, from shards or from the model.

        Every host of a job calls it with equal arguments and gets the same side. Afterwards the
        quarantine has every unreadable item, also those of earlier commands.

        Args:
          name: `<SET>.<side>`, such as `CRB-T.corpus`.
          ids: N ids.
          items: N items; media are paths.
          advance: called with the number of items just finished.

        Raises:
          UserError: the stored side has other ids or content (the message names them), too many
            items are unreadable, or vectors are not unit rows.
        """
        items = [self._with_rate(item) for item in items]
        keys = [self._key(item) for item in items]
        self._compare(name, ids, keys)
        side = _Items(name, list(ids), items, keys, self._missing(keys))
        new = list(side.missing)
        self._tried |= {keys[index] for index in new}
        self._record_failures(side)  # before any work: earlier failures may be too many
        if new and self.files is not None:
            self.files.ensure()
        advance(len(ids) - len(new))
        mine = work.shard_for_host(new)
        size = getattr(self.model, "chunk", SHARD)
        for start in range(0, len(mine), size):
            self._encode(side, mine[start : start + size])
            self._record_failures(side)
            advance(len(mine[start : start + size]))
        hosts.set_location(f"after {name}")
        hosts.barrier()
        if not work.wait_until(lambda: self._is_done(side)):
            raise UserError(f"{name}: embeddings of another host do not appear in {self.folder}")
        self._record_failures(side)
        advance(len(new) - len(mine))
        found = self._store.read(keys)
        if jax.process_index() == 0:
            record = {"ids": list(ids), "keys": keys, "valid": found.valid.tolist()}
            write_json(self.folder / f"{name}.json", record)
            if self.files is not None:
                self.files.save()
        return found

    def content(self, path: Path) -> str:
        """SHA-256 of a medium, a part of the key of its vector."""
        if path not in self._hashes:
            known = self._is_in_set(path)
            self._hashes[path] = self.files.digest(path) if known else file_sha256(path)
        return self._hashes[path]

    def _missing(self, keys: Sequence[str]) -> dict[int, int]:
        """Indices of the items to embed, one for each content, with their previous attempts."""
        store, new = self._store, []
        for key, index in {key: index for index, key in reversed(list(enumerate(keys)))}.items():
            attempts = store.attempts(key)
            retry = key not in self._tried and is_transient(store.failure(key))
            if not attempts or retry:
                new.append([index, attempts])
        # Decided on one host, since hosts may see different states of a network folder.
        return dict(map(tuple, hosts.gather(sorted(new) if jax.process_index() == 0 else None)[0]))

    def _encode(self, side: "_Items", chunk: Sequence[int]) -> None:
        failures, stopped = Failures(), None
        try:
            vectors, valid = self.model.encode_valid(
                [side.items[index] for index in chunk],
                ids=[f"{side.name}/{side.ids[index]}" for index in chunk],
                quarantine=failures,
            )
        except PartlyEncoded as part:
            stopped, vectors, valid = part.reason, part.vectors, part.valid
            chunk = [chunk[index] for index in part.done]
        if len(vectors):
            check_unit_vectors(vectors, f"{side.name}: the model's output")
        vectors = np.reshape(vectors, (-1, self.model.embedding_dim))
        lines = {
            side.keys[index]: failures.lines.get(f"{side.name}/{side.ids[index]}", {})
            for index, is_valid in zip(chunk, valid, strict=True)
            if not is_valid
        }
        if len(chunk):
            self._store.write([side.keys[index] for index in chunk], vectors, valid, lines)
        if stopped is not None:
            raise stopped

    def _record_failures(self, side: "_Items") -> None:
        """Puts every known unreadable item of a side into the quarantine, and stops at too many."""
        for index, key in enumerate(side.keys):
            line = self._store.failure(key)
            if line is None or not self._is_tried(side, key):
                continue
            path = failure(side.ids[index], as_item(side.items[index]), "", 0.0)["path"]
            reason = line["reason"] or "could not be read"
            # The failure may be of another item with the same content: name the files of this one.
            for other, name in zip(line["path"].split(" + "), path.split(" + "), strict=False):
                reason = reason.replace(other, name) if other else reason
            id = f"{side.name}/{side.ids[index]}"
            self.quarantine.record(id, path, reason, line["seconds"], retry=is_transient(line))
        self.quarantine.check(self.total)

    def _is_tried(self, side: "_Items", key: str) -> bool:
        """Whether a content needs no attempt of this command, or had it."""
        return self._store.attempts(key) > side.attempts.get(key, 0)

    def _is_done(self, side: "_Items") -> bool:
        self._store.refresh()
        return all(self._is_tried(side, key) for key in side.keys)

    def _compare(self, name: str, ids: Sequence[str], keys: list[str]) -> None:
        manifest = self.folder / f"{name}.json"
        if not manifest.exists():
            return
        record, remedy = read_json(manifest, "; delete it"), "choose another --output or delete it"
        if record.get("ids") != list(ids):
            raise UserError(f"{manifest}: written for other ids; {remedy}")
        stored = zip(record.get("keys", ()), record.get("valid", ()), strict=False)
        for id, (old, readable), new in zip(ids, stored, keys, strict=False):
            if readable and old != new:  # unreadable files may have been repaired
                raise UserError(f"{manifest}: the content of {id!r} has changed; {remedy}")

    def _with_rate(self, item: dict) -> dict:
        rate = self._is_in_set(item.get("video")) and self.files.rate(Path(item["video"]))
        return item | {"fps": rate} if rate else item

    def _key(self, item: dict) -> str:
        # An instruction of "" stays: it distinguishes a query without one from a document.
        content = {key: value for key, value in item.items() if value or key == "instruction"}
        for medium in ("image", "video"):
            if medium in content:
                content[medium] = self.content(Path(content[medium]))
        return json_sha256(content, sort_keys=True)

    def _is_in_set(self, path: str | Path | None) -> bool:
        return bool(path and self.files and Path(path).is_relative_to(self.files.root))


@dataclass(frozen=True)
class _Items:
    """The items of one side, in order; `missing` has the indices of those to embed, with the number
    of earlier attempts."""

    name: str
    ids: list[str]
    items: list[dict]
    keys: list[str]
    missing: dict[int, int]

    @functools.cached_property
    def attempts(self) -> dict[str, int]:
        """Earlier attempts by the keys of the items to embed."""
        return {self.keys[index]: count for index, count in self.missing.items()}
