"""Vectors of queries and documents, and the best documents of each query, kept on disk.

WORK/queries, WORK/positives and, with another corpus, WORK/corpus are outputs of `gve_jax.embed`;
WORK/ranks-<within>-<last> holds, for each group, a file for each tile of queries. What is there is
not made again. WORK/quarantine.jsonl names every item that could not be read. Several hosts divide
the shards of vectors, then the tiles.
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
class Found:
    """The vectors of items: `row` int64 [N] of each in `vectors`, unit rows, -1 where it is not
    there; and the manifest that came with them."""

    vectors: StoredVectors | UnitRows
    row: np.ndarray
    manifest: dict


def vectors_of(
    name: str,
    items: UniqueItems,
    folder: Path,
    given: Path | None,
    model: Callable[[], Encoder],
    *,
    max_bad_share: float,
    batch_size: int,
    shard_size: int | None,
) -> Found:
    """Vectors that were given, or else those of the work folder, embedded where they are missing.

    Raises:
      UserError: see `embed_all` and `StoredVectors`; also given vectors of other ids, and more
        items without a vector than `max_bad_share`.
    """
    if given is None:
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
    stored = StoredVectors(given or folder)
    vectors = cosine_rows(stored, name, stored.ids)
    places = {id: row for row, id in enumerate(stored.ids)}
    if len(places) < len(stored.ids):
        raise UserError(f"{given}: an id occurs twice")
    row = np.array([places.get(id, -1) for id in items.ids], np.int64)
    hosts.run_on_host0(lambda: _check_lost(name, items, row, folder, given, max_bad_share))
    return Found(vectors, row, stored.manifest)


def _check_lost(
    name: str,
    items: UniqueItems,
    row: np.ndarray,
    folder: Path,
    given: Path | None,
    max_share: float,
) -> None:
    """Records in WORK/quarantine.jsonl every item of pairs or corpus that has no vector, also those
    that are the same as another, and raises UserError where they are more than `max_share`."""
    lost = [
        (items.ids[n], id)
        for n in np.flatnonzero(row < 0).tolist()
        for id in (items.ids[n], *items.others[n])
    ]
    if given and len(lost) > max_share * items.total:
        raise UserError(
            f"{given}: no vector of {len(lost)} of {items.total} {name}, the first {lost[0][1]!r}"
        )
    reasons = folder / "quarantine.jsonl"
    known = (
        {}
        if given or not reasons.exists()
        else {line["id"]: line for _, line in read_records(reasons)}
    )
    quarantine = Quarantine(folder.parent / reasons.name, max_share, prefixes=(f"{name}/",))
    quarantine.forget(quarantine.ids)
    for first, id in lost:
        line = known.get(first, {"path": str(given or folder), "reason": "no vector"})
        quarantine.record(f"{name}/{id}", line["path"], line["reason"], line.get("seconds", 0.0))
    quarantine.check(items.total)


def check_same(found: dict[str, Found]) -> None:
    """Refuses vectors of different models, by the field that differs."""
    (first, one), *others = found.items()
    for name, other in others:
        made = [each.manifest.get("fingerprint") for each in (one, other)]
        for key, (was, now) in differences(*made).items():
            raise UserError(f"{first} and {name} have different vectors: {key} = {was} and {now}")
        if one.vectors.shape[1] != other.vectors.shape[1]:
            raise UserError(
                f"{first} have {one.vectors.shape[1]} dimensions and {name} "
                f"{other.vectors.shape[1]}"
            )


@dataclass(frozen=True)
class Search:
    """What is asked of a group: queries int64 [Q] in documents int64 [C], those that have vectors;
    a file for each `tile` queries."""

    name: str
    asked: np.ndarray
    documents: np.ndarray
    tile: int
    files: list[Path]

    def rows(self, number: int) -> slice:
        """The queries of a tile."""
        return slice(number * self.tile, min((number + 1) * self.tile, len(self.asked)))


class Neighbours:
    """The best documents of each query of each group, without its positives, from files.

    Args:
      folder: of the files.
      last: the rank up to which they are kept.
      tolerance: see `stream_neighbours`.
    """

    def __init__(
        self,
        folder: Path,
        world: MiningCorpus,
        queries: Found,
        positives: Found,
        corpus: Found,
        last: int,
        tolerance: float,
    ):
        self.folder, self.world, self.last, self.tolerance = folder, world, last, tolerance
        self.queries, self.positives, self.corpus = queries, positives, corpus
        made = [f.manifest for f in (queries, positives, corpus)]
        settings = json.loads(
            json.dumps(
                {
                    "format": "gve_jax neighbours 1",
                    "vectors": [
                        {key: m.get(key) for key in ("fingerprint", "input", "prompt", "vectors")}
                        for m in made
                    ],
                    "pairs": world.digest(),
                    "ranks": last,
                    "duplicate_cosine": tolerance,
                    "devices": jax.local_device_count(),
                }
            )
        )
        hosts.check_same(settings)
        hosts.run_on_host0(
            lambda: check_or_write_settings(
                folder, settings, f"delete {folder}, which is made again"
            )
        )
        work.check_shared(folder)
        self._positives_by_query, self._positive_ids = (
            world.positives_by_query(),
            world.positive_ids(),
        )
        self._content = {inside: n for n, inside in enumerate(world.corpus.contents)}
        self._id = {id: n for n, id in enumerate(world.corpus.ids)}

    def find(self, groups: Sequence[Group], advance: Callable[[int], None]) -> dict[str, Callable]:
        """Finds what is missing; by group a function from a query's number to its documents.

        These are numbers in the corpus, int64 [n], with scores float32 [n], best first. Empty for a
        query that could not be read.
        """
        searches = [self._search(group) for group in groups]
        places = [(at, n) for at, search in enumerate(searches) for n in range(len(search.files))]
        wanted = hosts.run_on_host0(
            lambda: [[at, n] for at, n in places if not searches[at].files[n].exists()]
        )
        for at, n in sorted(set(places) - set(map(tuple, wanted))):
            rows = searches[at].rows(n)
            advance((rows.stop - rows.start) * len(searches[at].documents))
        mine = work.shard_for_host(wanted)
        for at, search in enumerate(searches):
            if tiles := [n for its, n in mine if its == at]:
                self._compare(search, tiles, advance)
        hosts.barrier()
        if not work.wait_until(lambda: all(searches[at].files[n].exists() for at, n in wanted)):
            raise UserError(f"{self.folder}: ranks of another host do not appear")
        return {search.name: self._look(search) for search in searches}

    def _search(self, group: Group) -> Search:
        asked = group.queries[self.queries.row[group.queries] >= 0]
        documents = group.documents[self.corpus.row[group.documents] >= 0]
        tile = query_tile(len(asked), jax.local_device_count())
        count = -(-len(asked) // tile) if len(documents) else 0
        files = [self.folder / f"{group.name}-{n:06}.npz" for n in range(count)]
        return Search(group.name, asked, documents, tile, files)

    def _compare(self, search: Search, tiles: list[int], advance: Callable[[int], None]) -> None:
        """Writes the files of tiles."""
        asked, documents = search.asked, search.documents
        place = np.full(len(self.world.corpus), -1, np.int64)
        place[documents] = np.arange(len(documents))

        def excluded(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            its = [self._excluded(int(query)) for query in asked[numbers]]
            owner = np.repeat(np.arange(len(its)), [len(one) for one in its])
            document = place[np.array([n for one in its for n in one], np.int64)]
            return owner[document >= 0], document[document >= 0]

        def positives(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            its = [
                sorted(self._positives_by_query[self.world.queries.contents[q]])
                for q in asked[numbers]
            ]
            owner = np.repeat(np.arange(len(its)), [len(one) for one in its])
            row = self.positives.row[np.array([n for one in its for n in one], np.int64)]
            return owner[row >= 0], self.positives.vectors[row[row >= 0]]

        stream = stream_neighbours(
            Selection(self.queries.vectors, self.queries.row[asked]),
            Selection(self.corpus.vectors, self.corpus.row[documents]),
            [self.world.corpus.ids[n] for n in documents],
            self.last,
            excluded,
            positives,
            self.tolerance,
            rows=[search.rows(n) for n in tiles],
            advance=advance,
        )
        for rows, places, scores in stream:
            found = np.where(places >= 0, documents[places], -1)
            arrays = {"documents": found, "scores": scores}
            file = search.files[rows.start // search.tile]
            atomic_write(file, lambda out, a=arrays: np.savez(out, **a))
            hosts.set_location(f"after {file}")

    def _look(self, search: Search) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        number = np.full(len(self.world.queries), -1, np.int64)
        number[search.asked] = np.arange(len(search.asked))
        read = functools.lru_cache(maxsize=64)(lambda n: self._read(search.files[n]))
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)

        def look(query: int) -> tuple[np.ndarray, np.ndarray]:
            at = int(number[query])
            if at < 0 or not search.files:
                return nothing
            documents, scores = (part[at % search.tile] for part in read(at // search.tile))
            return documents[documents >= 0], scores[documents >= 0]

        return look

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as told:
                return told["documents"], told["scores"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: unreadable ({error}); delete it") from error

    def _excluded(self, query: int) -> set[int]:
        """Documents that are the query itself or a positive of it, by content or by id."""
        inside = self.world.queries.contents[query]
        same = {inside} | {
            self.world.positives.contents[p] for p in self._positives_by_query[inside]
        }
        found = {self._content[one] for one in same if one in self._content}
        if not self.world.own_corpus:  # whose ids are those of contents
            found |= {self._id[id] for id in self._positive_ids[query] if id in self._id}
        return found
