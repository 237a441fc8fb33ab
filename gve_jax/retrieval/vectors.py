"""Vectors that `gve_jax.embed` wrote, as one matrix that is read from disk on access."""

import json
import os
from collections.abc import Sequence

import numpy as np

from gve_jax.errors import UserError
from gve_jax.storage.files import read_records
from gve_jax.storage.filesystem import as_path


def load_vectors(folder: str | os.PathLike) -> "StoredVectors":
    """Opens an output of `gve_jax.embed`: `vectors[:]` is float32 [N, D], unit rows, `vectors.ids`
    are their ids. Rows are read from disk on access. It raises as `StoredVectors` does."""
    return StoredVectors(folder)


class StoredVectors:
    """Matrix float32 [N, D] over memory-mapped shards; slices, row numbers and arrays of them give
    plain arrays.

    Args:
      folder: an output of `gve_jax.embed`.

    Attributes:
      ids: N ids, in the order of the rows. New items come last, whatever their order in the input.
      metas: the `meta` of each item of a list, or None.
      manifest: the manifest of the folder.

    Raises:
      UserError: an unfinished output, damaged shards, no vectors.
    """

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, folder: str | os.PathLike):
        folder = as_path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{folder}: no finished vectors of gve_jax.embed (no manifest.json)")
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
            self._shards, self.ids, self.metas = [], [], []
            for shard in self.manifest["shards"]:
                file = folder / shard["vectors"]
                vectors = np.load(file, mmap_mode="r", allow_pickle=False)
                if vectors.shape != (shard["count"], self.manifest["dim"]):
                    raise UserError(f"{file}: {list(vectors.shape)} does not fit {path}")
                self._shards.append(vectors)
                records = [record for _, record in read_records(folder / shard["ids"])]
                self.ids += [record["id"] for record in records]
                self.metas += [record.get("meta") for record in records]
            self.shape = (sum(map(len, self._shards)), self.manifest["dim"])
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error})") from error
        if len(self.ids) != len(self) or not len(self):
            raise UserError(f"{folder}: {len(self.ids)} ids for {len(self)} vectors")
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)

    def __getitem__(self, key: int | slice | Sequence[int]) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            first = np.searchsorted(self._starts, start, side="right") - 1
            if step == 1 and start < stop <= self._starts[first + 1]:
                offset = self._starts[first]
                return np.asarray(self._shards[first][start - offset : stop - offset])
            key = np.arange(start, stop, step)
        key = np.asarray(key, np.int64)
        if key.size and not (-len(self) <= key.min() and key.max() < len(self)):
            raise IndexError(f"rows are 0 to {len(self) - 1}")
        key = np.where(key < 0, key + len(self), key)
        rows = np.empty((*key.shape, self.shape[1]), np.float32)
        shard = np.searchsorted(self._starts, key, side="right") - 1
        for number in np.unique(shard):
            mask = shard == number
            rows[mask] = self._shards[number][key[mask] - self._starts[number]]
        return rows


class Selection:
    """Rows of a matrix in a given order, read on access."""

    ndim = 2

    def __init__(self, vectors, rows: np.ndarray):
        self._vectors, self._rows = vectors, rows
        self.shape, self.dtype = (len(rows), vectors.shape[1]), vectors.dtype
        # All rows in order: slices need no copy.
        self._all = len(rows) == len(vectors) and (rows == np.arange(len(rows))).all()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key) -> np.ndarray:
        return self._vectors[key if self._all else self._rows[key]]
