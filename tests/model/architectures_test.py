"""Qwen2-VL and Qwen3-VL against transformers (goldens/qwen2vl.py, qwen3vl.py made the numbers)."""

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from gve_jax.checkpoints.hf_config import from_hf
from gve_jax.checkpoints.huggingface import load_hf, save_hf
from gve_jax.distributed.sharding import make_mesh, param_shardings, place_batch
from gve_jax.inputs.batch import Buckets, collate, need
from gve_jax.inputs.packing import collate_decode, collate_tower, make_plan
from gve_jax.inputs.positions import mrope_positions
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.model.batch import Batch, Frames, Packed
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import Embedder, abstract_state, make_embed, make_encode
from tests.goldens import qwen2vl, qwen3vl
from tests.goldens.qwen2vl import named_visuals
from tests.goldens.qwen25vl import draw
from tests.media.files import small_tokenizer
from tests.model.embedder_test import cosine
from tests.model.references import input_spec, make_row, read_config, read_params

SCRIPTS = {"qwen2_vl": qwen2vl, "qwen3_vl": qwen3vl}


@dataclasses.dataclass
class Reference:
    script: ModuleType
    numbers: Any
    cfg: ModelConfig
    params: dict
    spec: InputSpec
    rows: list[Row]

    def batch(self, rows=None, **larger) -> Batch:
        """Rows (all by default) in the smallest shape, or in one that is larger."""
        rows = self.rows if rows is None else rows
        exact = need(rows)
        sizes = {name: getattr(exact, name) + more for name, more in larger.items()}
        return Batch(**collate(rows, dataclasses.replace(exact, **sizes), self.spec))

    def model(self) -> Embedder:
        graph, state = abstract_state(self.cfg)
        nnx.replace_by_pure_dict(state, self.params)
        return nnx.merge(graph, state)

    def pooled(self) -> np.ndarray:
        return np.stack([self.numbers[f"{n}/pooled"] for n in range(len(self.rows))])

    def merged(self, number: int) -> np.ndarray:
        """Merged tokens of an item, their deepstack features beside them."""
        parts = []
        for name, _, _ in named_visuals(self.script.ITEMS[number]):
            key = f"{number}/{name}"
            deepstack = self.numbers[f"{key}/deepstack"] if self.cfg.vision.deepstack else ()
            parts.append(np.concatenate([self.numbers[key], *deepstack], axis=-1))
        return np.concatenate(parts)


@pytest.fixture(scope="module", params=SCRIPTS)
def reference(request) -> Reference:
    script = SCRIPTS[request.param]
    numbers = np.load(Path(script.__file__).with_suffix(".npz"))
    cfg = read_config(numbers)
    assert cfg.architecture == request.param
    spec = input_spec(cfg)
    rows = [make_row(script, number, spec) for number in range(len(script.ITEMS))]
    return Reference(script, numbers, cfg, read_params(cfg, numbers), spec, rows)


@pytest.fixture(scope="module")
def embed(reference):
    return jax.jit(make_embed(reference.cfg))


