"""Vectors by the digest of their content, in shards of a folder.

    manifest.json            format, dimensions and the fingerprint of the model
    vectors-00-00000-*.npy   float32 [n, D]: a shard of host 00
    vectors-00-00000-*.json  its keys, which of them are valid, and the reasons of the others;
                             written last, as the seal of the shard

Equal content is stored once, whatever its name. Evaluation and synthesis store their vectors so;
`gve_jax.retrieval.embedding` writes the vectors of a list of items, in its order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import check_record, read_json, write_array, write_json

FORMAT = "uvrb vectors 1"
_UNKNOWN = {"path": "", "reason": "", "seconds": 0.0}  # failures in shards before version 0.2.0


@dataclass(frozen=True)
class StoredRows:
    """Vectors float32 [N valid, D] of N keys or items, and valid bool [N]."""

    vectors: np.ndarray
    valid: np.ndarray


class VectorStore:
    """Vectors by the key of their content, in shards in `folder`.

    Args:
      fingerprint: fingerprint of the model, as JSON values.
      dim: D.

    Raises:
      UserError: the folder has another model or setting, or damaged shards.
    """

    def __init__(self, folder: Path, fingerprint: dict, dim: int):
        self.folder, self.dim = folder, dim
        self._rows: dict[str, tuple[int, int]] = {}  # shard and row
        self._failures: dict[str, dict] = {}  # last failure of keys without a row
        self._attempts: dict[str, int] = {}  # number of shards with the key
        self._shards: list[np.ndarray] = []
        self._read: set[str] = set()
        manifest = folder / "manifest.json"
        now = {"format": FORMAT, "dim": dim, "fingerprint": fingerprint}
        if manifest.exists():
            old = read_json(manifest, "; delete it")
            stored, wanted = old.pop("fingerprint", None), now.pop("fingerprint")
            for one, other in ((old, now), (stored, wanted)):
                check_record(manifest, one, other, "choose another --output or delete its folder")
        elif jax.process_index() == 0:
            write_json(manifest, now)
        self.refresh()

    def attempts(self, key: str) -> int:
        """Number of attempts to embed the content."""
        return self._attempts.get(key, 0)

    def failure(self, key: str) -> dict | None:
        """The last failure of the content, a line of a quarantine without the id; None if it has a
        vector or was never tried."""
        return self._failures.get(key)

    def refresh(self) -> None:
        """Reads shards that were finished since the last call."""
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
        """Writes a shard: a row of `vectors` for each valid key, `failures` of the others."""
        self.refresh()
        # Above the numbers of all hosts: the largest number has the last attempt.
        number = 1 + max((_shard_number(Path(name))[0] for name in self._read), default=-1)
        # The digest prevents concurrent commands from sealing each other's vectors.
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:8]
        path = self.folder / f"vectors-{jax.process_index():02}-{number:05}-{digest}.json"
        write_array(path.with_suffix(".npy"), np.asarray(vectors, np.float32))
        record = {"keys": list(keys), "valid": np.asarray(valid).tolist()}
        write_json(path, record | {"failures": dict(failures or {})})
        self.refresh()

    def read(self, keys: Sequence[str]) -> StoredRows:
        """The vectors of keys, all of which were tried."""
        valid = np.array([key in self._rows for key in keys], bool)
        found = [self._rows[key] for key in keys if key in self._rows]
        vectors = np.empty((len(found), self.dim), np.float32)
        shards, rows = np.array(found, np.int64).reshape(-1, 2).T
        for shard in np.unique(shards):
            mask = shards == shard
            vectors[mask] = self._shards[shard][rows[mask]]
        return StoredRows(vectors, valid)

    def _load(self, path: Path) -> None:
        record, array = read_json(path, "; delete it"), path.with_suffix(".npy")
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


def _shard_number(path: Path) -> tuple[int, int]:
    """Order of shards: by number, then by host."""
    _, host, number, _ = path.stem.split("-")
    return int(number), int(host)
