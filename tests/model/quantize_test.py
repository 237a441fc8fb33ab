"""A base of few bits: what is stored, what is computed, and that adapters train on it."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig
from gve_jax.model.embedder import init_params, make_embed
from gve_jax.model.quantize import Quantized, quantize
from tests.goldens import qwen25vl as golden
from tests.model.embedder_test import CFG, ROWS, cosine, make_batch

# Widths that 64 divides, as all real ones.
WIDE = dataclasses.replace(
    CFG,
    vision=dataclasses.replace(CFG.vision, out_hidden_size=128),
    text=dataclasses.replace(
        CFG.text, hidden_size=128, intermediate_size=192, head_dim=32, mrope_section=(4, 6, 6)
    ),
    lora=LoraConfig(rank=4),
)
TEXT = make_batch(ROWS[3:], Bucket(0, 0, 0, 40))
# The 16 levels of a 4-bit NormalFloat (QLoRA, appendix E), rounded to what tells them apart.
NF4 = np.array(
    [
        -1.0,
        -0.6961928,
        -0.5250731,
        -0.3949175,
        -0.2844414,
        -0.1847734,
        -0.0910500,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.3379152,
        0.4407098,
        0.5626170,
        0.7229568,
        1.0,
    ]
)


@pytest.fixture(scope="module", autouse=True)
def qwix():
    return pytest.importorskip("qwix")


@pytest.fixture(scope="module")
def params():
    _, whole = init_params(WIDE, 0)
    flat = flatten_dict(whole, sep="/")
    for name, leaf in flat.items():
        if name.endswith("lora/b"):
            flat[name] = jnp.asarray(golden.draw(name, leaf.shape, 0.1))
    return unflatten_dict(flat, sep="/")


def unpacked(params, kind):
    """(dense, kernel) of a projection's first layer, as [tiles, 64, out]."""
    kernel = params["language"]["layers"]["mlp"]["down_proj"]["kernel"]
    packed = quantize(params, kind)["language"]["layers"]["mlp"]["down_proj"]["kernel"]
    assert packed.shape == kernel.shape
    dense = packed[...].astype(jnp.float32)
    return (np.asarray(leaf[0]).reshape(-1, 64, kernel.shape[-1]) for leaf in (dense, kernel))


def test_nf4_takes_the_nearest_level_of_each_column_and_64_rows(params):
    dense, kernel = unpacked(params, "nf4")
    scale = np.abs(kernel).max(axis=1, keepdims=True)
    levels = NF4[np.abs((kernel / scale)[..., None] - NF4).argmin(-1)]
    np.testing.assert_allclose(dense, levels * scale, atol=1e-6)
    assert np.linalg.norm(dense - kernel) < 0.12 * np.linalg.norm(kernel)


def test_int8_takes_the_nearest_of_255_levels(params):
    dense, kernel = unpacked(params, "int8")
    scale = np.abs(kernel).max(axis=1, keepdims=True) / 127.5
    np.testing.assert_allclose(dense / scale, np.round(dense / scale), atol=1e-3)
    # Half a level, but for rounding where two are as near.
    np.testing.assert_array_less(np.abs(dense - kernel) / scale, 0.501)
    assert np.linalg.norm(dense - kernel) < 0.006 * np.linalg.norm(kernel)


def test_only_the_decoders_kernels_are_packed(params):
    flat = flatten_dict(quantize(params, "int8"), sep="/")
    for name, leaf in flat.items():
        packed = name.startswith("language/layers/") and name.endswith("kernel")
        assert isinstance(leaf, Quantized) == packed, name
        if packed:
            assert leaf.array.qvalue.dtype == jnp.int8


@pytest.mark.parametrize("kind, closeness", [("nf4", 0.95), ("int8", 0.999)])
def test_vectors_are_those_of_the_rounded_kernels(params, kind, closeness):
    packed = quantize(params, kind)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if isinstance(leaf, Quantized) else leaf,
        packed,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )
    embed = jax.jit(make_embed(WIDE))
    vectors = embed(packed, TEXT)
    np.testing.assert_allclose(vectors, embed(rounded, TEXT), atol=1e-5)
    assert closeness < cosine(vectors, embed(params, TEXT)).min() < 0.999999


@pytest.mark.slow
def test_gradients_reach_the_adapters_of_a_packed_base(params):
    base, adapters = lora.split(quantize(params, "nf4"))
    weights = golden.draw("weights", (1, 128))
    results = []
    for remat in ("none", "full"):
        embed = make_embed(dataclasses.replace(WIDE, remat_text=remat))
        key = jax.random.split(jax.random.key(0), len(TEXT.length))

        def loss(tree, embed=embed, key=key):
            return (embed(lora.join(base, tree), TEXT, key) * weights).sum()

        results.append(jax.jit(jax.grad(loss))(adapters))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)


def test_adapters_do_not_merge_into_a_packed_base(params):
    with pytest.raises(UserError, match="quantized base; load the original"):
        lora.merge(quantize(params, "int8"), WIDE)


def test_kernels_that_cannot_be_packed_are_an_error(params, monkeypatch):
    with pytest.raises(UserError, match="unknown quantization 'fp4'; known: nf4, int8"):
        quantize(params, "fp4")
    with pytest.raises(UserError, match="matches no kernel"):
        quantize(params, "nf4", targets="embed_tokens")
    with pytest.raises(UserError, match="64 does not divide the rows of visual/.*/kernel"):
        quantize(params, "nf4", targets="visual")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match="needs qwix"):
        quantize(params, "nf4")
