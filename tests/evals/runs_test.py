"""TREC's files, read back by trec_eval itself."""

import json

import numpy as np
import pytest
import pytrec_eval

from evals.uvrb.__main__ import main
from evals.uvrb.runs import Run, trec_id
from tests.evals.small_uvrb import ColourEncoder, make_benchmark

NAMES = {
    "hit_rate@1": "success_1", "hit_rate@10": "success_10", "precision@1": "P_1",
    "recall@10": "recall_10", "ndcg@10": "ndcg_cut_10", "mrr": "recip_rank",
}  # fmt: skip


class Noise(ColourEncoder):
    """Vectors of few values, so that many scores are equal; the same for the same item."""

    def _vector(self, item):
        if item.get("video"):
            super()._vector(item)  # a damaged file stays an error
        seed = sum(map(ord, str(item.get("text") or item.get("video") or item.get("image"))))
        return np.random.default_rng(seed).choice([-1.0, 1.0], 6)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A set with ids that have spaces, two positives, a damaged video, and equal scores."""
    data = make_benchmark(tmp_path_factory.mktemp("trec"), ("MSRVTT", "MS-TI"))
    root = data / "UVRB/MSRVTT"
    for name in ("queries", "instances", "corpus"):
        path = root / f"jsonl/{name}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for place, line in enumerate(lines):
            for key in ("id", "qid"):
                if key in line:
                    line[key] = f"{line[key][0]} {line[key][1:]}%"
            if "pos" in line:
                line["pos"] = [f"v {place}%", f"v {(place + 1) % 4}%"][: 1 if place == 3 else 2]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "videos/red_green.mp4").write_bytes(b"junk")  # v 3%, the only positive of q 3%
    output = tmp_path_factory.mktemp("out")
    main(["--model", "m", "--data", str(data), "--output", str(output), "--datasets",
          "MSRVTT,MS-TI", "--max-bad-share", "0.5"], load=lambda name: Noise())  # fmt: skip
    return output


def read(path):
    return [line.split(" ") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["MSRVTT", "MS-TI"])
def test_trec_eval_reads_the_same_scores_of_every_query(scored, name):
    with open(scored / f"trec/{name}.qrels") as file:
        qrels = pytrec_eval.parse_qrel(file)
    with open(scored / f"trec/{name}.run") as file:
        run = pytrec_eval.parse_run(file)
    theirs = pytrec_eval.RelevanceEvaluator(
        qrels, {"success.1,10", "P.1", "recall.10", "ndcg_cut.10", "recip_rank"}
    ).evaluate(run)
    with np.load(scored / f"per_query/{name}.npz") as ours:
        assert list(qrels) == [trec_id(id) for id in ours["ids"].tolist()] and len(qrels) == 5
        for metric, other in NAMES.items():
            expected = [theirs[query][other] for query in qrels]
            assert ours[metric] == pytest.approx(expected), metric
    results = json.loads((scored / "results.json").read_text())
    assert results["datasets"][name]["metrics"]["mrr"] == pytest.approx(
        np.mean([theirs[query]["recip_rank"] for query in qrels])
    )


def test_lines_are_trecs_and_what_cannot_be_read_is_not_ranked(scored):
    lines = read(scored / "trec/MSRVTT.run")
    assert all(len(line) == 6 and line[1] == "Q0" and line[5] == "gve_jax" for line in lines)
    by_query = {}
    for query, _, document, rank, score, _ in lines:
        by_query.setdefault(query, []).append((int(rank), document, float(score)))
    assert len(by_query) == 5
    for found in by_query.values():
        assert [rank for rank, _, _ in found] == [1, 2, 3, 4]  # four of five can be read
        assert "v!203%" not in [document for _, document, _ in found]
        keys = [(-score, document) for _, document, score in found]
        tied = [a[0] == b[0] for a, b in zip(keys, keys[1:], strict=False)]
        assert all(a[0] <= b[0] for a, b in zip(keys, keys[1:], strict=False))
        for same, (a, b) in zip(tied, zip(keys, keys[1:], strict=False), strict=True):
            assert not same or a[1] > b[1]  # ids descending
    with np.load(scored / "per_query/MSRVTT.npz") as file:
        assert np.isinf(file["first_rank"][3]) and file["score"][3] == 0


def test_scores_give_float32_back_and_ids_have_no_white_space(tmp_path):
    scores = np.array([[1 / 3, np.nextafter(np.float32(1 / 3), np.float32(0))]], np.float32)
    Run(["a b"], [["x\u00a0y", "z"]], scores, {"a b": ["x\u00a0y"]}).write(tmp_path, "S")
    lines = read(tmp_path / "S.run")
    assert [np.float32(line[4]) for line in lines] == scores[0].tolist()
    assert lines[0][0] == "a!20b" and lines[0][2] == "x\x9f01y" and lines[1][2] == "z"
    assert trec_id("plain-1.mp4") == "plain-1.mp4" and trec_id("a%20b!") == "a%20b!21"
    assert (tmp_path / "S.qrels").read_text() == "a!20b 0 x\x9f01y 1\n"


def test_run_files_are_cut_and_can_be_left_out(scored, tmp_path):
    data = make_benchmark(tmp_path, ("MSRVTT",))
    for k, lines in ((2, 10), (0, None)):
        output = tmp_path / f"out{k}"
        main(["--model", "m", "--data", str(data), "--output", str(output), "--datasets", "MSRVTT",
              "--trec", str(k)], load=lambda name: ColourEncoder())  # fmt: skip
        path = output / "trec/MSRVTT.run"
        assert path.exists() == bool(lines)
        assert not lines or len(read(path)) == lines