def assert_close(found, expected, relative: float):
    """Differences are relative to the largest number."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < relative * np.abs(expected).max()


def test_positions_equal_those_written_token_by_token(reference):
    """Qwen2-VL's step is one position; Qwen3-VL's frame pairs are visuals of their own."""
    for number, item in enumerate(reference.script.ITEMS):
        segments: list[tuple] = [("text", item["before"])]
        for kind, (t, h, w) in item["visuals"]:
            if reference.script is qwen2vl:
                segments += [("text", 1), ("visual", (t, h // 2, w // 2), 0.83), ("text", 1)]
                continue
            stamp = qwen3vl.TIME_TOKENS if kind == "video" else 0
            pair = [("text", stamp + 1), ("visual", (1, h // 2, w // 2), 0.83), ("text", 1)]
            segments += pair * t
        segments.append(("text", item["after"]))
        regime = "sequential" if item.get("sequential") else "qwen_train"
        found = mrope_positions(segments, reference.cfg.vision.tokens_per_second, regime)
        np.testing.assert_array_equal(found, reference.rows[number].positions)


def test_tower_equals_reference(reference):
    """Also learned positions: grids with fewer and more rows or columns than their table has."""
    tower = jax.jit(reference.model().visual)
    for number, row in enumerate(reference.rows):
        if not row.patches:
            continue
        batch = reference.batch([row], patches=8)
        fields = ("patches", "patch_mask", "patch_coords", "window_slots", "window_inverse")
        merged = np.asarray(tower(*(getattr(batch, name)[0] for name in fields)))
        slots = batch.visual_slots[0]
        mine = merged.reshape(-1, merged.shape[-1])[slots[slots >= 0]]
        assert_close(mine, reference.merged(number), 1e-5)


def test_hidden_states_and_vectors_equal_reference_in_one_padded_batch(reference, embed):
    batch = reference.batch()
    hidden = np.asarray(jax.jit(reference.model().hidden)(batch))
    for number, row in enumerate(reference.rows):
        expected = reference.numbers[f"{number}/hidden"]
        assert_close(hidden[number, : len(row.tokens)], expected, 1e-4)
    vectors = np.asarray(embed(reference.params, batch))
    assert cosine(vectors, reference.pooled()).min() > 0.999999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("share", [True, False])
def test_packed_items_have_the_vectors_of_the_reference(reference, share):
    cfg, rows = reference.cfg, dict(enumerate(reference.rows))
    exact = need(reference.rows)
    shapes = ((exact.pairs, exact.length), (exact.pairs, 3 * exact.length))
    buckets = Buckets(shapes, patches=exact.patches, windows=1, frames=((32, 1),))
    tower, decode = map(jax.jit, make_encode(cfg))
    plan = make_plan(rows, buckets, 4, 1, share)
    merged = {index: [None] * len(row.patches) for index, row in rows.items() if row.patches}
    for batch in plan.tower:
        frames = Frames(**collate_tower(batch, rows, reference.spec))
        tokens = np.asarray(tower(reference.params, frames))
        for g, (index, pair) in enumerate(batch.frames):
            merged[index][pair] = tokens[g, rows[index].layouts[pair].merged]
    visuals = {index: np.concatenate(pairs) for index, pairs in merged.items()}
    width = (1 + len(cfg.vision.deepstack)) * cfg.embedding_dim
    found = {}
    for batch in plan.decoder:
        arrays = collate_decode(batch, rows, visuals, width, np.dtype(np.float32))
        hidden = np.asarray(decode(reference.params, Packed(**arrays)))
        for b, items in enumerate(batch.rows):
            found |= {index: hidden[b, n] for n, index in enumerate(items)}
    assert any(len(items) > 1 for batch in plan.decoder for items in batch.rows)
    for number in rows:
        assert cosine(found[number], reference.numbers[f"{number}/pooled"]) > 0.999999
        assert_close(found[number], reference.numbers[f"{number}/hidden"][-1], 1e-4)


@pytest.mark.parametrize("larger", [dict(pairs=2, length=24), dict(pairs=1, patches=40, length=1)])
def test_vector_does_not_depend_on_padding_or_neighbours(reference, embed, larger):
    batch = reference.batch(reference.rows[::-1], **larger)
    turned = np.asarray(embed(reference.params, batch))[::-1]
    assert cosine(turned, reference.pooled()).min() > 0.999999
    for number in (0, 3):
        alone = reference.batch([reference.rows[number]], length=5)
        vector = np.asarray(embed(reference.params, alone))[0]
        assert cosine(vector, reference.pooled()[number]) > 0.999999


def test_vector_does_not_depend_on_the_mesh(reference, embed):
    batch = reference.batch([reference.rows[n % len(reference.rows)] for n in range(8)])
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(reference.params, param_shardings(reference.params, mesh))
    vectors = np.asarray(embed(placed, place_batch(batch, mesh)))
    expected = reference.pooled()[np.arange(8) % len(reference.rows)]
    assert cosine(vectors, expected).min() > 0.999999


def test_gradients_reach_every_parameter_and_remat_changes_nothing(reference):
    batch = reference.batch()
    weights = draw("weights", (len(reference.rows), reference.cfg.embedding_dim))

    def gradients(remat):
        cfg = dataclasses.replace(reference.cfg, remat_vision=remat, remat_text=remat)
        embed = make_embed(cfg)
        return jax.jit(jax.grad(lambda p: (embed(p, batch) * weights).sum()))(reference.params)

    plain, again = gradients("none"), gradients("full")
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(plain), jax.tree.leaves(again), strict=True
    ):
        # Of each layer: one without a gradient would not be used.
        stacked = {"blocks", "layers", "deepstack"} & {part.key for part in path}
        layers = leaf if stacked else leaf[None]
        assert all(np.isfinite(one).all() and np.abs(one).max() > 0 for one in layers), path
        np.testing.assert_allclose(other, leaf, atol=1e-5 * float(np.abs(leaf).max()))


@pytest.mark.parametrize("reference", ["qwen3_vl"], indirect=True)
def test_deepstack_changes_items_with_visuals(reference, embed):
    """Without the features of either tap, items with visuals change and texts do not."""
    batch = reference.batch()
    deepstack = reference.params["visual"]["deepstack"]
    for tap in range(len(reference.cfg.vision.deepstack)):
        silent = {name: leaf.at[tap].set(0) for name, leaf in deepstack["mlp_2"].items()}
        visual = reference.params["visual"] | {"deepstack": deepstack | {"mlp_2": silent}}
        vectors = np.asarray(embed(reference.params | {"visual": visual}, batch))
        similarity = cosine(vectors, reference.pooled())
        for number, row in enumerate(reference.rows):
            assert (similarity[number] < 0.9999) == bool(row.patches)


def recorded_config(script) -> dict:
    """The config.json of transformers 5."""
    return json.loads(str(np.load(Path(script.__file__).with_suffix(".npz"))["config.json"]))


def test_fewer_layers_than_taps_are_refused():
    fields = recorded_config(qwen3vl)
    fields["text_config"]["num_hidden_layers"] = 1
    with pytest.raises(ValueError, match="deepstack"):
        from_hf(fields, "float32")


@pytest.mark.parametrize("model_type", ["qwen2_vl", "unite_qwen2_vl"])
def test_flat_config_of_qwen2_vl_is_that_of_transformers_5(model_type):
    text = dict(qwen2vl.CONFIG["text"])
    rope = {"type": "mrope", "mrope_section": text.pop("mrope_section")}
    fields = text | {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": model_type,
        "rms_norm_eps": 1e-06,
        "rope_scaling": rope,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "video_token_id": 151656,
        "vision_config": qwen2vl.CONFIG["vision"]
        | {
            "in_chans": 3,
            "model_type": "qwen2_vl",
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    assert from_hf(fields, "float32") == from_hf(recorded_config(qwen2vl), "float32")


def test_config_of_qwen3_vl_of_transformers_4_is_that_of_5():
    expected = recorded_config(qwen3vl)
    fields = recorded_config(qwen3vl)
    text = fields["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    fields["vision_config"]["model_type"] = "qwen3_vl"
    del fields["vision_config"]["rope_parameters"]
    assert from_hf(fields, "float32") == from_hf(expected, "float32")


@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_saved_checkpoint_is_loaded_again(reference, tmp_path, layout):
    tokenizer = tmp_path / "tokenizer.json"
    small_tokenizer().save(str(tokenizer))
    saved = tmp_path / "saved"
    save_hf(saved, reference.cfg, reference.params, tokenizer, layout=layout)
    assert from_hf(json.loads((saved / "config.json").read_text()), "float32") == reference.cfg
    params = load_hf(saved, reference.cfg, make_mesh({"fsdp": 2, "tensor": 4}))
    jax.tree.map(np.testing.assert_array_equal, params, reference.params)
