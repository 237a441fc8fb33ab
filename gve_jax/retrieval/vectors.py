"""Vectors that `gve_jax.embed` wrote, as one matrix that is read from disk where it is used."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import read_records


class StoredVectors:
    """float32 [N, D] over memory-mapped shards; slices and index arrays give plain arrays.

    Args:
      folder: an output of `gve_jax.embed`.

    Attributes:
      ids: N ids, in the order of the rows.
      manifest: of the folder.

    Raises:
      UserError: no finished output, damaged shards, no vector in it.
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, folder: Path):
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder}: no finished vectors of gve_jax.embed (no manifest.json)")
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
            self._shards, self.ids = [], []
            for shard in self.manifest["shards"]:
                file = folder / shard["vectors"]
                vectors = np.load(file, mmap_mode="r", allow_pickle=False)
                if vectors.shape != (shard["count"], self.manifest["dim"]):
                    raise UserError(f"{file}: {list(vectors.shape)} does not fit {path}")
                self._shards.append(vectors)
                self.ids += [record["id"] for _, record in read_records(folder / shard["ids"])]
            self.shape = (sum(map(len, self._shards)), self.manifest["dim"])
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error})") from error
        if len(self.ids) != len(self) or not len(self):
            raise UserError(f"{folder}: {len(self.ids)} ids for {len(self)} vectors")
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | Sequence[int]) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            first = np.searchsorted(self._starts, start, side="right") - 1
            if step == 1 and start < stop <= self._starts[first + 1]:
                at = self._starts[first]
                return np.asarray(self._shards[first][start - at : stop - at])
            key = np.arange(start, stop, step)
        key = np.asarray(key, np.int64)
        found = np.empty((*key.shape, self.shape[1]), np.float32)
        shard = np.searchsorted(self._starts, key, side="right") - 1
        for number in np.unique(shard):
            here = shard == number
            found[here] = self._shards[number][key[here] - self._starts[number]]
        return found


class Selection:
    """Some rows of a matrix, in a given order, read where they are used."""

    ndim = 2

    def __init__(self, vectors, rows: np.ndarray):
        self._vectors, self._rows = vectors, rows
        self.shape, self.dtype = (len(rows), vectors.shape[1]), vectors.dtype
        # The whole of a matrix in its order: its slices need no copy.
        self._all = len(rows) == len(vectors) and (rows == np.arange(len(rows))).all()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key) -> np.ndarray:
        return self._vectors[key if self._all else self._rows[key]]
