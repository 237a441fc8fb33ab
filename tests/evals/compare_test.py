"""Comparisons of two models from the files of their evaluations."""

import functools
import json

import numpy as np
import pytest

from data.uvrb.tasks import NAMES
from evals.uvrb import compare
from evals.uvrb.per_query import PerQuery
from gve_jax.errors import UserError
from tests.evals.small_uvrb import ColourEncoder, evaluate, make_benchmark
from tests.situations import situation


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """OUTPUT of a trained and of an untrained encoder, on all sets."""
    folder = tmp_path_factory.mktemp("compare")
    data = make_benchmark(folder / "data")
    for name, trained in (("good", True), ("bad", False)):
        load = functools.partial(lambda trained, _: ColourEncoder(trained), trained)
        evaluate(data, folder / name, "--model", name, load=load)
    return folder


def test_mean_score_of_queries_is_the_score_of_the_set(outputs):
    results = json.loads((outputs / "good/results.json").read_text())
    for name in NAMES:
        one = PerQuery.read(outputs / f"good/per_query/{name}.npz")
        assert one.score.mean() == pytest.approx(results["datasets"][name]["score"])
        assert one.ids.tolist() == [f"q{n}" for n in range(5)]
        hit = one.metrics["hit_rate@10"]
        assert np.array_equal(hit, one.first_rank <= 10)
        assert one.metrics["mrr"] == pytest.approx(1 / one.first_rank)


def test_command_compares_two_outputs(outputs, capsys):
    a, b = outputs / "good/results.json", outputs / "bad"
    compare.main([str(a), str(b), "--output", str(outputs / "c.json")])
    printed = capsys.readouterr().out
    assert "good" in printed and "bad" in printed and "AVG-D" in printed
    found = json.loads((outputs / "c.json").read_text())
    assert (found["a"], found["b"]) == ("good", "bad") and list(found["datasets"]) == list(NAMES)
    one = found["datasets"]["MSRVTT"]
    # With equal vectors the largest id is first, so one query of five is a hit for both.
    assert (one["better"], one["worse"], one["difference"]) == (4, 0, pytest.approx(0.8))
    assert one["p"] == pytest.approx(2 / 2**4) and one["exact"]
    # Holm's factor for the smallest p is the number of sets.
    smallest = min(found["datasets"].values(), key=lambda one: one["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 16 * smallest["p"]))
    scores = [
        json.loads((outputs / f"{name}/results.json").read_text())["averages"]["AVG-A"]
        for name in ("good", "bad")
    ]
    average = found["averages"]["AVG-A"]
    assert average["difference"] == pytest.approx(scores[0] - scores[1])
    assert average["interval"][0] > 0 and average["p"] < 0.01


def test_flag_compares_with_another_output(outputs, tmp_path, capsys):
    options = "--compare", outputs / "good", "--datasets", "MSRVTT,CRB-T"
    found = evaluate(outputs / "data", tmp_path, *options)["compared"]
    assert found["b"] == "good" and list(found["datasets"]) == ["MSRVTT", "CRB-T"]
    equal = {"difference": 0, "interval": [0, 0], "p": 1, "exact": True}
    assert found["datasets"]["CRB-T"] == equal | {"better": 0, "worse": 0, "p_holm": 1}
    assert "good" in capsys.readouterr().out


def scores(ids, values, metric="hit_rate@1"):
    values = np.array(values, float)
    return PerQuery(np.array(ids), metric, values, values, {})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"CRB-T": scores(["a", "b"], [1, 0])}, "no set in common"),
        ({"MSRVTT": scores(["a", "c"], [1, 0])}, "MSRVTT: the queries differ: number 2 is 'b' and"),
        ({"MSRVTT": scores(["a"], [1])}, "MSRVTT: the queries differ: 2 and 1 queries"),
        ({"MSRVTT": scores(["a", "b"], [1, 0], "mrr")}, "scored by hit_rate@1 and by mrr"),
    ],
)
def test_refuses_different_queries_and_metrics(other, message):
    with pytest.raises(UserError, match=message):
        compare.compare({"MSRVTT": scores(["a", "b"], [1, 0])}, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing; score that model again"),
        (b"junk", "unreadable scores of queries"),
        (b"", "unreadable scores of queries"),
    ],
)
@situation(
    "Evaluation",
    "a comparison with scores that are missing or damaged",
    "refused; the line names the file",
    since="0.1.0",
)
def test_refuses_damaged_scores(tmp_path, content, message):
    path = tmp_path / "per_query/MSRVTT.npz"
    path.parent.mkdir()
    (tmp_path / "results.json").write_text('{"model": "m", "datasets": {"MSRVTT": {}}}')
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        compare.load(tmp_path)
    np.savez(path, ids=np.array(["a"]), score=np.zeros(2), first_rank=np.zeros(2), metric="m")
    with pytest.raises(UserError, match="unreadable scores of queries"):
        compare.load(tmp_path)


def test_refuses_damaged_results(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match="results.json: not the results of an evaluation"):
        compare.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pools": {"MS-TI": "candidates"}},
            "MS-TI: one was ranked with --moment-pool whole, the ",
        ),
        (
            {"datasets": {"MS-TI": {"corpus": 6}}},
            "MS-TI: one was ranked among 5 documents, the other",
        ),
        ({"datasets": {"CRB-T": {"corpus": 5}}}, "no set in common"),
    ],
)
def test_refuses_different_rankings(change, message):
    one = {"datasets": {"MS-TI": {"corpus": 5}}, "pools": {"MS-TI": "whole"}}
    one["digests"] = {"MS-TI": {"queries": "0"}}
    compare.check_same_ranking(one, one)
    with pytest.raises(UserError, match=message):
        compare.check_same_ranking(one, one | change)


def test_writes_results_even_if_the_comparison_is_refused(outputs, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "per_query").mkdir(parents=True)
    one = PerQuery.read(outputs / "good/per_query/MSRVTT.npz")
    one.write(theirs / "per_query/MSRVTT.npz")
    record = {"model": "x", "datasets": {"MSRVTT": {"corpus": 500}}}
    (theirs / "results.json").write_text(json.dumps(record))
    options = outputs / "data", tmp_path / "o", "--compare", theirs, "--datasets"
    with pytest.raises(UserError, match="lacks all of these sets"):
        evaluate(*options, "CRB-T")
    with pytest.raises(UserError, match="ranked among 5 documents, the other among 500"):
        evaluate(*options, "MSRVTT")
    results = json.loads((tmp_path / "o/results.json").read_text())
    assert results["datasets"]["MSRVTT"]["score"] == one.score.mean()
