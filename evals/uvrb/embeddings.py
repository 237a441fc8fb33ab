"""Embeds each distinct item once, and keeps what is finished on disk.

OUTPUT/embeddings/<label>/<SET>.<side>.npy holds the vectors [N valid, D], and the .json beside it
the ids of all items, which of them are valid, a key of the content of each, and the fingerprint of
the model. The .json is written last: where it exists, the side is finished.

The key hashes the content of an item (text, instruction, bytes of image and video, order of the
frames), not its name, so a video that several sets ship (CRB ships its videos three times) is
embedded once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gve_jax.errors import UserError
from gve_jax.files import differences, write_array, write_json
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.retrieval import check_unit_vectors

CHUNK = 512  # items given to the model at once; also how often the progress bar moves
_HASH_BLOCK = 1 << 20


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


class Embedder:
    """One model, its finished embeddings on disk, and the vectors of all content seen so far.

    Args:
      model: the encoder.
      folder: OUTPUT/embeddings/<label>.
      quarantine: where unreadable media are recorded.
      total: the number of items of the whole command, for the quarantine's share.
    """

    def __init__(self, model: Encoder, folder: Path, quarantine: Quarantine, total: int):
        self.model, self.folder, self.quarantine, self.total = model, folder, quarantine, total
        self._fingerprint = json.loads(json.dumps(dict(model.fingerprint)))
        self._known: dict[str, np.ndarray | None] = {}  # None: unreadable
        self._hashes: dict[Path, str] = {}

    def sibling(self, folder: Path) -> "Embedder":
        """The same model writing to another folder, sharing what is known of content."""
        other = Embedder(self.model, folder, self.quarantine, self.total)
        other._known, other._hashes = self._known, self._hashes
        return other

    def embed(
        self, name: str, ids: Sequence[str], items: Sequence[dict], advance: Callable[[int], None]
    ) -> Side:
        """The vectors of one side, from disk if it is finished, else by the model.

        Args:
          name: `<SET>.<side>`, such as `CRB-T.corpus`.
          ids: N ids.
          items: N items; media are paths.
          advance: called with a number of items whenever so many more are done.

        Raises:
          UserError: embeddings on disk that were made with another model, settings or content (the
            message names the field), too many unreadable items, vectors that are not unit rows.
        """
        keys = [self._key(item) for item in items]
        array = self.folder / f"{name}.npy"
        manifest = self.folder / f"{name}.json"
        if manifest.exists():
            side = self._load(array, manifest, ids, keys)
            advance(len(ids))
        else:
            side = self._encode(name, ids, items, keys, advance)
            self._save(array, manifest, ids, keys, side)
        rows = iter(side.vectors)
        for key, valid in zip(keys, side.valid, strict=True):
            self._known[key] = next(rows) if valid else None
        return side

    def _encode(
        self,
        name: str,
        ids: Sequence[str],
        items: Sequence[dict],
        keys: list[str],
        advance: Callable[[int], None],
    ) -> Side:
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        new = [place for key, place in sorted(first.items(), key=lambda pair: pair[1])
               if key not in self._known]  # fmt: skip
        advance(len(ids) - len(new))
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            vectors, valid = self.model.encode_valid(
                [items[place] for place in chunk],
                ids=[f"{name}/{ids[place]}" for place in chunk],
                quarantine=self.quarantine,
            )
            if len(vectors):
                check_unit_vectors(vectors, f"{name}: the model's output")
            rows = iter(np.asarray(vectors, np.float32))
            for place, readable in zip(chunk, valid, strict=True):
                self._known[keys[place]] = next(rows) if readable else None
            self.quarantine.check(self.total)
            advance(len(chunk))
        valid = np.array([self._known[key] is not None for key in keys], bool)
        rows = [self._known[key] for key, readable in zip(keys, valid, strict=True) if readable]
        empty = np.zeros((0, self.model.embedding_dim), np.float32)
        return Side(np.stack(rows) if rows else empty, valid)

    def _save(self, array: Path, manifest: Path, ids: Sequence[str], keys: list[str], side: Side):
        write_array(array, side.vectors)
        record = {
            "fingerprint": self._fingerprint,
            "shape": list(side.vectors.shape),
            "ids": list(ids),
            "valid": side.valid.tolist(),
            "keys": keys,
        }
        write_json(manifest, record)

    def _load(self, array: Path, manifest: Path, ids: Sequence[str], keys: list[str]) -> Side:
        try:
            with open(manifest, encoding="utf-8") as file:
                record = json.load(file)
            vectors = np.load(array, mmap_mode="r", allow_pickle=False)
            made_with, shape = record["fingerprint"], record["shape"]
            old_ids, old_keys = record["ids"], record["keys"]
            valid = np.array(record["valid"], bool)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{manifest}: unreadable embeddings ({error}); delete it") from error
        remedy = "choose another --output or delete it"
        for field, (old, new) in differences(made_with, self._fingerprint).items():
            raise UserError(f"{manifest}: made with {field} = {old}, now {new}; {remedy}")
        if old_ids != list(ids):
            raise UserError(f"{manifest}: made for other ids; {remedy}")
        for id, old, new in zip(ids, old_keys, keys, strict=True):
            if old != new:
                raise UserError(f"{manifest}: the content of {id!r} has changed; {remedy}")
        if list(vectors.shape) != shape or len(valid) != len(ids) or valid.sum() != len(vectors):
            raise UserError(f"{array}: {list(vectors.shape)} does not fit its manifest; {remedy}")
        return Side(vectors, valid)

    def _key(self, item: dict) -> str:
        content = {key: value for key, value in item.items() if value}
        for medium in ("image", "video"):
            if medium in content:
                content[medium] = self._file_hash(Path(content[medium]))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _file_hash(self, path: Path) -> str:
        if path not in self._hashes:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
            self._hashes[path] = digest.hexdigest()
        return self._hashes[path]
