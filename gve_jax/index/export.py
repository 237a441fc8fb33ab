"""The moments of an index as one table: Parquet, or Lance, for other programs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from gve_jax.errors import UserError
from gve_jax.index.databases import Origin, Rows, file_groups, rows_of
from gve_jax.index.query import Snapshot
from gve_jax.storage.files import atomic_write


def export(
    snapshot: Snapshot, metadata: dict[str, dict], fingerprint: dict, origin: Origin, output: Path
) -> int:
    """Writes the moments of an index; returns their number. Memory is that of a few thousand rows.

    Args:
      metadata: the user's, by path.
      fingerprint: of the model; the whole of it is in the metadata of the schema.
      output: an absent FILE.parquet or FOLDER.lance.

    Raises:
      UserError: the output exists, or is of another kind; pylance is missing.
    """
    if output.exists():
        raise UserError(f"{output} exists; choose another --output, or remove it")
    about = {"gve_jax": json.dumps({"fingerprint": fingerprint})}
    table = schema(snapshot.dim, snapshot.dtype, with_metadata=bool(metadata)).with_metadata(about)

    def batches() -> Iterator[pa.RecordBatch]:
        for numbers in file_groups(snapshot, range(len(snapshot.media))):
            batch = to_batch(rows_of(snapshot, numbers, origin), metadata=metadata or None)
            yield batch.cast(table)

    if output.suffix == ".parquet":
        atomic_write(output, lambda file: _write_parquet(file, table, batches()))
    elif output.suffix == ".lance":
        _write_lance(output, table, batches())
    else:
        raise UserError(f"--output {output} must end with .parquet or .lance")
    return len(snapshot)


def schema(
    dim: int, dtype: np.dtype, *, with_key: bool = False, with_metadata: bool = False
) -> pa.Schema:
    """Columns of the table."""
    fields = [("key", pa.int64())] if with_key else []
    fields += [(name, pa.string()) for name in ("version", "source") if with_key]
    fields += [
        ("id", pa.string()),
        ("media", pa.string()),
        ("kind", pa.string()),
        ("start_sec", pa.float64()),
        ("end_sec", pa.float64()),
        ("duration", pa.float64()),
        ("fingerprint", pa.string()),
    ]
    if with_metadata:
        fields.append(("metadata", pa.string()))
    return pa.schema([*fields, ("vector", pa.list_(pa.from_numpy_dtype(dtype), dim))])


def to_batch(
    rows: Rows, *, with_key: bool = False, metadata: dict[str, dict] | None = None
) -> pa.RecordBatch:
    """Rows with the columns of `schema`."""
    dim, dtype = rows.vector.shape[1], rows.vector.dtype
    table = schema(dim, dtype, with_key=with_key, with_metadata=metadata is not None)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(rows.vector.reshape(-1)), dim)
    columns: dict = {"key": rows.key, "vector": vector, **rows.columns}
    if metadata is not None:
        columns["metadata"] = [
            json.dumps(metadata[path]) if path in metadata else None for path in columns["media"]
        ]
    arrays = [columns[field.name] for field in table]
    arrays = [
        array if isinstance(array, pa.Array) else pa.array(array, field.type)
        for array, field in zip(arrays, table, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=table)


def _write_parquet(file, table: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    # Vectors do not compress: their dictionaries and statistics would only cost time.
    plain = [name for name in table.names if name != "vector"]
    with pa.parquet.ParquetWriter(
        file, table, compression={name: "zstd" for name in plain}, use_dictionary=plain
    ) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_lance(output: Path, table: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    try:
        import lancedb
    except ImportError as error:
        raise UserError(
            "Lance needs lancedb, which is not installed: pip install 'gve_jax[lancedb]'"
        ) from error
    # A table of LanceDB is a Lance dataset; it is moved to its place when it is complete.
    part = output.with_name(f"{output.stem}.{os.getpid()}.part")
    try:
        reader = pa.RecordBatchReader.from_batches(table, batches)
        lancedb.connect(part).create_table("moments", data=reader)
        os.replace(part / "moments.lance", output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
