"""Folders that version 0.2.0 wrote still load: runs, exported models, vectors, evaluations.

`old_formats/0_2_0.tar.gz` was written by the commands of version 0.2.0: a run of four steps,
stopped after the second (its configuration file imports `Limits` from where it is now); the model
that the run exports; the vectors of three texts; an evaluation of CRB-T with five clips.
`expected.json` and `expected.npy` hold what that version computed.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from gve_jax import GVE
from gve_jax.cli import load_config
from gve_jax.distributed.sharding import make_mesh
from gve_jax.embed import main as embed
from gve_jax.retrieval.vectors import StoredVectors
from gve_jax.train import train
from tests.evals import small_uvrb
from tests.evals.evaluate_test import run as evaluate

# The flags of the run, whose configuration file is that of the quickstart in version 0.2.0.
OVERRIDES = {
    "steps": 4,
    "batch_size": 8,
    "data.pairs": "pairs.jsonl",
    "data.tokenizer": "tokenizer.json",
    "data.cache": "cache",
    "model.text.vocab_size": 320,
    "model.text.hidden_size": 16,
    "model.text.intermediate_size": 32,
    "model.text.mrope_section": (2, 1, 1),
    "model.vision.hidden_size": 16,
    "model.vision.intermediate_size": 24,
    "model.vision.out_hidden_size": 16,
    "model.vision.num_heads": 2,
    "export": ("gve_jax",),
    "pyramid.pairs": 4,
    "checkpoint.keep": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "old_formats" / "0_2_0.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict:
    return json.loads((folder / "expected.json").read_text())


def test_an_exported_model_gives_the_same_vectors(folder, expected):
    vectors = GVE.from_pretrained(folder / "model").encode(expected["texts"])
    np.testing.assert_allclose(vectors, np.load(folder / "expected.npy"), atol=1e-6)


def test_vectors_are_read_and_complete(folder, capsys, monkeypatch):
    stored = StoredVectors(folder / "vectors")
    np.testing.assert_allclose(stored[:], np.load(folder / "expected.npy"), atol=1e-6)
    assert stored.ids == ["n0", "n1", "n2"]
    before = {p.name: p.read_bytes() for p in (folder / "vectors").iterdir()}
    monkeypatch.chdir(folder)
    embed(["--model", "model", "--input", "items.jsonl", "--output", "vectors"])
    after = {p.name: p.read_bytes() for p in (folder / "vectors").iterdir() if p.name in before}
    assert after == before


def test_an_evaluation_is_read_and_complete(folder, expected, monkeypatch):
    encoders = []

    class Recorded(small_uvrb.ColourEncoder):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            encoders.append(self)

    monkeypatch.setattr("tests.evals.evaluate_test.ColourEncoder", Recorded)
    results, _ = evaluate(folder / "uvrb_data", folder / "uvrb", "--datasets", "CRB-T")
    assert not any(encoder.asked for encoder in encoders)
    for name in ("model", "fingerprint", "averages", "digests"):
        assert results[name] == expected["results"][name]
    scores, old = results["datasets"]["CRB-T"], expected["results"]["datasets"]["CRB-T"]
    assert {name: scores[name] for name in old if name not in ("seconds", "cost")} == {
        name: value for name, value in old.items() if name not in ("seconds", "cost")
    }


@pytest.mark.slow
def test_a_run_resumes(folder, expected, monkeypatch):
    monkeypatch.chdir(folder)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    monkeypatch.setattr("gve_jax.running.setup.make_mesh", lambda axes, devices: mesh)
    config = load_config("config.py:smoke")
    config.update_from_flattened_dict(OVERRIDES)
    train(config, folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-4)
    assert (folder / "run" / "model" / "config.json").is_file()
