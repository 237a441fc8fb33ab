"""What a score was computed on: digests of a set, and whether two scores may be compared.

`results.json` holds `digests: {SET: {"queries", "corpus", "positives", "candidates", "media"}}`,
and in the record of each set `left_out: {"queries": [ids], "documents": [ids]}`, what could not be
read. Two models are compared on a set only where all of it is equal: equal counts do not make equal
sets, and who lacks some documents has an easier one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from data.uvrb.reader import RetrievalSet

# What a digest is of, as messages say it.
_WHAT = {
    "queries": "the ids or texts of the queries",
    "corpus": "the ids of the documents",
    "positives": "the positives of the queries",
    "candidates": "the candidates of the queries",
}


def set_digests(found: RetrievalSet, content: Callable[[Path], str] | None) -> dict:
    """Digests of a set as it is ranked, whatever the order of its files.

    Args:
      found: the set.
      content: the digest of a medium; None where the media are not read, as with vectors that were
        made elsewhere. `media` is then None.
    """
    queries, candidates = found.queries, found.candidates

    def named(path: Path | None) -> str | None:
        return None if path is None else content(path)

    media = None
    if content is not None:
        shown = [["query", q.id, named(q.image), named(q.video)] for q in queries]
        media = _digest(shown + [["document", d.id, content(d.video)] for d in found.corpus])
    return {
        "queries": _digest([query.id, query.text] for query in queries),
        "corpus": _digest([document.id] for document in found.corpus),
        "positives": _digest([query.id, *sorted(query.positives)] for query in queries),
        "candidates": candidates
        and _digest(
            [query.id, *sorted(pool)] for query, pool in zip(queries, candidates, strict=True)
        ),
        "media": media,
    }


def difference(one: Mapping, other: Mapping, name: str) -> str | None:
    """Why two results cannot be compared on a set, as a clause; None if they can.

    Media whose content is not known of one side are not compared.
    """
    pools = [results.get("pools", {}).get(name) for results in (one, other)]
    if pools[0] != pools[1]:
        return f"one was ranked with --moment-pool {pools[0]}, the other with {pools[1]}"
    sizes = [results["datasets"][name].get("corpus") for results in (one, other)]
    if sizes[0] != sizes[1]:
        return f"one was ranked among {sizes[0]} documents, the other among {sizes[1]}"
    digests = [results.get("digests", {}).get(name) for results in (one, other)]
    if None in digests:
        which = (
            "both" if digests[0] == digests[1] else "the first" if not digests[0] else "the other"
        )
        return (
            f"{which} of the results have no digests of the set, as those before version 0.2.0; "
            "repeat the command of evals.uvrb that wrote them: its embeddings are kept, and only "
            "ranks are computed again"
        )
    for field, what in _WHAT.items():
        if digests[0].get(field) != digests[1].get(field):
            return f"{what} differ"
    if lost := left_out(one["datasets"][name], other["datasets"][name]):
        return lost
    media = [digest.get("media") for digest in digests]
    return (
        "the content of the media differs" if None not in media and media[0] != media[1] else None
    )


def left_out(one: Mapping, other: Mapping) -> str | None:
    """What of a set could not be read in one of two runs only, as a clause; None if nothing."""
    for kind in ("documents", "queries"):
        lists = [record.get("left_out", {}).get(kind, []) for record in (one, other)]
        if odd := sorted(set(lists[0]) ^ set(lists[1])):
            return (
                f"one was scored without {len(lists[0])} {kind} that could not be read, the other "
                f"without {len(lists[1])}; {odd[0]!r} is missing in one of them only"
            )
    return None


def unknown_media(one: Mapping, other: Mapping, name: str) -> bool:
    """Whether only one of two results knows the content of the set's media."""
    known = [bool(results["digests"][name].get("media")) for results in (one, other)]
    return known[0] != known[1]


def _digest(rows: Iterable[list]) -> str:
    digest = hashlib.sha256()
    for line in sorted(json.dumps(row) for row in rows):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]
