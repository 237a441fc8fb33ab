"""Scores are compared only on equal sets: queries, documents, positives, pools, media, and
unreadable items."""

import json
import shutil

import numpy as np
import pytest

from data.uvrb.reader import read_set
from data.uvrb.tasks import TASKS
from evals.uvrb import compare
from evals.uvrb.check import failures
from evals.uvrb.digests import set_digests
from evals.uvrb.published import comparison
from gve_jax.errors import UserError
from gve_jax.media.errors import MediaError
from tests.evals import small_uvrb
from tests.evals.evaluate_test import scores as results_with_scores
from tests.evals.small_uvrb import (
    Settings,
    make_benchmark,
    read_jsonl,
    score_vectors,
    write_jsonl,
    write_set,
)
from tests.situations import situation

QUERIES = [f"q{n}" for n in range(40)]
CORPUS = [f"d{n}" for n in range(100)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def vectors():
    """Documents, and queries that are nearer to the last four documents than to their positives."""
    corpus = unit(np.random.default_rng(0).normal(size=(100, 8)))
    return unit(corpus[:40] + 1.2 * corpus[[96 + n % 4 for n in range(40)]]), corpus


def evaluate(
    folder,
    vectors,
    *,
    corpus=CORPUS,
    positives=None,
    texts=None,
    kept=100,
    task="MSRVTT",
    candidates=None,
    more=(),
):
    """Scores vectors of a set with these ids; returns OUTPUT."""
    positives = positives or [[corpus[n]] for n in range(40)]
    write_set(folder, task, QUERIES, positives, corpus, candidates)
    if texts is not None:
        path = folder / f"data/UVRB/{task}/jsonl/queries.jsonl"
        lines = zip(read_jsonl(path), texts, strict=True)
        write_jsonl(path, [line | {"text": text} for line, text in lines])
    score_vectors(folder, task, QUERIES, vectors[0], corpus[:kept], vectors[1][:kept], *more)
    return folder / "out"


POOL = [[f"d{n}", f"d{n + 1}", "d99"] for n in range(40)]


@situation(
    "Evaluation",
    "a comparison of models that were scored on other documents, queries, "
    "positives or pools of equal counts",
    "refused, with the set and its difference",
    since="0.2.0",
)
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"corpus": [f"e{n}" for n in range(100)]}, "MSRVTT: the ids of the documents differ"),
        ({}, {"texts": ["t"] * 39 + ["T"]}, "MSRVTT: the ids or texts of the queries differ"),
        ({}, {"positives": [[f"d{n}"] for n in (*range(39), 40)]}, "MSRVTT: the positives of the"),
        (
            {"task": "MS-TI", "candidates": POOL},
            {"task": "MS-TI", "candidates": [*POOL[:-1], ["d39", "d41", "d99"]]},
            "MS-TI: the candidates of the queries differ",
        ),
        (
            {"task": "MS-TI", "candidates": POOL},
            {"task": "MS-TI", "candidates": POOL, "more": ("--moment-pool", "whole")},
            "MS-TI: one was ranked with --moment-pool candidates, the other with whole",
        ),
        (
            {"kept": 96},
            {},
            "MSRVTT: one was scored without 4 documents that could not be read, the "
            "other without 0; 'd96' is missing in one of them only",
        ),
        ({"kept": 99}, {"kept": 98}, "without 1 documents .* without 2; 'd98' is missing in one"),
    ],
)
def test_refuses_different_sets(tmp_path, vectors, one, other, message, capsys):
    def score(folder, options):
        pool = ("--moment-pool", "candidates") if "candidates" in options else ()
        return evaluate(folder, vectors, **{"more": pool} | options)

    a, b = score(tmp_path / "a", one), score(tmp_path / "b", other)
    for first, second in ((a, b), (b, a)):
        with pytest.raises(UserError) as refused:
            compare.main([str(first / "results.json"), str(second)])
        if first == a:
            assert refused.match(message)
        assert "not comparable" in str(refused.value) and "\n" not in str(refused.value)
    # `--compare` refuses too, and leaves the results unchanged.
    task, kept = one.get("task", "MSRVTT"), one.get("kept", 100)
    before = json.loads((a / "results.json").read_text())
    options = ("--moment-pool", "candidates") if "candidates" in one else ()
    sides = QUERIES, vectors[0], CORPUS[:kept], vectors[1][:kept]
    with pytest.raises(UserError, match=message):
        score_vectors(tmp_path / "a", task, *sides, *options, "--compare", b)
    after = json.loads((a / "results.json").read_text())
    assert after["datasets"][task]["score"] == before["datasets"][task]["score"]
    assert "compared" not in after


