"""TREC's run and qrels files, for trec_eval, pytrec_eval, ranx and ir_measures.

    OUTPUT/trec/<SET>.run     query Q0 document rank score gve_jax   the best documents first
    OUTPUT/trec/<SET>.qrels   query 0 document 1                     every positive

Columns are separated by white space, so ids may hold none: it is written as %20 and so on, and %
itself as %25. A positive that could not be read is left out, as it is for our own scores, unless
its query has no other: then it stays, and the query scores zero. A query that could not be read
stands in the qrels only: take the mean over the queries of the qrels (trec_eval -c), not over those
of the run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gve_jax.files import write_whole

TAG = "gve_jax"


@dataclass(frozen=True)
class Run:
    """The best documents of each query that was asked.

    queries: ids of the [Q] asked queries.
    documents, scores: ids and cosines float32 of the best k of each (fewer in a smaller pool).
    positives: {query id: document ids}, of all queries.
    """

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]
    scores: Sequence[np.ndarray]
    positives: dict[str, Sequence[str]]

    def write(self, folder: Path, name: str) -> None:
        """Writes `name`.run and `name`.qrels, each whole or not at all."""
        _write(folder / f"{name}.run", self._run_lines)
        _write(folder / f"{name}.qrels", self._qrels_lines)

    def _run_lines(self):
        for query, documents, scores in zip(self.queries, self.documents, self.scores, strict=True):
            query = trec_id(query)
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                # Nine digits give a float32 back, so that ties stay ties.
                yield f"{query} Q0 {trec_id(document)} {rank} {score:.9g} {TAG}\n"

    def _qrels_lines(self):
        for query, positives in self.positives.items():
            for document in positives:
                yield f"{trec_id(query)} 0 {trec_id(document)} 1\n"


def trec_id(id: str) -> str:
    """An id without white space."""
    if "%" not in id and id.split() == [id]:
        return id
    return "".join(
        "".join(f"%{byte:02X}" for byte in one.encode()) if one.isspace() or one == "%" else one
        for one in id
    )


def _write(path: Path, lines: Callable[[], Iterator[str]]) -> None:
    write_whole(path, lambda file: file.writelines(line.encode() for line in lines()))
