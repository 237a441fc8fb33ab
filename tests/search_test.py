"""The command: an index and queries of a real small model, messages, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gve_jax import GVE, Index
from gve_jax.errors import UserError
from gve_jax.search import main
from tests import checkpoint_files
from tests.conftest import ROOT
from tests.index.fake import Model, movie


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("media")
    (root / "a.mp4").write_bytes(movie(0))
    (root / "b.mp4").write_bytes(movie(9, 20))
    (root / "bad.mp4").write_bytes(b"bad")
    (root / "metadata.jsonl").write_text('{"path": "b.mp4", "year": 2020}\n')
    return root


def run(*arguments, model=None) -> Model:
    model = model or Model()
    main([str(argument) for argument in arguments], load=lambda name: model)
    return model


@pytest.fixture
def index(tmp_path, media, capsys) -> Path:
    run("index", "--model", "m", "--media", media, "--index", tmp_path / "i", *FIXED)
    capsys.readouterr()
    return tmp_path / "i"


FIXED = ["--windows", "fixed", "--length", "2", "--stride", "1"]


def test_indexing_says_what_it_did(tmp_path, media, capsys):
    index = tmp_path / "i"
    run("index", "--model", "m", "--media", media, "--index", index, *FIXED)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("unreadable: bad.mp4: not a readable video")
    assert lines[1] == "2 new, 0 gone, 0 changed, 0 moved"
    assert lines[2].startswith(f"{index}: 4 moments of 2 files; 1 unreadable")
    assert run("index", "--index", index).asked == 0
    assert "0 new, 0 gone" in capsys.readouterr().out.splitlines()[0]
    run("unreadable", "--index", index, "--json")
    assert json.loads(capsys.readouterr().out)["path"] == "bad.mp4"


def test_workers_bounds_the_decoding_processes(index, monkeypatch):
    seen = []
    monkeypatch.setattr(Index, "update", lambda self, **_: seen.append(self.sandbox.processes))
    monkeypatch.setattr("gve_jax.search._print_changes", lambda *_: None)
    run("index", "--index", index, "--workers", 3)
    assert seen == [3]


def test_hits_are_printed(index, capsys):
    run("query", "--index", index, "--video", "a.mp4", "--from", 1, "--to", 3, "--merge", -1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["1", "1.0000", "a.mp4", "1.00", "3.00"] and len(lines) == 4
    run("query", "--index", index, "text", "--json", "--where", "year=2020", "-k", 5)
    (hit,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert hit["path"] == "b.mp4" and hit["metadata"] == {"year": 2020} and hit["rank"] == 1
    assert (hit["start_sec"], hit["end_sec"], hit["duration"]) == (0, 2, 2)
    run("query", "--index", index, "text", "--group-by", "video", "--json")
    hits = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [len(hit["moments"]) for hit in hits if hit["path"] == "a.mp4"] == [3]
    run("query", "--index", index, "text", "--path", "none/*")
    assert capsys.readouterr().err == "no moment fulfils the filters\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["index", "--index", "new"], "--model is missing: new is not an index yet"),
        (["index", "--index", "new", "--model", "m", "--media", "none"], "none: no such directory"),
        (["query", "--index", "new", "x"], "new: not an index"),
        (["query", "--index", "I"], "nothing to search for"),
        (["query", "--index", "I", "x", "--from", "3"], "--from and --to are of --video"),
        (["query", "--index", "I", "x", "-k", "0"], "k must be at least 1"),
        (["query", "--index", "I", "--image", "no.png"], "the query: no.png: no such file"),
        (["index", "--index", "I", "--windows", "shots"], "created with windows = .*fixed.* now"),
        (["index", "--index", "I", "--dtype", "float16"], "dtype = float32, now float16; choose"),
        (["index", "--index", "I", "--batch-size", "0"], "--batch-size must be at least 1"),
        ([], "required: COMMAND"),
        (["find"], "invalid choice: 'find'"),
    ],
)
def test_mistakes_are_one_line(index, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(*[str(index) if word == "I" else word for word in arguments])


def test_another_model_is_compared_when_it_is_named(index):
    with pytest.raises(UserError, match="weights = a, now b"):
        run("index", "--index", index, "--model", "other", model=Model("b"))
    run("index", "--index", index, "--model", "moved")


def test_a_real_model(tmp_path, media):
    checkpoint_files.write(tmp_path / "model")
    model = GVE.from_pretrained(tmp_path / "model", dtype="float32").with_inputs(num_frames=4)
    with Index.create(tmp_path / "index", media, model, processes=1) as index:
        index.update()
        ids, vectors = index.load_vectors()
        assert ids == ["a.mp4#0.000-4.000", "b.mp4#0.000-2.000"]
        expected = model.encode([{"video": str(media / f"{name}.mp4")} for name in "ab"])
        assert (vectors * expected).sum(axis=1) == pytest.approx(1, abs=1e-5)
        best = index.search({"video": "b.mp4"}, k=1)[0]
        assert best.path == "b.mp4" and best.score == pytest.approx(1, abs=1e-5)
        vector = model.encode_query("a red circle")
        scores = {hit.path: hit.score for hit in index.search("a red circle")}
        assert [scores["a.mp4"], scores["b.mp4"]] == pytest.approx((vectors @ vector).tolist())
        mixed = index.encode_query({"text": "x", "video": "a.mp4", "video_end": 2.0})
        assert np.linalg.norm(mixed) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_command_itself(tmp_path, media):
    checkpoint_files.write(tmp_path / "model")
    command = [sys.executable, "-m", "gve_jax.search"]
    make = ["index", "--model", tmp_path / "model", "--media", media, "--index", tmp_path / "i"]
    done = subprocess.run([*command, *make], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "2 new" in done.stdout, done.stderr
    query = ["query", "--index", tmp_path / "i", "a red circle"]
    done = subprocess.run([*command, *query], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr
    done = subprocess.run([*command, "query", "--index", "no", "x"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and done.stderr == b"error: no: not an index (no index.json)\n"
