"""The public encoder with checkpoints of transformers, and `python -m gve_jax.convert`."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gve_jax import GVE
from gve_jax.checkpoints.peft import write_adapter
from gve_jax.convert import main as convert
from gve_jax.errors import UserError
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params
from tests import checkpoint_files
from tests.situations import situation

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
INPUTS = [
    "a red ring",
    {"text": "what follows", "image": RNG.integers(0, 256, (60, 90, 3)).astype(np.uint8)},
    {"video": RNG.integers(0, 256, (9, 56, 70, 3)).astype(np.uint8), "fps": 4.0},
]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return checkpoint_files.write(tmp_path_factory.mktemp("released") / "hf", files=3, head=True)


@pytest.fixture(scope="module")
def model(released) -> GVE:
    return GVE.from_pretrained(released, dtype="float32")


@pytest.fixture(scope="module")
def vectors(model) -> np.ndarray:
    return model.encode(INPUTS)


def dtypes(model: GVE) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)}


def test_released_checkpoint_has_the_settings_of_the_paper(released, model):
    spec = model.preprocess.spec
    assert (spec.num_frames, spec.max_length, spec.mrope) == (8, 8192, "qwen_train")
    assert (spec.min_pixels, spec.max_pixels) == (4 * 28 * 28, 200 * 28 * 28)
    assert (model.buckets.patches, model.buckets.windows) == (800, 50)
    assert dtypes(model) == {"float32"}
    plain = GVE.from_pretrained(str(released), mrope="hf518")
    assert dtypes(plain) == {"bfloat16"} and plain.config.dtype == "bfloat16"
    assert plain.preprocess.spec.mrope == "hf518"


def test_bfloat16_gives_nearly_the_same_vectors(released, vectors):
    half = GVE.from_pretrained(released).encode(INPUTS)
    assert half.dtype == np.float32
    assert np.sum(half * vectors, axis=-1).min() > 0.999


@situation(
    "Python API",
    "the model sharded over data, fsdp or tensor axes of 8 devices",
    "the same vectors (cosine above 0.999999)",
    since="0.1.0",
)
@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_vectors_do_not_depend_on_the_mesh(released, vectors, axes):
    mesh = jax.make_mesh(
        axes, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    model = GVE.from_pretrained(released, mesh=mesh, dtype="float32")
    assert np.sum(model.encode(INPUTS[:1]) * vectors[:1], axis=-1).min() > 0.999999


@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_export_for_transformers_gives_the_same_vectors(model, vectors, tmp_path, layout):
    model.save_pretrained(tmp_path / "hf", format="hf", layout=layout)
    again = GVE.from_pretrained(tmp_path / "hf", dtype="float32")
    assert again.fingerprint == model.fingerprint and again.buckets == model.buckets
    np.testing.assert_array_equal(again.encode(INPUTS[:1]), model.encode(INPUTS[:1]))


def test_input_settings_are_kept_in_both_formats(released, tmp_path):
    model = GVE.from_pretrained(released, mrope="hf452", dtype="float32")
    model.save_pretrained(tmp_path / "ours")
    ours = GVE.from_pretrained(tmp_path / "ours")
    ours.save_pretrained(tmp_path / "hf", format="hf")
    again = GVE.from_pretrained(tmp_path / "hf")
    assert again.preprocess.spec == model.preprocess.spec and again.preprocess.spec.mrope == "hf452"
    assert again.fingerprint == ours.fingerprint == model.fingerprint


@situation(
    "Models and checkpoints",
    "an adapter merged by `gve_jax.convert --adapter`",
    "the vectors of the unmerged adapter",
    since="0.1.0",
)
@pytest.mark.slow
def test_adapter_is_loaded_and_merged_by_convert(released, model, vectors, tmp_path):
    config = dataclasses.replace(model.config, lora=LoraConfig(rank=2, alpha=3.0))
    adapters = lora.split(init_params(config, 1)[1])[1]
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), adapters)
    write_adapter(tmp_path / "adapter", adapters, config)
    adapted = GVE.from_pretrained(released, dtype="float32", adapter=tmp_path / "adapter")
    found = adapted.encode(INPUTS)
    assert np.abs(found - vectors).max() > 1e-2
    convert(
        ["--input", str(released), "--adapter", str(tmp_path / "adapter"), "--to", "hf"]
        + ["--output", str(tmp_path / "merged")]
    )
    # The kernels of the merged checkpoint are kernel + a b alpha / rank.
    merged = GVE.from_pretrained(tmp_path / "merged", dtype="float32")
    np.testing.assert_allclose(merged.encode(INPUTS), found, atol=2e-5)
    ours = tmp_path / "ours"
    adapted.save_pretrained(ours)
    with pytest.raises(UserError, match="already has an adapter"):
        GVE.from_pretrained(ours, adapter=tmp_path / "adapter")


def test_unavailable_kernel_is_refused(released):
    with pytest.raises(UserError, match="attention='cudnn' needs a GPU; this is cpu"):
        GVE.from_pretrained(released, attention="cudnn")


@situation(
    "Models and checkpoints",
    "a model saved into a directory with a model of the other format",
    "an error",
    since="0.1.0",
)
def test_two_formats_are_not_mixed_in_one_directory(model, tmp_path):
    model.save_pretrained(tmp_path, format="hf")
    with pytest.raises(UserError, match="another format"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="format 'onnx'"):
        model.save_pretrained(tmp_path, format="onnx")


def _weights(directory, change):
    path = directory / "model.safetensors"
    weights = {name: array.copy() for name, array in load_file(path).items()}
    change(weights)
    save_file(weights, path)


def _config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda d: _config(d, model_type="llava"), "config.json: model_type is 'llava'"),
        (lambda d: _config(d, rms_norm_eps=None), "rms_norm_eps"),
        (lambda d: _config(d, num_hidden_layers=3), r"missing: model.layers.2"),
        (lambda d: _config(d, image_token_id=5), "image_pad"),
        (lambda d: _config(d, gve_jax={"inputs": {"frames": 8}}), "frames"),
        (lambda d: _config(d, gve_jax={"inputs": {}}), "buckets"),
        (lambda d: _config(d, gve_jax=3), "config.json: gve_jax is 3, not an object"),
        (lambda d: (d / "config.json").write_text("[]"), "not an object"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x08"), "model.safetensors"),
        (lambda d: _weights(d, lambda w: w.pop("model.norm.weight")), "missing: model.norm.weight"),
        (
            lambda d: _weights(d, lambda w: w["model.norm.weight"].__setitem__(3, np.nan)),
            "NaN or infinite numbers in language/norm/weight$",
        ),
        (
            lambda d: _weights(
                d, lambda w: w["visual.blocks.1.attn.proj.weight"].__setitem__(0, np.inf)
            ),
            "NaN or infinite numbers in visual/blocks/attn/proj/kernel$",
        ),
    ],
)
@situation(
    "Models and checkpoints",
    "a checkpoint of transformers with NaN or infinite numbers",
    "an error that names the parameter",
    since="0.1.0",
)
def test_damaged_checkpoint_is_named(tmp_path, damage, named):
    directory = checkpoint_files.write(tmp_path / "hf")
    damage(directory)
    with pytest.raises(UserError, match=named):
        GVE.from_pretrained(directory)


def test_convert_round_trip_gives_the_same_checkpoint(tmp_path, capsys):
    source = checkpoint_files.write(tmp_path / "hf", "5", files=3, dtype="bfloat16", head=True)
    (source / "preprocessor_config.json").write_text("{}")
    convert(["--input", str(source), "--output", str(tmp_path / "ours"), "--to", "gve_jax"])
    back = ["--input", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "hf"]
    convert([*back, "--layout", "5"])
    assert "bfloat16" in capsys.readouterr().out
    original = {n: a for f in source.glob("*.safetensors") for n, a in load_file(f).items()}
    del original["lm_head.weight"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(original)
    for name, array in original.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, name)
    assert (tmp_path / "back" / "preprocessor_config.json").read_text() == "{}"


def test_convert_from_the_command_line(tmp_path):
    source = checkpoint_files.write(tmp_path / "hf")
    output = tmp_path / "new"
    command = [sys.executable, "-m", "gve_jax.convert", "--input", source, "--output", output]
    done = subprocess.run(
        [*command, "--to", "hf", "--dtype", "bfloat16"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "loading" in done.stderr and "saving" in done.stderr and "bfloat16" in done.stdout
    assert json.loads((output / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with pytest.raises(UserError, match="not an empty directory"):
        convert(["--input", str(source), "--output", str(output), "--to", "hf"])


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--input", "nowhere"], "required: --output, --to"),
        (["--input", "nowhere", "--output", "{tmp}/o", "--to", "onnx"], "onnx"),
        (["--input", "nowhere", "--output", "{tmp}/o", "--to", "hf"], "nowhere: no such directory"),
        (["--input", "{tmp}", "--output", "{tmp}/o", "--to", "hf"], "config.json"),
        (["--input", "{tmp}", "--output", "{tmp}/o", "--to", "hf", "--layout", "6"], "layout"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(UserError, match=named):
        convert([argument.format(tmp=tmp_path) for argument in arguments])
    shutil.rmtree(tmp_path / "o", ignore_errors=True)
