"""Moments in a table of LanceDB, embedded: files in a folder, or in a bucket (s3://, gs://)."""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator, Sequence

import lancedb
import numpy as np
import pyarrow as pa

from gve_jax.errors import UserError
from gve_jax.index.databases import Database, Origin, Rows
from gve_jax.index.export import to_batch

FRAGMENTS = 64  # small ones, above which they are rewritten as large ones
KEPT = datetime.timedelta(hours=1)  # earlier versions, which others may be reading


class LanceTable(Database):
    """See `Database`.

    Args:
      place: a folder, or the URI of a bucket.
    """

    def __init__(self, place: str, table: str):
        self.name = f"lancedb={place}#{table}"
        self._table_name = table
        with self._reported():
            self._connection = lancedb.connect(place)
            self._table = self._open()

    def describe(self) -> tuple[int, Origin] | None:
        with self._reported():
            if self._table is None or not self._table.count_rows():
                return None
            needed = {"key", "version", "vector", *Origin._fields}
            if missing := needed - set(self._table.schema.names):
                raise UserError(f"{self.name}: is another program's table (no {min(missing)})")
            (row,) = self._table.search().select(list(Origin._fields)).limit(1).to_list()
            return self._table.schema.field("vector").type.list_size, Origin(**row)

    def versions(self) -> dict[str, int]:
        if self._table is None:
            return {}
        with self._reported():
            found = self._table.search().select(["version"]).limit(None).to_arrow()
        counts = found["version"].combine_chunks().value_counts()
        return {count["values"].as_py(): count["counts"].as_py() for count in counts}

    def remove(self, versions: Sequence[str]) -> None:
        with self._reported():
            self._table.delete(_one_of("version", map(_quoted, versions)))

    def add(self, rows: Rows) -> None:
        # Also of an index in float16: LanceDB would round the query and its scores to that.
        rows = dataclasses.replace(rows, vector=rows.vector.astype(np.float32, copy=False))
        batch = to_batch(rows, with_key=True)
        with self._reported():
            if self._table is None:
                self._connection.create_table(self._table_name, schema=batch.schema, exist_ok=True)
                self._table = self._open()
            self._table.add(pa.Table.from_batches([batch]))

    def finish(self) -> None:
        # Not after each change: it may rewrite the table, and keeps what others may be reading.
        with self._reported():
            if self._table.stats()["fragment_stats"]["num_small_fragments"] > FRAGMENTS:
                self._table.optimize(cleanup_older_than=KEPT)

    def search(
        self,
        vector: np.ndarray,
        count: int,
        *,
        versions: Sequence[str] | None = None,
        keys: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        with self._reported():
            query = self._table.search(np.asarray(vector, np.float32), vector_column_name="vector")
            # Exact, also if somebody has made an index of the vectors.
            query = query.distance_type("dot").bypass_vector_index()
            if versions is not None:
                query = query.where(_one_of("version", map(_quoted, versions)), prefilter=True)
            if keys is not None:
                query = query.where(_one_of("key", map(str, keys)), prefilter=True)
            found = query.select(["key", "_distance"]).limit(count).to_arrow()
        return found["key"].to_numpy(), np.float32(1) - found["_distance"].to_numpy()

    def close(self) -> None:
        self._table = self._connection = None

    def _open(self):
        try:
            return self._connection.open_table(self._table_name)
        except ValueError as error:  # for any reason; only "not found" is none
            if "not found" in str(error).lower():
                return None
            raise

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            raise UserError(f"{self.name}: {' '.join(str(error).split())[:300]}") from error


def _one_of(column: str, values) -> str:
    return f"{column} IN ({', '.join(values)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
