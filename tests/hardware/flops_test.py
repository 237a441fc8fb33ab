"""Model FLOPs against the matrix products in the program's jaxpr."""

import dataclasses
from math import prod

import jax
import numpy as np
import pytest

from gve_jax.hardware import flops
from gve_jax.hardware.chips import CHIPS, find_chip
from gve_jax.learning.state import join, split
from gve_jax.model.batch import Batch
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.model.embedder import init_params, make_embed

CFG = ModelConfig.from_dict(
    dict(
        vision=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            out_hidden_size=64,
            fullatt_block_indexes=(1,),
            window_size=56,
        ),
        text=dict(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            mrope_section=(2, 3, 3),
        ),
    )
)
# Qwen3-VL: two matrices in the tower's MLP, no windows, two deepstack mergers, heads that are wider
# in sum than the decoder.
QWEN3 = ModelConfig(
    vision=dataclasses.replace(
        CFG.vision,
        fullatt_block_indexes=(0, 1, 2),
        window_size=0,
        norm="layer",
        mlp="gelu_tanh",
        patch_bias=True,
        position_side=4,
        deepstack=(0, 1),
    ),
    text=dataclasses.replace(
        CFG.text, head_dim=32, mrope_section=(6, 5, 5), mrope_interleaved=True, qk_norm=True
    ),
    architecture="qwen3_vl",
)
ITEMS, PAIRS, PATCHES, TOKENS = 2, 3, 32, 40  # frames of two full windows of 16 patches
ADAPTERS = ((r"/lora/[ab]$", 1.0), (".*", 0.0))


def batch(pairs: int = PAIRS, slots: int = PATCHES) -> Batch:
    patches = PATCHES if pairs else 0
    shapes = dict(
        tokens=(ITEMS, TOKENS),
        length=(ITEMS,),
        positions=(ITEMS, 3, TOKENS),
        patches=(ITEMS, pairs, patches, CFG.vision.patch_dim),
        patch_mask=(ITEMS, pairs, patches),
        patch_coords=(ITEMS, pairs, patches, 2),
        window_slots=(ITEMS, pairs, slots if pairs else 0),
        window_inverse=(ITEMS, pairs, patches),
        visual_slots=(ITEMS, TOKENS),
        visual_inverse=(ITEMS, pairs * patches // 4),
    )
    kinds = {"patches": np.uint8, "patch_mask": np.bool_}
    return Batch(**{n: jax.ShapeDtypeStruct(s, kinds.get(n, np.int32)) for n, s in shapes.items()})


def products(jaxpr) -> float:
    """FLOPs of all dot_generals, multiplied by the lengths of loops."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (left, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * prod(eqn.outvars[0].aval.shape) * prod(shape[n] for n in left)
        elif eqn.primitive.name == "scan":
            length = eqn.params["length"]
            inner = eqn.params["jaxpr"].jaxpr
            total += length * products(inner)
        elif eqn.primitive.name == "cond":
            # In each stack one of three layers takes branch 1 (last layer; full attention).
            work = [products(branch.jaxpr) for branch in eqn.params["branches"]]
            total += (2 * work[0] + work[1]) / 3
        else:
            for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
                value = getattr(value, "jaxpr", value)
                if hasattr(value, "eqns"):
                    total += products(value)
    return total


def abstract(cfg):
    return jax.eval_shape(lambda: init_params(cfg, 0)[1])


def masked_flops(cfg, sides) -> float:
    """FLOPs of masked scores, which the program computes in all layers except the last."""
    masked = TOKENS**2 - TOKENS * (TOKENS + 1) / 2
    width = cfg.text.num_attention_heads * cfg.text.head_dim
    return 4.0 * sides * ITEMS * masked * width * (cfg.text.num_hidden_layers - 1)


@pytest.mark.parametrize("cfg", [CFG, QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
def test_encoding_counts_the_products_of_the_program(cfg):
    side = cfg.vision.window_side
    arrays = batch(slots=PATCHES if side else 0)
    executed = products(jax.make_jaxpr(make_embed(cfg))(abstract(cfg), arrays).jaxpr)
    counts = flops.Counts.of_shape(side, ITEMS, PAIRS, PATCHES, TOKENS)
    expected = flops.encode(cfg, counts)
    assert expected.total + masked_flops(cfg, 1) == pytest.approx(executed, rel=1e-3)
    texts = flops.encode(cfg, flops.Counts.of_shape(side, ITEMS, 0, 0, TOKENS))
    assert texts == (0.0, expected.decoder)


@pytest.mark.parametrize(
    "rates", [ADAPTERS, ((".*", 1.0),), (("^visual/merger/", 1.0), (".*", 0.0))]
)
@pytest.mark.parametrize("plain", [CFG, QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
def test_a_step_counts_the_products_of_its_gradient(plain, rates):
    """Without recomputation; a frozen tower has no backward pass."""
    cfg = dataclasses.replace(plain, lora=LoraConfig(rank=4)) if rates is ADAPTERS else plain
    trained, frozen = split(abstract(cfg), rates)
    embed = make_embed(cfg)

    def gradient(trained, frozen, arrays):
        return jax.grad(lambda t: embed(join(t, frozen), arrays).sum())(trained)

    arrays = batch(slots=PATCHES if cfg.vision.window_side else 0)
    executed = products(jax.make_jaxpr(gradient)(trained, frozen, arrays).jaxpr)
    names = [
        "/".join(str(key.key) for key in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(trained)[0]
    ]
    counts = flops.Counts.of_shape(cfg.vision.window_side, ITEMS, PAIRS, PATCHES, TOKENS)
    expected = flops.train(cfg, [counts], flops.trains(names))
    unnecessary = masked_flops(cfg, 3)
    if rates is ADAPTERS:
        # The inputs of the first layer's q, k, v need no gradients, but a scan computes them.
        heads = cfg.text.num_attention_heads * cfg.text.head_dim  # of k and v: half as many each
        unnecessary += 2.0 * ITEMS * TOKENS * (64 * 2 * heads + 64 * 4 * 3)
    assert expected.total + unnecessary == pytest.approx(executed, rel=1e-3)


def test_a_frozen_tower_is_forward_only():
    cfg = dataclasses.replace(CFG, lora=LoraConfig(rank=4))
    counts = flops.Counts.of_shape(cfg.vision.window_side, ITEMS, PAIRS, PATCHES, TOKENS)
    names = ["language/layers/mlp/up_proj/lora/a", "language/layers/mlp/up_proj/lora/b"]
    step = flops.train(cfg, [counts], flops.trains(names))
    assert step.tower == flops.encode(cfg, counts).tower
    assert 1.5 < step.decoder / flops.encode(cfg, counts).decoder < 2.1


def test_counts_leave_out_padding():
    counts = flops.Counts.of([5, 3], [[16, 4], [2]])
    assert counts == (2, 8, 15 + 6, 22, 400 + 4, 256 + 16 + 4)
    assert flops.Counts.of_shape(CFG.vision.window_side, 2, 1, 20, 5) == (
        2,
        10,
        30,
        40,
        800,
        2 * (256 + 16),
    )


def test_chips_are_found_by_device_kind():
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA H200": "h200",
        "NVIDIA H100 80GB HBM3": "h100",
    }
    assert {kind: find_chip(kind).name for kind in kinds} == kinds
    assert find_chip("cpu") is None
    assert CHIPS["v5p"].flops == 459e12
