"""DoRA adapters: those of PEFT (goldens/lora.py), and drawn ones beside the formula in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from gve_jax import GVE
from gve_jax.checkpoints.digests import weights_digest
from gve_jax.checkpoints.peft import WEIGHTS, read_adapter, write_adapter
from gve_jax.checkpoints.peft_config import CONFIG
from gve_jax.errors import UserError
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params, make_embed
from gve_jax.model.quantize import Quantized
from tests import checkpoint_files
from tests.checkpoints import peft_test
from tests.checkpoints.peft_test import BATCH, CFG, NUMBERS, cosine, edit, embed_plain
from tests.goldens.lora import DORA
from tests.situations import situation

pefts, base_params = peft_test.pefts, peft_test.base_params
VECTOR = "lora_magnitude_vector"
SCALE = DORA["lora_alpha"] / DORA["r"] ** 0.5  # use_rslora
EVERYWHERE = LoraConfig(rank=2, alpha=3.0, targets=".")


def change(directory, function):
    """Rewrites the tensors by name."""
    save_file(function(load_file(directory / WEIGHTS)), directory / WEIGHTS)


def merge(directory, params):
    cfg, adapters = read_adapter(directory, CFG)
    return lora.merge(lora.join(params, adapters), cfg)


def kernel_of(flat, name):
    """The kernel [in, out] that a tensor of PEFT adapts, in any layout."""
    parts = name.partition(".lora_")[0].removeprefix("base_model.model.").split(".")
    parts = [part for part in parts if part not in ("model", "language_model")]
    top, *parts = parts if parts[0] == "visual" else ["language", *parts]
    layer = next((int(part) for part in parts if part.isdigit() and parts[0] != "merger"), None)
    parts = [part for part in parts if part != str(layer)]
    path = "/".join((top, *parts, "kernel")).replace("/mlp/0", "/mlp_0").replace("/mlp/2", "/mlp_2")
    return flat[path] if layer is None else flat[path][layer]


def numpy_merged(directory, params, scale):
    """PyTorch weights [out, in] one by one, in float64: m V / |V| by row, with V = W + s B A."""
    flat = {name: np.array(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    tensors = load_file(directory / WEIGHTS)
    for name in tensors:
        if name.endswith(VECTOR):
            m, a, b = (
                tensors[name.replace(VECTOR, part)].astype(np.float64)
                for part in (VECTOR, "lora_A.weight", "lora_B.weight")
            )
            kernel = kernel_of(flat, name)
            v = kernel.T.astype(np.float64) + scale * b @ a
            kernel[...] = (m[:, None] * v / np.sqrt((v * v).sum(axis=1, keepdims=True))).T
    return flat


def assert_equal(tree, expected, tolerance=1e-6):
    flat = flatten_dict(tree, sep="/")
    assert flat.keys() == expected.keys()
    for name, leaf in flat.items():
        np.testing.assert_allclose(leaf, expected[name], atol=tolerance, err_msg=name)


def write_dora(directory, cfg, layout="5"):
    """A drawn adapter of every projection; the vectors do not resemble the base's lengths."""
    cfg, rng = dataclasses.replace(cfg, lora=EVERYWHERE), np.random.default_rng(0)
    adapters = jax.eval_shape(lambda: lora.split(init_params(cfg, 0)[1])[1])
    adapters = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), adapters)
    write_adapter(directory, adapters, cfg, layout=layout, base_model="org/base")

    def add(tensors):
        vectors = {
            name.replace("lora_B.weight", VECTOR): rng.uniform(0.5, 2, len(b)).astype(np.float32)
            for name, b in tensors.items()
            if name.endswith("lora_B.weight")
        }
        return tensors | vectors

    change(directory, add)
    edit(directory, use_dora=True)


@situation(
    "Models and checkpoints",
    "a DoRA adapter saved by PEFT (`use_dora`)",
    "merged when it is loaded, with the vectors of PEFT",
    since="0.3.0",
)
def test_merged_adapter_gives_vectors_of_peft(pefts, base_params):
    params = merge(pefts("dora"), base_params)
    vectors, expected = np.asarray(embed_plain(params, BATCH)), NUMBERS["dora/pooled"]
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    assert cosine(vectors, expected).min() > 0.999999
    assert cosine(np.asarray(embed_plain(base_params, BATCH)), expected).max() < 0.99


def test_merged_kernels_of_pefts_adapter_are_those_of_the_formula(pefts, base_params):
    directory = pefts("dora")
    expected = numpy_merged(directory, base_params, SCALE)
    assert_equal(merge(directory, base_params), expected)
    moved = {
        name
        for name, leaf in flatten_dict(base_params, sep="/").items()
        if np.abs(leaf - expected[name]).max() > 1e-2
    }
    assert len(moved) == 8 and {"visual/merger/mlp_0/kernel"} < moved


@pytest.mark.parametrize(
    "layout, text, visual", [("4.49", "", ""), ("5", "language_model.", "model.")]
)
def test_every_layout_is_merged(tmp_path, base_params, layout, text, visual):
    write_dora(tmp_path, CFG, layout)
    names = load_file(tmp_path / WEIGHTS).keys()
    start = "base_model.model."
    assert f"{start}model.{text}layers.1.mlp.up_proj.{VECTOR}" in names
    assert f"{start}{visual}visual.blocks.0.attn.qkv.{VECTOR}" in names
    assert_equal(merge(tmp_path, base_params), numpy_merged(tmp_path, base_params, 1.5))