def test_order_of_files_does_not_matter(tmp_path, vectors):
    a = evaluate(tmp_path / "a", vectors, task="MS-TI", candidates=POOL)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b/data/UVRB/MS-TI/jsonl/instances.jsonl"
    lines = read_jsonl(path)[::-1]
    write_jsonl(path, [line | {"candidates": line["candidates"][::-1]} for line in lines])
    corpus = path.with_name("corpus.jsonl")
    corpus.write_text("\n".join(corpus.read_text().splitlines()[::-1]))
    score_vectors(tmp_path / "b", "MS-TI", QUERIES, vectors[0], CORPUS, vectors[1])
    compare.main([str(a), str(tmp_path / "b/out"), "--output", str(tmp_path / "c.json")])
    assert json.loads((tmp_path / "c.json").read_text())["datasets"]["MS-TI"]["difference"] == 0


@situation(
    "Evaluation",
    "a comparison with results of a version before 0.2.0",
    "refused, since they lack digests; the line says how to create them",
    since="0.2.0",
)
def test_names_older_results_with_a_remedy(tmp_path, vectors):
    a = evaluate(tmp_path / "a", vectors)
    shutil.copytree(a, tmp_path / "b")
    old = json.loads((a / "results.json").read_text())
    del old["digests"]
    (tmp_path / "b/results.json").write_text(json.dumps(old))
    for pair, which in (
        ((a, tmp_path / "b"), "the other result has"),
        ((tmp_path / "b", a), "the first result has"),
        ((tmp_path / "b", tmp_path / "b"), "both results have"),
    ):
        with pytest.raises(
            UserError,
            match=f"MSRVTT: {which} no digests .*; repeat that command of evals.uvrb",
        ):
            compare.main([*map(str, pair)])


def test_refuses_scores_of_queries_of_another_evaluation(tmp_path, vectors):
    a = evaluate(tmp_path / "a", vectors)
    b = evaluate(tmp_path / "b", (vectors[1][:40], vectors[1]))
    shutil.copy(b / "per_query/MSRVTT.npz", a / "per_query/MSRVTT.npz")
    with pytest.raises(UserError, match="MSRVTT.npz: from another evaluation than .*results.json"):
        compare.load(a)
    with np.load(a / "per_query/MSRVTT.npz") as file:
        arrays = dict(file)
    np.savez(a / "per_query/MSRVTT.npz", **arrays | {"score": np.full(40, np.nan)})
    with pytest.raises(UserError, match="unreadable scores of queries .a score is not finite"):
        compare.load(a)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("digests"), ("MSRVTT", "CRB-T"))


def run(data, output, *options, task="MSRVTT", **more):
    return small_uvrb.evaluate(data, output, "--datasets", task, *options, **more)


