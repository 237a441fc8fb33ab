"""Orders of frames, sweeps, costs, and files for mteb, on a tiny benchmark."""

import json
from pathlib import Path

import pytest

from data.uvrb.tasks import NAMES
from evals.mteb.files import model_name
from evals.uvrb.cost import Ledger
from gve_jax.errors import UserError
from tests.evals.small_uvrb import ColourEncoder, Settings, evaluate, make_benchmark


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("variants"))


def run(data, output, *more, model=None):
    models = []

    def load(name):
        models.append(model or Settings())
        return models[-1]

    return evaluate(data, output, "--model", "org/m", *more, load=load), models


def test_sweeps_are_curves_of_the_same_weights(data, tmp_path):
    results, _ = run(data, tmp_path, "--frames", "8,2,16", "--tokens", "50,800")
    frames = results["sweeps"]["frames"]
    assert [point["value"] for point in frames] == [2, 8, 16]
    assert [point["fingerprint"]["num_frames"] for point in frames] == [2, 8, 16]
    chance = results["chance"]["averages"]["AVG-D"]
    assert frames[0]["averages"]["AVG-D"] == pytest.approx(chance)  # blind
    assert frames[1]["averages"] == results["averages"] == frames[2]["averages"]
    tokens = results["sweeps"]["tokens"]
    assert [point["fingerprint"]["max_pixels"] for point in tokens] == [50 * 784, 800 * 784]
    # 8 frames are the default of the model: nothing is embedded for them.
    folders = {path.name for path in (tmp_path / "embeddings").iterdir()}
    assert folders == {"model", "frames-2", "frames-16", "tokens-50", "tokens-800"}
    assert (tmp_path / "per_query/frames-2/MSRVTT.npz").is_file()


def test_compares_both_orders_with_forward(data, tmp_path, capsys):
    results, models = run(data, tmp_path, "--control", "shuffled,reversed")
    assert list(results["controls"]) == ["shuffled", "reversed"]
    assert results["control"] == {
        key: results["controls"]["shuffled"][key] for key in ("frame_order", "datasets")
    }
    # The encoder implements "shuffled" only: reversed frames must not change its score.
    for order, difference in (("shuffled", 1.0), ("reversed", 0.0)):
        found = results["controls"][order]["paired"]["datasets"]
        assert list(found) == ["CRB-T", "CMRB"]
        assert found["CRB-T"]["difference"] == pytest.approx(difference)
    assert "reversed" in capsys.readouterr().out


def test_costs_are_summed_over_commands(data, tmp_path):
    results, (model,) = run(data, tmp_path)
    costs = [record["cost"] for record in results["datasets"].values()]
    assert sum(cost["tokens"] for cost in costs) == model.tokens_encoded
    assert sum(cost["items"] for cost in costs) == len(model.asked)
    first = results["datasets"]["MSRVTT"]["cost"]
    clips = sum(path.stat().st_size for path in (data / "UVRB/MSRVTT/videos").iterdir())
    assert first["media_gb"] == pytest.approx(clips / 1e9)
    assert first["embeddings_gb"] == pytest.approx(10 * 6 * 4 / 1e9)  # ten vectors of six floats
    assert first["rank_seconds"] > 0 and first["embed_seconds"] > 0
    again, (other,) = run(data, tmp_path)  # embeds nothing: the cost is unchanged
    assert other.tokens_encoded == 0
    for name in NAMES:
        for key in ("items", "tokens", "embed_seconds"):
            assert again["datasets"][name]["cost"][key] == results["datasets"][name]["cost"][key]


def test_tokens_are_unknown_unless_the_encoder_counts_them(data, tmp_path):
    results, _ = run(data, tmp_path, "--datasets", "MSRVTT", model=ColourEncoder())
    assert results["datasets"]["MSRVTT"]["cost"]["tokens"] is None
    (tmp_path / "cost.json").write_text("[]")
    with pytest.raises(UserError, match="cost.json: unreadable costs"):
        Ledger(tmp_path / "cost.json")


def test_refuses_sweeps_of_an_encoder_without_input_settings(data, tmp_path):
    model = ColourEncoder()
    with pytest.raises(UserError, match="--frames: this encoder has no input settings"):
        run(data, tmp_path, "--datasets", "MSRVTT", "--frames", "4", model=model)
    with pytest.raises(UserError, match="max_pixels 784 is below min_pixels"):
        run(data, tmp_path, "--datasets", "MSRVTT", "--tokens", "1,200")
    assert not (tmp_path / "embeddings").exists()  # before anything is embedded


def test_intervals_contain_the_scores(data, tmp_path):
    results, _ = run(data, tmp_path)
    for record in results["datasets"].values():
        low, high = record["interval"]
        assert 0 <= low <= record["score"] <= high <= 1
    for part in ("abilities", "averages"):
        for name, value in results[part].items():
            low, high = results["intervals"][part][name]
            assert low <= value <= high
    # The mean of sixteen sets has a narrower interval than each of them.
    low, high = results["intervals"]["averages"]["AVG-D"]
    low_set, high_set = results["datasets"]["MS-TI"]["interval"]
    assert high - low < high_set - low_set


def test_generated_sets_are_not_compared_with_the_paper(data, tmp_path, capsys):
    results, _ = run(data, tmp_path, "--datasets", "MSRVTT,CRB-T")
    found = results["published"]
    assert found["comparable"] == [] and list(found["differing"]) == ["MSRVTT", "CRB-T"]
    printed = capsys.readouterr().out
    assert "Not the released sets: sizes differ on 2 of 2 " in printed and "GVE-7B" not in printed
    run(data, tmp_path, "--datasets", "MSRVTT", "--published")
    assert "InternVideo2-6B" in capsys.readouterr().out


def test_files_for_mteb(data, tmp_path):
    results, _ = run(data, tmp_path)
    (folder,) = (tmp_path / "mteb/results/org__m").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "model_meta.json",
        *(f"UVRB-{name}.json" for name in NAMES),
    }
    one = json.loads((folder / "UVRB-CMRB.json").read_text())
    # The fields of mteb 2.26's TaskResult.
    fields = "dataset_revision task_name mteb_version scores evaluation_time kg_co2_emissions"
    assert set(one) == {*fields.split(), "date", "evaluation_phases"}
    (scores,) = one["scores"]["test"]
    assert scores["main_score"] == results["datasets"]["CMRB"]["score"] == scores["hit_rate_at_10"]
    assert (scores["hf_subset"], scores["languages"]) == ("default", ["eng-Latn"])
    meta = json.loads((folder / "model_meta.json").read_text())
    assert (meta["name"], meta["revision"], meta["framework"]) == ("org/m", folder.name, ["JAX"])


def test_names_for_mteb(tmp_path, monkeypatch):
    assert model_name("Alibaba-NLP/GVE-3B") == "Alibaba-NLP/GVE-3B"
    assert model_name("Alibaba-NLP/GVE-3B@main") == "Alibaba-NLP/GVE-3B"
    assert model_name("runs/quick start/model") == "local/quick_start-model"
    assert model_name("/x/GVE-3B") == "local/GVE-3B"
    monkeypatch.chdir(tmp_path)
    Path("a/b").mkdir(parents=True)
    assert model_name("a/b") == "local/b"  # an existing folder is not a Hub id
