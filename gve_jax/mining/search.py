"""Vectors of queries and documents, and the nearest documents of each query, stored on disk.

WORK/queries, WORK/positives and, with another corpus, WORK/corpus are outputs of `gve_jax.embed`;
WORK/ranks-<within>-<last> holds, for each group, a file for each tile of queries. Existing files
are used again. WORK/quarantine.jsonl names every unreadable item. Several hosts divide the shards
of vectors, then the tiles.
"""

import functools
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gve_jax.distributed import hosts, work
from gve_jax.errors import UserError
from gve_jax.media.quarantine import Quarantine, open_quarantine
from gve_jax.mining.corpus import Group, MiningCorpus, UniqueItems
from gve_jax.retrieval.embedding import Encoder, check_or_write_settings, embed_all
from gve_jax.retrieval.negatives import query_tile, stream_neighbours
from gve_jax.retrieval.tiles import UnitRows, cosine_rows
from gve_jax.retrieval.vectors import Selection, StoredVectors
from gve_jax.storage.files import atomic_write, differences, read_records


@dataclass
class ItemVectors:
    """Vectors of N items.

    Attributes:
      vectors: unit rows.
      row: int64 [N], the row of each item in `vectors`; -1 for an unreadable item.
      manifest: the manifest of the vectors.
    """

    vectors: StoredVectors | UnitRows
    row: np.ndarray
    manifest: dict


def vectors_of(
    name: str,
    items: UniqueItems,
    folder: Path,
    stored: Path | None,
    model: Callable[[], Encoder],
    *,
    max_bad_share: float,
    batch_size: int,
    shard_size: int | None,
) -> ItemVectors:
    """Reads the vectors of items, or embeds what `folder` lacks.

    Args:
      name: of the items, for messages: "queries".
      folder: the output of the embedding.
      stored: an output of `gve_jax.embed` with vectors of the items, which is read instead.
      model: loads the encoder; called only if something is embedded.

    Raises:
      UserError: see `embed_all` and `StoredVectors`; an id that occurs twice in `stored`; more
        items without a vector than `max_bad_share`.
    """
    if stored is None:
        quarantine = open_quarantine(folder, max_bad_share)
        embed_all(
            folder,
            items.ids,
            items.stamps,
            items.read,
            model(),
            quarantine,
            batch_size=batch_size,
            shard_size=shard_size,
            label=f"embedding {name}",
        )
    matrix = StoredVectors(stored or folder)
    vectors = cosine_rows(matrix, name, matrix.ids)
    rows = {id: row for row, id in enumerate(matrix.ids)}
    if len(rows) < len(matrix.ids):
        raise UserError(f"{stored}: an id occurs twice")
    row = np.array([rows.get(id, -1) for id in items.ids], np.int64)
    hosts.run_on_host0(lambda: _quarantine(name, items, row, folder, stored, max_bad_share))
    return ItemVectors(vectors, row, matrix.manifest)


def _quarantine(
    name: str,
    items: UniqueItems,
    row: np.ndarray,
    folder: Path,
    stored: Path | None,
    max_share: float,
) -> None:
    """Records every item without a vector, duplicates included, in WORK/quarantine.jsonl.

    Raises UserError if their share exceeds `max_share`.
    """
    missing = [
        (items.ids[n], id)
        for n in np.flatnonzero(row < 0).tolist()
        for id in (items.ids[n], *items.others[n])
    ]
    if stored and len(missing) > max_share * items.total:
        raise UserError(
            f"{stored}: no vector for {len(missing)} of {items.total} {name}, the first "
            f"{missing[0][1]!r}"
        )
    reasons = folder / "quarantine.jsonl"
    has_reasons = not stored and reasons.exists()
    known = {line["id"]: line for _, line in read_records(reasons)} if has_reasons else {}
    quarantine = Quarantine(folder.parent / reasons.name, max_share, prefixes=(f"{name}/",))
    quarantine.forget(quarantine.ids)
    for first, id in missing:
        line = known.get(first, {"path": str(stored or folder), "reason": "no vector"})
        quarantine.record(f"{name}/{id}", line["path"], line["reason"], line.get("seconds", 0.0))
    quarantine.check(items.total)


def check_same(vectors: dict[str, ItemVectors]) -> None:
    """Raises UserError if vectors have different fingerprints, naming the field that differs."""
    (first, one), *others = vectors.items()
    for name, other in others:
        fingerprints = [each.manifest.get("fingerprint") for each in (one, other)]
        for key, (was, now) in differences(*fingerprints).items():
            raise UserError(f"{first} and {name} have different vectors: {key} = {was} and {now}")
        if one.vectors.shape[1] != other.vectors.shape[1]:
            raise UserError(
                f"{first} have {one.vectors.shape[1]} dimensions and {name} "
                f"{other.vectors.shape[1]}"
            )


@dataclass(frozen=True)
class Search:
    """Readable queries int64 [Q] and documents int64 [C] of a group; a file per `tile` queries."""

    name: str
    queries: np.ndarray
    documents: np.ndarray
    tile: int
    files: list[Path]

    def rows(self, number: int) -> slice:
        """The queries of a tile."""
        return slice(number * self.tile, min((number + 1) * self.tile, len(self.queries)))


