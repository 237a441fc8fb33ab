"""Adapters: the function they compute, their dropout, their gradients, their trees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.distributed.sharding import param_shardings, path_name, place_batch
from gve_jax.errors import UserError
from gve_jax.inputs.batch import Bucket
from gve_jax.learning.optimizer import decays
from gve_jax.model import lora, rope
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.model.embedder import abstract_state, init_params, make_embed
from tests.goldens import qwen25vl as golden
from tests.model.embedder_test import BUCKET, CFG, ROWS, cosine, make_batch

ADAPTER = LoraConfig(rank=4, alpha=6.0, dropout=0.25)
LCFG = dataclasses.replace(CFG, lora=ADAPTER)
EVERYWHERE = dataclasses.replace(LCFG, lora=dataclasses.replace(ADAPTER, targets="."))
BATCH = make_batch(ROWS, BUCKET)
TEXT = make_batch(ROWS[3:], Bucket(0, 0, 0, 40))
KEY = jax.random.key(7)
KEYS = jax.random.split(KEY, len(TEXT.length))


@functools.cache
def drawn(cfg, b=0.3):
    """Parameters from their names; `b` is the size of the adapters' second matrix."""
    flat = flatten_dict(nnx.to_pure_dict(abstract_state(cfg)[1]), sep="/")
    for name, leaf in flat.items():
        if name.endswith(("kernel", "lora/a")):
            array = golden.draw(name, leaf.shape, leaf.shape[-2] ** -0.5)
        elif name.endswith("lora/b"):
            array = golden.draw(name, leaf.shape, b)
        else:
            array = golden.draw(name, leaf.shape, 0.1) + ("norm" in name or "ln_q" in name)
        flat[name] = jnp.asarray(array, leaf.dtype)
    return unflatten_dict(flat, sep="/")


def model_of(cfg, params):
    graph, state = abstract_state(cfg)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


@pytest.fixture(scope="module")
def params():
    return drawn(LCFG)


@pytest.fixture(scope="module")
def embed():
    return jax.jit(make_embed(LCFG))


def adapted(cfg):
    _, adapters = lora.split(nnx.to_pure_dict(abstract_state(cfg)[1]))
    return {
        name.removesuffix("/lora/a")
        for name in flatten_dict(adapters, sep="/")
        if name.endswith("a")
    }


def with_targets(pattern):
    return dataclasses.replace(CFG, lora=LoraConfig(targets=pattern))


def test_the_papers_projections_are_the_default():
    assert LoraConfig() == LoraConfig(rank=16, alpha=32, dropout=0.1)
    layer = "language/layers"
    assert adapted(dataclasses.replace(CFG, lora=LoraConfig())) == {
        f"{layer}/self_attn/q_proj",
        f"{layer}/self_attn/k_proj",
        f"{layer}/self_attn/v_proj",
        f"{layer}/mlp/gate_proj",
        f"{layer}/mlp/up_proj",
        f"{layer}/mlp/down_proj",
    }


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("o_proj$", {"language/layers/self_attn/o_proj"}),
        ("visual/blocks/attn/qkv", {"visual/blocks/attn/qkv"}),
        ("merger", {"visual/merger/mlp_0", "visual/merger/mlp_2"}),
        (
            "language/.*/mlp/up|visual/.*/mlp/up",
            {"language/layers/mlp/up_proj", "visual/blocks/mlp/up_proj"},
        ),
    ],
)
def test_targets_are_an_expression_over_paths(pattern, expected):
    assert adapted(with_targets(pattern)) == expected


@pytest.mark.parametrize(
    "names", [("q_proj", "v_proj"), "('q_proj', 'v_proj')", '["q_proj","v_proj"]']
)
def test_targets_may_be_names_as_in_peft(names):
    expected = {f"language/layers/self_attn/{name}_proj" for name in "qv"}
    assert adapted(with_targets(names)) == expected
    assert adapted(ModelConfig.from_dict(with_targets(names).to_dict())) == expected


@pytest.mark.parametrize("pattern", ["q_project", "visual/patch_embed", "norm"])
def test_targets_that_match_no_projection_are_an_error(pattern):
    with pytest.raises(UserError, match=f"{pattern}.*such as 'language/.*names: .*q_proj"):
        make_embed(with_targets(pattern))


def test_config_round_trips_and_an_older_one_is_read():
    assert ModelConfig.from_dict(LCFG.to_dict()) == LCFG
    assert ModelConfig.from_dict(CFG.to_dict()) == CFG
    older = CFG.to_dict()
    del older["lora"]
    assert ModelConfig.from_dict(older) == CFG


@pytest.mark.parametrize("field, value", [("rank", 0), ("dropout", 1.0), ("targets", "(")])
def test_a_bad_adapter_config_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"lora.{field}"):
        LoraConfig(**{field: value})


