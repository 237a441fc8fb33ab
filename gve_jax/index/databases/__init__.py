"""Vector databases that hold the moments of an index, for programs that search them there.

`open_database("lancedb=FOLDER")` or `("qdrant=FOLDER")` or `("qdrant=http://host:6333")`, with
`#NAME` for a table or collection other than "moments". `synchronize` writes what the database
lacks; `search` answers as the index does, with scores of the database.
"""

import abc
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index.query import SAMPLE, Hit, Snapshot
from gve_jax.index.store import Media, moment_id

TABLE = "moments"
ORDINAL_BITS = 24  # of a key: the number of a moment in its file; the others number the file
ROWS = 4096  # moments that are written at once
WHOLE = 1 << 18  # moments up to which a search takes all scores: one request without filters
BEST = 256  # of larger tables: moments that a search asks for first, at least
VERSIONS = 500  # versions of files that are removed at once
COLUMNS = (
    "id", "media", "kind", "start_sec", "end_sec", "duration", "version", "fingerprint", "source",
)  # fmt: skip
REMEDY = "write them with: python -m gve_jax.search index --index ... --store ..."


class Origin(NamedTuple):
    """What all moments of a table have in common.

    Attributes:
      fingerprint: digest of the model's.
      source: digest of the settings of the index: media folder, windows and prompt, too.
    """

    fingerprint: str
    source: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """Moments of whole files, as a database stores them.

    Attributes:
      key: int64 [n], unique; see `keys`.
      columns: COLUMNS, of n values each.
      vector: [n, D], unit rows.
    """

    key: np.ndarray
    columns: Mapping[str, list]
    vector: np.ndarray


