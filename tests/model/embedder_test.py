"""The encoder against transformers' Qwen2.5-VL (goldens/qwen25vl.py made the numbers)."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from gve_jax.distributed.sharding import make_mesh, param_shardings, place_batch
from gve_jax.hardware import hlo
from gve_jax.inputs.batch import Bucket, Buckets, collate
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.packing import collate_decode, collate_tower, make_plan
from gve_jax.inputs.positions import mrope_positions
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.media.pixels import patchify
from gve_jax.model.batch import Batch, Frames, Packed
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import (
    Embedder,
    abstract_state,
    init_params,
    make_embed,
    make_encode,
)
from tests.goldens import qwen25vl as golden

NUMBERS = np.load(Path(golden.__file__).with_suffix(".npz"))
CFG = ModelConfig.from_dict({k: dict(v) for k, v in golden.CONFIG.items()})
SPEC = InputSpec(window_side=CFG.vision.window_side)
RENAMED = (
    (r"^visual\.patch_embed\.proj\.", "visual.patch_embed."),
    (r"^visual\.merger\.mlp\.(\d)\.", r"visual.merger.mlp_\1."),
    (r"^language_model\.", "language."),
)


@pytest.fixture(scope="module")
def params():
    return reference_params(CFG, NUMBERS["names"])


def reference_params(cfg: ModelConfig, tensors):
    """The reference's weights in our tree: names mapped, matrices transposed, layers stacked."""
    target = jax.eval_shape(lambda: init_params(cfg, 0)[1])
    loose = {}
    for name in tensors:
        ours = str(name)
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        layer = re.search(r"\.(blocks|layers)\.(\d+)\.", ours)
        ours = re.sub(r"\.(blocks|layers)\.\d+\.", r".\1.", ours)
        loose.setdefault(ours, {})[int(layer[2]) if layer else None] = str(name)

    def fill(path, leaf):
        key = ".".join(part.key for part in path)
        names = loose.pop(re.sub("kernel$", "weight", key), None) or loose.pop(f"{key}.weight")
        arrays = [_reference(names[i], key, leaf.shape) for i in sorted(names, key=str)]
        return np.stack(arrays) if None not in names else arrays[0]

    filled = jax.tree_util.tree_map_with_path(fill, target)
    assert not loose, f"weights of the reference we have no place for: {sorted(loose)}"
    assert jax.tree.map(np.shape, filled) == jax.tree.map(np.shape, target)
    return jax.tree.map(jax.numpy.asarray, filled)


def _reference(name, key, shape):
    if name.endswith("patch_embed.proj.weight"):
        weight = golden.draw_weight(name, (shape[-1], 3, 2, 14, 14)).reshape(shape[-1], -1)
    elif key.endswith("kernel"):
        weight = golden.draw_weight(name, (shape[-1], shape[-2]))
    else:
        return golden.draw_weight(name, shape[-1:] if "embed_tokens" not in key else shape)
    return weight.T


