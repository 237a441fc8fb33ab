"""Metrics of a fixed set of rankings by ranx, which brings numba, pandas and matplotlib: recorded.

    pip install ranx            # in an environment of its own; made with 0.3.21
    python tests/goldens/ranx_metrics.py

writes ranx_metrics.json: for each metric the value of every query. No query has equal scores.
"""

import json
from pathlib import Path

import numpy as np

NAMES = {
    "hit_rate@1": "hit_rate@1",
    "hit_rate@10": "hit_rate@10",
    "recall@5": "recall@5",
    "recall@20": "recall@20",
    "precision@5": "precision@5",
    "ndcg@5": "ndcg@5",
    "ndcg@20": "ndcg@20",
    "mrr": "mrr",
    "mrr@10": "mrr@10",
}


def rankings() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Unit queries [30, 64], unit documents [80, 64], and one to seven positives of each query."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(110, 64))
    rows = np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True) * 2048) / 2048
    positives = [rng.choice(80, size=rng.integers(1, 8), replace=False) for _ in range(30)]
    return rows[:30].astype(np.float32), rows[30:].astype(np.float32), positives


def main() -> None:
    import ranx

    queries, corpus, positives = rankings()
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    assert all(len(set(row)) == len(row) for row in scores.tolist())
    # Names of one length: ranx sorts the queries by name.
    qrels = {f"q{q:02}": {f"d{d}": 1 for d in own} for q, own in enumerate(positives)}
    run = {f"q{q:02}": {f"d{d}": s for d, s in enumerate(row)} for q, row in enumerate(scores)}
    found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(NAMES.values()), return_mean=False)
    values = {name: np.asarray(found[theirs]).tolist() for name, theirs in NAMES.items()}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
