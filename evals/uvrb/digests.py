"""Digests of a scored set, and whether two scores are comparable.

`results.json` contains `digests: {SET: {"queries", "corpus", "positives", "candidates", "media"}}`,
and in the record of each set the unreadable items, `left_out: {"queries": [ids], "documents":
[ids]}`. Two models are compared on a set only if all of these are equal: equal counts do not make
equal sets, and a set without some documents is easier.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from data.uvrb.reader import RetrievalSet

# What a digest covers, for messages.
_WHAT = {
    "queries": "the ids or texts of the queries",
    "corpus": "the ids of the documents",
    "positives": "the positives of the queries",
    "candidates": "the candidates of the queries",
}


def set_digests(found: RetrievalSet, content: Callable[[Path], str] | None) -> dict:
    """Digests of a set as it is ranked, independent of the order of its files.

    Args:
      found: the set.
      content: digest of a medium; None if media are not read, as with imported vectors. `media` is
        then None.
    """
    queries, pools = found.queries, None
    if found.candidates is not None:
        pools = zip(queries, found.candidates, strict=True)
        pools = _digest([query.id, *sorted(pool)] for query, pool in pools)
    media = None
    if content is not None:
        rows = [["document", document.id, content(document.video)] for document in found.corpus]
        for query in queries:
            paths = query.image, query.video
            rows.append(["query", query.id, *(path and content(path) for path in paths)])
        media = _digest(rows)
    return {
        "queries": _digest([query.id, query.text] for query in queries),
        "corpus": _digest([document.id] for document in found.corpus),
        "positives": _digest([query.id, *sorted(query.positives)] for query in queries),
        "candidates": pools,
        "media": media,
    }


def difference(one: Mapping, other: Mapping, name: str) -> str | None:
    """The reason why two results cannot be compared on a set, as a clause; None if they can.

    Media are compared only if both sides know their content.
    """
    pools = [results.get("pools", {}).get(name) for results in (one, other)]
    if pools[0] != pools[1]:
        return f"one was ranked with --moment-pool {pools[0]}, the other with {pools[1]}"
    sizes = [results["datasets"][name].get("corpus") for results in (one, other)]
    if sizes[0] != sizes[1]:
        return f"one was ranked among {sizes[0]} documents, the other among {sizes[1]}"
    digests = [results.get("digests", {}).get(name) for results in (one, other)]
    if None in digests:
        one_side = "the other result has" if digests[0] else "the first result has"
        which = "both results have" if digests[0] == digests[1] else one_side
        return (
            f"{which} no digests of the set, since a version before 0.2.0 wrote it; repeat that "
            "command of evals.uvrb: it reuses its embeddings and only ranks again"
        )
    for field, what in _WHAT.items():
        if digests[0].get(field) != digests[1].get(field):
            return f"{what} differ"
    if reason := left_out(one["datasets"][name], other["datasets"][name]):
        return reason
    media = [digest.get("media") for digest in digests]
    differ = None not in media and media[0] != media[1]
    return "the content of the media differs" if differ else None


def left_out(one: Mapping, other: Mapping) -> str | None:
    """Items of a set that only one of two runs could read, as a clause; None without any."""
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
