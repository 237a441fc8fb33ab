"""Local copies of GCS files. In most tests a mock of epath maps gs://b to a local folder."""

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest
from etils import epath
from etils.epath.testing import mock_epath

from data.pairs.builder import run_import
from gve_jax.errors import UserError
from gve_jax.storage import filesystem
from gve_jax.streams import gcs_cache
from gve_jax.streams.sources import Sources, parse


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with a source of 5 pairs and a source of 3, in one shard each."""
    folder = tmp_path_factory.mktemp("bucket")
    inputs = []
    for name, count in {"T2T_x": 5, "T2T_y": 3}.items():
        rows = [json.dumps({"query": f"{name} {n}", "positive": "p"}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
        inputs.append(f"{name}={folder / name}.jsonl")
    run_import(folder / "pairs", inputs, "pair")
    return folder


class Fake:
    """Maps gs://b to `folder`; `opened` are the names of opened files in order, and `spoil` wraps
    files by name."""

    def __init__(self, folder):
        self.folder, self.opened, self.spoil = folder, [], {}

    def path(self, path) -> str:
        path = os.fspath(path)
        return path.replace("gs://b", str(self.folder), 1) if path.startswith("gs://") else path

    def open(self, call, path, mode):
        if not os.fspath(path).startswith("gs://"):
            return call(path, mode)
        name = os.path.basename(path)
        self.opened.append(name)
        return self.spoil.get(name, lambda file: file)(call(self.path(path), mode))

    def glob(self, call, path):
        return [match.replace(str(self.folder), "gs://b", 1) for match in call(self.path(path))]


@pytest.fixture
def bucket(pairs, tmp_path):
    folder = shutil.copytree(pairs, tmp_path / "b")
    for file in folder.rglob("*"):
        os.utime(file, (1_600_000_000, 1_600_000_000))
    fake = Fake(folder)
    mapped = {
        name: lambda call, path: call(fake.path(path))
        for name in ("exists", "isdir", "listdir", "stat")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gcs_cache, "as_path", epath.Path)  # no client
        with mock_epath(**mapped, open=fake.open, glob=fake.glob):
            yield fake


def load(location, tmp_path, chosen=()):
    return Sources(parse(location, str(tmp_path / "cache")), chosen)


def query_texts(sources, name):
    return [pair["query"].text for pair in sources.read(name, np.arange(sources.sizes[name]))]


def shards(folder):
    return sorted(path.name for path in folder.rglob("*array_record*"))


def test_sources_are_checked_before_their_shards_are_copied(bucket, tmp_path):
    sources = load("more=gs://b/pairs/", tmp_path, ["T2T_x_more"])
    assert sources.sizes == {"T2T_x_more": 5}
    sources.check({"T2T_x_more": 5})
    with pytest.raises(UserError, match="gs://b/pairs: source 'T2T_x' has 5 pairs, fewer than"):
        sources.check({"T2T_x_more": 6})
    assert not shards(tmp_path / "cache")
    sources.fetch()
    assert len(shards(tmp_path / "cache")) == 1  # only of the chosen source
    worker = pickle.loads(pickle.dumps(sources))
    assert query_texts(worker, "T2T_x_more") == [f"T2T_x {n}" for n in range(5)]
    copied = len(bucket.opened)
    load("gs://b/pairs", tmp_path, ["T2T_x"]).fetch()
    assert len(bucket.opened) == copied  # complete copies are not copied again


def test_a_file_that_has_changed_is_copied_again(bucket, tmp_path):
    load("gs://b/pairs", tmp_path).fetch()
    name = next(name for name in shards(bucket.folder) if "T2T_y" in name)
    os.utime(bucket.folder / "pairs" / name, (1_700_000_000, 1_700_000_000))
    bucket.opened.clear()
    load("gs://b/pairs", tmp_path).fetch()
    assert bucket.opened == [name]


def test_a_missing_shard_is_named_before_training(bucket, tmp_path):
    (name,) = [name for name in shards(bucket.folder) if "T2T_y" in name]
    (bucket.folder / "pairs" / name).unlink()
    load("gs://b/pairs", tmp_path, ["T2T_x"]).check({"T2T_x": 1})
    sources = load("gs://b/pairs", tmp_path)
    with pytest.raises(UserError, match=f"gs://b/pairs: source 'T2T_y' lacks the shard {name}"):
        sources.check({"T2T_x": 1, "T2T_y": 1})


def test_gs_locations_may_be_patterns_and_jsonl_files(bucket, tmp_path):
    sources = load("a=gs://b/pair*,b=gs://b/T2T_*.jsonl", tmp_path)
    assert sources.sizes == {"T2T_x_a": 5, "T2T_x_b": 5, "T2T_y_a": 3, "T2T_y_b": 3}
    assert query_texts(sources, "T2T_x_b") == [f"T2T_x {n}" for n in range(5)]
    (bucket.folder / "v.jsonl").write_text('{"query": "q", "positive": {"video": "v.mp4"}}')
    with pytest.raises(UserError, match="^gs://b/v.jsonl:1: positive: video 'v.mp4': rows on GCS"):
        load("gs://b/v.jsonl", tmp_path)


@pytest.mark.parametrize(
    "location, named",
    [
        ("gs://b/none", "^gs://b/none: no such directory of training pairs"),
        ("gs://b/none*", "no directory matches gs://b/none"),
        ("gs://b/none.jsonl", "^gs://b/none.jsonl: no such file"),
        ("gs://*/pairs", "has a pattern in the bucket's name"),
        ("gs://b/../pairs", "gs://b/../pairs is not a valid gs:// path"),
    ],
)
def test_errors_name_the_url(bucket, tmp_path, location, named):
    with pytest.raises(UserError, match=named):
        load(location, tmp_path)


def test_the_cache_must_be_a_local_folder(tmp_path):
    with pytest.raises(UserError, match="data.cache 'gs://b/cache' must be a local folder"):
        parse("gs://b/pairs", "gs://b/cache")


def test_without_gcsfs_the_extra_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    filesystem._client.cache_clear()  # another test may have created a client
    for location in ("gs://bucket/pairs", "gs://bucket/rows.jsonl"):
        with pytest.raises(UserError, match=r"^gs:// paths need pip install -e '\.\[gcs\]'"):
            load(location, tmp_path)


def test_objects_are_copied_once(pairs, gcs, tmp_path):
    gcs.make("staged")
    for file in (pairs / "pairs").iterdir():
        gcs.put("staged", f"pairs/{file.name}", file.read_bytes())
    for _ in range(2):
        sources = load("gs://staged/pa*", tmp_path)
        sources.fetch()
        assert query_texts(sources, "T2T_x") == [f"T2T_x {n}" for n in range(5)]
    copied = tmp_path / "cache" / "gs" / "staged" / "pairs"
    first = {name: (copied / name).stat().st_ino for name in shards(copied)}
    load("gs://staged/pairs", tmp_path).fetch()
    assert {name: (copied / name).stat().st_ino for name in shards(copied)} == first


def test_after_an_error_complete_copies_stay_and_a_repeated_call_resumes(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr(gcs_cache, "THREADS", 1)  # copies files in order
    first, second = shards(bucket.folder)
    bucket.spoil[second] = lambda file: io.BytesIO(file.read()[:-1])
    sources = load("gs://b/pairs", tmp_path)
    message = f"^gs://b/pairs/{second}: only .* of .* bytes arrived; repeat the"
    with pytest.raises(UserError, match=message):
        sources.fetch()
    folder = tmp_path / "cache" / "gs" / "b" / "pairs"
    assert shards(folder) == [first] and not list(folder.glob("*.part"))
    (folder / f"{second}.123.part").write_bytes(b"of a killed process")
    bucket.spoil.clear()
    bucket.opened.clear()
    sources.fetch()
    assert bucket.opened == [second] and shards(folder) == [first, second]
    assert query_texts(sources, "T2T_y") == [f"T2T_y {n}" for n in range(3)]


@pytest.mark.parametrize("error", [OSError("403 Forbidden\nfor you"), RuntimeError("x")])
def test_a_read_error_is_one_line(bucket, tmp_path, error):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise error

    (first, _) = shards(bucket.folder)
    bucket.spoil[first] = Broken
    sources = load("gs://b/pairs", tmp_path)
    with pytest.raises(UserError, match=f"^gs://b/pairs/{first}: cannot be read") as caught:
        sources.fetch()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(bucket, tmp_path, monkeypatch):
    sources = load("gs://b/pairs", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
        with pytest.raises(UserError, match="^data.cache: .* GiB do not fit into .*cache/gs/b"):
            sources.fetch()

    class Full(io.BytesIO):
        def fileno(self):
            raise OSError(28, "No space left on device")

    @contextlib.contextmanager
    def full(path, mode):
        yield Full()

    monkeypatch.setattr("gve_jax.storage.files.open", full, raising=False)
    with pytest.raises(UserError, match="^data.cache: .*/cache/gs/b/pairs/.*: No space left"):
        sources.fetch()


def test_processes_that_share_a_cache_wait_for_each_other(bucket, tmp_path, capfd):
    folder = tmp_path / "cache" / "gs" / "b" / "pairs"
    sources = load("gs://b/pairs", tmp_path)
    bucket.opened.clear()
    with gcs_cache._locked(folder):
        other = threading.Thread(target=sources.fetch)
        other.start()
        other.join(0.3)
        assert other.is_alive() and not bucket.opened
        for path in (bucket.folder / "pairs").glob("*array_record*"):  # as `other` would
            shutil.copy2(path, folder / path.name)
    other.join()
    assert not bucket.opened
    assert "waiting for another process" in capfd.readouterr().err
