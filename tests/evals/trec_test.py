"""TREC's files, read by trec_eval."""

import itertools
import json
import random
import sys

import numpy as np
import pytest
import pytrec_eval

from evals.uvrb.trec import SEPARATORS, Run, from_trec_id, trec_id
from gve_jax.retrieval import screen
from tests.evals.small_uvrb import (
    ColourEncoder,
    evaluate,
    make_benchmark,
    read_jsonl,
    score_vectors,
    write_jsonl,
    write_set,
)
from tests.situations import situation

NAMES = {
    "hit_rate@1": "success_1",
    "hit_rate@10": "success_10",
    "precision@1": "P_1",
    "recall@10": "recall_10",
    "ndcg@10": "ndcg_cut_10",
    "mrr": "recip_rank",
}


class Noise(ColourEncoder):
    """Vectors of few values, so that many scores are equal; a function of the item."""

    def _vector(self, item):
        if item.get("video"):
            super()._vector(item)  # a damaged file still is an error
        seed = sum(map(ord, str(item.get("text") or item.get("video") or item.get("image"))))
        return np.random.default_rng(seed).choice([-1.0, 1.0], 6)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A set with ids that have spaces, two positives, a damaged video, and equal scores."""
    data = make_benchmark(tmp_path_factory.mktemp("trec"), ("MSRVTT", "MS-TI"))
    root = data / "UVRB/MSRVTT"
    for name in ("queries", "instances", "corpus"):
        path = root / f"jsonl/{name}.jsonl"
        lines = read_jsonl(path)
        for number, line in enumerate(lines):
            for key in ("id", "qid"):
                if key in line:
                    line[key] = f"{line[key][0]} {line[key][1:]}%"
            if "pos" in line:
                positives = [f"v {number}%", f"v {(number + 1) % 4}%"]
                line["pos"] = positives[: 1 if number == 3 else 2]
        write_jsonl(path, lines)
    (root / "videos/red_green.mp4").write_bytes(b"junk")  # v 3%, the only positive of q 3%
    output = tmp_path_factory.mktemp("out")
    options = "--datasets", "MSRVTT,MS-TI", "--max-bad-share", "0.5"
    evaluate(data, output, *options, load=lambda _: Noise())
    return output


def read(path):
    return [line.split(" ") for line in path.read_text().splitlines()]


def trec_scores(output, name):
    """Metrics of each query by trec_eval, from the files: {query: {trec_eval's name: value}}."""
    with open(output / f"trec/{name}.qrels", encoding="utf-8") as file:
        qrels = pytrec_eval.parse_qrel(file)
    with open(output / f"trec/{name}.run", encoding="utf-8") as file:
        run = pytrec_eval.parse_run(file)
    measures = {"success.1,10", "P.1", "recall.10", "ndcg_cut.10", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return {query: found.get(query, dict.fromkeys(NAMES.values(), 0.0)) for query in qrels}


def check_every_query(output, name, depth=1000):
    """Checks that trec_eval on the files gives the written scores of every query; returns their
    number. Runs of `depth` documents have reciprocal ranks up to that rank."""
    theirs = trec_scores(output, name)
    with np.load(output / f"per_query/{name}.npz") as ours:
        assert list(theirs) == [trec_id(id) for id in ours["ids"].tolist()]
        for metric, other in NAMES.items():
            expected = [theirs[query][other] for query in theirs]
            found = ours[metric]
            if metric == "mrr":
                found = np.where(ours["first_rank"] <= depth, found, 0)
            assert found == pytest.approx(expected), metric
    return len(theirs)


@pytest.mark.parametrize("name", ["MSRVTT", "MS-TI"])
def test_trec_eval_gives_equal_scores_of_every_query(scored, name):
    assert check_every_query(scored, name) == 5
    theirs = trec_scores(scored, name)
    results = json.loads((scored / "results.json").read_text())
    assert results["datasets"][name]["metrics"]["mrr"] == pytest.approx(
        np.mean([one["recip_rank"] for one in theirs.values()])
    )


def test_run_has_trec_lines_without_unreadable_documents(scored):
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


def test_scores_identify_float32_and_ids_have_no_white_space(tmp_path):
    scores = np.array([[1 / 3, np.nextafter(np.float32(1 / 3), np.float32(0))]], np.float32)
    Run(["a b"], [["x\u00a0y", "z"]], scores, {"a b": ["x\u00a0y"]}).write(tmp_path, "S")
    lines = read(tmp_path / "S.run")
    assert [np.float32(line[4]) for line in lines] == scores[0].tolist()
    assert lines[0][0] == "a!20b" and lines[0][2] == "x\x9f01y" and lines[1][2] == "z"
    assert trec_id("plain-1.mp4") == "plain-1.mp4" and trec_id("a%20b!") == "a%20b!21"
    assert (tmp_path / "S.qrels").read_text() == "a!20b 0 x\x9f01y 1\n"


def test_run_files_have_k_documents_or_are_omitted(scored, tmp_path):
    data = make_benchmark(tmp_path, ("MSRVTT",))
    for k, lines in ((2, 10), (0, None)):
        output = tmp_path / f"out{k}"
        evaluate(data, output, "--datasets", "MSRVTT", "--trec", k)
        path = output / "trec/MSRVTT.run"
        assert path.exists() == bool(lines)
        assert not lines or len(read(path)) == lines


# ---- ids ---------------------------------------------------------------------------------------


def test_separators_are_all_white_space():
    space = {chr(n) for n in range(sys.maxunicode + 1) if chr(n).isspace()}
    assert set(SEPARATORS) == space | {"\ufeff"}  # and the byte order mark


def test_escaped_ids_keep_order_and_identity():
    near = {chr(ord(c) + step) for c in SEPARATORS for step in (-1, 0, 1)} - {"\0"}
    letters = sorted(near | set("!%#a~\u00e0\u4e2d\U0001f600"))
    draw = random.Random(0)
    ids = {"".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(20_000)}
    ids = sorted(ids | set(letters))
    written = [trec_id(id) for id in ids]
    assert [from_trec_id(one) for one in written] == ids
    assert all(one.split() == [one] and not set(one) & set(SEPARATORS) for one in written)
    keys = [one.encode() for one in written]  # trec_eval compares bytes
    assert all(a < b for a, b in itertools.pairwise(keys))


@situation(
    "Evaluation",
    "ids with white space or %, and documents of equal vectors",
    "the run file has the order of the scores: trec_eval gives the same result",
    since="0.2.0",
)
@pytest.mark.parametrize("task", ["MSRVTT", "MS-TI"])
@pytest.mark.parametrize("positive", range(5))
def test_ties_of_escaped_ids(tmp_path, task, positive):
    corpus = ["clip 1", "clip!1", "clip#1", "clip\u00a01", "clip%201"]
    pool = [corpus] if task == "MS-TI" else None
    write_set(tmp_path, task, ["q"], [[corpus[positive]]], corpus, pool)
    options = ("--moment-pool", "candidates") if pool else ()
    same = np.tile(np.float32([1, 0, 0]), (5, 1))
    results, output = score_vectors(tmp_path, task, ["q"], same[:1], corpus, same, *options)
    check_every_query(output, task)
    order = sorted(corpus, reverse=True)  # descending as strings
    assert [from_trec_id(line[2]) for line in read(output / f"trec/{task}.run")] == order
    mrr = results["datasets"][task]["metrics"]["mrr"]
    assert mrr == pytest.approx(1 / (1 + order.index(corpus[positive])))


# ---- near-copies: scores that may differ by a rounding -----------------------------------------


def near_copies(rng, queries, documents, width):
    """Unit rows; documents are copies of a few, changed by about a rounding of float32."""
    base = rng.normal(size=(max(2, documents // 12), width))
    corpus = base[rng.integers(0, len(base), documents)]
    corpus = corpus * (1 + 6e-8 * rng.integers(-1, 2, corpus.shape))
    asked = corpus[rng.integers(0, documents, queries)] + 0.5 * rng.normal(size=(queries, width))
    return [
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for rows in (asked, corpus)
    ]


@situation(
    "Evaluation",
    "near-copies of documents, whose scores differ in the last bit",
    "the run file has the order of the ranks, also in pools and in large sets",
    since="0.2.0",
)
@pytest.mark.parametrize("ranking", ["whole", "candidates", "screened"])
@pytest.mark.parametrize("depth", ["12", "1000"])
def test_near_copies_have_one_order(tmp_path, ranking, depth, monkeypatch):
    if ranking == "screened":
        monkeypatch.setattr(screen, "worth_screening", lambda rows, corpus: True)
        monkeypatch.setattr(screen, "LEAST_FILLED", 0)
        monkeypatch.setattr(screen, "MAX_UNDECIDED", 1)
    rng, task = np.random.default_rng(5), "MS-TI" if ranking == "candidates" else "MSRVTT"
    q, c = near_copies(rng, 150, 180, 333)
    queries, corpus = [f"q{n}" for n in range(150)], [f"d {n}" for n in rng.permutation(180)]
    nearest = np.argsort(-(q @ c.T), axis=1)
    positives = [
        [corpus[d] for d in row[rng.permutation(14)[: rng.integers(1, 9)]]] for row in nearest
    ]
    pools = [sorted({corpus[d] for d in row[:60]}) for row in nearest]
    candidates = pools if ranking == "candidates" else None
    write_set(tmp_path, task, queries, positives, corpus, candidates)
    options = ("--moment-pool", "candidates") if candidates else ()
    _, output = score_vectors(tmp_path, task, queries, q, corpus, c, "--trec", depth, *options)
    assert check_every_query(output, task, int(depth)) == 150
    # The scores are cosines.
    expected = dict(zip(corpus, c, strict=True))
    asked = dict(zip(queries, q, strict=True))
    for query, _, document, _, value, _ in read(output / f"trec/{task}.run"):
        cosine = float(asked[query] @ expected[from_trec_id(document)])
        assert float(value) == pytest.approx(cosine, abs=2e-6)


# ---- files of earlier commands ---------------------------------------------------------------


@situation(
    "Evaluation",
    "a repeated evaluation that writes fewer files (--trec 0, other vectors)",
    "files of the earlier command are removed, and a line names them",
    since="0.2.0",
)
def test_files_of_an_earlier_command_are_removed(tmp_path, capsys):
    write_set(tmp_path, "MSRVTT", ["a", "b"], [["x"], ["y"]], ["x", "y"])
    one, ids = np.eye(2, dtype=np.float32), (["a", "b"], ["x", "y"])

    def score(rows, *more):
        found = score_vectors(tmp_path, "MSRVTT", ids[0], rows, ids[1], one, *more)[0]
        return found["datasets"]["MSRVTT"]["score"]

    assert score(one[::-1]) == 0
    output = tmp_path / "out"
    for stale in ("per_query/untrained/MSRVTT.npz", "trec/CRB-T.run"):
        (output / stale).parent.mkdir(exist_ok=True)
        (output / stale).write_bytes(b"of another command")
    (output / "trec/notes.txt").write_text("of the user")
    capsys.readouterr()
    assert score(one, "--trec", "0") == 1
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    mteb = {path for path in files if path.startswith("mteb/")}
    assert files - mteb == {".lock", "results.json", "per_query/MSRVTT.npz", "trec/notes.txt"}
    assert len(mteb) == 2  # one revision: that of these vectors
    printed = capsys.readouterr().out
    assert "removed files of an earlier command: mteb/" in printed
    assert "trec/MSRVTT.qrels, trec/MSRVTT.run" in printed
    assert score(one) == 1 and check_every_query(output, "MSRVTT") == 2
