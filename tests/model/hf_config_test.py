"""config.json in both layouts, nothing filled in, everything refused that is not implemented."""

import dataclasses
import json

import pytest

from gve_jax.model.config import ModelConfig
from gve_jax.model.hf_config import from_hf, to_hf
from tests.checkpoints import CFG, config_json, nested_json

IDS = {"bos_token_id": 1, "eos_token_id": 2, "image_token_id": 3, "video_token_id": 4,
       "vision_start_token_id": 5, "vision_end_token_id": 6}  # fmt: skip


def described(dtype: str) -> ModelConfig:
    return dataclasses.replace(CFG, dtype=dtype, param_dtype=dtype)


@pytest.mark.parametrize("fields", [config_json(), nested_json()], ids=["flat", "nested"])
def test_both_layouts_are_read(fields):
    assert from_hf(fields, "bfloat16") == described("bfloat16")


def test_the_nested_layout_of_transformers_4_is_read():
    """4.52 to 4.57: nested, but rope as before; the flat fields may still stand beside it."""
    fields = nested_json() | {"hidden_size": 7, "rope_theta": 3.0}
    rope = {"type": "default", "rope_type": "default", "mrope_section": [2, 2, 2]}
    text = fields["text_config"] | {"rope_theta": 1000000.0, "rope_scaling": rope}
    del text["rope_parameters"]
    assert from_hf(fields | {"text_config": text}, "float32") == CFG


@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_what_is_written_is_read_back(layout):
    fields = json.loads(json.dumps(to_hf(CFG, IDS, "bfloat16", layout)))
    assert from_hf(fields, "float32") == CFG
    assert fields["image_token_id"] == 3 and fields["tie_word_embeddings"] is True
    flat = set(config_json()) - {"initializer_range", "max_window_layers", "sliding_window",
                                 "transformers_version"}  # fmt: skip
    if layout == "4.49":
        assert flat <= set(fields)
        assert set(config_json()["vision_config"]) <= set(fields["vision_config"])


TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rope_theta",
        "num_attention_heads", "num_key_value_heads", "rms_norm_eps")  # fmt: skip
VISION = ("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
          "fullatt_block_indexes", "window_size", "spatial_merge_size", "temporal_patch_size",
          "tokens_per_second")  # fmt: skip
TOWER = config_json()["vision_config"]


@pytest.mark.parametrize("part, name", [*(("", n) for n in TEXT), *(("vision_config", n) for n in
                         VISION), ("rope_scaling", "mrope_section")])  # fmt: skip
def test_a_missing_field_is_named(part, name):
    fields = config_json()
    del (fields[part] if part else fields)[name]
    with pytest.raises(ValueError, match=rf"\b{part}\.?{name}\b"):
        from_hf(fields, "float32")


def test_all_missing_fields_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        from_hf({"model_type": "qwen2_5_vl"}, "float32")
    named = str(caught.value)
    for name in (*TEXT, *(f"vision_config.{n}" for n in VISION), "vision_config.in_channels",
                 "rope_scaling.mrope_section"):  # fmt: skip
        assert name in named
    nested = nested_json()
    del nested["text_config"]["num_key_value_heads"]
    nested["text_config"]["rope_parameters"] = {}
    with pytest.raises(ValueError, match="text_config.num_key_value_heads.*rope_parameters.mrope_"):
        from_hf(nested, "float32")


@pytest.mark.parametrize("change, named", [
    ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
    ({"model_type": None}, "model_type is None"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 2, 2]}}, "rope_scaling.type 'yarn'"),
    ({"rope_scaling": {"mrope_section": [2, 2, "2"]}}, "rope_scaling.mrope_section"),
    ({"hidden_size": "48"}, "hidden_size is '48'"),
    ({"hidden_size": 50}, "out_hidden_size"),
    ({"head_dim": 64}, "head_dim 64"),
    ({"rms_norm_eps": True}, "rms_norm_eps is True"),
    ({"quantization_config": {}}, "quantized"),
    ({"vision_config": []}, "vision_config"),
    ({"text_config": 3}, "text_config"),
    ({"vision_config": TOWER | {"in_chans": 1}}, "in_chans 1"),
    ({"vision_config": TOWER | {"hidden_act": "quick_gelu"}}, "quick_gelu"),
    ({"vision_config": TOWER | {"spatial_patch_size": 16}}, "spatial_patch_size"),
    ({"vision_config": TOWER | {"rope_parameters": {"rope_theta": 5.0}}},
     "vision_config.rope_parameters.rope_theta"),
])  # fmt: skip
def test_what_is_not_implemented_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        from_hf(config_json() | change, "float32")


def test_a_tower_that_no_config_describes_is_not_written():
    vision = dataclasses.replace(CFG.vision, rope_theta=5000.0)
    with pytest.raises(ValueError, match="rope_theta"):
        to_hf(dataclasses.replace(CFG, vision=vision), IDS, "float32", "5")