def test_adapters_start_as_pefts_and_leave_the_base_as_it_was():
    """a uniform within 1 / sqrt(inputs), b zero, float32 beside a bfloat16 base."""
    cfg = dataclasses.replace(LCFG, param_dtype="bfloat16")
    base, adapters = lora.split(init_params(cfg, 3)[1])
    _, alone = init_params(dataclasses.replace(cfg, lora=None), 3)
    jax.tree.map(np.testing.assert_array_equal, base, alone)
    for name, leaf in flatten_dict(adapters, sep="/").items():
        assert leaf.dtype == jnp.float32
        if name.endswith("b"):
            assert not leaf.any()
            continue
        bound = leaf.shape[-2] ** -0.5
        assert 0.95 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not np.allclose(leaf[0], leaf[1])


def test_a_new_adapter_changes_nothing(embed):
    whole = drawn(LCFG, b=0)
    vectors = embed(whole, TEXT)
    base = jax.jit(make_embed(CFG))(lora.split(whole)[0], TEXT)
    # Two programs, which XLA fuses and so sums in orders of their own: float32's rounding.
    np.testing.assert_allclose(vectors, base, atol=1e-6)


def numpy_merged(params, scale):
    """Kernels with their adapters multiplied out layer by layer in float64."""
    flat = flatten_dict(params, sep="/")
    out = {name: leaf for name, leaf in flat.items() if "/lora/" not in name}
    for name in flat:
        if name.endswith("lora/a"):
            a, b = (np.asarray(flat[name[:-1] + leaf], np.float64) for leaf in "ab")
            kernel = name.replace("lora/a", "kernel")
            delta = np.einsum("...ir,...ro->...io", a, b) * scale
            out[kernel] = np.asarray(flat[kernel] + delta, np.float32)
    return unflatten_dict(out, sep="/")


@pytest.mark.parametrize("cfg", [LCFG, EVERYWHERE], ids=["decoder", "everywhere"])
def test_a_merged_model_gives_the_vectors_of_the_adapted_one(cfg):
    whole = drawn(cfg)
    vectors = jax.jit(make_embed(cfg))(whole, BATCH)
    plain = jax.jit(make_embed(CFG))
    expected = numpy_merged(whole, 6.0 / 4)
    assert cosine(vectors, plain(lora.split(whole)[0], BATCH)).max() < 0.99
    assert cosine(vectors, plain(expected, BATCH)).min() > 0.999999
    merged = lora.merge(whole, cfg)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)


def test_unmerging_gives_the_base_back(params):
    base, adapters = lora.split(params)
    again = lora.unmerge(lora.merge(params, LCFG), adapters, LCFG)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)
    jax.tree.map(np.testing.assert_array_equal, lora.join(base, adapters), params)


def test_merging_keeps_the_kernels_dtype():
    """The sum is rounded once, to the nearest bfloat16."""
    cfg = dataclasses.replace(LCFG, param_dtype="bfloat16")
    whole = drawn(cfg)
    merged = lora.merge(whole, cfg)["language"]["layers"]["mlp"]["up_proj"]["kernel"]
    part = whole["language"]["layers"]["mlp"]["up_proj"]
    a, b = (np.asarray(part["lora"][leaf]) for leaf in "ab")
    exact = np.asarray(part["kernel"], np.float32) + 1.5 * a @ b
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float32), exact, rtol=2**-8, atol=1e-6)


def loss_of(cfg):
    weights = golden.draw("weights", (1, CFG.embedding_dim))
    embed = make_embed(cfg)
    return lambda p, key=None: (embed(p, TEXT, key) * weights).sum()


def test_gradients_at_the_start_reach_b_alone_then_both(params):
    grad = jax.jit(jax.grad(loss_of(LCFG)))
    for start, moved in ((drawn(LCFG, b=0), False), (params, True)):
        for name, leaf in flatten_dict(lora.split(grad(start))[1], sep="/").items():
            for layer in leaf:
                assert layer.any() == (moved or name.endswith("b")), name


def test_the_gradient_is_that_of_the_merged_kernel(params):
    """By the chain rule: da = scale * dK b', db = scale * a' dK."""
    grads = jax.jit(jax.grad(loss_of(LCFG)))(params)
    merged = jax.jit(jax.grad(loss_of(CFG)))(lora.merge(params, LCFG))
    for name in ("q_proj", "v_proj"):
        part = grads["language"]["layers"]["self_attn"][name]["lora"]
        own = params["language"]["layers"]["self_attn"][name]["lora"]
        kernel = np.asarray(merged["language"]["layers"]["self_attn"][name]["kernel"])
        a, b = np.asarray(own["a"]), np.asarray(own["b"])
        np.testing.assert_allclose(part["a"], 1.5 * kernel @ b.swapaxes(1, 2), atol=2e-5)
        np.testing.assert_allclose(part["b"], 1.5 * a.swapaxes(1, 2) @ kernel, atol=2e-5)