@pytest.mark.parametrize("suffix", [".weight", ".default.weight", ".default"])
def test_names_of_state_dicts_are_read(pefts, base_params, suffix):
    """PEFT's state dict ends with `.default.weight`; before 0.12, with `.default`."""
    directory = pefts("dora")
    expected = flatten_dict(merge(directory, base_params), sep="/")

    def rename(name):
        if name.endswith(VECTOR):
            return name + suffix
        return name.replace(".weight", ".default.weight") if "default" in suffix else name

    change(directory, lambda tensors: {rename(name): each for name, each in tensors.items()})
    if suffix == ".default.weight":
        assert load_file(directory / WEIGHTS).keys() == set(NUMBERS["dora/state_dict"].tolist())
    assert_equal(merge(directory, base_params), expected, 0)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_kernels_are_rounded_once(pefts, base_params, dtype):
    """Lengths are those of float32 numbers, whatever the kernel's dtype."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), base_params)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    directory = pefts("dora")
    expected = numpy_merged(directory, exact, SCALE)
    for name, leaf in flatten_dict(merge(directory, params), sep="/").items():
        assert leaf.dtype == dtype
        rounded = expected[name].astype(dtype)
        # float32's own rounding moves a number to the next one, rarely.
        assert np.mean(np.asarray(leaf) != rounded) < 1e-2, name
        step = 2 * float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(leaf, np.float32), rounded.astype(np.float32), rtol=step, atol=1e-6
        )


@situation(
    "Models and checkpoints",
    "a DoRA adapter given as `adapter=`",
    "a model without adapters, with the fingerprint of the merged weights; it can be exported",
    since="0.3.0",
)
def test_loaded_model_has_no_adapter(tmp_path):
    released = checkpoint_files.write(tmp_path / "released")
    plain = GVE.from_pretrained(released, dtype="float32")
    write_dora(tmp_path / "adapter", plain.config)
    expected = numpy_merged(tmp_path / "adapter", plain.params, 1.5)
    model = GVE.from_pretrained(released, dtype="float32", adapter=tmp_path / "adapter")
    assert model.config == plain.config and model.config.lora is None
    assert_equal(model.params, expected)
    assert model.fingerprint["weights"] == weights_digest(model.params)
    assert model.fingerprint["weights"] != plain.fingerprint["weights"]
    for name, leaf in flatten_dict(plain.params, sep="/").items():
        assert flatten_dict(model.params, sep="/")[name].sharding == leaf.sharding
    model.save_pretrained(tmp_path / "hf", format="hf")
    again = GVE.from_pretrained(tmp_path / "hf")
    assert again.fingerprint == model.fingerprint


def test_merging_can_free_the_kernels(pefts, base_params):
    cfg, adapters = read_adapter(pefts("dora"), CFG)
    base = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), base_params)
    merged = lora.merge(lora.join(base, adapters), cfg, free=True)
    freed = {name for name, leaf in flatten_dict(base, sep="/").items() if leaf.is_deleted()}
    names = flatten_dict(adapters, sep="/")
    assert freed == {n.replace("lora/a", "kernel") for n in names if n.endswith("lora/a")}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(merged))


@situation(
    "Models and checkpoints",
    "a DoRA adapter trained, unmerged, written for PEFT, or merged into a quantized base",
    "an error that says so",
    since="0.3.0",
)
def test_other_uses_are_refused(pefts, tmp_path, base_params):
    cfg, adapters = read_adapter(pefts("dora"), CFG)
    whole = lora.join(base_params, adapters)
    for use in (
        lambda: make_embed(cfg)(whole, BATCH),
        lambda: lora.unmerge(base_params, adapters, cfg),
        lambda: write_adapter(tmp_path / "ours", whole, cfg),
    ):
        with pytest.raises(UserError, match="a DoRA adapter can only be merged") as error:
            use()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()
    packed = jax.tree.map(Quantized, whole)
    with pytest.raises(UserError, match="quantized base; load the original"):
        lora.merge(packed, cfg)


@situation(
    "Models and checkpoints",
    "an adapter whose `use_dora` and magnitude vectors disagree",
    "an error that names both",
    since="0.3.0",
)
def test_vectors_without_dora_and_dora_without_vectors_are_refused(pefts):
    directory = pefts("dora")
    edit(directory, use_dora=False)
    with pytest.raises(UserError, match=f"18 tensors {VECTOR}, but {CONFIG} has use_dora = false"):
        read_adapter(directory, CFG)
    edit(directory, use_dora=True)
    missing = next(name for name in load_file(directory / WEIGHTS) if name.endswith(VECTOR))
    change(directory, lambda all: {k: v for k, v in all.items() if k != missing})
    with pytest.raises(UserError, match=f"missing: {missing}$"):
        read_adapter(directory, CFG)
    change(directory, lambda all: {k: v for k, v in all.items() if not k.endswith(VECTOR)})
    with pytest.raises(UserError, match=f"no tensors {VECTOR}, but {CONFIG} has use_dora = true"):
        read_adapter(directory, CFG)


def test_misshapen_and_non_finite_vectors_are_refused(pefts):
    directory = pefts("dora")
    name = next(name for name in load_file(directory / WEIGHTS) if name.endswith(VECTOR))
    change(directory, lambda all: all | {name: all[name] * np.float32(np.nan)})
    with pytest.raises(UserError, match="NaN or infinite numbers in .*/lora/magnitude"):
        read_adapter(directory, CFG)
    change(directory, lambda all: all | {name: all[name][:-1]})
    with pytest.raises(UserError, match=rf"misshapen: {name} is \[\d+\], not \[\d+\]$"):
        read_adapter(directory, CFG)
