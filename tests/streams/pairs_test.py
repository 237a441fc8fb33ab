"""Errors in TFDS directories of pairs are reported in one line before training reads them."""

import json
import shutil

import pytest

from data.pairs.builder import run_import
from gve_jax.errors import UserError
from gve_jax.streams.pairs import PairSources


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    row = json.dumps({"query": "q", "positive": "p"})
    inputs = []
    for name, count in {"T2T_small": 2, "T2T_large": 5, "T2T_none": 1}.items():
        (folder / f"{name}.jsonl").write_text(f"{row}\n" * count)
        inputs.append(f"{name}={folder / name}.jsonl")
    run_import(folder / "out", inputs, "pair")
    info = folder / "out" / "dataset_info.json"
    fields = json.loads(info.read_text())
    (split,) = [split for split in fields["splits"] if split["name"] == "T2T_none"]
    split["shardLengths"] = ["0"]  # as another writer may write it
    info.write_text(json.dumps(fields))
    return folder / "out"


def test_every_source_that_cannot_fill_its_batch_is_named(directory):
    sources = PairSources(directory)
    sources.check({"T2T_small": 2, "T2T_large": 5})
    with pytest.raises(UserError) as caught:
        sources.check({"T2T_small": 3, "T2T_large": 5, "T2T_none": 1, "T2V_other": 1})
    assert str(caught.value) == (
        f"{directory}: source 'T2T_small' has 2 pairs, fewer than batch_size 3; source 'T2T_none'"
        " is empty; no source 'T2V_other' (sources: T2T_large, T2T_none, T2T_small)"
    )


def test_a_directory_without_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        PairSources(tmp_path / "none")
    with pytest.raises(UserError, match="not a TFDS directory"):
        PairSources(tmp_path)


def test_a_format_without_random_access_is_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "out")
    info = tmp_path / "out" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="out: stored as tfrecord, not as array_record"):
        PairSources(tmp_path / "out")
