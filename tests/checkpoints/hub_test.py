"""Names of models: directories, Hub ids (with a handmade cache), and errors for other names."""

import json

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from gve_jax import GVE
from gve_jax.checkpoints.hub import (
    check_model_directory,
    find_directory,
    hub_source,
    why_no_weights,
)
from gve_jax.checkpoints.huggingface import FETCHED, stored_tensors
from gve_jax.checkpoints.pretrained import open_pretrained
from gve_jax.errors import UserError
from tests import checkpoint_files
from tests.situations import situation

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache as huggingface_hub lays it out: org/name in two revisions, float32 last."""
    root = tmp_path / "cache" / "models--org--name"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(NEW)
    (root / "refs" / "v1").write_text(OLD)
    for commit, dtype in ((OLD, "bfloat16"), (NEW, "float32")):
        written = checkpoint_files.write(tmp_path / commit, dtype=dtype)
        config = json.loads((written / "config.json").read_text()) | {"torch_dtype": dtype}
        (written / "config.json").write_text(json.dumps(config))
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in written.iterdir():
            blob = root / "blobs" / f"{commit}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    return root


@situation(
    "Models and checkpoints",
    "a model on the Hugging Face Hub by branch, tag or commit: "
    "`revision=`, or `ORG/NAME@REVISION` in every command",
    "that revision is loaded",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "name, options, commit",
    [
        ("org/name", {}, NEW),
        ("org/name", {"revision": "v1"}, OLD),
        ("org/name@v1", {}, OLD),
        (f"org/name@{OLD}", {}, OLD),
        ("org/name@v1", {"revision": "v1"}, OLD),
    ],
)
def test_revision_is_found_in_the_cache(cache, name, options, commit):
    found = find_directory(name, FETCHED, local_files_only=True, **options)
    assert found == cache / "snapshots" / commit
    assert hub_source(found) == {"repository": "org/name", "revision": commit}


@situation(
    "Models and checkpoints",
    "the same weights loaded from the Hub and from a directory",
    "the same fingerprint; `GVE.source` and exports record repository and commit",
    since="0.2.0",
)
def test_commit_is_recorded_but_not_in_the_fingerprint(cache, tmp_path):
    source = {"repository": "org/name", "revision": NEW}
    model = GVE.from_pretrained("org/name", revision="main", local_files_only=True)
    assert model.source == source and model.config.dtype == "float32"
    assert model.with_inputs(num_frames=4).source == source
    local = GVE.from_pretrained(tmp_path / NEW)
    assert local.source is None and local.fingerprint == model.fingerprint
    for format in ("hf", "gve_jax"):
        model.save_pretrained(tmp_path / format, format)
        assert open_pretrained(tmp_path / format).source == source


@situation(
    "Models and checkpoints",
    "a mistyped Hub id, a private or gated repository, an unknown revision, no network",
    "one line with the reason and the remedy",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "kind, named",
    [
        (errors.RepositoryNotFoundError, "no such repository on the Hugging Face Hub; if it is"),
        (errors.GatedRepoError, "accept the repository's terms at https://huggingface.co/org/nmae"),
        (errors.RevisionNotFoundError, "org/nmae@v9: no such revision on the Hugging Face Hub"),
        (errors.HfHubHTTPError, "the download from the Hugging Face Hub failed"),
    ],
)
def test_errors_of_the_hub_are_one_line(monkeypatch, kind, named):
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))

    def fail(*_, **__):
        raise kind("404 Client Error.\nRequest ID: x", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=named) as caught:
        find_directory("org/nmae", FETCHED, revision="v9")
    assert "\n" not in str(caught.value)


def test_model_missing_in_the_cache_is_named(cache):
    with pytest.raises(UserError, match="other/name: .* it is not in the cache of the Hugging"):
        find_directory("other/name", FETCHED, local_files_only=True)
    with pytest.raises(UserError, match="org/name@v9: .* it is not in the cache of the Hugging"):
        find_directory("org/name@v9", FETCHED, local_files_only=True)
    with pytest.raises(UserError, match="org/name@v1: differs from revision='main'"):
        find_directory("org/name@v1", FETCHED, revision="main")
    with pytest.raises(UserError, match="a directory has no revision 'v1'; only Hub ids have one"):
        find_directory(cache, FETCHED, revision="v1")


def test_token_and_revision_reach_the_hub(monkeypatch, tmp_path):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_directory("org/name@refs/pr/1", FETCHED, token="hf_x") == tmp_path
    patterns = asked.pop("allow_patterns")
    assert asked == {"name": "org/name", "revision": "refs/pr/1", "token": "hf_x"}
    assert {"config.json", "tokenizer.json", "*.safetensors"} <= set(patterns)
    assert not any(p.endswith((".py", ".bin")) or p == "*" for p in patterns)  # no code, no pickles
    assert find_directory(tmp_path, FETCHED) == tmp_path


def test_hub_id_without_network_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Cannot reach the Hub.\nCheck the connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        find_directory("Alibaba-NLP/GVE-3B", FETCHED)
    message = str(caught.value)
    assert "Alibaba-NLP/GVE-3B: no such directory" in message and "Cannot reach the Hub" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["missing", "./org/name", "/org/name", "a/b/c", "org/", "org/a@", "~nobody_here/model"]
)
def test_path_that_is_not_an_id_is_not_downloaded(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="no such directory"):
        find_directory(name, FETCHED)


@situation(
    "Models and checkpoints",
    "a model path that starts with `~`",
    "expanded to the home directory",
    since="0.1.0",
)
def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert find_directory("~/model", FETCHED) == tmp_path / "model"


def _adapter(directory):
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def _run(directory):
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")


@situation(
    "Models and checkpoints",
    "the directory of an adapter as the model",
    "an error that names the base model and `adapter=`",
    since="0.2.0",
)
@situation(
    "Models and checkpoints",
    "the folder of a training run or of the Hub's cache, `params/`, or a GGUF folder as the model",
    "an error that names the right path",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "make, named",
    [
        (lambda d: None, r"\(no config.json\)"),
        (_adapter, "an adapter; load 'org/base' and pass this directory as adapter="),
        (_run, "the folder of a training run; give .*model"),
        (
            lambda d: (d / "checkpoints").mkdir(),
            "a training run that has not exported its model yet",
        ),
        (
            lambda d: (d / "snapshots" / OLD).mkdir(parents=True),
            f"repository's id or snapshots/{OLD}",
        ),
        (lambda d: (d / "snapshots").mkdir(), "an empty folder of the Hub's cache"),
        (lambda d: (d / "q4.gguf").write_bytes(b"GGUF"), "q4.gguf is GGUF, which is not supported"),
    ],
)
def test_directory_of_another_kind_is_named(tmp_path, make, named):
    make(tmp_path)
    with pytest.raises(UserError, match=f"not a model directory .*{named}"):
        check_model_directory(tmp_path)


@situation(
    "Models and checkpoints",
    "a file (`.gguf`, `.safetensors`, `.bin`) as the model",
    "an error that asks for the directory",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "name, named",
    [
        ("m.gguf", "a file in GGUF format, which is not supported"),
        ("model.safetensors", "a file of tensors"),
        ("pytorch_model.bin", "a file, a pickle"),
        ("x", "a file; give the directory"),
    ],
)
def test_file_is_not_a_model(tmp_path, name, named):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=named):
        find_directory(tmp_path / name, FETCHED)


@situation(
    "Models and checkpoints",
    "a checkpoint with pickles only (`pytorch_model.bin`)",
    "an error that says how to save it as safetensors",
    since="0.2.0",
)
@situation(
    "Models and checkpoints",
    "sharded safetensors without their index",
    "an error that names the index",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "file, named",
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle .* safe_serialization=True"),
        ("model.ckpt", "model.ckpt is a pickle"),
        ("q4.gguf", "q4.gguf is GGUF"),
        ("model-00001-of-00002.safetensors", "exists, but sharded checkpoints need their index"),
        ("other", "model.safetensors.index.json$"),
    ],
)
def test_directory_without_safetensors_is_explained(tmp_path, file, named):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match=named):
        stored_tensors(tmp_path)


def test_parameters_alone_are_not_a_model(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"the parameters of a model; give {tmp_path}"):
        check_model_directory(tmp_path / "params")


def test_broken_link_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    assert "a broken link" in why_no_weights(tmp_path)


@situation(
    "Models and checkpoints",
    "an adapter beside a full model in one directory, which transformers would apply",
    "an error unless `adapter=` names it too",
    since="0.2.0",
)
def test_adapter_beside_a_model_is_refused(tmp_path):
    directory = checkpoint_files.write(tmp_path / "hf")
    _adapter(directory)
    with pytest.raises(UserError, match="holds an adapter beside the model"):
        open_pretrained(directory)
    assert (
        open_pretrained(directory, adapter=directory).config
        == open_pretrained(directory, adapter="elsewhere").config
    )