def test_refuses_media_of_other_content(data, tmp_path, capsys):
    run(data, tmp_path / "a")
    other = tmp_path / "other/UVRB/MSRVTT"
    shutil.copytree(data / "UVRB/MSRVTT", other)
    run(other.parents[1], tmp_path / "same")
    compare.main([str(tmp_path / "a"), str(tmp_path / "same")])
    shutil.copy(other / "videos/red_green.mp4", other / "videos/blue_green.mp4")
    run(other.parents[1], tmp_path / "b")
    with pytest.raises(UserError, match="MSRVTT: the content of the media differs"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_digests_of_imported_vectors_lack_media_only(data, tmp_path, capsys):
    """Imported vectors can be compared with a model; a line says that media were not compared."""
    results = run(data, tmp_path / "a")
    folder = tmp_path / "vectors/MSRVTT"
    folder.mkdir(parents=True)
    for side, letter in (("queries", "q"), ("corpus", "v")):
        np.save(folder / f"{side}.npy", np.eye(5, dtype=np.float32))
        (folder / f"{side}.ids.json").write_text(json.dumps([f"{letter}{n}" for n in range(5)]))
    theirs = run(data, tmp_path / "b", "--embeddings", folder.parent)["digests"]["MSRVTT"]
    ours = results["digests"]["MSRVTT"]
    assert ours["media"] and theirs == ours | {"media": None}
    capsys.readouterr()
    compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "content of the media not compared, known for one side only: MSRVTT" in (
        capsys.readouterr().out
    )


def test_digests_depend_on_their_content(data):
    task = next(task for task in TASKS if task.name == "MSRVTT")
    found = read_set(data, task)
    one = set_digests(found, str)
    assert one == set_digests(found, str) and one["candidates"] is None
    changed = {
        "queries": found.queries[0].__class__("q0", "other", None, None, ("v0",)),
        "positives": found.queries[0].__class__("q0", "red blue", None, None, ("v1",)),
    }
    for field, query in changed.items():
        other = set_digests(
            found.__class__(task, found.root, (query, *found.queries[1:]), found.corpus), str
        )
        assert {name for name in one if one[name] != other[name]} == {field}


class Blinking(Settings):
    """Cannot read one clip in a variant: shuffled, with other frames, or as the baseline."""

    def __init__(self, blinks=False, **inputs):
        super().__init__(**inputs)
        self.blinks = blinks

    def _vector(self, item):
        shown = str(item.get("video"))
        if ("red_blue" in shown) and (self.blinks or item.get("frame_order") == "shuffled"):
            raise MediaError(f"{shown}: damaged")
        return super()._vector(item)


@situation(
    "Evaluation",
    "a document that only the untrained model, the control or the re-encoded run cannot read",
    "that set is excluded from the comparison, with the reason",
    since="0.2.0",
)
@pytest.mark.parametrize("variant", ["untrained", "shuffled", "re-encoded"])
def test_does_not_compare_variants_with_unreadable_items(
    data, tmp_path, variant, capsys, monkeypatch
):
    options = {
        "untrained": ["--baseline", "b"],
        "shuffled": ["--control"],
        "re-encoded": ["--reencode", "crf=40"],
    }[variant]
    if variant == "re-encoded":
        monkeypatch.setattr("evals.uvrb.reencode.Reencoder._copy", fail_to_copy)
    options += ["--max-bad-share", "0.5"]
    blinking = dict(task="CRB-T", load=lambda name: Blinking(name == "b"))
    results = run(data, tmp_path / "o", *options, **blinking)
    found = {
        "untrained": lambda: results["untrained"],
        "re-encoded": lambda: results["reencoded"],
        "shuffled": lambda: results["controls"]["shuffled"],
    }[variant]()
    assert found["datasets"]["CRB-T"]["left_out"]["documents"] == ["v0"]
    reason = found["paired"]["refused"]["CRB-T"]
    assert (
        "one was scored without 0 documents that could not be read, the other without 1" in reason
    )
    assert found["paired"]["datasets"] == {} and found["paired"]["averages"] == {}
    printed = " ".join(capsys.readouterr().out.split())
    assert f"CRB-T: not compared, {variant}: one was scored without 0 documents" in printed


def test_sweep_points_with_unreadable_items_have_no_difference(data, tmp_path, capsys):
    class Short(Blinking):
        def with_inputs(self, **changes):
            return Short(changes["num_frames"] == 4, num_frames=changes["num_frames"])

    options = "--frames", "4,16", "--max-bad-share", "0.5"
    results = run(data, tmp_path / "o", *options, task="CRB-T", load=lambda _: Short())
    refused = [point["refused"] for point in results["sweeps"]["frames"]]
    assert list(refused[0]) == ["CRB-T"] and refused[1] == {}
    assert "CRB-T: not compared, 4 frames: one was scored without 0" in capsys.readouterr().out


def fail_to_copy(self, digest, video):
    """Replaces `Reencoder._copy`; fails on one video."""
    copy = self.folder / f"{digest}.mp4"
    failed = "red_blue" in video.name
    copy.write_bytes(b"" if failed else video.read_bytes())
    return f"{video}: damaged" if failed else ""


def test_check_fails_without_a_comparison():
    refused = {"datasets": {}, "refused": {"CRB-T": "one was scored without 1 documents"}}
    results = results_with_scores(0.5)
    results["untrained"]["paired"] = refused
    results["controls"] = {"shuffled": {"paired": refused}}
    assert failures(results) == [
        "CRB-T cannot be compared with the untrained model: one was scored without 1 documents",
        "CRB-T cannot be compared with shuffled frames: one was scored without 1 documents",
    ]


def test_set_with_unreadable_items_is_not_compared_with_the_paper():
    complete = {t.name: {"queries": t.queries, "corpus": t.corpus} for t in TASKS}
    lost = complete["PEV-K"] | {"quarantined": {"queries": 0, "documents": 600}}
    found = comparison(complete | {"PEV-K": lost})
    assert list(found["differing"]) == ["PEV-K"] and "PEV-K" not in found["comparable"]
    assert found["differing"]["PEV-K"] == "0 queries and 600 documents that could not be read"
