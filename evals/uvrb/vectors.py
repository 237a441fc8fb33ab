"""Imported vectors of any embedder:

    DIR/<SET>/queries.npy, corpus.npy           [N, D], floating point
    DIR/<SET>/queries.ids.json, corpus.ids.json a list of N ids; or .ids.txt, one id per line
    DIR/<SET>/queries.parquet, corpus.parquet   instead of both: columns `id` and `vector`

Vectors that are not of unit length are refused, or normalized on request; those within 0.001 of it,
as in float16, are ranked by their cosines. NaN, infinity, zero vectors, duplicate ids and ids that
the set lacks are refused. A query or document without a vector counts as unreadable.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine
from gve_jax.retrieval.store import StoredRows
from gve_jax.retrieval.tiles import NORM_TOLERANCE
from gve_jax.storage.files import text_id

_BLOCK = 65536  # rows checked together
_SUFFIXES = (".parquet", ".npy")


class Vectors:
    """Replaces an `Embedder`.

    Args:
      folder: DIR.
      quarantine: records missing vectors.
      total: number of items of the command, for the quarantine's share.
      normalize: divides vectors by their length.
    """

    def __init__(self, folder: Path, quarantine: Quarantine, total: int, normalize: bool = False):
        if not folder.is_dir():
            raise UserError(f"--embeddings {folder}: no such folder")
        self.folder, self.quarantine, self.total = folder, quarantine, total
        self.normalize, self.files = normalize, None
        self.content = None  # no digests of media, which are not read
        self._digest = hashlib.sha256()

    @property
    def fingerprint(self) -> dict:
        """Digest of all vectors read so far."""
        return {"embeddings": self._digest.hexdigest()[:16], "normalized": self.normalize}

    def embed(
        self, name: str, ids: Sequence[str], items: Sequence[dict], advance: Callable[[int], None]
    ) -> StoredRows:
        """The vectors of one side in the order of `ids`; see `Embedder.embed`.

        Raises:
          UserError: no file, or one that is refused (see above), with the file and the id.
        """
        path = self.folder / name.replace(".", "/")
        found, vectors = _read(path)
        index_of: dict[str, int] = {}
        for index, id in enumerate(found):
            if index_of.setdefault(id, index) != index:
                raise UserError(f"{path}: id {id!r} occurs twice")
        if unknown := sorted(index_of.keys() - set(ids)):
            raise UserError(f"{path}: id {unknown[0]!r} is not one of the set's")
        valid = np.array([id in index_of for id in ids], bool)
        for id in (id for id in ids if id not in index_of):
            self.quarantine.record(f"{name}/{id}", str(path), "no vector", 0.0)
        self.quarantine.check(self.total)
        present = [id for id in ids if id in index_of]
        rows = np.empty((len(present), vectors.shape[1]), np.float32)
        for start in range(0, len(present), _BLOCK):
            part = present[start : start + _BLOCK]
            block = vectors[[index_of[id] for id in part]].astype(np.float64)
            rows[start : start + _BLOCK] = self._unit(path, part, block)
        self._digest.update(name.encode() + rows.tobytes())
        advance(len(ids))
        return StoredRows(rows, valid)

    def _unit(self, path: Path, ids: Sequence[str], block: np.ndarray) -> np.ndarray:
        def refuse(bad: np.ndarray, what: Callable[[int], str]) -> None:
            if bad.any():
                index = int(bad.argmax())
                raise UserError(f"{path}: the vector of {ids[index]!r} {what(index)}")

        refuse(~np.isfinite(block).all(axis=1), lambda _: "has NaN or infinite numbers")
        refuse(~block.any(axis=1), lambda _: "is all zeros and has no direction")
        largest = np.abs(block).max(axis=1, keepdims=True)  # squares may overflow float64
        lengths = largest * np.linalg.norm(block / largest, axis=1, keepdims=True)
        if self.normalize:
            return block / largest / (lengths / largest)
        off = np.abs(lengths[:, 0] - 1) > NORM_TOLERANCE
        refuse(off, lambda n: f"is of length {lengths[n, 0]:.4g}, not 1; --normalize divides by it")
        return block


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [N, D] of a side."""
    suffixes = [suffix for suffix in _SUFFIXES if path.with_name(path.name + suffix).is_file()]
    if len(suffixes) != 1:
        what = "both exist; keep one" if suffixes else "are missing"
        raise UserError(f"{path}.npy and {path}.parquet {what}")
    file = path.with_name(path.name + suffixes[0])
    ids, vectors = _parquet(file) if suffixes[0] == ".parquet" else _npy(file)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raw = "; .npy files have no bfloat16: save float32" * (vectors.dtype.str == "|V2")
        raise UserError(
            f"{file}: {vectors.dtype} {list(vectors.shape)} is not floating point [N, D]{raw}"
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
        raise UserError(f"{file}: column 'vector' must be a list of numbers, not {column.type}")
    if column.null_count or column.flatten().null_count:
        raise UserError(f"{file}: a vector, or a number in one, is null")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if not len(ids):
        return ids, np.zeros((0, 0), np.float32)
    width, rest = divmod(len(values), len(ids))
    if rest or (lists and np.unique(column.value_lengths().to_numpy()).size > 1):
        raise UserError(f"{file}: the vectors differ in length")
    return ids, values.reshape(len(ids), width)
