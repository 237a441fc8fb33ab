"""Scores an embedder on sets of UVRB: embed, rank all pairs, measure."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from data.uvrb.reader import Document, Query, RetrievalSet
from data.uvrb.tasks import Task
from evals.uvrb import cost
from evals.uvrb.digests import set_digests
from evals.uvrb.embeddings import Embedder
from evals.uvrb.per_query import PerQuery
from evals.uvrb.scores import ABILITIES, AVERAGES, abilities, averages, cells
from evals.uvrb.statistics import interval, resampled
from evals.uvrb.trec import Run
from gve_jax.errors import UserError
from gve_jax.retrieval import (
    Ranks,
    chance,
    evaluate,
    rank_candidates,
    rank_positives,
    ranked_lists,
    spare_documents,
    top_k,
)
from gve_jax.retrieval.metrics import first_rank, median_rank
from gve_jax.retrieval.store import StoredRows
from gve_jax.retrieval.tiles import cosine_rows, id_order

RULES = (
    "A document that cannot be read leaves the corpus.",
    "A query that cannot be read, or whose positives have all left the corpus, scores 0.",
    "R@k is the hit rate: the share of queries with a positive among the first k.",
    "Equal scores are ordered by document id, descending, as trec_eval does.",
    "Chance is the expected score of a random order of the same corpus.",
    "Intervals hold 95 % of the scores of 10,000 resamples of the queries.",
)
# Computed for each set and query in addition to the set's own metric.
METRICS = ("hit_rate@1", "hit_rate@10", "precision@1", "recall@10", "ndcg@10", "mrr")
SHOWN = 3  # documents of an example


@dataclass(frozen=True)
class Example:
    """A query to show, with its best documents.

    query: index in the set's queries.
    documents, cosines: indices in the set's corpus, best first, and their cosines.
    rank, right, cosine: rank, corpus index and cosine of the best positive.
    success: whether the set's metric counts the query as a hit.
    """

    query: int
    documents: tuple[int, ...]
    cosines: tuple[float, ...]
    rank: int
    right: int
    cosine: float
    success: bool


@dataclass(frozen=True)
class Scored:
    """The scores of one set: its record for `results.json`, the score of each query, a few queries
    to show, the best documents of all queries (None unless requested), and digests of the set."""

    record: dict
    per_query: PerQuery
    examples: tuple[Example, ...]
    run: Run | None
    digests: dict


def score_set(
    found: RetrievalSet,
    embedder: Embedder,
    *,
    advance: Callable[[int], None],
    frame_order: str = "forward",
    prepare: Callable[[Sequence[Path]], Sequence[Path]] | None = None,
    examples: int = 0,
    depth: int = 0,
    mesh: Mesh | None = None,
) -> Scored:
    """Embeds one set and scores it.

    Args:
      found: the set.
      embedder: the model and its embeddings.
      advance: called with the number of items just embedded.
      frame_order: "shuffled" for the control, in every video of queries and corpus.
      prepare: maps the documents' videos to the files to embed instead.
      examples: number of queries to return for the report.
      depth: documents of each query in the TREC run; 0 for no run.
      mesh: devices for the ranking; see `rank_positives`.

    Raises:
      UserError: see `Embedder.embed`; also a set without any readable document or query.
    """
    task, start = found.task, time.perf_counter()
    items = [query_item(found, index, frame_order) for index in range(len(found.queries))]
    queries = embedder.embed(f"{task.name}.queries", [q.id for q in found.queries], items, advance)
    videos = [document.video for document in found.corpus]
    if prepare is not None:
        if found.files is not None:
            found.files.ensure()
        videos = prepare(videos)
    items = [_with_order({"video": str(video)}, frame_order) for video in videos]
    corpus = embedder.embed(f"{task.name}.corpus", [d.id for d in found.corpus], items, advance)
    for side, name in ((queries, "query"), (corpus, "document")):
        if not side.valid.any():
            raise UserError(f"{task.name}: not one {name} can be read")
    widths = queries.vectors.shape[1], corpus.vectors.shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"{task.name}: queries have {widths[0]} dimensions, documents {widths[1]}")

    valid, readable = np.flatnonzero(queries.valid), np.flatnonzero(corpus.valid)
    ids = [found.corpus[index].id for index in readable]
    index_of = {id: index for index, id in enumerate(ids)}

    def indices(documents: Sequence[str]) -> list[int]:
        return [index_of[id] for id in documents if id in index_of]

    positives = [indices(found.queries[query].positives) for query in valid]
    ranking_start = time.perf_counter()
    vectors = [
        cosine_rows(side.vectors, f"{task.name}.{name}")
        for side, name in ((queries, "queries"), (corpus, "corpus"))
    ]
    pools = None
    if found.candidates is None:
        ranks = rank_positives(*vectors, positives, ids, mesh=mesh)
    else:
        pools = [indices(found.candidates[query]) for query in valid]
        # A query without any readable candidate has no positive either, so it scores zero.
        candidates = [pool or [0] for pool in pools]
        ranks = rank_candidates(*vectors, candidates, positives, ids, mesh=mesh)
    shown = choose_examples(task, ranks, examples)
    listed = list(range(len(valid))) if depth else shown
    best, cosines = _best(*vectors, ids, listed, pools, max(depth, SHOWN), mesh, ranks)
    first, success = first_rank(ranks), evaluate(task.metric, ranks) > 0
    picked = []
    for query, row in zip(shown, shown if depth else range(len(shown)), strict=True):
        right = _best_positive(ranks, query)
        picked.append(
            Example(
                query=int(valid[query]),
                documents=tuple(readable[best[row][:SHOWN]].tolist()),
                cosines=tuple(float(cosine) for cosine in cosines[row][:SHOWN]),
                rank=int(first[query]),
                right=int(readable[right]),
                cosine=float(vectors[0][query] @ vectors[1][right]),
                success=bool(success[query]),
            )
        )
    run = None
    if depth:
        best, cosines = [row[:depth] for row in best], [row[:depth] for row in cosines]
        run = _trec_run(found, valid, ids, positives, best, cosines)
    rank_seconds = time.perf_counter() - ranking_start

    # From here on all queries count, including the unreadable ones.
    sizes = ranks.corpus
    if ranks.candidates is not None:
        sizes = np.ones(len(found.queries), int)
        sizes[valid] = ranks.candidates
    ranks = replace(ranks, query=valid[ranks.query], queries=len(found.queries), candidates=None)
    count = np.bincount(ranks.query, minlength=ranks.queries)
    per_query = PerQuery(
        ids=np.array([query.id for query in found.queries]),
        metric=task.metric,
        score=evaluate(task.metric, ranks),
        first_rank=first_rank(ranks),
        metrics={name: evaluate(name, ranks) for name in METRICS},
    )
    median = median_rank(ranks)
    metrics = {name: _mean(values) for name, values in per_query.metrics.items()}
    metrics["median_rank"] = median if np.isfinite(median) else None
    record = {
        "metric": task.label,
        "score": _mean(per_query.score),
        "interval": list(interval(resampled(per_query.score, task.name))),
        "chance": _mean(chance(task.metric, count, sizes)),
        "queries": len(found.queries),
        "corpus": len(found.corpus),
        "pessimistic": _mean(evaluate(task.metric, ranks.worst())),
        "metrics": metrics,
        "quarantined": {
            "queries": int((~queries.valid).sum()),
            "documents": int((~corpus.valid).sum()),
            "queries_without_positives": int((count[valid] == 0).sum()),
        },
        "left_out": {
            "queries": _unreadable(found.queries, queries),
            "documents": _unreadable(found.corpus, corpus),
        },
        "cost": {"rank_seconds": round(rank_seconds, 3), **cost.sizes(found, (queries, corpus))},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Scored(record, per_query, tuple(picked), run, set_digests(found, embedder.content))


def summary(model: str, fingerprint: Mapping, scored: Mapping[str, Scored]) -> dict:
    """One model's part of `results.json`: its sets, the abilities and both averages.

    `chance` contains the abilities and averages of the sets' chance values, `intervals` the 95 %
    intervals of the model's, from resamples of the queries of each set.
    """
    datasets = {name: one.record for name, one in scored.items()}
    scores = {name: record["score"] for name, record in datasets.items()}
    by_chance = {name: record["chance"] for name, record in datasets.items()}
    drawn = cells({name: resampled(one.per_query.score, name) for name, one in scored.items()})
    bounds = {name: None if one is None else list(interval(one)) for name, one in drawn.items()}
    return {
        "model": model,
        "fingerprint": dict(fingerprint),
        "datasets": datasets,
        "abilities": abilities(scores),
        "averages": averages(scores),
        "intervals": {
            "abilities": {name: bounds[name] for name in ABILITIES},
            "averages": {name: bounds[name] for name in AVERAGES},
        },
        "chance": {"abilities": abilities(by_chance), "averages": averages(by_chance)},
    }


def query_item(found: RetrievalSet, index: int, frame_order: str = "forward") -> dict:
    """The item of a query: its content and the set's instruction. Only queries have the key
    `instruction`, also where it is empty."""
    query = found.queries[index]
    content = {"text": query.text, "image": query.image, "video": query.video}
    item = {key: str(value) for key, value in content.items() if value}
    return _with_order(item | {"instruction": found.task.instruction}, frame_order)


def _with_order(item: dict, frame_order: str) -> dict:
    reordered = frame_order != "forward" and "video" in item
    return item | {"frame_order": frame_order} if reordered else item


def _best(
    queries: np.ndarray,
    corpus: np.ndarray,
    ids: Sequence[str],
    listed: Sequence[int],
    pools: Sequence[Sequence[int]] | None,
    k: int,
    mesh: Mesh | None,
    ranks: Ranks,
) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """Corpus indices and cosines of the k best documents of the `listed` queries, from each query's
    pool if it has one, in the order that `ranks` counted."""
    if not listed:
        return [], []
    order = id_order(ids)
    if pools is None:
        best, cosines = top_k(queries[listed], corpus, ids, k + spare_documents(ranks), mesh=mesh)
        return ranked_lists(ranks, listed, best, cosines, order, k)
    best, cosines = [], []
    for query in listed:
        pool = np.array(pools[query], np.int64)
        # Row by row, so that equal vectors have equal cosines at any position.
        scores = (corpus[pool] * queries[query]).sum(axis=1, dtype=np.float32)
        sorted_ = np.lexsort((-order[pool], -scores))
        best.append(pool[sorted_])
        cosines.append(scores[sorted_])
    return ranked_lists(ranks, listed, best, cosines, order, k)


def _trec_run(
    found: RetrievalSet,
    queries: np.ndarray,
    ids: Sequence[str],
    positives: Sequence[Sequence[int]],
    best: Sequence[np.ndarray],
    cosines: Sequence[np.ndarray],
) -> Run:
    """The best documents of some queries, by id."""
    relevant = {query.id: query.positives for query in found.queries}
    for query, readable in zip(queries, positives, strict=True):
        if readable:  # else the query keeps positives that cannot be retrieved, and scores zero
            relevant[found.queries[query].id] = [ids[index] for index in readable]
    names = [found.queries[query].id for query in queries]
    return Run(names, [[ids[index] for index in row] for row in best], cosines, relevant)


def choose_examples(task: Task, ranks: Ranks, count: int) -> list[int]:
    """Queries to show, drawn with the set's name as seed: failures first, as many as their share
    of all queries, but at least one failure and one success if there are any."""
    success = evaluate(task.metric, ranks) > 0
    ranked = np.unique(ranks.query)
    shuffled = np.random.default_rng(list(task.name.encode())).permutation(ranked)
    failures = [int(query) for query in shuffled if not success[query]]
    successes = [int(query) for query in shuffled if success[query]]
    share = round(count * len(failures) / max(1, len(ranked)))
    wanted = max(min(share, count - 1), 1) if failures and successes else share
    return failures[:wanted] + successes[: count - wanted]


def _best_positive(ranks: Ranks, query: int) -> int:
    rows = np.flatnonzero(ranks.query == query)
    return int(ranks.document[rows[np.argmin(ranks.rank[rows])]])


def _unreadable(entries: Sequence[Query | Document], side: StoredRows) -> list[str]:
    return [entry.id for entry, valid in zip(entries, side.valid, strict=True) if not valid]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
