"""Exact search over the moments of an index: scores, filters, and hits of neighbouring moments."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from gve_jax.errors import UserError
from gve_jax.index.store import Media, Store

GROUPS = ("moment", "video")
BLOCK = 128  # rows of float16 that are converted at once: they stay in the cache
SAMPLE = 10_000  # scores that the median is computed from
EXACT = 256  # best moments whose scores are computed again, so that equal vectors tie


@dataclasses.dataclass(frozen=True)
class Hit:
    """An answer.

    Attributes:
      rank: from 1.
      score: cosine of the best of its moments.
      path: relative to the media folder.
      kind: "video" or "image".
      start_sec, end_sec: of its moments together; 0 for an image.
      best_start_sec, best_end_sec: of the best moment alone.
      duration: seconds of the video; 0 for an image.
      metadata: the user's own.
      moments: if grouped by video, its best moments, as (score, start_sec, end_sec).
    """

    rank: int
    score: float
    path: str
    kind: str
    start_sec: float
    end_sec: float
    best_start_sec: float
    best_end_sec: float
    duration: float
    metadata: dict
    moments: tuple[tuple[float, float, float], ...] = ()

    def to_json(self) -> dict:
        fields = dataclasses.asdict(self)
        if not self.moments:
            del fields["moments"]
            return fields
        keys = ("score", "start_sec", "end_sec")
        moments = [dict(zip(keys, moment, strict=True)) for moment in self.moments]
        return fields | {"moments": moments}


class Snapshot:
    """The moments of an index at one time, in the order of their rows on disk.

    Attributes:
      media: the files, in that order.
      edges: int64 [files + 1], the first moment of each file.
      spans: float64 [N, 2], start_sec and end_sec of each moment.
    """

    def __init__(self, store: Store):
        self.media: list[Media] = sorted(
            store.media.values(), key=lambda media: (media.shard, media.row)
        )
        counts = [media.count for media in self.media]
        self.edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.dim, self.dtype = store.dim, store.dtype
        shards = {shard: store.open_shard(shard) for shard in {m.shard for m in self.media}}
        self._vectors = {shard: vectors for shard, (vectors, _) in shards.items()}
        spans = [shards[shard][1][start:stop] for shard, start, stop, _ in self._runs(None)]
        self.spans = np.concatenate(spans) if spans else np.zeros((0, 2))
        # Ties are in the order of paths, then of times.
        order = sorted(range(len(self.media)), key=lambda n: self.media[n].path)
        self._path_rank = np.empty(len(order), np.int64)
        self._path_rank[order] = np.arange(len(order))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def media_of(self, rows: np.ndarray) -> np.ndarray:
        """The index in `media` of each moment."""
        return np.searchsorted(self.edges, rows, side="right") - 1

    def vectors(self) -> np.ndarray:
        """All vectors, float32 [N, D]; a view of the disk where they are in one piece."""
        found = [self._vectors[shard][start:stop] for shard, start, stop, _ in self._runs(None)]
        if not found:
            return np.zeros((0, self.dim), np.float32)
        return np.asarray(found[0] if len(found) == 1 else np.concatenate(found), np.float32)

    def vector(self, row: int) -> np.ndarray:
        """The vector of a moment, float32 [D]."""
        number = int(self.media_of(np.array(row)))
        return np.asarray(self.file_vectors(number)[row - int(self.edges[number])], np.float32)

    def file_vectors(self, number: int) -> np.ndarray:
        """The vectors of a file by its place in `media`, [n, D] as stored; not read yet."""
        media = self.media[number]
        return self._vectors[media.shard][media.row : media.row + media.count]

    def scores(self, query: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Cosines of a unit vector [D] with all moments, float32 [N].

        Those of the best are sums in float64 that depend on the two vectors alone: a product with a
        matrix rounds a row differently in another place, so that copies would not tie.

        Args:
          chosen: bool [files]; the moments of other files have -inf, and are not read.
        """
        query = np.ascontiguousarray(query, np.float32)
        scores = np.empty(len(self), np.float32)
        if chosen is not None:
            scores[:] = -np.inf
        for shard, start, stop, at in self._runs(chosen):
            vectors = self._vectors[shard]
            if self.dtype == np.float32:
                np.dot(vectors[start:stop], query, out=scores[at : at + stop - start])
                continue
            wide = np.empty((BLOCK, self.dim), np.float32)
            for first in range(start, stop, BLOCK):
                block = vectors[first : min(first + BLOCK, stop)]
                out = scores[at + first - start :][: len(block)]
                np.dot(widen(block, wide[: len(block)]), query, out=out)
        best = np.argpartition(-scores, EXACT)[:EXACT] if len(scores) > EXACT else slice(None)
        rows = np.sort(np.arange(len(scores))[best])
        rows = rows[scores[rows] > -np.inf]
        media = self.media_of(rows)
        for number in np.unique(media).tolist():
            own = rows[media == number]
            vectors = self.file_vectors(number)[own - self.edges[number]]
            scores[own] = np.sum(vectors.astype(np.float64) * query, axis=1)
        return scores

    def _runs(self, chosen: np.ndarray | None) -> Iterator[tuple[int, int, int, int]]:
        """(shard, first row, last row + 1, first moment) of rows that follow each other on disk."""
        run = None
        for number, media in enumerate(self.media):
            if chosen is not None and not chosen[number]:
                continue
            if run and (media.shard, media.row) == (run[0], run[2]):
                run[2] += media.count  # then its moments follow, too
                continue
            if run:
                yield tuple(run)
            run = [media.shard, media.row, media.row + media.count, int(self.edges[number])]
        if run:
            yield tuple(run)

    def ranked(self, scores: np.ndarray) -> Iterator[int]:
        """Moments by falling score, then by path and begin; those with -inf are left out."""
        count, done = 256, 0
        while done < len(scores):
            count = min(count, len(scores))
            least = np.partition(scores, len(scores) - count)[len(scores) - count]
            rows = np.flatnonzero(scores >= least)  # with all that tie with the last one
            rows = rows[scores[rows] > -np.inf]
            media = self.media_of(rows)
            order = np.lexsort((rows, self._path_rank[media], -scores[rows]))
            yield from rows[order[done:]].tolist()
            if least == -np.inf:
                return
            done, count = len(rows), 16 * count

    def hits(
        self,
        scores: np.ndarray,
        k: int,
        *,
        group_by: str = "moment",
        merge: float = 0.0,
        metadata: dict[str, dict] | None = None,
        median: float | None = None,
    ) -> list[Hit]:
        """The k best hits.

        A hit begins with the best moment that is in no hit yet. It takes in the moments before and
        after that touch it, as long as they score nearly as well, and those that it overlaps by
        more than half answer with it: they make no hit of their own.

        Args:
          scores: [N], of `scores`.
          group_by: "moment", or "video" for one hit for each file.
          merge: by which share of the distance from a hit's score down to the median score a
            neighbour may be worse; 0 takes in equal ones only, a negative number none at all.
          metadata: of files, by path.
          median: of the scores, where `scores` has not all of them.
        """
        if group_by not in GROUPS:
            raise UserError(f"group_by must be one of {', '.join(GROUPS)}, not {group_by!r}")
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        median = _median(scores) if median is None else median
        taken: set[int] = set()
        groups: dict[int, list[tuple[int, float, float]]] = {}
        hits: list[tuple[int, int, float, float]] = []
        for row in self.ranked(scores):
            if row in taken:
                continue
            media = int(self.media_of(np.array(row)))
            if group_by == "video" and media in groups:
                continue
            start, end = self._extend(row, media, scores, merge, median, taken)
            hits.append((row, media, start, end))
            if group_by == "video":
                groups[media] = self._others(media, scores, merge, median, row, start, end)
            if len(hits) == k:
                break
        return [
            self._hit(rank, scores, *hit, groups.get(hit[1]), (metadata or {}))
            for rank, hit in enumerate(hits, 1)
        ]

    def _extend(
        self, row: int, media: int, scores: np.ndarray, merge: float, median: float, taken: set
    ) -> tuple[float, float]:
        """The span of the hit that begins with a moment; its moments are added to `taken`."""
        first, stop = int(self.edges[media]), int(self.edges[media + 1])
        start, end = self.spans[row]
        least = scores[row] - max(0.0, merge) * max(0.0, scores[row] - median)
        taken.add(row)
        if merge >= 0:
            for step, bound in ((-1, first - 1), (1, stop)):
                other = row + step
                while other != bound and other not in taken and scores[other] >= least:
                    begin, finish = self.spans[other]
                    if begin > end + 1e-3 or finish < start - 1e-3:
                        break
                    start, end = min(start, begin), max(end, finish)
                    taken.add(other)
                    other += step
        for step, bound in ((-1, first - 1), (1, stop)):
            other = row + step
            while other != bound:
                begin, finish = self.spans[other]
                shared = min(end, finish) - max(start, begin)
                if shared <= 0 and other not in taken:
                    break
                if shared > (finish - begin) / 2:
                    taken.add(other)
                other += step
        return float(start), float(end)

    def _others(self, media, scores, merge, median, row, start, end, most: int = 5) -> list:
        """The best hits in one file, the given one first."""
        found, taken = [(row, start, end)], set()
        self._extend(row, media, scores, merge, median, taken)
        first, stop = int(self.edges[media]), int(self.edges[media + 1])
        for other in (first + np.argsort(-scores[first:stop], kind="stable")).tolist():
            if len(found) == most:
                break
            if other not in taken:
                found.append((other, *self._extend(other, media, scores, merge, median, taken)))
        return found

    def _hit(self, rank, scores, row, media, start, end, others, metadata) -> Hit:
        file = self.media[media]
        best = self.spans[row].tolist()
        moments = [(float(scores[other]), begin, finish) for other, begin, finish in others or ()]
        return Hit(
            rank=rank,
            score=float(scores[row]),
            path=file.path,
            kind=file.kind,
            start_sec=start,
            end_sec=end,
            best_start_sec=best[0],
            best_end_sec=best[1],
            duration=file.duration,
            metadata=metadata.get(file.path, {}),
            moments=tuple(moments),
        )


def widen(block: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Finite float16 as float32, exactly, into `out`; three times as fast as `astype`."""
    bits = out.view(np.int32)
    np.copyto(bits, block.view(np.int16))
    # Sign, exponent and fraction to the places that they have in float32, but for the bias of the
    # exponent, which the product corrects.
    bits <<= 13
    bits &= ~0x70000000
    out *= np.float32(2.0**112)
    return out


def _median(scores: np.ndarray) -> float:
    finite = scores[:: max(1, len(scores) // SAMPLE)]
    finite = finite[finite > -np.inf]
    return float(np.median(finite)) if len(finite) else 0.0
