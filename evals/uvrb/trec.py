"""TREC's run and qrels files, for trec_eval, pytrec_eval, ranx and ir_measures.

    OUTPUT/trec/<SET>.run     query Q0 document rank score gve_jax   the best documents first
    OUTPUT/trec/<SET>.qrels   query 0 document 1                     every positive

Columns are separated by white space, so ids are written without it: see `trec_id`. An unreadable
positive is left out, as in our scores, unless its query has no other: then it stays, and the query
scores zero. An unreadable query is only in the qrels: average over the queries of the qrels
(trec_eval -c), not over those of the run.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gve_jax.storage.files import atomic_write

TAG = "gve_jax"


@dataclass(frozen=True)
class Run:
    """The best documents of each ranked query.

    queries: ids of the [Q] ranked queries.
    documents, scores: ids and cosines float32 of the best k of each (fewer in a smaller pool).
    positives: {query id: document ids}, of all queries.
    """

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]
    scores: Sequence[np.ndarray]
    positives: dict[str, Sequence[str]]

    def write(self, folder: Path, name: str) -> list[Path]:
        """Writes `name`.run and `name`.qrels, each atomically; returns both paths."""
        paths = [folder / f"{name}.run", folder / f"{name}.qrels"]
        _write(paths[0], self._run_lines)
        _write(paths[1], self._qrels_lines)
        return paths

    def _run_lines(self):
        for query, documents, scores in zip(self.queries, self.documents, self.scores, strict=True):
            query = trec_id(query)
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
                # Nine digits identify a float32, so that ties stay ties.
                yield f"{query} Q0 {trec_id(document)} {rank} {score:.9g} {TAG}\n"

    def _qrels_lines(self):
        for query, positives in self.positives.items():
            for document in positives:
                yield f"{trec_id(query)} 0 {trec_id(document)} 1\n"


# Characters that may separate columns or lines for some reader of these files: all white space of
# Unicode; and the byte order mark.
SEPARATORS = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
)
# (lead, first, last): every character from first to last is written as the lead and its offset from
# the first in two hexadecimal digits. The lead is not a separator and sorts where they do, so that
# written ids have the order of the ids, which breaks ties.
_ESCAPED = (
    ("!", "\x00", "!"),
    ("\x84", "\x84", "\x85"),
    ("\x9f", "\x9f", "\xa0"),
    ("\u167f", "\u167f", "\u1680"),
    ("\u1fff", "\u1fff", "\u200a"),
    ("\u2027", "\u2027", "\u2029"),
    ("\u202e", "\u202e", "\u202f"),
    ("\u205e", "\u205e", "\u205f"),
    ("\u2fff", "\u2fff", "\u3000"),
    ("\ufefe", "\ufefe", "\ufeff"),
)
_WRITTEN = {
    number: f"{lead}{number - ord(first):02X}"
    for lead, first, last in _ESCAPED
    for number in range(ord(first), ord(last) + 1)
}
_FIRST = {lead: ord(first) for lead, first, _ in _ESCAPED}
_PATTERN = re.compile(f"([{''.join(_FIRST)}])([0-9A-F]{{2}})")


def trec_id(id: str) -> str:
    """An id without white space: a space is written as `!20`, a `!` as `!21`.

    Reversible (`from_trec_id`) and order-preserving: trec_eval orders equal scores by the bytes of
    the ids, which is the order of code points.
    """
    return id.translate(_WRITTEN)


def from_trec_id(written: str) -> str:
    """The inverse of `trec_id`."""
    return _PATTERN.sub(lambda match: chr(_FIRST[match[1]] + int(match[2], 16)), written)


def _write(path: Path, lines: Callable[[], Iterator[str]]) -> None:
    atomic_write(path, lambda file: file.writelines(line.encode() for line in lines()))
