"""Queries ranked in their candidates: the score, its chance, the run and the examples."""

import json

import numpy as np
import pytest

from tests.evals.small_uvrb import ColourEncoder, evaluate, make_benchmark, write_jsonl
from tests.situations import situation

POOLS = (["v0", "v1"], ["v1", "v2", "v3"], ["v0", "v2", "v3", "v4"], ["v3", "v0"], ["v4", "v1"])


class Half(ColourEncoder):
    """Sees the last colour of a clip, while queries have the first: mostly wrong."""

    def _vector(self, item):
        vector = super()._vector(item)
        return np.concatenate([vector[3:], np.ones(3)]) if item.get("video") else vector


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = make_benchmark(tmp_path_factory.mktemp("pools"), ("MS-TI",))
    lines = [{"qid": f"q{n}", "pos": [f"v{n}"], "candidates": pool} for n, pool in enumerate(POOLS)]
    write_jsonl(data / "UVRB/MS-TI/jsonl/instances.jsonl", lines)
    return data


def run(data, output, model):
    options = "--datasets", "MS-TI", "--moment-pool", "candidates", "--max-bad-share", "0.5"
    return evaluate(data, output, *options, load=lambda _: model)


def vectors(output, side):
    """{id: vector} as embedded, read from the shards."""
    shards = {}
    for path in sorted((output / "embeddings/model").glob("vectors-*.json")):
        record, rows = json.loads(path.read_text()), iter(np.load(path.with_suffix(".npy")))
        shards |= {
            key: next(rows) if valid else None
            for key, valid in zip(record["keys"], record["valid"], strict=True)
        }
    record = json.loads((output / f"embeddings/model/MS-TI.{side}.json").read_text())
    return {id: shards[key] for id, key in zip(record["ids"], record["keys"], strict=True)}


@situation(
    "Evaluation",
    "queries with their own candidates (MomentSeeker)",
    "--moment-pool candidates ranks each query among those, with their chance",
    since="0.1.0",
)
def test_ranks_queries_in_their_candidates(data, tmp_path):
    results = run(data, tmp_path, model=Half())
    queries, corpus = vectors(tmp_path, "queries"), vectors(tmp_path, "corpus")
    expected, lists = [], []
    for n, pool in enumerate(POOLS):
        scores = {id: float(np.float32((corpus[id] * queries[f"q{n}"]).sum())) for id in pool}
        order = sorted(sorted(pool, reverse=True), key=lambda id: -scores[id])
        lists.append(order)
        expected.append(order[0] == f"v{n}")
    record = results["datasets"]["MS-TI"]
    assert results["pools"] == {"MS-TI": "candidates"}
    assert record["score"] == pytest.approx(np.mean(expected)) and 0 < np.mean(expected) < 1
    assert record["chance"] == pytest.approx(np.mean([1 / len(pool) for pool in POOLS]))
    lines = [line.split(" ") for line in (tmp_path / "trec/MS-TI.run").read_text().splitlines()]
    for n, order in enumerate(lists):
        assert [line[2] for line in lines if line[0] == f"q{n}"] == order


def test_collapsed_encoder_scores_chance_in_pools(data, tmp_path):
    results = run(data, tmp_path, model=ColourEncoder(trained=False))
    record = results["datasets"]["MS-TI"]
    # The largest id of each pool is first: a hit for q4 and q3.
    assert record["score"] == np.mean([max(pool) == f"v{n}" for n, pool in enumerate(POOLS)])
    assert record["pessimistic"] == 0


def test_query_without_readable_candidates_scores_zero(tmp_path):
    data = make_benchmark(tmp_path, ("MS-TI",))
    lines = [
        {"qid": f"q{n}", "pos": [f"v{n}"], "candidates": [f"v{n}", "v4"] if n else ["v0"]}
        for n in range(5)
    ]
    lines[4]["candidates"] = ["v4", "v1"]
    root = data / "UVRB/MS-TI"
    write_jsonl(root / "jsonl/instances.jsonl", lines)
    (root / "videos/red_blue.mp4").write_bytes(b"junk")  # v0
    results = run(data, tmp_path / "out", model=ColourEncoder())
    with np.load(tmp_path / "out/per_query/MS-TI.npz") as file:
        assert file["score"][0] == 0 and np.isinf(file["first_rank"][0])
    record = results["datasets"]["MS-TI"]
    assert record["quarantined"]["queries_without_positives"] == 1
    assert record["chance"] == pytest.approx(4 * 0.5 / 5)
