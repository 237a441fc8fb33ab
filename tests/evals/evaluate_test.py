"""The evaluator from mp4 files to results.json, with an encoder that reads colours."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data.uvrb.tasks import MOTION, NAMES
from evals.uvrb.__main__ import main
from evals.uvrb.check import failures
from evals.uvrb.evaluate import RULES
from gve_jax.errors import UserError
from tests.evals.small_uvrb import CLIPS, ColourEncoder, make_benchmark
from tests.situations import situation


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def data(benchmark, tmp_path):
    """A copy of two sets that a test may damage."""
    for name in ("MSRVTT", "CRB-T"):
        shutil.copytree(benchmark / "UVRB" / name, tmp_path / "data" / "UVRB" / name)
    return tmp_path / "data"


def run(data, output, *more, models=None):
    """Runs the command with colour encoders; returns the results and the encoders by name."""
    models = models or {"trained": ColourEncoder(), "none": ColourEncoder(trained=False)}
    arguments = ["--model", "trained", "--data", str(data), "--output", str(output), *more]
    main(arguments, load=models.__getitem__)
    return json.loads((output / "results.json").read_text()), models


@situation(
    "Evaluation",
    "a model whose vectors are all equal",
    "scores chance, not 1: equal scores are ordered by id, as in trec_eval",
    since="0.1.0",
)
def test_all_sets_with_baseline_and_control(benchmark, tmp_path, capsys):
    results, models = run(benchmark, tmp_path / "out", "--baseline", "none", "--control")
    assert list(results["datasets"]) == list(NAMES)
    record = results["datasets"]["MSRVTT"]
    values = [record[name] for name in ("metric", "score", "queries", "corpus")]
    assert values == ["R@1", 1.0, 5, 5]
    assert record["chance"] == pytest.approx(1 / 5)
    assert results["datasets"]["CMRB"]["chance"] == 1  # R@10 of five documents
    assert results["datasets"]["MSRVTT"]["metrics"]["median_rank"] == 1
    assert results["fingerprint"] == models["trained"].fingerprint
    assert results["averages"]["AVG-D"] == pytest.approx(
        np.mean([one["score"] for one in results["datasets"].values()])
    )
    # All vectors of the untrained encoder are equal: it must score chance, not 1.
    for name in NAMES:
        untrained = results["untrained"]["datasets"][name]
        assert untrained["score"] == pytest.approx(untrained["chance"]), name
        assert untrained["pessimistic"] == (1 if untrained["metric"] == "R@10" else 0)
    assert list(results["control"]["datasets"]) == list(MOTION)
    assert results["control"]["datasets"]["CRB-T"]["score"] < record["score"]
    assert results["rules"] == list(RULES) and results["quarantined"] == 0
    printed = capsys.readouterr().out
    for word in ("LoVR-C2V", "AVG-A", "untrained", "shuffled", *RULES[0].split()):
        assert word in printed


@situation(
    "Evaluation",
    "the same video in several sets, or a repeated command",
    "each content is embedded once, and a repeated command embeds nothing",
    since="0.1.0",
)
def test_embeds_each_content_once(benchmark, tmp_path):
    results, models = run(benchmark, tmp_path / "out")
    asked = models["trained"].asked
    # Five clips are the documents of all sets; MSRVTT-I2V has three distinct frames as queries.
    assert sum(".corpus/" in id for id in asked) == len(CLIPS)
    assert sum(".queries/" in id for id in asked) == (len(NAMES) - 1) * len(CLIPS) + 3
    again, models = run(benchmark, tmp_path / "out")
    assert models["trained"].asked == []
    assert again["averages"] == results["averages"]
    # An interrupted run: one shard is missing, and only its items are embedded.
    folder = tmp_path / "out/embeddings/model"
    lost = json.loads((folder / "CRB-S.queries.json").read_text())["keys"]
    shards = {path: json.loads(path.read_text()) for path in folder.glob("vectors-*.json")}
    (shard,) = (path for path, record in shards.items() if record["keys"] == lost)
    shard.unlink()
    again, models = run(benchmark, tmp_path / "out")
    assert models["trained"].asked == [f"CRB-S.queries/q{n}" for n in range(len(CLIPS))]
    assert again["datasets"]["CRB-S"]["score"] == results["datasets"]["CRB-S"]["score"]


def test_only_queries_have_instructions(benchmark, tmp_path):
    seen = []

    class Listening(ColourEncoder):
        def encode_valid(self, inputs, ids, quarantine):
            seen.extend(zip(ids, inputs, strict=True))
            return super().encode_valid(inputs, ids, quarantine)

    sets = "--datasets", "CRB-T,MSRVTT-I2V"
    run(benchmark, tmp_path / "out", *sets, models={"trained": Listening()})
    items = dict(seen)
    assert items["CRB-T.queries/q0"] == {
        "text": "red blue",
        "instruction": "Find the video according to the temporal description.",
    }
    assert set(items["MSRVTT-I2V.queries/q0"]) == {"image", "instruction"}
    assert set(items["CRB-T.corpus/v0"]) == {"video"}


@situation(
    "Evaluation",
    "a damaged video among the documents, below the allowed share",
    "it leaves the corpus, its query scores 0, and quarantine.jsonl names it",
    since="0.1.0",
)
def test_unreadable_document_leaves_the_corpus(data, tmp_path, capsys):
    (data / "UVRB/MSRVTT/videos/red_blue.mp4").write_bytes(b"not a video")
    results, _ = run(data, tmp_path / "out", "--datasets", "MSRVTT", "--max-bad-share", "0.2")
    record = results["datasets"]["MSRVTT"]
    assert record["quarantined"] == {
        "queries": 0,
        "documents": 1,
        "queries_without_positives": 1,
    }
    assert record["score"] == pytest.approx(4 / 5)  # the query that lost its positive scores 0
    assert record["chance"] == pytest.approx(4 / 5 / 4)
    assert results["quarantined"] == 1
    line = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert line["id"] == "MSRVTT.corpus/v0" and "red_blue" in line["path"]
    printed = capsys.readouterr().out
    assert "MSRVTT: unreadable: 0 queries, 1 documents" in printed
    assert "AVG-D" not in printed  # one set gives no average
    again, models = run(data, tmp_path / "out", "--datasets", "MSRVTT", "--max-bad-share", "0.2")
    assert models["trained"].asked == [] and again["datasets"]["MSRVTT"]["score"] == 0.8


def test_stops_at_too_many_unreadable_media(data, tmp_path):
    (data / "UVRB/MSRVTT/videos/red_blue.mp4").write_bytes(b"not a video")
    with pytest.raises(UserError, match="1 of 10 items could not be read"):
        run(data, tmp_path / "out", "--datasets", "MSRVTT")
    assert not (tmp_path / "out/results.json").exists()


@situation(
    "Evaluation",
    "an output of another model, dtype or content",
    "refused with the field or the id that differs",
    since="0.1.0",
)
def test_refuses_another_model_or_content(data, tmp_path):
    output, sets = tmp_path / "out", ("--datasets", "MSRVTT")
    run(data, output, *sets)
    with pytest.raises(UserError, match="created with inputs.dtype = float32, now bfloat16"):
        run(data, output, *sets, models={"trained": ColourEncoder(dtype="bfloat16")})
    shutil.copy(data / "UVRB/MSRVTT/videos/red_green.mp4", data / "UVRB/MSRVTT/videos/red_blue.mp4")
    with pytest.raises(UserError, match="the content of 'v0' has changed"):
        run(data, output, *sets)


def shard(folder, kind):
    (path,) = folder.glob(f"vectors-00-00001-*.{kind}")
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "MSRVTT.corpus.json").write_text("{"), "damaged .*; delete it"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged .*; delete it"),
        (lambda folder: shard(folder, "json").write_text("[]"), "damaged .*; delete it"),
        (lambda folder: shard(folder, "npy").write_bytes(b"x"), "unreadable embed"),
        (lambda folder: np.save(shard(folder, "npy"), np.eye(6)), "does not fit"),
    ],
)
def test_refuses_damaged_embeddings(data, tmp_path, damage, message):
    run(data, tmp_path / "out", "--datasets", "MSRVTT")
    damage(tmp_path / "out/embeddings/model")
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "out", "--datasets", "MSRVTT")


def test_refuses_vectors_that_are_not_unit_rows(data, tmp_path):
    class Unscaled(ColourEncoder):
        def encode_valid(self, inputs, ids, quarantine):
            vectors, valid = super().encode_valid(inputs, ids, quarantine)
            return 2 * vectors, valid

    with pytest.raises(UserError, match="MSRVTT.queries: the model's output: vector 0 is not of"):
        run(data, tmp_path / "out", "--datasets", "MSRVTT", models={"trained": Unscaled()})


NOWHERE = "--compare", "nowhere"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "MSRVT"], "unknown set 'MSRVT'"),
        (["--datasets", "DiDeMo"], "DiDeMo: no such folder"),
        (["--datasets", "MSRVTT", "--control"], "--control needs a motion set"),
        (["--datasets", "MSRVTT", "--check"], "--check needs --baseline and --control"),
        (["--datasets", "CRB-T", "--check", "--control", "--baseline", "none"], "all sixteen"),
        (["--max-bad-share", "2"], "must be in 0..1"),
        (["--run", "x"], "--run needs --report"),
        (["--frames", "8,9"], "--frames: '8,9' must be even numbers above 0"),
        (["--tokens", "many"], "--tokens: 'many' must be integers above 0"),
        (["--control", "slow"], "--control: unknown order 'slow'; known: shuffled, reversed"),
        (["--reencode", "crf=x"], "--reencode: crf=x must be a number, such as crf=40"),
        (["--reencode", "codec=none,crf=40"], "--reencode: this FFmpeg has no video encoder"),
        (["--reencode", "crf=40,bitrate=1M"], "--reencode needs either crf=... or bitrate=..."),
        (["--reencode", "quality=1"], "--reencode: unknown key 'quality'"),
        (["--trec", "-1"], "--trec -1 must be at least 0"),
        (["--datasets", "MSRVTT", *NOWHERE], "nowhere: not the results of an evaluation"),
        (["--bits", "9"], "unrecognized arguments: --bits 9"),
    ],
)
def test_refuses_invalid_arguments(data, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "out", *arguments)


def scores(value, **change):
    """results.json of a model that scores `value` everywhere, over a chance of 0.01."""

    def side(score):
        ability = dict.fromkeys(("TXT", "CMP", "VIS", "CG", "FG", "LC", "S", "T", "PR"), score)
        return {"abilities": ability, "averages": {"AVG-A": score, "AVG-D": score}}

    motion = {name: {"score": value} for name in MOTION}
    control = {"datasets": {name: {"score": 0.2} for name in MOTION}}
    results = side(value) | {"datasets": motion, "chance": side(0.01), "untrained": side(0.05)}
    return results | {"control": control} | change


def test_check_names_failed_requirements():
    assert failures(scores(0.5)) == []
    assert failures(scores(0.09))[:2] == [
        "AVG-D 0.090 is below 10 times chance (0.010)",
        "AVG-D 0.090 is below 3 times the untrained model (0.050)",
    ]
    weak = scores(0.5)
    weak["abilities"]["T"] = 0.03
    assert failures(weak) == ["ability T 0.030 does not beat the untrained model (0.050)"]
    weak["abilities"]["T"] = 0.01
    assert failures(weak)[0] == "ability T 0.010 does not beat chance (0.010)"
    still = scores(0.5)
    still["control"]["datasets"]["CMRB"]["score"] = 0.5
    assert failures(still) == ["CMRB 0.500 does not beat shuffled frames (0.500)"]


def test_failed_check_exits_with_status_1(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run(benchmark, tmp_path / "out", "--baseline", "none", "--control", "--check")
    assert exit.value.code == 1
    assert "check failed: AVG-D" in capsys.readouterr().err
    assert (tmp_path / "out/results.json").exists()


@situation(
    "Evaluation",
    "a benchmark folder without one of the sets",
    "one line with the set and the folder, exit status 2",
    since="0.1.0",
)
def test_missing_set_gives_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "evals.uvrb", "--model", "nowhere", "--data", str(tmp_path)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: MSRVTT: no such folder") and done.stderr.count("\n") == 1