class Database(abc.ABC):
    """A table of moments. Opening it creates nothing; the first `add` does.

    Raises:
      UserError: from any method: the database cannot be reached, is damaged, or refuses.
    """

    name: str  # for messages

    @abc.abstractmethod
    def describe(self) -> tuple[int, Origin] | None:
        """Dimensions and origin of the stored vectors; None if there are none."""

    @abc.abstractmethod
    def versions(self) -> dict[str, int]:
        """The number of moments of each stored version of a file."""

    @abc.abstractmethod
    def remove(self, versions: Sequence[str]) -> None:
        """Removes all moments of versions of files."""

    @abc.abstractmethod
    def add(self, rows: Rows) -> None:
        """Adds moments; on return they are stored."""

    @abc.abstractmethod
    def finish(self) -> None:
        """After changes: what the database should do once in a while."""

    @abc.abstractmethod
    def search(
        self,
        vector: np.ndarray,
        count: int,
        *,
        versions: Sequence[str] | None = None,
        keys: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys int64 [n] and cosines float32 [n] of the `count` best moments, exactly.

        Args:
          versions, keys: of the moments that are searched (default: all).
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Frees the database for other processes."""

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def open_database(given: str) -> Database:
    """Opens a database by `KIND=PLACE[#TABLE]`.

    Raises:
      UserError: an unknown kind, a package that is missing, a server that does not answer.
    """
    kind, equals, place = given.partition("=")
    place, _, table = place.partition("#")
    if not equals or not place or kind not in ("lancedb", "qdrant"):
        raise UserError(
            f"store {given!r} must be lancedb=FOLDER, qdrant=FOLDER or qdrant=http://HOST:PORT, "
            "perhaps with #TABLE"
        )
    if "://" not in place:
        if kind == "qdrant" and re.fullmatch(r"[^/]+:\d+", place):
            raise UserError(f"store {given!r} is no folder; did you mean qdrant=http://{place}?")
        place = os.path.expanduser(place)  # a shell does not, after "lancedb="
    try:
        if kind == "lancedb":
            from gve_jax.index.databases.lance import LanceTable

            return LanceTable(place, table or TABLE)
        from gve_jax.index.databases.qdrant import QdrantCollection

        return QdrantCollection(place, table or TABLE)
    except ImportError as error:
        raise UserError(
            f"store {kind} needs {error.name}, which is not installed: "
            f"pip install 'gve_jax[{kind}]'"
        ) from error


def version_of(media: Media) -> str:
    """What a database knows a file by: moments with another one are removed.

    Of the content, too: an index that was deleted and made again numbers other files alike.
    """
    return f"{media.id}:{media.sha256[:16]}:{media.path}"


def keys(media: Media) -> np.ndarray:
    """The keys of a file's moments, int64 [count]."""
    if media.count >> ORDINAL_BITS:
        raise UserError(f"{media.path}: {media.count:,} moments are more than a store can number")
    return (np.int64(media.id) << ORDINAL_BITS) + np.arange(media.count)


def synchronize(
    snapshot: Snapshot,
    database: Database,
    origin: Origin,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[int, int]:
    """Makes the database hold the moments of an index and no others; repeat it after a kill.

    Args:
      progress: called with the numbers of moments that are written and that are to be written.

    Returns:
      Numbers of moments that were added and removed.

    Raises:
      UserError: the database has vectors of another model, or of another index.
    """
    check(snapshot, database, origin)
    have = database.versions()
    want = {version_of(media): number for number, media in enumerate(snapshot.media)}
    stale = [
        version
        for version, count in have.items()
        if version not in want or snapshot.media[want[version]].count != count
    ]
    for at in range(0, len(stale), VERSIONS):
        database.remove(stale[at : at + VERSIONS])
    kept = have.keys() - set(stale)
    missing = [number for version, number in want.items() if version not in kept]
    added, total = 0, sum(snapshot.media[number].count for number in missing)
    for numbers in file_groups(snapshot, missing):
        progress(added, total)
        database.add(rows_of(snapshot, numbers, origin))
        added += sum(snapshot.media[number].count for number in numbers)
    if stale or missing:
        progress(added, total)
        database.finish()
    return added, sum(have[version] for version in stale)


def check(snapshot: Snapshot, database: Database, origin: Origin) -> bool:
    """Whether the database has vectors.

    Raises:
      UserError: they are of another model, or of another index, which `synchronize` would remove.
    """
    described = database.describe()
    if described is None:
        return False
    dim, stored = described
    if (dim, stored.fingerprint) != (snapshot.dim, origin.fingerprint):
        raise UserError(
            f"{database.name}: has vectors of another model (fingerprint {stored.fingerprint}, "
            f"{dim} dimensions; the index has {origin.fingerprint}, {snapshot.dim}); choose "
            "another #TABLE"
        )
    if stored.source != origin.source:
        raise UserError(
            f"{database.name}: has moments of another index (media folder, windows or prompt "
            "differ); choose another #TABLE"
        )
    return True


def rows_of(snapshot: Snapshot, numbers: Sequence[int], origin: Origin) -> Rows:
    """The moments of files by their places in `snapshot.media`."""
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for number in numbers:
        media = snapshot.media[number]
        first, stop = snapshot.edges[number : number + 2].tolist()
        for start, end in snapshot.spans[first:stop].tolist():
            values = (moment_id(media, start, end), media.path, media.kind, start, end)
            values += (media.duration, version_of(media), *origin)
            for name, value in zip(COLUMNS, values, strict=True):
                columns[name].append(value)
    key = np.concatenate([keys(snapshot.media[number]) for number in numbers])
    vectors = np.concatenate([snapshot.file_vectors(number) for number in numbers])
    return Rows(key, columns, vectors)


def search(
    snapshot: Snapshot,
    database: Database,
    vector: np.ndarray,
    k: int,
    *,
    origin: Origin,
    chosen: np.ndarray | None = None,
    group_by: str,
    merge: float,
    metadata: dict[str, dict],
) -> list[Hit]:
    """As `Snapshot.hits`, with the scores of a database: all of them, or, of more than WHOLE, those
    of the best moments, of the other moments of their files, and of the sample of the median.

    Args:
      chosen: bool [files], the files that are searched; None for all.

    Raises:
      UserError: the database does not have the moments of the index, or those of another model.
    """
    numbers = {media.id: number for number, media in enumerate(snapshot.media)}
    allowed = None
    total = len(snapshot)
    if chosen is not None:
        allowed = [version_of(snapshot.media[n]) for n in np.flatnonzero(chosen)]
        total = int(np.diff(snapshot.edges)[chosen].sum())
    if not check(snapshot, database, origin) and len(snapshot):
        raise UserError(f"{database.name}: is empty; {REMEDY}")
    if not total:
        return []

    def rows(key: np.ndarray) -> np.ndarray:
        ids, of_key = np.unique(key >> ORDINAL_BITS, return_inverse=True)
        found = np.array([numbers.get(id, -1) for id in ids.tolist()], np.int64)[of_key]
        row = snapshot.edges[found] + (key & ((1 << ORDINAL_BITS) - 1))
        if (found < 0).any() or (row >= snapshot.edges[found + 1]).any():
            raise UserError(f"{database.name}: has moments that the index has not; {REMEDY}")
        return row

    options = {"group_by": group_by, "merge": merge, "metadata": metadata}
    if len(snapshot) <= WHOLE:
        key, found = database.search(vector, len(snapshot) + 1)  # one more shows foreign ones
        scores = np.full(len(snapshot), -np.inf, np.float32)
        scores[rows(key)] = found
        if len(key) != len(snapshot) or np.isneginf(scores).any():
            raise UserError(f"{database.name}: lacks moments of the index; {REMEDY}")
        if chosen is not None:
            scores[~chosen[snapshot.media_of(np.arange(len(snapshot)))]] = -np.inf
        return snapshot.hits(scores, k, **options)
    median = _median(snapshot, database, vector, chosen) if merge > 0 else 0.0
    count = max(BEST, 4 * k)
    while True:
        key, best = database.search(vector, count, versions=allowed)
        if len(best) < min(count, total):
            raise UserError(f"{database.name}: lacks moments of the index; {REMEDY}")
        files = np.unique(snapshot.media_of(rows(key)))
        wanted = int(np.diff(snapshot.edges)[files].sum())
        versions = [version_of(snapshot.media[n]) for n in files]
        key, found = database.search(vector, wanted, versions=versions)
        if len(found) != wanted:
            raise UserError(f"{database.name}: lacks moments of the index; {REMEDY}")
        scores = np.full(len(snapshot), -np.inf, np.float32)
        scores[rows(key)] = found
        hits = snapshot.hits(scores, k, median=median, **options)
        # A moment of another file may be better than a hit below the last of the best.
        if len(best) == total or (len(hits) == k and hits[-1].score > best[-1]):
            return hits
        count = 8 * count


def _median(snapshot, database, vector, chosen) -> float:
    """The median that `Snapshot.hits` takes of all scores."""
    sample = np.arange(0, len(snapshot), max(1, len(snapshot) // SAMPLE))
    media = snapshot.media_of(sample)
    if chosen is not None:
        sample, media = sample[chosen[media]], media[chosen[media]]
    if not len(sample):
        return 0.0
    number = np.array([snapshot.media[n].id for n in media], np.int64)
    key = (number << ORDINAL_BITS) + sample - snapshot.edges[media]
    _, scores = database.search(vector, len(key), keys=key.tolist())
    return float(np.median(scores)) if len(scores) else 0.0


def file_groups(snapshot: Snapshot, numbers: Iterable[int]) -> Iterable[list[int]]:
    """Files in groups of about ROWS moments."""
    group, rows = [], 0
    for number in numbers:
        group.append(number)
        rows += snapshot.media[number].count
        if rows >= ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group
