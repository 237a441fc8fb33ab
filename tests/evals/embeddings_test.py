"""Contents are embedded once: after kills, on two hosts, in another order of sets."""

import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from evals.uvrb import embeddings
from evals.uvrb.__main__ import main
from gve_jax.checkpoints.digests import weights_digest
from gve_jax.errors import UserError
from gve_jax.retrieval import store
from tests.conftest import ROOT
from tests.evals.evaluate_test import run
from tests.evals.small_uvrb import ColourEncoder, evaluate, make_benchmark, read_jsonl

SETS = ("MSRVTT", "CRB-T", "LoVR-C2V")

# A process that scores with the colour encoder; arguments as for `python -m evals.uvrb`. It kills
# itself after DIES_AFTER items, an environment variable.
PROGRAM = """
import os, signal, sys
from evals.uvrb import embeddings
from gve_jax.cli import run_cli
from evals.uvrb.__main__ import main
from tests.evals.embeddings_test import Hashed

embeddings.SHARD = 2
DIES = int(os.environ.get("DIES_AFTER", 1000))

class Mortal(Hashed):
    def encode_valid(self, inputs, ids, quarantine):
        found = super().encode_valid(inputs, ids, quarantine)
        if len(self.asked) > DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

model = Mortal()
run_cli(lambda: main(sys.argv[1:], load=lambda name: model.hashed()))
print("asked", *model.asked)
"""


class Hashed(ColourEncoder):
    def hashed(self):
        self.fingerprint["digest"] = weights_digest({"a": jnp.arange(12.0).reshape(3, 4)})
        return self


def score(data: str, out: str) -> list[str]:
    """Scores on one of two hosts, in shards of two; returns the ids that its model embedded."""
    model, embeddings.SHARD = Hashed(), 2
    # Not `evaluate`: only the first host writes the results.
    arguments = ["--model", "m", "--data", data, "--output", out, *options()]
    main(arguments, load=lambda _: model.hashed())
    return model.asked


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"), SETS)


