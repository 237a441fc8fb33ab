"""Scores an embedder on sets of UVRB: embed, rank all pairs, measure."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import Mesh

from evals.uvrb.embeddings import Embedder
from evals.uvrb.reader import RetrievalSet
from evals.uvrb.scores import abilities, averages
from evals.uvrb.tasks import Task
from gve_jax.errors import UserError
from gve_jax.retrieval import Ranks, chance, evaluate, rank_positives, top_k
from gve_jax.retrieval.metrics import first_rank, median_rank

RULES = (
    "A document that cannot be read leaves the corpus.",
    "A query that cannot be read, or whose positives have all left the corpus, scores 0.",
    "R@k is the hit rate: the share of queries with a positive among the first k.",
    "Equal scores are ordered by document id, descending, as trec_eval does.",
    "Chance is the expected score of a random order of the same corpus.",
)
ALSO = ("hit_rate@1", "hit_rate@10", "recall@10", "ndcg@10", "mrr")  # beside the set's own metric
SHOWN = 3  # documents of an example


@dataclass(frozen=True)
class Example:
    """A query to look at: the corpus indices of its best documents, and where the right one is.

    query: index in the set's queries.
    documents: indices in the set's corpus, best first.
    rank, right: rank and corpus index of the best positive.
    success: whether the set's metric counts the query as found.
    """

    query: int
    documents: tuple[int, ...]
    rank: int
    right: int
    success: bool


@dataclass(frozen=True)
class Scored:
    """One set scored: its record for `results.json`, and a few queries to look at."""

    record: dict
    examples: tuple[Example, ...]


def score_set(
    found: RetrievalSet,
    embedder: Embedder,
    *,
    advance: Callable[[int], None],
    frame_order: str = "forward",
    examples: int = 0,
    mesh: Mesh | None = None,
) -> Scored:
    """Embeds one set and scores it.

    Args:
      found: the set.
      embedder: the model and its embeddings.
      advance: called with the number of further items done.
      frame_order: "shuffled" for the control, in every video of queries and corpus.
      examples: how many queries to return for people to look at.
      mesh: devices for the ranking; see `rank_positives`.

    Raises:
      UserError: see `Embedder.embed`; also a set without one readable document or query.
    """
    task, start = found.task, time.perf_counter()
    items = [query_item(found, place, frame_order) for place in range(len(found.queries))]
    queries = embedder.embed(f"{task.name}.queries", [q.id for q in found.queries], items, advance)
    items = [_with_order({"video": str(d.video)}, frame_order) for d in found.corpus]
    corpus = embedder.embed(f"{task.name}.corpus", [d.id for d in found.corpus], items, advance)
    for side, name in ((queries, "query"), (corpus, "document")):
        if not side.valid.any():
            raise UserError(f"{task.name}: not one {name} can be read")

    asked, kept = np.flatnonzero(queries.valid), np.flatnonzero(corpus.valid)
    ids = [found.corpus[place].id for place in kept]
    place_of = {id: place for place, id in enumerate(ids)}
    positives = [
        [place_of[id] for id in found.queries[query].positives if id in place_of] for query in asked
    ]
    ranks = rank_positives(queries.vectors, corpus.vectors, positives, ids, mesh=mesh)
    shown = _choose(task, ranks, examples)
    best, _ = top_k(queries.vectors[shown], corpus.vectors, ids, SHOWN, mesh=mesh) if shown else (
        [], None
    )  # fmt: skip
    first, success = first_rank(ranks), evaluate(task.metric, ranks) > 0
    picked = tuple(
        Example(
            query=int(asked[query]),
            documents=tuple(kept[documents].tolist()),
            rank=int(first[query]),
            right=int(kept[_best_positive(ranks, query)]),
            success=bool(success[query]),
        )
        for query, documents in zip(shown, best, strict=True)
    )

    # From here on all queries count, those that could not be asked too.
    ranks = replace(ranks, query=asked[ranks.query], queries=len(found.queries))
    count = np.bincount(ranks.query, minlength=ranks.queries)
    record = {
        "metric": task.label,
        "score": _mean(evaluate(task.metric, ranks)),
        "chance": _mean(chance(task.metric, count, ranks.corpus)),
        "queries": len(found.queries),
        "corpus": len(found.corpus),
        "pessimistic": _mean(evaluate(task.metric, ranks.worst())),
        "metrics": {name: _mean(evaluate(name, ranks)) for name in ALSO}
        | {"median_rank": _finite(median_rank(ranks))},
        "quarantined": {
            "queries": int((~queries.valid).sum()),
            "documents": int((~corpus.valid).sum()),
            "queries_without_positives": int((count[asked] == 0).sum()),
        },
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Scored(record, picked)


def summary(model: str, fingerprint: Mapping, datasets: Mapping[str, dict]) -> dict:
    """One model's part of `results.json`: its sets, the abilities and both averages.

    `chance` holds the abilities and averages of the sets' chance values.
    """
    scores = {name: record["score"] for name, record in datasets.items()}
    by_chance = {name: record["chance"] for name, record in datasets.items()}
    return {
        "model": model,
        "fingerprint": dict(fingerprint),
        "datasets": dict(datasets),
        "abilities": abilities(scores),
        "averages": averages(scores),
        "chance": {"abilities": abilities(by_chance), "averages": averages(by_chance)},
    }


def query_item(found: RetrievalSet, place: int, frame_order: str = "forward") -> dict:
    """The item of a query: its content and the set's instruction (documents carry none)."""
    query = found.queries[place]
    content = {"text": query.text, "image": query.image, "video": query.video}
    item = {key: str(value) for key, value in content.items() if value}
    return _with_order(item | {"instruction": found.task.instruction}, frame_order)


def _with_order(item: dict, frame_order: str) -> dict:
    reordered = frame_order != "forward" and "video" in item
    return item | {"frame_order": frame_order} if reordered else item


def _choose(task: Task, ranks: Ranks, count: int) -> list[int]:
    """Queries to show, drawn at random by the set's name: failures first, half of them at most."""
    success = evaluate(task.metric, ranks) > 0
    ranked = np.unique(ranks.query)
    shuffled = np.random.default_rng(list(task.name.encode())).permutation(ranked)
    failures = [int(query) for query in shuffled if not success[query]]
    successes = [int(query) for query in shuffled if success[query]]
    wanted = max(count - len(successes), count // 2)
    return failures[:wanted] + successes[: count - len(failures[:wanted])]


def _best_positive(ranks: Ranks, query: int) -> int:
    own = np.flatnonzero(ranks.query == query)
    return int(ranks.document[own[np.argmin(ranks.rank[own])]])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
