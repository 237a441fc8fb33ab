"""Vectors of queries and documents, and the best documents of each query, kept on disk.

WORK/queries, WORK/positives and, with another corpus, WORK/corpus are outputs of `gve_jax.embed`;
WORK/neighbours holds, for each group, a file for each tile of queries. What is there is not made
again.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from gve_jax.embed import Encoder, agree, embed_all
from gve_jax.errors import UserError
from gve_jax.files import differences, write_whole
from gve_jax.inputs.quarantine import Quarantine
from gve_jax.mining.world import Group, Things, World
from gve_jax.retrieval.negatives import query_tile, stream_neighbours
from gve_jax.retrieval.stored import Selection, StoredVectors
from gve_jax.retrieval.tiles import check_unit_vectors


@dataclass
class Found:
    """The vectors of things: `row` int64 [N] of each in `vectors`, -1 where it is not there."""

    vectors: StoredVectors
    row: np.ndarray


def vectors_of(
    name: str,
    things: Things,
    folder: Path,
    given: Path | None,
    model: Callable[[], Encoder],
    *,
    max_bad_share: float,
    batch_size: int,
    shard_size: int,
) -> Found:
    """Vectors that were given, or else those of the work folder, embedded where they are missing.

    Raises:
      UserError: see `embed_all` and `StoredVectors`; also given vectors of other ids.
    """
    if given is None:
        quarantine = Quarantine(folder / "quarantine.jsonl", max_bad_share)
        embed_all(
            folder, things.ids, things.read, things.digest(), model(), quarantine,
            batch_size=batch_size, shard_size=shard_size, told=f"embedding {name}",
        )  # fmt: skip
    stored = StoredVectors(given or folder)
    check_unit_vectors(stored, name, stored.ids)
    places = {id: row for row, id in enumerate(stored.ids)}
    if len(places) < len(stored.ids):
        raise UserError(f"{given}: an id occurs twice")
    row = np.array([places.get(id, -1) for id in things.ids], np.int64)
    lost = int((row < 0).sum())
    if given and lost > max_bad_share * len(row):
        first = things.ids[int(np.argmax(row < 0))]
        raise UserError(f"{given}: no vector of {lost} of {len(row)} {name}, the first {first!r}")
    return Found(stored, row)


def check_same(found: dict[str, Found]) -> None:
    """Refuses vectors of different models, by the field that differs."""
    (first, one), *others = found.items()
    for name, other in others:
        made = [each.vectors.manifest.get("fingerprint") for each in (one, other)]
        for key, (was, now) in differences(*made).items():
            raise UserError(f"{first} and {name} have different vectors: {key} = {was} and {now}")
        if one.vectors.shape[1] != other.vectors.shape[1]:
            raise UserError(f"{first} have {one.vectors.shape[1]} dimensions and {name} "
                            f"{other.vectors.shape[1]}")  # fmt: skip


class Neighbours:
    """The best documents of each query of each group, without its positives, from files.

    Args:
      folder: of the files.
      last: the rank up to which they are kept.
      tolerance: see `stream_neighbours`.
    """

    def __init__(self, folder: Path, world: World, queries: Found, positives: Found, corpus: Found,
                 last: int, tolerance: float):  # fmt: skip
        self.folder, self.world, self.last, self.tolerance = folder, world, last, tolerance
        self.queries, self.positives, self.corpus = queries, positives, corpus
        made = [f.vectors.manifest for f in (queries, positives, corpus)]
        agree(folder, json.loads(json.dumps({
            "format": "gve_jax neighbours 1",
            "vectors": [{key: m.get(key) for key in ("fingerprint", "input", "prompt", "vectors")}
                        for m in made],
            "pairs": world.digest(), "ranks": last, "duplicate_cosine": tolerance,
            "devices": jax.local_device_count(),
        })))  # fmt: skip
        self._right, self._names = world.right(), world.names()
        self._content = {inside: n for n, inside in enumerate(world.corpus.contents)}
        self._id = {id: n for n, id in enumerate(world.corpus.ids)}

    def find(self, group: Group, advance: Callable[[int], None]) -> Callable[[int], tuple]:
        """Finds what is missing; a function from a query's number to its documents and scores.

        The documents are numbers in the corpus, int64 [n], and scores float32 [n], best first.
        Empty for a query that could not be read.
        """
        asked = group.queries[self.queries.row[group.queries] >= 0]
        documents = group.documents[self.corpus.row[group.documents] >= 0]
        place = np.full(len(self.world.corpus), -1, np.int64)
        place[documents] = np.arange(len(documents))
        nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if not len(asked) or not len(documents):
            return lambda query: nothing

        def excluded(number: int) -> list[int]:
            return [place[n] for n in self._excluded(int(asked[number])) if place[n] >= 0]

        def twins(number: int) -> np.ndarray:
            right = self._right[self.world.queries.contents[asked[number]]]
            rows = self.positives.row[sorted(right)]
            return self.positives.vectors[rows[rows >= 0]]

        tile = query_tile(len(asked), jax.local_device_count())
        files = [self.folder / f"{group.name}-{n:06}.npz" for n in range(-(-len(asked) // tile))]
        done = next((n for n, file in enumerate(files) if not file.exists()), len(files))
        advance(min(done * tile, len(asked)) * len(documents))
        if done < len(files):
            stream = stream_neighbours(
                Selection(self.queries.vectors, self.queries.row[asked]),
                Selection(self.corpus.vectors, self.corpus.row[documents]),
                [self.world.corpus.ids[n] for n in documents], self.last, excluded, twins,
                self.tolerance, rows=slice(done * tile, len(asked)), advance=advance,
            )  # fmt: skip
            for rows, places, scores in stream:
                found = np.where(places >= 0, documents[places], -1)
                arrays = {"documents": found, "scores": scores}
                write_whole(files[rows.start // tile], lambda file, a=arrays: np.savez(file, **a))

        number = np.full(len(self.world.queries), -1, np.int64)
        number[asked] = np.arange(len(asked))
        read = functools.lru_cache(maxsize=64)(lambda n: self._read(files[n]))

        def look(query: int) -> tuple[np.ndarray, np.ndarray]:
            at = int(number[query])
            if at < 0:
                return nothing
            documents, scores = (part[at % tile] for part in read(at // tile))
            return documents[documents >= 0], scores[documents >= 0]

        return look

    def _read(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            with np.load(file, allow_pickle=False) as told:
                return told["documents"], told["scores"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file}: unreadable ({error}); delete it") from error

    def _excluded(self, query: int) -> set[int]:
        """Documents that are the query itself or a positive of it, by content or by id."""
        inside = self.world.queries.contents[query]
        same = {inside} | {self.world.positives.contents[p] for p in self._right[inside]}
        found = {self._content[one] for one in same if one in self._content}
        if not self.world.own_corpus:  # whose ids are those of contents
            found |= {self._id[id] for id in self._names[query] if id in self._id}
        return found