def test_an_adapter_drops_inputs_at_its_rate_and_keeps_their_mean():
    width, rows, rate = 64, 2000, 0.1
    cfg = LoraConfig(rank=width, alpha=width, dropout=rate)
    adapter = lora.Adapter((width, width), cfg, nnx.Rngs(params=0))
    adapter.a, adapter.b = nnx.Param(jnp.eye(width)), nnx.Param(jnp.eye(width))
    x = golden.draw("dropout", (rows, width)) + 3
    np.testing.assert_allclose(adapter(x), x, rtol=1e-6)
    adapter.seeds = nnx.Variable(jax.random.bits(KEY, (20, 2)))  # of 20 items, 100 rows each
    dropped = np.asarray(adapter(x))
    gone = dropped == 0
    sigma = (rate * (1 - rate) / gone.size) ** 0.5
    assert gone.mean() == pytest.approx(rate, abs=5 * sigma)
    np.testing.assert_allclose(dropped[~gone], x[~gone] / (1 - rate), rtol=1e-6)
    assert dropped.mean() == pytest.approx(x.mean(), rel=0.01)


def test_layers_and_projections_drop_different_inputs():
    model = model_of(LCFG, drawn(LCFG))
    lora.enable_dropout(model, jax.random.split(KEY, 3))
    keys = np.concatenate(
        [
            linear.lora.seeds[...].reshape(-1, 2)
            for _, linear in lora.projections(model)
            if linear.lora is not None
        ]
    )
    assert len(keys) == 3 * 6 * CFG.text.num_hidden_layers
    assert len(np.unique(keys, axis=0)) == len(keys)


def test_dropout_follows_its_key(params, embed):
    off = np.asarray(embed(params, TEXT))
    first, again, other = (
        np.asarray(embed(params, TEXT, jax.random.split(jax.random.key(n), len(KEYS))))
        for n in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    for a, b in ((first, other), (first, off)):
        assert np.abs(a - b).max() > 1e-3
    rate_zero = dataclasses.replace(LCFG, lora=dataclasses.replace(ADAPTER, dropout=0.0))
    np.testing.assert_allclose(jax.jit(make_embed(rate_zero))(params, TEXT, KEYS), off, atol=1e-6)


def test_a_key_without_adapters_is_an_error():
    with pytest.raises(ValueError, match="no adapters"):
        make_embed(CFG)(drawn(CFG), TEXT, KEYS)


@pytest.mark.parametrize("key", [None, jax.random.split(KEY, 2)], ids=["off", "dropout"])
def test_a_scanned_decoder_equals_its_layers_one_by_one(params, key):
    model = model_of(LCFG, params)
    if key is not None:
        lora.enable_dropout(model, key)
    x = golden.draw("x", (2, 12, CFG.text.hidden_size))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 3, 12))
    expected = model.language(x, positions)

    text = CFG.text
    turns = rope.mrope_cos_sin(positions, text.head_dim, text.rope_theta, text.mrope_section)
    layers, stacked = nnx.split(model.language.layers)
    for i in range(text.num_hidden_layers):
        x = nnx.merge(layers, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))(x, turns)
    np.testing.assert_allclose(model.language.norm(x), expected, atol=1e-5)


@pytest.mark.slow
def test_recomputation_drops_the_same_inputs(params):
    results = []
    for remat in ("none", "dots", "full"):
        cfg = dataclasses.replace(LCFG, remat_text=remat)
        results.append(jax.jit(jax.value_and_grad(loss_of(cfg)))(params, KEYS))
    (loss, grads), *others = results
    for again, grads_again in others:
        assert float(loss) == pytest.approx(float(again), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, grads_again
        )


@pytest.mark.slow
def test_vectors_and_dropout_do_not_depend_on_the_mesh(mesh):
    rows = make_batch([ROWS[n % len(ROWS)] for n in range(8)], BUCKET)
    whole, embed = drawn(EVERYWHERE), jax.jit(make_embed(EVERYWHERE))
    keys = jax.random.split(KEY, 8)
    placed = jax.device_put(whole, param_shardings(whole, mesh))
    vectors = np.asarray(embed(placed, place_batch(rows, mesh), keys))
    assert cosine(vectors, np.asarray(embed(whole, rows, keys))).min() > 0.999999


def test_adapters_are_sharded_with_their_kernels_and_decay(mesh):
    shapes = nnx.to_pure_dict(abstract_state(EVERYWHERE)[1])
    specs = flatten_dict(param_shardings(shapes, mesh), sep="/")
    for name, sharding in specs.items():
        if name.endswith("lora/a") and "merger" not in name:
            kernel = specs[name.replace("lora/a", "kernel")].spec
            assert tuple(sharding.spec)[:2] == tuple(kernel)[:2], name
            b = tuple(specs[name[:-1] + "b"].spec)
            assert b[0] is None and b[2] == kernel[2], name
    for path, decay in jax.tree_util.tree_leaves_with_path(decays(shapes)):
        assert decay == path_name(path).endswith(("kernel", "lora/a", "lora/b"))


def test_adapters_compute_in_the_dtype_of_activations(embed):
    cfg = dataclasses.replace(LCFG, dtype="bfloat16", param_dtype="bfloat16")
    whole = drawn(cfg)
    vectors = jax.jit(make_embed(cfg))(whole, TEXT)
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), whole)
    assert cosine(vectors, embed(exact, TEXT)).min() > 0.999