def make_row(number: int) -> Row:
    item = golden.ITEMS[number]
    ids, _ = golden.tokens_of(number, item)
    segments, patches, layouts, places = [("text", item["before"])], [], [], []
    at = item["before"]
    for kind in ("video", "image"):
        if not item[kind]:
            continue
        t, gh, gw = item[kind]
        layout = window_layout(gh, gw, SPEC.window_side, SPEC.merge)
        patches += list(patchify(golden.frames_of(number, kind, item[kind]), layout, 14, 2))
        layouts += [layout] * t
        size = t * gh * gw // 4
        places.append(np.arange(at + 1, at + 1 + size))
        seconds = item["seconds"] if kind == "video" else 0
        segments += [("text", 1), ("visual", (t, gh // 2, gw // 2), seconds), ("text", 1)]
        at += size + 2
    segments.append(("text", item["after"]))
    visual_tokens = np.concatenate(places) if places else np.empty(0, np.int32)
    positions = mrope_positions(segments, CFG.vision.tokens_per_second)
    return Row(np.array(ids, np.int32), positions, patches, layouts, visual_tokens)


def make_batch(rows, bucket):
    return Batch(**collate(rows, bucket, SPEC))


ROWS = [make_row(n) for n in range(len(golden.ITEMS))]
BUCKET = Bucket(pairs=4, patches=140, windows=4, length=160)


@pytest.fixture(scope="module")
def embed():
    return jax.jit(make_embed(CFG))


def cosine(a, b):
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("number", range(len(golden.ITEMS)))
def test_positions_equal_the_training_codes_rule(number):
    _, expected = golden.tokens_of(number, golden.ITEMS[number])
    np.testing.assert_array_equal(ROWS[number].positions.T, expected)


@pytest.mark.parametrize("number, kind", [(0, "video"), (0, "image"), (1, "video"), (2, "image")])
def test_tower_equals_reference(params, number, kind):
    """Merged visual tokens, in the reference's raster order, edge windows included."""
    batch = make_batch([ROWS[number]], BUCKET)
    from flax import nnx

    graph, state = abstract_state(CFG)
    nnx.replace_by_pure_dict(state, params)
    tower = nnx.merge(graph, state).visual
    fields = (
        batch.patches,
        batch.patch_mask,
        batch.patch_coords,
        batch.window_slots,
        batch.window_inverse,
    )
    merged = np.asarray(tower(*(a[0] for a in fields))).reshape(-1, CFG.text.hidden_size)
    slots = batch.visual_slots[0][batch.visual_slots[0] >= 0]
    size = len(NUMBERS[f"{number}/{kind}"])
    mine = merged[slots[:size] if kind == "video" or number != 0 else slots[-size:]]
    np.testing.assert_allclose(mine, NUMBERS[f"{number}/{kind}"], atol=1e-5, rtol=1e-4)


def test_hidden_states_and_vectors_equal_reference_in_one_padded_batch(params, embed):
    batch = make_batch(ROWS, BUCKET)
    from flax import nnx

    graph, state = abstract_state(CFG)
    nnx.replace_by_pure_dict(state, params)
    model: Embedder = nnx.merge(graph, state)
    hidden = np.asarray(jax.jit(model.hidden)(batch))
    for number, row in enumerate(ROWS):
        expected = NUMBERS[f"{number}/hidden"]
        np.testing.assert_allclose(
            hidden[number, : len(row.tokens)], expected, atol=2e-5, rtol=1e-4
        )
    vectors = np.asarray(embed(params, batch))
    expected = np.stack([NUMBERS[f"{n}/pooled"] for n in range(len(ROWS))])
    assert cosine(vectors, expected).min() > 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_packed_items_have_the_vectors_of_the_reference(params, share, size):
    """Several items a row, frames of all items through the tower together: nothing changes."""
    rows = dict(enumerate(ROWS))
    buckets = Buckets(((4, 160), (4, 320)), patches=140, windows=4, frames=((80, 2),))
    tower, decode = map(jax.jit, make_encode(CFG))
    plan = make_plan(rows, buckets, size, 1, share)
    merged = {index: [None] * len(row.patches) for index, row in rows.items() if row.patches}
    for batch in plan.tower:
        tokens = np.asarray(tower(params, Frames(**collate_tower(batch, rows, SPEC))))
        for g, (index, pair) in enumerate(batch.frames):
            merged[index][pair] = tokens[g, rows[index].layouts[pair].merged]
    visuals = {index: np.concatenate(pairs) for index, pairs in merged.items()}
    found = {}
    for batch in plan.decoder:
        arrays = collate_decode(batch, rows, visuals, CFG.embedding_dim, np.dtype(np.float32))
        hidden = np.asarray(decode(params, Packed(**arrays)))
        for b, items in enumerate(batch.rows):
            found |= {index: hidden[b, n] for n, index in enumerate(items)}
    assert any(len(items) > 1 for batch in plan.decoder for items in batch.rows)
    for number in rows:
        assert cosine(found[number], NUMBERS[f"{number}/pooled"]) > 0.999999
        np.testing.assert_allclose(
            found[number], NUMBERS[f"{number}/hidden"][-1], atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "bucket",
    [
        Bucket(pairs=6, patches=140, windows=4, length=160),
        Bucket(pairs=4, patches=196, windows=6, length=224),
    ],
)
def test_vector_does_not_depend_on_padding_or_neighbours(params, embed, bucket):
    expected = np.asarray(embed(params, make_batch(ROWS, BUCKET)))
    turned = np.asarray(embed(params, make_batch(ROWS[::-1], bucket)))[::-1]
    assert cosine(turned, expected).min() > 0.999999
    alone = np.asarray(embed(params, make_batch(ROWS[3:], Bucket(0, 0, 0, 40))))
    assert cosine(alone[0], expected[3]) > 0.999999


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
)
def test_vector_does_not_depend_on_the_mesh(params, embed, axes):
    rows = [ROWS[n % len(ROWS)] for n in range(8)]
    expected = np.asarray(embed(params, make_batch(rows, BUCKET)))
    mesh = make_mesh(axes)
    placed = jax.device_put(params, param_shardings(params, mesh))
    vectors = np.asarray(embed(placed, place_batch(make_batch(rows, BUCKET), mesh)))
    assert cosine(vectors, expected).min() > 0.999999


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients_reach_every_parameter_and_remat_changes_nothing(params, remat):
    import dataclasses

    cfg = dataclasses.replace(CFG, remat_vision=remat, remat_text=remat)
    batch = make_batch(ROWS, BUCKET)
    weights = golden.draw("weights", (len(ROWS), CFG.embedding_dim))
    grads = jax.jit(jax.grad(lambda p: (make_embed(cfg)(p, batch) * weights).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    # A directional derivative by central differences, along the tower's first matrix.
    direction = golden.draw("direction", params["visual"]["patch_embed"]["kernel"].shape)
    embed = jax.jit(make_embed(cfg))

    def along(step):
        moved = params | {
            "visual": params["visual"]
            | {
                "patch_embed": {
                    "kernel": params["visual"]["patch_embed"]["kernel"] + step * direction
                }
            }
        }
        return float((np.asarray(embed(moved, batch), np.float64) * weights).sum())

    slope = (along(1e-3) - along(-1e-3)) / 2e-3
    assert slope == pytest.approx(
        float((grads["visual"]["patch_embed"]["kernel"] * direction).sum()), rel=2e-2
    )


def test_layers_are_initialised_differently():
    _, params = init_params(CFG, 0)
    kernel = params["visual"]["blocks"]["mlp"]["up_proj"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    _, again = init_params(CFG, 0)
    np.testing.assert_array_equal(again["visual"]["blocks"]["mlp"]["up_proj"]["kernel"], kernel)


@pytest.mark.parametrize("field, value", [("num_attention_heads", 5), ("mrope_section", (2, 2, 3))])
def test_a_config_that_does_not_fit_names_its_field(field, value):
    fields = {k: dict(v) for k, v in golden.CONFIG.items()}
    fields["text"][field] = value
    with pytest.raises(ValueError, match="text"):
        ModelConfig.from_dict(fields)


def test_rows_stay_split_through_both_stacks(params):
    """FSDP moves weights, never sums of activations: without the constraints the partitioner splits
    the width and adds up every projection's result."""
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    placed = (
        jax.device_put(params, param_shardings(params, mesh)),
        place_batch(make_batch([ROWS[0]] * 8, BUCKET), mesh),
    )
    with jax.set_mesh(mesh):
        program = hlo.read(jax.jit(make_embed(CFG)).lower(*placed).compile().as_text())
    rows, width = 8 * BUCKET.length, CFG.text.hidden_size
    sums = [one for one in hlo.collectives(program) if one.kind == "all-reduce"]
    assert all(one.bytes < rows * width * 4 / 8 for one in sums), sums
