"""Moments in a collection of Qdrant: of a server, or embedded in a folder, for small ones."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from gve_jax.errors import UserError
from gve_jax.index.databases import Database, Origin, Rows

KEY_VARIABLE = "QDRANT_API_KEY"
BATCH = 256  # points of a request: a server takes 32 MiB
DISTANCES = (models.Distance.DOT, models.Distance.COSINE)  # of unit vectors the same
TIMEOUT = 120  # seconds of a request


class QdrantCollection(Database):
    """See `Database`.

    Args:
      place: http(s)://HOST:PORT, with the key in the variable QDRANT_API_KEY, or a folder.
    """

    def __init__(self, place: str, collection: str):
        self.name, self._collection = f"qdrant={place}#{collection}", collection
        self._remote = place.startswith(("http://", "https://"))
        with self._reported():
            if self._remote:
                key = os.environ.get(KEY_VARIABLE)
                self._client = QdrantClient(
                    url=place, api_key=key, timeout=TIMEOUT, check_compatibility=False
                )
            else:
                self._client = QdrantClient(path=place)
            self._exists, self._ready = self._client.collection_exists(collection), False

    def describe(self) -> tuple[int, Origin] | None:
        with self._reported():
            if not self._exists:
                return None
            vectors = self._client.get_collection(self._collection).config.params.vectors
            points, _ = self._client.scroll(
                self._collection, limit=1, with_payload=list(Origin._fields), with_vectors=False
            )
        if not isinstance(vectors, models.VectorParams) or vectors.distance not in DISTANCES:
            raise UserError(
                f"{self.name}: must have one vector for each point, without a name, of the "
                "distance Dot; choose another #COLLECTION"
            )
        if not points:
            return None
        payload = points[0].payload or {}
        if missing := set(Origin._fields) - payload.keys():
            raise UserError(f"{self.name}: is another program's collection (no {min(missing)})")
        return vectors.size, Origin(*(payload[name] for name in Origin._fields))

    def versions(self) -> dict[str, int]:
        if not self._exists:
            return {}
        found: dict[str, int] = {}
        offset = None
        with self._reported():
            while True:
                points, offset = self._client.scroll(
                    self._collection,
                    limit=10_000,
                    offset=offset,
                    with_payload=["version"],
                    with_vectors=False,
                )
                for point in points:
                    version = (point.payload or {}).get("version")
                    if version is None:
                        raise UserError(
                            f"{self.name}: has points of another program, such as {point.id}; "
                            "choose another #COLLECTION"
                        )
                    found[version] = found.get(version, 0) + 1
                if offset is None:
                    return found

    def remove(self, versions: Sequence[str]) -> None:
        chosen = models.FilterSelector(filter=_one_of(versions))
        with self._reported():
            self._client.delete(self._collection, chosen, wait=True)

    def add(self, rows: Rows) -> None:
        with self._reported():
            if not self._ready:
                self._prepare(rows.vector.shape[1])
            names = list(rows.columns)
            for at in range(0, len(rows.key), BATCH):
                window = slice(at, at + BATCH)
                values = zip(*(rows.columns[name][window] for name in names), strict=True)
                batch = models.Batch(
                    ids=rows.key[window].tolist(),
                    vectors=rows.vector[window].astype(np.float32).tolist(),
                    payloads=[dict(zip(names, row, strict=True)) for row in values],
                )
                self._client.upsert(self._collection, batch, wait=True)

    def finish(self) -> None:
        """Nothing: a server optimizes by itself."""

    def search(
        self,
        vector: np.ndarray,
        count: int,
        *,
        versions: Sequence[str] | None = None,
        keys: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        chosen = None if versions is None else _one_of(versions)
        if keys is not None:
            chosen = models.Filter(must=[models.HasIdCondition(has_id=list(keys))])
        with self._reported():
            points = self._client.query_points(
                self._collection,
                query=np.asarray(vector, np.float32).tolist(),
                limit=count,
                query_filter=chosen,
                search_params=models.SearchParams(exact=True),
                with_payload=False,
            ).points
        if foreign := [point.id for point in points if not isinstance(point.id, int)]:
            raise UserError(f"{self.name}: has points of another program, such as {foreign[0]}")
        key = np.array([point.id for point in points], np.int64)
        return key, np.array([point.score for point in points], np.float32)

    def close(self) -> None:
        self._client.close()

    def _prepare(self, dim: int) -> None:
        if not self._exists:
            # Unit vectors: their dot product is the cosine, and COSINE would normalize them again.
            params = models.VectorParams(size=dim, distance=models.Distance.DOT)
            self._client.create_collection(self._collection, vectors_config=params)
        self._exists = self._ready = True
        # Also in a collection that the user has made, with shards and copies.
        if self._remote:  # embedded, there are no indexes
            for field in ("version", "media"):
                self._client.create_payload_index(self._collection, field, "keyword", wait=True)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Local mode")
                yield
        except (ApiException, ValueError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.name}: {text[:300]}") from error


def _one_of(versions: Sequence[str]) -> models.Filter:
    condition = models.FieldCondition(key="version", match=models.MatchAny(any=list(versions)))
    return models.Filter(must=[condition])
