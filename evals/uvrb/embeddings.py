"""Embeds each distinct content once, and keeps what is finished on disk.

OUTPUT/embeddings/<label>/ holds

    manifest.json            the model's fingerprint; another model or setting is refused by field
    vectors-00-00000-*.npy   float32 [n, D]: what host 00 embedded, at most SHARD items
    vectors-00-00000-*.json  keys of those items and which are valid; written last, it is the seal
    <SET>.<side>.json        ids, keys and validity of a side of a set that is finished

A key hashes the content of an item (text, instruction, bytes of image and video, order of the
frames), not its name, so a video that several sets ship (CRB ships its videos three times) is
embedded once. Killed at any time, the same command embeds what no shard has.

On several hosts, each embeds its share of what is missing into shards of its own, in a folder that
all share, and then all wait for each other.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from evals.uvrb.files import Folder, file_sha256
from gve_jax import hosts, shares
from gve_jax.errors import UserError
from gve_jax.files import check_record, write_array, write_json
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.retrieval import check_unit_vectors

FORMAT = "uvrb vectors 1"
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
        self._rows: dict[str, tuple[int, int] | None] = {}  # shard and row; None: unreadable
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

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def refresh(self) -> None:
        """Reads the shards that were finished since the last time."""
        for path in sorted(self.folder.glob("vectors-*.json")):
            if path.name not in self._read:
                self._load(path)
                self._read.add(path.name)

    def write(self, keys: Sequence[str], vectors: np.ndarray, valid: np.ndarray) -> None:
        """A new shard; `vectors` has a row for each valid key."""
        host = f"vectors-{jax.process_index():02}"
        number = 1 + max(
            (int(path.stem.split("-")[2]) for path in self.folder.glob(f"{host}-*.json")),
            default=-1,
        )
        # The digest keeps two commands in one folder from sealing each other's vectors.
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:8]
        path = self.folder / f"{host}-{number:05}-{digest}.json"
        write_array(path.with_suffix(".npy"), np.asarray(vectors, np.float32))
        write_json(path, {"keys": list(keys), "valid": np.asarray(valid).tolist()})
        self.refresh()

    def side(self, keys: Sequence[str]) -> Side:
        """The vectors of keys that are all here."""
        places = [self._rows[key] for key in keys]
        valid = np.array([place is not None for place in places], bool)
        kept = [place for place in places if place is not None]
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
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{array}: unreadable embeddings ({error}); delete {path}") from error
        if vectors.shape != (sum(valid), self.dim) or len(keys) != len(valid):
            raise UserError(f"{array}: {list(vectors.shape)} does not fit its list; delete {path}")
        row = 0
        for key, readable in zip(keys, valid, strict=True):
            self._rows.setdefault(key, (len(self._shards), row) if readable else None)
            row += readable
        self._shards.append(vectors)


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
        shares.check_shared(folder)
        self._hashes: dict[Path, str] = {}
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

        Every host of a job calls it with the same arguments, and gets the same side.

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
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        new = sorted(place for key, place in first.items() if key not in self._store)
        # Hosts may see a network's folder differently: what is missing is decided once.
        new = hosts.gather(new if jax.process_index() == 0 else None)[0]
        tried = {keys[place] for place in new}
        self.quarantine.forget(f"{name}/{id}" for id, key in zip(ids, keys, strict=True)
                               if key in tried)  # fmt: skip
        if new and self.files is not None:
            self.files.ensure()
        advance(len(ids) - len(new))
        mine = shares.share(new)
        for start in range(0, len(mine), SHARD):
            self._encode(name, ids, items, keys, mine[start : start + SHARD])
            self.quarantine.check(self.total)
            advance(len(mine[start : start + SHARD]))
        hosts.at(f"after {name}")
        hosts.wait()
        if not shares.appears(lambda: self._here(keys)):
            raise UserError(f"{name}: embeddings of another host do not appear in {self.folder}")
        advance(len(new) - len(mine))
        side = self._store.side(keys)
        if jax.process_index() == 0:
            record = {"ids": list(ids), "keys": keys, "valid": side.valid.tolist()}
            write_json(self.folder / f"{name}.json", record)
            if self.files is not None:
                self.files.save()
        return side

    def _encode(self, name, ids, items, keys, chunk: Sequence[int]) -> None:
        vectors, valid = self.model.encode_valid(
            [items[place] for place in chunk],
            ids=[f"{name}/{ids[place]}" for place in chunk],
            quarantine=self.quarantine,
        )
        if len(vectors):
            check_unit_vectors(vectors, f"{name}: the model's output")
        vectors = np.reshape(vectors, (-1, self.model.embedding_dim))
        self._store.write([keys[place] for place in chunk], vectors, valid)

    def _here(self, keys: Sequence[str]) -> bool:
        self._store.refresh()
        return all(key in self._store for key in keys)

    def _compare(self, name: str, ids: Sequence[str], keys: list[str]) -> None:
        manifest = self.folder / f"{name}.json"
        if not manifest.exists():
            return
        record, remedy = _json(manifest), "choose another --output or delete it"
        if record.get("ids") != list(ids):
            raise UserError(f"{manifest}: made for other ids; {remedy}")
        for id, old, new in zip(ids, record.get("keys", ()), keys, strict=False):
            if old != new:
                raise UserError(f"{manifest}: the content of {id!r} has changed; {remedy}")

    def _with_rate(self, item: dict) -> dict:
        rate = self._of_set(item.get("video")) and self.files.rate(Path(item["video"]))
        return item | {"fps": rate} if rate else item

    def _key(self, item: dict) -> str:
        content = {key: value for key, value in item.items() if value}
        for medium in ("image", "video"):
            if medium in content:
                content[medium] = self._digest(Path(content[medium]))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _digest(self, path: Path) -> str:
        if path not in self._hashes:
            own = self._of_set(path)
            self._hashes[path] = self.files.digest(path) if own else file_sha256(path)
        return self._hashes[path]

    def _of_set(self, path: str | Path | None) -> bool:
        return bool(path and self.files and Path(path).is_relative_to(self.files.root))


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable embeddings ({error}); delete it") from error
    return value