@pytest.fixture(scope="module")
def expected(benchmark, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    run(benchmark, out, *options())
    return scores(out)


def options():
    return "--datasets", ",".join(SETS), "--max-bad-share", "0.2"


def scores(out):
    results = json.loads((out / "results.json").read_text())
    return {
        name: {key: value for key, value in one.items() if key not in ("seconds", "cost")}
        for name, one in results["datasets"].items()
    }


def start(data, out, **environment):
    command = [sys.executable, "-c", PROGRAM, "--model", "m", "--data", str(data)]
    command += ["--output", str(out), *options()]
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | devices | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def asked(out):
    return out.split("asked ")[1].split()


@pytest.mark.slow
def test_resumes_after_kill(benchmark, expected, tmp_path):
    process = start(benchmark, tmp_path / "out", DIES_AFTER="7")
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not (tmp_path / "out/results.json").exists()
    # Shards of two: five queries make three of them, and the eighth item dies with its shard.
    shards = sorted((tmp_path / "out/embeddings/model").glob("vectors-*.json"))
    done = [json.loads(path.read_text())["keys"] for path in shards]
    assert [len(keys) for keys in done] == [2, 2, 1, 2]
    process = start(benchmark, tmp_path / "out")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert asked(out) == [
        *(f"MSRVTT.corpus/v{n}" for n in (2, 3, 4)),
        *(f"CRB-T.queries/q{n}" for n in range(5)),
        *(f"LoVR-C2V.queries/q{n}" for n in range(5)),
    ]
    assert scores(tmp_path / "out") == expected


def test_embeds_an_unsealed_shard_again(benchmark, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SHARD", 2)
    calls = []

    def stop(path, value):
        calls.append(path)
        if path.match("vectors-00-00001-*.json"):
            raise KeyboardInterrupt
        write(path, value)

    write = store.write_json
    monkeypatch.setattr(store, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, tmp_path / "out", *options())
    monkeypatch.setattr(store, "write_json", write)
    folder = tmp_path / "out/embeddings/model"
    names = sorted(path.name for path in folder.iterdir())
    assert [(name.rsplit("-", 1)[0], name[-4:]) for name in names[1:]] == [
        ("vectors-00-00000", "json"),
        ("vectors-00-00000", ".npy"),
        ("vectors-00-00001", ".npy"),
    ]
    _, models = run(benchmark, tmp_path / "out", *options())
    assert models["trained"].asked[0] == "MSRVTT.queries/q2"
    assert scores(tmp_path / "out") == expected


def test_embeds_content_once_over_commands(benchmark, tmp_path):
    run(benchmark, tmp_path / "out", "--datasets", "CRB-T")
    _, models = run(benchmark, tmp_path / "out", "--datasets", "MSRVTT")
    assert models["trained"].asked == [f"MSRVTT.queries/q{n}" for n in range(5)]
    # The control has other videos and the same texts.
    _, models = run(benchmark, tmp_path / "out", "--datasets", "CRB-T", "--control")
    assert models["trained"].asked == [f"CRB-T.corpus/v{n}" for n in range(5)]


def test_two_hosts_share_the_work_and_get_equal_scores(two_hosts, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    make_benchmark(data, SETS)
    for name in SETS:  # the second of five, on the second host
        (data / f"UVRB/{name}/videos/blue_red.mp4").write_bytes(b"not a video")
    run(data, tmp_path / "alone", *options())
    first, second = two_hosts.run("tests.evals.embeddings_test:score", str(data), str(out))
    assert first == [
        f"{name}/{id}"
        for name, ids in (
            ("MSRVTT.queries", "q0 q2 q4"),
            ("MSRVTT.corpus", "v0 v2 v4"),
            ("CRB-T.queries", "q0 q2 q4"),
            ("LoVR-C2V.queries", "q0 q2 q4"),
        )
        for id in ids.split()
    ]
    assert len(second) == 2 * 4 and not set(first) & set(second)
    assert scores(out) == scores(tmp_path / "alone")
    for name in SETS:  # equal order on any number of hosts
        run_file = f"trec/{name}.run"
        assert (out / run_file).read_bytes() == (tmp_path / "alone" / run_file).read_bytes()
    assert not list(out.glob("quarantine-*"))  # host 0 writes for all
    lines = read_jsonl(out / "quarantine.jsonl")
    assert sorted(line["id"] for line in lines) == [  # four items of one content
        "CRB-T.corpus/v1",
        "LoVR-C2V.corpus/v1",
        "LoVR-C2V.queries/q1",
        "MSRVTT.corpus/v1",
    ]
    results = json.loads((out / "results.json").read_text())
    assert results["quarantined"] == len(lines) == 4
    # The digest of weights equals that of one host.
    assert results["fingerprint"]["digest"] == weights_digest({"a": jnp.arange(12.0).reshape(3, 4)})
    # One host resumes the work of two: nothing is left.
    model = WithFingerprint(results["fingerprint"])
    run(data, out, *options(), models={"trained": model})
    assert model.asked == []


class WithFingerprint(ColourEncoder):
    def __init__(self, fingerprint):
        super().__init__()
        self.fingerprint = fingerprint


def test_scores_media_repaired_after_a_refusal(tmp_path):
    data = make_benchmark(tmp_path, ("CRB-T",))
    video = sorted((data / "UVRB/CRB-T/videos").iterdir())[0]
    intact = video.read_bytes()
    video.write_bytes(b"junk")
    options = "--datasets", "CRB-T", "--max-bad-share", "0"
    with pytest.raises(UserError, match="1 of 10 items could not be read"):
        evaluate(data, tmp_path / "out", *options)
    video.write_bytes(intact)
    results = evaluate(data, tmp_path / "out", *options)
    assert results["quarantined"] == 0 and results["datasets"]["CRB-T"]["score"] == 1
