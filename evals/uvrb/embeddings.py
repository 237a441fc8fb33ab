"""Embeds each distinct content once, and keeps what is finished on disk.

OUTPUT/embeddings/<label>/ holds

    manifest.json            the model's fingerprint; another model or setting is refused by field
    vectors-00-00000-*.npy   float32 [n, D]: what host 00 embedded, at most SHARD items
    vectors-00-00000-*.json  keys of those items, which are valid, and why the others could not be
                             read; written last, it is the seal
    <SET>.<side>.json        ids, keys and validity of a side of a set that is finished

A key hashes the content of an item (text, instruction, bytes of image and video, order of the
frames), not its name, so a video that several sets ship (CRB ships its videos three times) is
embedded once. Killed at any time, the same command embeds what no shard has, and tries again what
could not be read for a reason that may pass, such as too little time. Every item that could not be
read counts in every command, also one whose content an earlier item or command failed on.

On several hosts, each embeds its share of what is missing into shards of its own, in a folder that
all share, and then all wait for each other.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from data.uvrb.files import Folder, file_sha256
from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.media.item import as_item
from gve_jax.media.quarantine import Quarantine, failure
from gve_jax.retrieval import check_unit_vectors
from gve_jax.storage.files import check_record, write_array, write_json

FORMAT = "uvrb vectors 1"
_UNKNOWN = {"path": "", "reason": "", "seconds": 0.0}  # of shards before version 0.2.0
SHARD = 512  # items given to the model at once and written together; also how often a bar moves


class Encoder(Protocol):
    """What is scored: `gve_jax.GVE`, or anything with these three."""

    fingerprint: Mapping
    embedding_dim: int

    def encode_valid(
        self, inputs: Sequence[dict], ids: Sequence[str], quarantine: Quarantine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows float32 [N valid, D] and valid bool [N]; the rest is in the quarantine."""


@dataclass(frozen=True)
class Side:
    """The queries or the documents of a set: vectors [N valid, D] and valid bool [N]."""

    vectors: np.ndarray
    valid: np.ndarray


class Store:
    """Vectors by the key of their content, in shards in `folder`.

    Args:
      fingerprint: of the model, as plain JSON.
      dim: D.

    Raises:
      UserError: a folder of another model or setting, damaged shards.
    """

    def __init__(self, folder: Path, fingerprint: dict, dim: int):
        self.folder, self.dim = folder, dim
        self._rows: dict[str, tuple[int, int]] = {}  # shard and row
        self._failures: dict[str, dict] = {}  # of keys without a row, the last one
        self._attempts: dict[str, int] = {}  # shards that have the key
        self._shards: list[np.ndarray] = []
        self._read: set[str] = set()
        manifest = folder / "manifest.json"
        now = {"format": FORMAT, "dim": dim, "fingerprint": fingerprint}
        if manifest.exists():
            old = _json(manifest)
            made, wanted = old.pop("fingerprint", None), now.pop("fingerprint")
            for one, other in ((old, now), (made, wanted)):
                check_record(manifest, one, other, "choose another --output or delete its folder")
        elif jax.process_index() == 0:
            write_json(manifest, now)
        self.refresh()

    def attempts(self, key: str) -> int:
        """How often the content was given to the model."""
        return self._attempts.get(key, 0)

    def failure(self, key: str) -> dict | None:
        """Why the content could not be read when it was last tried, as a quarantine's line without
        the id; None where it was read, or never tried."""
        return self._failures.get(key)

    def refresh(self) -> None:
        """Reads the shards that were finished since the last time."""
        for path in sorted(self.folder.glob("vectors-*.json"), key=_shard_number):
            if path.name not in self._read:
                self._load(path)
                self._read.add(path.name)

    def write(
        self,
        keys: Sequence[str],
        vectors: np.ndarray,
        valid: np.ndarray,
        failures: Mapping[str, dict] | None = None,
    ) -> None:
        """A new shard; `vectors` has a row for each valid key, `failures` says why by other key."""
        self.refresh()
        # Above those of all hosts: the shard with the largest number has the last attempt.
        number = 1 + max((_shard_number(Path(name))[0] for name in self._read), default=-1)
        # The digest keeps two commands in one folder from sealing each other's vectors.
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:8]
        path = self.folder / f"vectors-{jax.process_index():02}-{number:05}-{digest}.json"
        write_array(path.with_suffix(".npy"), np.asarray(vectors, np.float32))
        record = {"keys": list(keys), "valid": np.asarray(valid).tolist()}
        write_json(path, record | {"failures": dict(failures or {})})
        self.refresh()

    def side(self, keys: Sequence[str]) -> Side:
        """The vectors of keys that have all been tried."""
        valid = np.array([key in self._rows for key in keys], bool)
        kept = [self._rows[key] for key in keys if key in self._rows]
        vectors = np.empty((len(kept), self.dim), np.float32)
        shards, rows = np.array(kept, np.int64).reshape(-1, 2).T
        for shard in np.unique(shards):
            own = shards == shard
            vectors[own] = self._shards[shard][rows[own]]
        return Side(vectors, valid)

    def _load(self, path: Path) -> None:
        record, array = _json(path), path.with_suffix(".npy")
        try:
            vectors = np.load(array, mmap_mode="r", allow_pickle=False)
            keys, valid = record["keys"], [bool(value) for value in record["valid"]]
            failures = {key: dict(line) for key, line in record.get("failures", {}).items()}
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{array}: unreadable embeddings ({error}); delete {path}") from error
        if vectors.shape != (sum(valid), self.dim) or len(keys) != len(valid):
            raise UserError(f"{array}: {list(vectors.shape)} does not fit its list; delete {path}")
        row = 0
        for key, readable in zip(keys, valid, strict=True):
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if readable:
                self._rows.setdefault(key, (len(self._shards), row))
                self._failures.pop(key, None)
            elif key not in self._rows:
                self._failures[key] = _UNKNOWN | failures.get(key, {})
            row += readable
        self._shards.append(vectors)


