"""GCS paths: atomic objects, local copies that follow changes, and errors of one line."""

import errno
import sys

import numpy as np
import pytest

from gve_jax.checkpoints.safetensors import read_header, write_file
from gve_jax.errors import UserError
from gve_jax.storage import files, filesystem
from gve_jax.storage.filesystem import as_local_path, as_path, in_workdir, local_copy, write_object
from tests.situations import situation


def test_local_names_are_plain_paths_and_other_urls_are_refused():
    assert type(as_path("runs/x")).__module__.startswith("pathlib")
    with pytest.raises(UserError, match="s3://b/x: only gs:// URLs"):
        as_path("s3://b/x")
    for name in ("gs://", "gs:///run", "gs://B/run", "gs://ab/run"):
        with pytest.raises(UserError, match=f"{name}: '\\w*' is not a bucket name"):
            as_path(name)
    with pytest.raises(UserError, match=r"a gs:// path cannot contain \. or \.\."):
        as_path("gs://bucket/run/../other")
    with pytest.raises(UserError, match=r"a gs:// path cannot contain \["):
        as_path("gs://bucket/run[1]")


@situation(
    "Training",
    "`--workdir=~/run`, and other paths that begin with `~`",
    "`~` is the home folder, on command lines and in configurations",
    since="0.2.0",
)
@situation(
    "Training",
    "`--workdir=` without a path",
    "refused: a run never uses the current folder by mistake",
    since="0.2.0",
)
def test_home_folders_are_expanded_and_empty_paths_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for read in (as_path, as_local_path):
        assert read("~/x") == tmp_path / "x"
        assert str(read("runs/lr=1e-4,{x} exp[1]")) == "runs/lr=1e-4,{x} exp[1]"
        for empty in ("", "  "):
            with pytest.raises(UserError, match="is not a path: it is empty"):
                read(empty)
        with pytest.raises(UserError, match="NUL"):
            read("a\0b")
        with pytest.raises(UserError, match="~nobody.none/x: "):
            read("~nobody.none/x")
    with pytest.raises(UserError, match="gs://b/x: must be a local path, not a URL"):
        as_local_path("gs://b/x")


def test_only_the_workdir_is_substituted():
    assert in_workdir("{workdir}/a{b}/{0}", "runs/{x}") == "runs/{x}/a{b}/{0}"


def test_gs_paths_without_the_client_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    filesystem._client.cache_clear()
    with pytest.raises(UserError, match=r"gs:// paths need pip install -e '\.\[gcs\]'"):
        as_path("gs://bucket/x")


def test_a_file_is_written_as_one_object(gcs):
    gcs.make("files")
    files.write_json(as_path("gs://files/run/a b.json"), {"x": 1})
    assert gcs.read("files", "run/a b.json") == b'{\n "x": 1\n}\n'
    files.write_array(as_path("gs://files/run/x.npy"), np.arange(3))
    assert list(gcs.buckets["files"]) == ["run/a b.json", "run/x.npy"]  # no temporary files
    assert as_path("gs://files/run").is_dir()


def test_a_large_object_is_sent_in_blocks(gcs, monkeypatch):
    gcs.make("large")
    monkeypatch.setattr(filesystem, "_BLOCK", 1 << 18)
    data = np.random.default_rng(0).bytes((1 << 20) + 7)

    def write(file):
        for start in range(0, len(data), 100_000):
            file.write(data[start : start + 100_000])
            assert "x" not in gcs.buckets["large"]  # absent until the last byte is written

    write_object(as_path("gs://large/x"), write)
    assert gcs.read("large", "x") == data


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_failed_write_leaves_the_previous_object(gcs, monkeypatch, size):
    gcs.make("half")
    gcs.put("half", "x", b"before")
    monkeypatch.setattr(filesystem, "_BLOCK", 1 << 18)

    def write(file):
        file.write(bytes(size))
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_object(as_path("gs://half/x"), write)
    assert gcs.read("half", "x") == b"before"


def test_a_missing_or_forbidden_bucket_is_an_error_with_the_path(gcs):
    gcs.make("locked")
    gcs.read_only.add("locked")
    for path, number, why in (
        ("gs://absent/x.json", errno.ENOENT, "no such bucket"),
        ("gs://locked/x.json", errno.EACCES, "permission denied .*storage.objects.create"),
    ):
        with pytest.raises(OSError, match=why) as caught:
            files.write_json(as_path(path), 1)
        assert (caught.value.errno, caught.value.filename) == (number, path)
        assert "\n" not in caught.value.strerror


def test_safetensors_in_gcs_and_in_a_local_file_have_the_same_bytes(gcs, tmp_path):
    gcs.make("tensors")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0, np.float16)}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    write_file(tmp_path / "x.safetensors", shapes, iter(arrays.values()))
    write_file(as_path("gs://tensors/x.safetensors"), shapes, iter(arrays.values()))
    assert gcs.read("tensors", "x.safetensors") == (tmp_path / "x.safetensors").read_bytes()
    assert read_header(tmp_path / "x.safetensors").keys() == arrays.keys()


def test_a_local_copy_follows_changes_of_its_objects(gcs, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gcs.make("model")
    for name in ("m/config.json", "m/a.safetensors", "m/params/x", "m/other", "mm/config.json"):
        gcs.put("model", name, name.encode())
    wanted = ("config.json", "*.safetensors")
    copy = local_copy(as_path("gs://model/m"), wanted)
    assert sorted(path.name for path in copy.iterdir()) == ["a.safetensors", "config.json"]
    assert (copy / "config.json").read_text() == "m/config.json"

    before = (copy / "a.safetensors").stat().st_ino
    assert local_copy(as_path("gs://model/m/"), wanted) == copy
    assert (copy / "a.safetensors").stat().st_ino == before  # not downloaded again

    gcs.put("model", "m/config.json", b"other")
    again = local_copy(as_path("gs://model/m"), wanted)
    assert again != copy and (again / "config.json").read_text() == "other"
    gcs.remove("model", "m/config.json")
    assert not (local_copy(as_path("gs://model/m"), wanted) / "config.json").exists()
    assert not [path for path in copy.parent.iterdir() if path.name.startswith("part-")]
    for absent in ("gs://model/none", "gs://nowhere/m"):
        with pytest.raises(UserError, match=f"{absent}: no such directory"):
            local_copy(as_path(absent), wanted)
