"""Sets of one's own: their names, metrics and files."""

import json
import shutil

import numpy as np
import pytest

from data.uvrb.own import own_sets
from data.uvrb.tasks import TASKS, metric_of
from evals.uvrb.compare import main as compare
from gve_jax.errors import UserError
from tests.evals.small_uvrb import (
    ColourEncoder,
    evaluate,
    make_benchmark,
    read_jsonl,
    write_jsonl,
)
from tests.situations import situation


class Listening(ColourEncoder):
    """Also collects the instructions of the items."""

    def __init__(self):
        super().__init__()
        self.instructions = set()

    def encode_valid(self, inputs, ids, quarantine):
        self.instructions |= {item.get("instruction") for item in inputs}
        return super().encode_valid(inputs, ids, quarantine)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of five clips with a query each; one query is about another clip than it says."""
    data = make_benchmark(tmp_path_factory.mktemp("own"), ("MSRVTT",))
    folder = shutil.copytree(data / "UVRB/MSRVTT", data / "films")
    instances = folder / "jsonl/instances.jsonl"
    lines = read_jsonl(instances)
    lines[0]["pos"] = ["v4"]
    write_jsonl(instances, lines)
    return folder


@situation(
    "Evaluation",
    "a retrieval set of your own, --set NAME=DIR",
    "scored and written under its own name, beside sets of UVRB or alone",
    since="0.3.0",
)
def test_an_own_set_is_scored_under_its_name(films, tmp_path, capsys):
    encoder = Listening()
    own = ("--set", f"FILMS={films}", "--instruction", "Find the film.", "--metric", "nDCG@3")
    found = evaluate(None, tmp_path / "a", *own, load=lambda _: encoder)
    assert encoder.instructions == {None, "Find the film."}
    record = found["datasets"]["FILMS"]
    assert list(found["datasets"]) == ["FILMS"] and record["metric"] == "nDCG@3"
    # Four clips at rank 1; the fifth query's positive is at the rank that its vectors give.
    ranks = np.load(tmp_path / "a/per_query/FILMS.npz")["first_rank"]
    gains = np.where(ranks <= 3, 1 / np.log2(1 + ranks), 0)
    assert record["score"] == pytest.approx(gains.mean()) and ranks[0] > 1 and gains[1] == 1
    assert found["averages"] == {"AVG-A": None, "AVG-D": None}
    assert found["published"]["comparable"] == [] and found["published"]["differing"] == {}
    files = {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert {"FILMS.npz", "FILMS.run", "FILMS.qrels", "FILMS.json"} <= files
    mteb = json.loads(next((tmp_path / "a/mteb").rglob("FILMS.json")).read_text())
    assert mteb["task_name"] == "FILMS" and mteb["scores"]["test"][0]["main_metric"] == "ndcg_at_3"
    printed = capsys.readouterr().out
    assert "Own sets · m" in printed and "FILMS" in printed and "released" not in printed

    # Beside a set of UVRB, and compared with another model by query.
    other = ("--set", f"FILMS={films}", "--datasets", "MSRVTT", "--metric", "nDCG@3")
    load = lambda _: ColourEncoder(trained=False)  # noqa: E731
    both = evaluate(films.parent, tmp_path / "b", *other, load=load)
    assert list(both["datasets"]) == ["MSRVTT", "FILMS"]
    compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "not compared, scored for one model only: MSRVTT" in capsys.readouterr().out


def test_shuffled_frames_are_a_control_of_own_sets(films, tmp_path):
    found = evaluate(None, tmp_path, "--set", f"FILMS={films}", "--control")
    assert found["controls"]["shuffled"]["paired"]["datasets"]["FILMS"]["difference"] > 0


def test_set_json_states_instruction_and_metric(films, tmp_path):
    folder = shutil.copytree(films, tmp_path / "f")
    (folder / "set.json").write_text('{"instruction": "Find it.", "metric": "recall@5"}')
    (one,) = own_sets([f"F={folder}"])
    assert (one.instruction, one.label, one.metric) == ("Find it.", "recall@5", "recall@5")
    (one,) = own_sets([f"F={folder}"], "", "MRR")
    assert (one.instruction, one.metric) == ("", "mrr")
    (folder / "set.json").write_text('{"metrik": "R@1"}')
    with pytest.raises(UserError, match="'metrik' is not expected; it may have instruction and"):
        own_sets([f"F={folder}"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["FILMS"], "--set 'FILMS' must be NAME=DIR"),
        (["a.b={}"], "the name 'a.b' must be of letters, digits, '-' and '_'"),
        (["msrvtt={}"], "msrvtt is the name of a set of UVRB; choose another"),
        (["F={}", "f={}"], "--set f is given twice"),
        (["F={}/none"], "no folder .*none/jsonl; it must contain queries.jsonl"),
    ],
)
def test_refuses_names_and_folders(films, given, message):
    with pytest.raises(UserError, match=message):
        own_sets([text.format(films) for text in given])


@pytest.mark.parametrize("label", ["R@0", "R", "map@5", "", "R@1.5", "nDCG@99999"])
def test_refuses_other_metrics(label):
    with pytest.raises(UserError, match="unknown metric .* known: R@K, P@K, recall@K, nDCG@K, MRR"):
        metric_of(label)


def test_metrics_of_uvrb_are_named_alike():
    assert all(metric_of(task.label) == task.metric for task in TASKS)


@pytest.mark.parametrize("value", ['"v1"', "1"])
def test_a_positive_that_is_not_in_a_list_is_shown_as_it_should_be(films, tmp_path, value):
    folder = shutil.copytree(films, tmp_path / "f")
    lines = (folder / "jsonl/instances.jsonl").read_text().splitlines()
    lines[1] = f'{{"qid": "q1", "pos": {value}}}'
    (folder / "jsonl/instances.jsonl").write_text("\n".join(lines))
    message = rf"instances.jsonl:2: 'pos' of query 'q1' must be a list of ids, such as \[{value}\]"
    with pytest.raises(UserError, match=message):
        evaluate(None, tmp_path / "out", "--set", f"F={folder}")


def test_options_of_own_sets_need_one(tmp_path):
    with pytest.raises(UserError, match="--metric is for the sets of --set"):
        evaluate(tmp_path, tmp_path / "out", "--metric", "R@5")
    with pytest.raises(UserError, match="--data is required for the sets of UVRB"):
        evaluate(None, tmp_path / "out", "--datasets", "MSRVTT")