class Failures:
    """Takes the lines that an encoder would put into a quarantine; by id."""

    def __init__(self):
        self.lines: dict[str, dict] = {}

    def record(self, id: str, path: str, reason: str, seconds: float, **more) -> None:
        self.lines[id] = {"path": path, "reason": reason, "seconds": seconds, **more}


def may_pass(line: Mapping | None) -> bool:
    """Whether what failed so may be readable when the command is repeated; None did not fail."""
    if line is None:
        return False
    if not line["reason"]:
        return True  # of a shard that does not say why
    # Encoders of others do not say it, but what reads the media names a limit that may be raised.
    return line.get("retry", "(limits." in line["reason"])


class Embedder:
    """One model and its embeddings on disk.

    Args:
      model: the encoder.
      folder: OUTPUT/embeddings/<label>.
      quarantine: where unreadable media are recorded.
      total: the number of items of the whole command, for the quarantine's share.

    files: those of the set at hand, to be set before `embed`: they know digests of media that are
      not there any more, and which videos are folders of frames. None: whatever is on disk.
    """

    def __init__(self, model: Encoder, folder: Path, quarantine: Quarantine, total: int):
        self.model, self.folder, self.quarantine, self.total = model, folder, quarantine, total
        fingerprint = json.loads(json.dumps(dict(model.fingerprint)))
        self._store = Store(folder, fingerprint, model.embedding_dim)
        work.check_shared(folder)
        self._hashes: dict[Path, str] = {}
        self._tried: set[str] = set()  # keys, in this command
        self.files: Folder | None = None

    def sibling(self, folder: Path) -> "Embedder":
        """The same model and vectors, with the lists of its sides in another folder."""
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"folder": folder}
        return other

    def embed(
        self,
        name: str,
        ids: Sequence[str],
        items: Sequence[dict],
        advance: Callable[[int], None],
    ) -> Side:
        """The vectors of one side: those that a shard has, the rest by the model.

        Every host of a job calls it with the same arguments, and gets the same side. Every item
        that could not be read is in the quarantine afterwards, whenever it was tried.

        Args:
          name: `<SET>.<side>`, such as `CRB-T.corpus`.
          ids: N ids.
          items: N items; media are paths.
          advance: called with a number of items whenever so many more are done.

        Raises:
          UserError: a side that was made of other ids or content (the message names them), too
            many unreadable items, vectors that are not unit rows.
        """
        items = [self._with_rate(item) for item in items]
        keys = [self._key(item) for item in items]
        self._compare(name, ids, keys)
        side = _Items(name, list(ids), items, keys, self._missing(keys))
        new = list(side.missing)
        self._tried |= {keys[place] for place in new}
        self._record_failures(side)  # before any work: those of earlier commands alone may be many
        if new and self.files is not None:
            self.files.ensure()
        advance(len(ids) - len(new))
        mine = work.shard_for_host(new)
        for start in range(0, len(mine), SHARD):
            self._encode(side, mine[start : start + SHARD])
            self._record_failures(side)
            advance(len(mine[start : start + SHARD]))
        hosts.set_location(f"after {name}")
        hosts.barrier()
        if not work.wait_until(lambda: self._is_done(side)):
            raise UserError(f"{name}: embeddings of another host do not appear in {self.folder}")
        self._record_failures(side)
        advance(len(new) - len(mine))
        found = self._store.side(keys)
        if jax.process_index() == 0:
            record = {"ids": list(ids), "keys": keys, "valid": found.valid.tolist()}
            write_json(self.folder / f"{name}.json", record)
            if self.files is not None:
                self.files.save()
        return found

    def content(self, path: Path) -> str:
        """SHA-256 of a medium, by which its vector is found."""
        if path not in self._hashes:
            own = self._of_set(path)
            self._hashes[path] = self.files.digest(path) if own else file_sha256(path)
        return self._hashes[path]

    def _missing(self, keys: Sequence[str]) -> dict[int, int]:
        """The places of what is to be embedded, each content once, and how often it was tried."""
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        store = self._store
        new = [
            [place, store.attempts(key)]
            for key, place in first.items()
            if not store.attempts(key) or (key not in self._tried and may_pass(store.failure(key)))
        ]
        # Hosts may see a network's folder differently: what is missing is decided once.
        return dict(map(tuple, hosts.gather(sorted(new) if jax.process_index() == 0 else None)[0]))

    def _encode(self, side: "_Items", chunk: Sequence[int]) -> None:
        failures = Failures()
        vectors, valid = self.model.encode_valid(
            [side.items[place] for place in chunk],
            ids=[f"{side.name}/{side.ids[place]}" for place in chunk],
            quarantine=failures,
        )
        if len(vectors):
            check_unit_vectors(vectors, f"{side.name}: the model's output")
        vectors = np.reshape(vectors, (-1, self.model.embedding_dim))
        lines = {
            side.keys[place]: failures.lines.get(f"{side.name}/{side.ids[place]}", {})
            for place, there in zip(chunk, valid, strict=True)
            if not there
        }
        self._store.write([side.keys[place] for place in chunk], vectors, valid, lines)

    def _record_failures(self, side: "_Items") -> None:
        """Puts every item of a side that is known to be unreadable into the quarantine, and stops
        where these are too many."""
        for place, key in enumerate(side.keys):
            line = self._store.failure(key)
            if line is None or not self._is_tried(side, key):
                continue
            own = failure(side.ids[place], as_item(side.items[place]), "", 0.0)["path"]
            reason = line["reason"] or "could not be read"
            for theirs, name in zip(line["path"].split(" + "), own.split(" + "), strict=False):
                reason = reason.replace(theirs, name) if theirs else reason
            id = f"{side.name}/{side.ids[place]}"
            self.quarantine.record(id, own, reason, line["seconds"], retry=may_pass(line))
        self.quarantine.check(self.total)

    def _is_tried(self, side: "_Items", key: str) -> bool:
        """Whether a content needs no further attempt, or has had it."""
        return self._store.attempts(key) > side.attempts.get(key, 0)

    def _is_done(self, side: "_Items") -> bool:
        self._store.refresh()
        return all(self._is_tried(side, key) for key in side.keys)

    def _compare(self, name: str, ids: Sequence[str], keys: list[str]) -> None:
        manifest = self.folder / f"{name}.json"
        if not manifest.exists():
            return
        record, remedy = _json(manifest), "choose another --output or delete it"
        if record.get("ids") != list(ids):
            raise UserError(f"{manifest}: made for other ids; {remedy}")
        made = zip(record.get("keys", ()), record.get("valid", ()), strict=False)
        for id, (old, readable), new in zip(ids, made, keys, strict=False):
            if readable and old != new:  # what could not be read may have been mended
                raise UserError(f"{manifest}: the content of {id!r} has changed; {remedy}")

    def _with_rate(self, item: dict) -> dict:
        rate = self._of_set(item.get("video")) and self.files.rate(Path(item["video"]))
        return item | {"fps": rate} if rate else item

    def _key(self, item: dict) -> str:
        content = {key: value for key, value in item.items() if value}
        for medium in ("image", "video"):
            if medium in content:
                content[medium] = self.content(Path(content[medium]))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _of_set(self, path: str | Path | None) -> bool:
        return bool(path and self.files and Path(path).is_relative_to(self.files.root))


@dataclass(frozen=True)
class _Items:
    """The items of one side, in order; `missing` holds the places of those that are to be embedded,
    with the number of attempts before."""

    name: str
    ids: list[str]
    items: list[dict]
    keys: list[str]
    missing: dict[int, int]

    @functools.cached_property
    def attempts(self) -> dict[str, int]:
        """Attempts before, by the keys of what is to be embedded."""
        return {self.keys[place]: count for place, count in self.missing.items()}


def _shard_number(path: Path) -> tuple[int, int]:
    """By which shards follow each other: the number, then the host."""
    _, host, number, _ = path.stem.split("-")
    return int(number), int(host)


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable embeddings ({error}); delete it") from error
    return value