class Neighbours:
    """The nearest documents of the queries of each group, positives excluded, stored in files.

    Args:
      folder: of the files.
      last: the number of documents of each query.
      tolerance: see `stream_neighbours`.
    """

    def __init__(
        self,
        folder: Path,
        mining: MiningCorpus,
        queries: ItemVectors,
        positives: ItemVectors,
        documents: ItemVectors,
        last: int,
        tolerance: float,
    ):
        self.folder, self.mining, self.last, self.tolerance = folder, mining, last, tolerance
        self.queries, self.positives, self.documents = queries, positives, documents
        keys = ("fingerprint", "input", "prompt", "vectors")
        manifests = [vectors.manifest for vectors in (queries, positives, documents)]
        settings = {
            "format": "gve_jax neighbours 1",
            "vectors": [{key: manifest.get(key) for key in keys} for manifest in manifests],
            "pairs": mining.digest(),
            "ranks": last,
            "duplicate_cosine": tolerance,
            "devices": jax.local_device_count(),
        }
        settings = json.loads(json.dumps(settings))
        hosts.check_same(settings)
        remedy = f"delete {folder}, which will be created again"
        hosts.run_on_host0(lambda: check_or_write_settings(folder, settings, remedy))
        work.check_shared(folder)
        self._positives_by_query = mining.positives_by_query()
        self._positive_ids = mining.positive_ids()
        self._by_content = {key: n for n, key in enumerate(mining.documents.contents)}
        self._by_id = {id: n for n, id in enumerate(mining.documents.ids)}

    def find(self, groups: Sequence[Group], advance: Callable[[int], None]) -> dict[str, Callable]:
        """Searches the tiles without a file; returns a function for each group.

        The function maps the number of a query to the numbers of its nearest documents, int64 [n],
        and their scores, float32 [n], best first; both are empty for an unreadable query.
        """
        searches = [self._search(group) for group in groups]
        tiles = [(i, n) for i, search in enumerate(searches) for n in range(len(search.files))]
        missing = hosts.run_on_host0(
            lambda: [[i, n] for i, n in tiles if not searches[i].files[n].exists()]
        )
        for i, n in sorted(set(tiles) - set(map(tuple, missing))):
            rows = searches[i].rows(n)
            advance((rows.stop - rows.start) * len(searches[i].documents))
        assigned = work.shard_for_host(missing)
        for i, search in enumerate(searches):
            if numbers := [n for j, n in assigned if j == i]:
                self._compare(search, numbers, advance)
        hosts.barrier()
        if not work.wait_until(lambda: all(searches[i].files[n].exists() for i, n in missing)):
            raise UserError(f"{self.folder}: ranks of another host do not appear")
        return {search.name: self._reader(search) for search in searches}

    def _search(self, group: Group) -> Search:
        queries = group.queries[self.queries.row[group.queries] >= 0]
        documents = group.documents[self.documents.row[group.documents] >= 0]
        tile = query_tile(len(queries), jax.local_device_count())
        count = -(-len(queries) // tile) if len(documents) else 0
        files = [self.folder / f"{group.name}-{n:06}.npz" for n in range(count)]
        return Search(group.name, queries, documents, tile, files)

    def _compare(self, search: Search, tiles: list[int], advance: Callable[[int], None]) -> None:
        """Writes the files of tiles."""
        queries, documents = search.queries, search.documents
        column = np.full(len(self.mining.documents), -1, np.int64)
        column[documents] = np.arange(len(documents))

        def excluded(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sets = [self._excluded(int(query)) for query in queries[numbers]]
            owner = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
            document = column[np.array([n for each in sets for n in each], np.int64)]
            return owner[document >= 0], document[document >= 0]

        def positives(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            contents = [self.mining.queries.contents[query] for query in queries[numbers]]
            lists = [sorted(self._positives_by_query[key]) for key in contents]
            owner = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
            row = self.positives.row[np.array([n for each in lists for n in each], np.int64)]
            return owner[row >= 0], self.positives.vectors[row[row >= 0]]

        stream = stream_neighbours(
            Selection(self.queries.vectors, self.queries.row[queries]),
            Selection(self.documents.vectors, self.documents.row[documents]),
            [self.mining.documents.ids[n] for n in documents],
            self.last,
            excluded,
            positives,
            self.tolerance,
            rows=[search.rows(n) for n in tiles],
            advance=advance,
        )
        for rows, columns, scores in stream:
            numbers = np.where(columns >= 0, documents[columns], -1)
            arrays = {"documents": numbers, "scores": scores}
            file = search.files[rows.start // search.tile]
            atomic_write(file, lambda out, a=arrays: np.savez(out, **a))
            hosts.set_location(f"after {file}")

    def _reader(self, search: Search) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        row = np.full(len(self.mining.queries), -1, np.int64)
        row[search.queries] = np.arange(len(search.queries))
        read_tile = functools.lru_cache(maxsize=64)(lambda n: self._read(search.files[n]))
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)

        def read(query: int) -> tuple[np.ndarray, np.ndarray]:
            if row[query] < 0 or not search.files:
                return nothing
            tile, index = divmod(int(row[query]), search.tile)
            documents, scores = (part[index] for part in read_tile(tile))
            return documents[documents >= 0], scores[documents >= 0]

        return read

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays["documents"], arrays["scores"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: unreadable ({error}); delete it") from error

    def _excluded(self, query: int) -> set[int]:
        """Documents that equal the query or one of its positives, by content or by id."""
        content = self.mining.queries.contents[query]
        positives = self._positives_by_query[content]
        keys = {content} | {self.mining.positives.contents[p] for p in positives}
        documents = {self._by_content[key] for key in keys if key in self._by_content}
        if not self.mining.searches_positives:  # else an id stands for a content
            ids = self._positive_ids[query]
            documents |= {self._by_id[id] for id in ids if id in self._by_id}
        return documents
