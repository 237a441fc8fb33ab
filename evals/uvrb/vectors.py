"""Vectors that were made elsewhere, by any embedder:

    DIR/<SET>/queries.npy, corpus.npy           [N, D], floating point
    DIR/<SET>/queries.ids.json, corpus.ids.json a list of N ids; or .ids.txt, an id a line
    DIR/<SET>/queries.parquet, corpus.parquet   instead of both: columns `id` and `vector`

Vectors that are not of unit length are refused, or normalised on request. NaN, infinity, zeros, an
id twice and an id that the set has not are refused. A query or document without a vector counts as
one that could not be read.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evals.uvrb.embeddings import Side
from gve_jax.errors import UserError
from gve_jax.files import text_id
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.retrieval import check_unit_vectors

_BLOCK = 65536  # rows looked at together
_SUFFIXES = (".parquet", ".npy")


class Vectors:
    """Stands in for an `Embedder`.

    Args:
      folder: DIR.
      quarantine: where missing vectors are recorded.
      total: the number of items of the whole command, for the quarantine's share.
      normalize: divides vectors by their length.
    """

    def __init__(self, folder: Path, quarantine: Quarantine, total: int, normalize: bool = False):
        if not folder.is_dir():
            raise UserError(f"--embeddings {folder}: no such folder")
        self.folder, self.quarantine, self.total = folder, quarantine, total
        self.normalize, self.files = normalize, None
        self._digest = hashlib.sha256()

    @property
    def fingerprint(self) -> dict:
        """Of all that has been read so far."""
        return {"embeddings": self._digest.hexdigest()[:16], "normalized": self.normalize}

    def embed(
        self, name: str, ids: Sequence[str], items: Sequence[dict], advance: Callable[[int], None]
    ) -> Side:
        """The vectors of one side in the order of `ids`; see `Embedder.embed`.

        Raises:
          UserError: no file, or one that the rules above refuse; it names the file and the id.
        """
        path = self.folder / name.replace(".", "/")
        found, vectors = _read(path)
        place_of: dict[str, int] = {}
        for place, id in enumerate(found):
            if place_of.setdefault(id, place) != place:
                raise UserError(f"{path}: id {id!r} occurs twice")
        if unknown := sorted(place_of.keys() - set(ids)):
            raise UserError(f"{path}: id {unknown[0]!r} is not one of the set's")
        valid = np.array([id in place_of for id in ids], bool)
        for id in (id for id, there in zip(ids, valid, strict=True) if not there):
            self.quarantine.record(f"{name}/{id}", str(path), "no vector", 0.0)
        self.quarantine.check(self.total)
        rows = vectors[[place_of[id] for id in ids if id in place_of]].astype(np.float32)
        kept = [id for id in ids if id in place_of]
        self._check(path, rows, kept)
        self._digest.update(name.encode() + rows.tobytes())
        advance(len(ids))
        return Side(rows, valid)

    def _check(self, path: Path, rows: np.ndarray, ids: Sequence[str]) -> None:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            for bad, what in (
                (~np.isfinite(block).all(axis=1), "has NaN or infinite numbers"),
                (~block.any(axis=1), "is all zeros and has no direction"),
            ):
                if bad.any():
                    raise UserError(f"{path}: the vector of {ids[start + bad.argmax()]!r} {what}")
            if self.normalize:
                # By its largest number first: squares of small or large numbers leave float32.
                block /= np.abs(block).max(axis=1, keepdims=True)
                block /= np.linalg.norm(block, axis=1, keepdims=True)
        try:
            check_unit_vectors(rows, str(path))
        except UserError as error:
            raise UserError(f"{error}; --normalize makes it so") from error


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [N, D] of a side."""
    there = [suffix for suffix in _SUFFIXES if path.with_name(path.name + suffix).is_file()]
    if len(there) != 1:
        what = "are both there; keep one" if there else "are missing"
        raise UserError(f"{path}.npy and {path}.parquet {what}")
    file = path.with_name(path.name + there[0])
    ids, vectors = _parquet(file) if there[0] == ".parquet" else _npy(file)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise UserError(
            f"{file}: {vectors.dtype} {list(vectors.shape)} is not floating point [N, D]"
        )
    if len(ids) != len(vectors):
        raise UserError(f"{file}: {len(vectors)} vectors, but {len(ids)} ids")
    return ids, vectors


def _npy(file: Path) -> tuple[list[str], np.ndarray]:
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not an .npy file of numbers ({error})") from error
    if not isinstance(vectors, np.ndarray):
        raise UserError(f"{file}: not an .npy file of numbers")
    listed, lines = file.with_suffix(".ids.json"), file.with_suffix(".ids.txt")
    if listed.is_file():
        try:
            values = json.loads(listed.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{listed}: not valid JSON: {error}") from error
        if not isinstance(values, list):
            raise UserError(f"{listed}: not a list of ids")
        return [text_id(str(listed), value) for value in values], vectors
    if not lines.is_file():
        raise UserError(f"missing file: {listed} or {lines.name}")
    try:
        text = lines.read_text(encoding="utf-8")  # splitlines would split at more than newlines
        return [line for line in text.split("\n") if line], vectors
    except UnicodeDecodeError as error:
        raise UserError(f"{lines}: not UTF-8: {error.reason}") from error


def _parquet(file: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from error
    for column in ("id", "vector"):
        if column not in table.column_names:
            raise UserError(f"{file}: no column {column!r}")
    ids = [text_id(str(file), value) for value in table["id"].to_pylist()]
    column = table["vector"].combine_chunks()
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (lists or pa.types.is_fixed_size_list(column.type)):
        raise UserError(f"{file}: column 'vector' is no list of numbers but {column.type}")
    if column.null_count or column.flatten().null_count:
        raise UserError(f"{file}: a vector, or a number in one, is null")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if not len(ids):
        return ids, np.zeros((0, 0), np.float32)
    width, rest = divmod(len(values), len(ids))
    if rest or (lists and np.unique(column.value_lengths().to_numpy()).size > 1):
        raise UserError(f"{file}: the vectors differ in length")
    return ids, values.reshape(len(ids), width)
