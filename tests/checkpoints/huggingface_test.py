"""Loading and saving checkpoints of transformers in any sharding; damaged checkpoints."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from gve_jax.checkpoints import huggingface
from gve_jax.checkpoints.hf_config import from_hf
from gve_jax.checkpoints.huggingface import load_hf, save_hf
from gve_jax.distributed.sharding import make_mesh, param_shardings
from gve_jax.errors import UserError
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params, make_embed
from tests import checkpoint_files
from tests.checkpoint_files import CFG
from tests.model import embedder_test
from tests.model.embedder_test import BUCKET, NUMBERS, ROWS, cosine, make_batch
from tests.situations import situation

expected = embedder_test.params  # the same weights as our parameters


def config_of(directory, dtype="float32"):
    return from_hf(json.loads((directory / "config.json").read_text()), dtype)


def load(directory, dtype="float32", axes=None):
    return load_hf(directory, config_of(directory, dtype), make_mesh(axes or {"data": 8}))


def assert_equal(params, expected, dtype=np.float32):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == dtype, path
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(dtype), str(path))


@pytest.mark.parametrize(
    "layout, files, head",
    [
        ("4.49", 1, False),
        ("4.49", 3, True),
        ("5", 1, True),
        ("5", 3, False),
        ("bare", 1, False),
    ],
)
@situation(
    "Models and checkpoints",
    "a checkpoint of transformers 4.49 or 5 or of the bare model, in one file or sharded",
    "loads, with or without a head",
    since="0.1.0",
)
def test_every_layout_is_loaded(tmp_path, expected, layout, files, head):
    directory = checkpoint_files.write(tmp_path / "hf", layout, files, head=head)
    assert config_of(directory) == CFG
    assert_equal(load(directory), expected)


@situation(
    "Models and checkpoints",
    "a checkpoint loaded onto a mesh",
    "the vectors of transformers",
    since="0.1.0",
)
def test_vectors_equal_those_of_transformers(tmp_path):
    params = load(checkpoint_files.write(tmp_path / "hf", files=3), axes={"fsdp": 2, "tensor": 4})
    vectors = np.asarray(jax.jit(make_embed(CFG))(params, make_batch(ROWS, BUCKET)))
    reference = np.stack([NUMBERS[f"{n}/pooled"] for n in range(len(ROWS))])
    assert cosine(vectors, reference).min() > 0.999999


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_are_converted(tmp_path, expected, stored, dtype):
    directory = checkpoint_files.write(tmp_path / "hf", dtype=stored)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(checkpoint_files.DTYPES[stored]), expected
    )
    assert_equal(load(directory, dtype), rounded, checkpoint_files.DTYPES[dtype])


@pytest.mark.parametrize(
    "axes",
    [
        {"data": 8},
        {"fsdp": 8},
        {"tensor": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_each_byte_is_read_once_into_its_shards(tmp_path, expected, axes, monkeypatch):
    directory = checkpoint_files.write(tmp_path / "hf", files=3, dtype="bfloat16", head=True)
    read, preadv = [], os.preadv

    def recorded(fd, buffers, offset):
        read.append((os.readlink(f"/proc/self/fd/{fd}"), offset, len(buffers[0])))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", recorded)
    params = load(directory, "bfloat16", axes)
    assert_equal(params, expected, ml_dtypes.bfloat16)
    ranges = sorted(read)
    for (file, start, count), (following, after, _) in zip(ranges, ranges[1:], strict=False):
        assert file != following or start + count <= after
    assert sum(count for *_, count in read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    shardings = jax.tree.leaves(param_shardings(params, make_mesh(axes)))
    for leaf, sharding in zip(jax.tree.leaves(params), shardings, strict=True):
        assert leaf.sharding == sharding
    if axes.get("fsdp", 1) * axes.get("tensor", 1) > 1:
        kernel = params["language"]["layers"]["self_attn"]["q_proj"]["kernel"]
        assert kernel.addressable_shards[0].data.size < kernel.size


def test_process_reads_only_its_shards(tmp_path, monkeypatch):
    """A process with half of the devices reads half of a sharded matrix."""
    directory = checkpoint_files.write(tmp_path / "hf")
    path = "language/layers/self_attn/o_proj/kernel"
    config, mesh = config_of(directory), make_mesh({"fsdp": 8})
    leaf = flatten_dict(jax.eval_shape(lambda: init_params(config, 0)[1]), sep="/")[path]
    source = huggingface.sources(config, {path: leaf.shape})[path]
    stored = huggingface.stored_tensors(directory)
    count = []
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, b, at, read=os.preadv: (count.append(len(b[0])), read(fd, b, at))[1],
    )

    class Half:
        """A sharding of which this process holds the first four of eight shards."""

        full = flatten_dict(
            param_shardings(
                {"language": {"layers": {"self_attn": {"o_proj": {"kernel": leaf}}}}}, mesh
            ),
            sep="/",
        )[path]

        def addressable_devices_indices_map(self, shape):
            indices = self.full.addressable_devices_indices_map(shape)
            return dict(list(indices.items())[:4])

    made = {}

    def make(shape, sharding, callback):
        for index in sharding.addressable_devices_indices_map(shape).values():
            made[str(index)] = callback(index)
        return jax.numpy.zeros(())

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    with huggingface.ThreadPoolExecutor(1) as pool:
        tensors = [stored[name] for name in source.names]
        huggingface._load_leaf(leaf, Half(), source, tensors, pool)
    assert sum(count) == leaf.size * 4 // 2 and len(made) == 4


@pytest.mark.parametrize("layout", ["4.49", "5"])
@pytest.mark.parametrize("shard_bytes", [5e9, 60_000])
def test_saved_checkpoint_equals_the_loaded_one(tmp_path, expected, layout, shard_bytes):
    source = checkpoint_files.write(tmp_path / "hf", layout, head=True)
    (source / "merges.txt").write_text("#version: 0.2\n")
    params = load(source, axes={"fsdp": 2, "tensor": 4})
    saved = tmp_path / "saved"
    for _ in range(2):  # once more over itself
        save_hf(
            saved, CFG, params, source / "tokenizer.json", layout=layout, shard_bytes=shard_bytes
        )
    files = sorted(p.name for p in saved.glob("*.safetensors"))
    assert (len(files) > 3) == (shard_bytes < 1e9)
    weights = {}
    for name in files:
        part = load_file(saved / name)
        assert len(part) == 1 or sum(array.nbytes for array in part.values()) <= shard_bytes
        weights |= part
    original = checkpoint_files.tensors(layout)
    assert set(weights) == set(original)
    for name, array in original.items():
        np.testing.assert_array_equal(weights[name], array, name)
    if len(files) > 1:
        index = json.loads((saved / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(original)
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in original.values())
    assert (saved / "merges.txt").exists() and not list(saved.glob("*.part"))
    assert config_of(saved) == CFG
    assert_equal(load(saved), expected)


@situation(
    "Models and checkpoints",
    "a checkpoint saved over a larger one",
    "all files of the larger one are removed",
    since="0.1.0",
)
def test_smaller_checkpoint_replaces_all_files_of_a_larger_one(tmp_path):
    source = checkpoint_files.write(tmp_path / "hf")
    params = load(source)
    saved = tmp_path / "saved"
    save_hf(saved, CFG, params, source / "tokenizer.json", shard_bytes=60_000)
    save_hf(saved, CFG, params, source / "tokenizer.json", dtype="bfloat16")
    assert sorted(p.name for p in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert str(huggingface.stored_dtype(saved)) == "bfloat16"


@situation(
    "Models and checkpoints",
    "a full disk while a checkpoint is saved",
    "a one-line error; the partial checkpoint cannot be loaded",
    since="0.1.0",
)
def test_failed_save_leaves_no_config(tmp_path, monkeypatch):
    source = checkpoint_files.write(tmp_path / "hf")
    params = load(source)
    saved = tmp_path / "saved"
    save_hf(saved, CFG, params, source / "tokenizer.json")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_file", full)
    with pytest.raises(UserError, match="cannot save in .*saved: No space left"):
        save_hf(saved, CFG, params, source / "tokenizer.json")
    assert not (saved / "config.json").exists()


def test_adapters_are_merged_when_saved(tmp_path):
    cfg = dataclasses.replace(CFG, lora=LoraConfig(rank=2))
    _, params = init_params(cfg, 0)
    params["language"]["layers"]["mlp"]["up_proj"]["lora"]["b"] += 0.1
    source = checkpoint_files.write(tmp_path / "hf")
    save_hf(tmp_path / "saved", cfg, params, source / "tokenizer.json")
    assert_equal(load(tmp_path / "saved"), lora.merge(params, cfg))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"layout": "4.5"}, "layout '4.5'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_invalid_options_are_named(tmp_path, options, named):
    source = checkpoint_files.write(tmp_path / "hf")
    with pytest.raises(UserError, match=named):
        save_hf(tmp_path / "saved", CFG, load(source), source / "tokenizer.json", **options)
    assert not (tmp_path / "saved").exists()


@situation(
    "Models and checkpoints",
    "a checkpoint of another size or architecture",
    "an error that lists missing, unexpected and misshapen tensors",
    since="0.1.0",
)
def test_all_tensors_that_do_not_fit_are_listed(tmp_path):
    weights = checkpoint_files.tensors()
    del weights["model.norm.weight"]
    weights["visual.merger.ln_q.weight"] = np.zeros(31)
    weights["classifier.weight"] = np.zeros(3)
    directory = checkpoint_files.write(tmp_path / "hf", weights=weights, files=2)
    with pytest.raises(UserError) as caught:
        load(directory)
    for line in (
        "3 tensors do not fit",
        "missing: model.norm.weight",
        "misshapen: visual.merger.ln_q.weight is [31], not [32]",
        "unexpected: classifier.weight",
    ):
        assert line in str(caught.value)
    # A checkpoint of another model: some problems are listed, all are counted.
    directory = checkpoint_files.write(tmp_path / "other", weights={"a": np.zeros(3)})
    with pytest.raises(UserError, match=rf"{len(checkpoint_files.NAMES) + 1} tensors") as caught:
        load(directory)
    assert len(str(caught.value).splitlines()) == 22


@situation(
    "Models and checkpoints",
    "tensors in int8 or float8",
    "an error that names tensor and dtype",
    since="0.1.0",
)
def test_tensors_of_other_dtypes_are_named(tmp_path):
    directory = checkpoint_files.write(tmp_path / "hf")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.int8)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UserError, match="dtype: model.norm.weight is I8"):
        load(directory)


def _index(directory, change):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    "damage, named",
    [
        (
            lambda d: (d / SECOND).write_bytes((d / SECOND).read_bytes()[:-7]),
            f"{SECOND}: truncated",
        ),
        (lambda d: (d / SECOND).unlink(), f"1 of 3 files are missing: {SECOND}"),
        (
            lambda d: _index(d, lambda i: i["weight_map"].update({"model.norm.weight": FIRST})),
            f"lists model.norm.weight in {FIRST}, which does not have it",
        ),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{"), "index.json: damaged"),
        (lambda d: _index(d, lambda i: i.pop("weight_map")), "no weight_map"),
        (lambda d: _index(d, lambda i: i["weight_map"].update(x="../x")), "not a file name"),
        (
            lambda d: (d / SECOND).write_bytes((d / SECOND.replace("2-", "1-")).read_bytes()),
            "model.embed_tokens.weight is also in .*model-00001-of-00003.safetensors",
        ),
    ],
)
@situation(
    "Models and checkpoints",
    "a checkpoint whose index names missing shards",
    "an error that names all missing files",
    since="0.2.0",
)
@situation(
    "Models and checkpoints",
    "an index with a tensor in the wrong shard, or a tensor in two shards",
    "an error that names tensor and files",
    since="0.2.0",
)
def test_damaged_files_are_named(tmp_path, damage, named):
    directory = checkpoint_files.write(tmp_path / "hf", files=3)
    damage(directory)
    with pytest.raises(UserError, match=named):
        load(directory)
