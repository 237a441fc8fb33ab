"""config.json in both layouts: no defaults, errors for what is not implemented."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gve_jax.checkpoints.hf_config import from_hf, recorded_dtype, to_hf
from gve_jax.model.config import ModelConfig
from tests.checkpoint_files import CFG, config_json, nested_json
from tests.situations import situation

IDS = json.loads(
    """{
    "bos_token_id": 1, "eos_token_id": 2, "image_token_id": 3, "video_token_id": 4,
    "vision_start_token_id": 5, "vision_end_token_id": 6
    }"""
)


def expected_config(dtype: str) -> ModelConfig:
    return dataclasses.replace(CFG, dtype=dtype, param_dtype=dtype)


@pytest.mark.parametrize("fields", [config_json(), nested_json()], ids=["flat", "nested"])
def test_both_layouts_are_read(fields):
    assert from_hf(fields, "bfloat16") == expected_config("bfloat16")


def test_nested_layout_of_transformers_4_is_read():
    """4.52 to 4.57: nested, with the older rope fields, and possibly flat fields beside it."""
    fields = nested_json() | {"hidden_size": 7, "rope_theta": 3.0}
    rope = {"type": "default", "rope_type": "default", "mrope_section": [2, 2, 2]}
    text = fields["text_config"] | {"rope_theta": 1000000.0, "rope_scaling": rope}
    del text["rope_parameters"]
    assert from_hf(fields | {"text_config": text}, "float32") == CFG


@pytest.mark.parametrize("layout", ["4.49", "5"])
def test_written_config_is_read_back(layout):
    fields = json.loads(json.dumps(to_hf(CFG, IDS, "bfloat16", layout)))
    assert from_hf(fields, "float32") == CFG
    assert fields["image_token_id"] == 3 and fields["tie_word_embeddings"] is True
    flat = set(config_json()) - {
        "initializer_range",
        "max_window_layers",
        "sliding_window",
        "transformers_version",
    }
    if layout == "4.49":
        assert flat <= set(fields)
        assert set(config_json()["vision_config"]) <= set(fields["vision_config"])


TEXT = """
    vocab_size hidden_size intermediate_size num_hidden_layers rope_theta num_attention_heads
    num_key_value_heads rms_norm_eps
""".split()
VISION = """
    depth hidden_size intermediate_size num_heads out_hidden_size patch_size fullatt_block_indexes
    window_size spatial_merge_size temporal_patch_size tokens_per_second
""".split()
TOWER = config_json()["vision_config"]


@pytest.mark.parametrize(
    "part, name",
    [
        *(("", n) for n in TEXT),
        *(("vision_config", n) for n in VISION),
        ("rope_scaling", "mrope_section"),
    ],
)
def test_missing_field_is_named(part, name):
    fields = config_json()
    del (fields[part] if part else fields)[name]
    with pytest.raises(ValueError, match=rf"\b{part}\.?{name}\b"):
        from_hf(fields, "float32")


def test_all_missing_fields_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        from_hf({"model_type": "qwen2_5_vl"}, "float32")
    named = str(caught.value)
    for name in (
        *TEXT,
        *(f"vision_config.{n}" for n in VISION),
        "vision_config.in_channels",
        "rope_scaling.mrope_section",
    ):
        assert name in named
    nested = nested_json()
    del nested["text_config"]["num_key_value_heads"]
    nested["text_config"]["rope_parameters"] = {}
    with pytest.raises(ValueError, match="text_config.num_key_value_heads.*rope_parameters.mrope_"):
        from_hf(nested, "float32")


GOLDENS = Path(__file__).parents[1] / "goldens"


# A change of config.json, and what the error names.
VARIANTS = r"""
{"model_type": "llava"} -> model_type is 'llava'; supported: qwen2_vl, qwen2_5_vl, qwen3_vl
{"model_type": "qwen3_vl_moe"} -> 'qwen3_vl_moe', its mixture of experts is not implemented
{"model_type": "qwen3"} -> model_type is 'qwen3', it has no vision tower
{"model_type": null} -> model_type is None
{"hidden_act": "gelu"} -> hidden_act 'gelu'
{"use_sliding_window": true} -> use_sliding_window
{"rope_scaling": {"type": "yarn", "mrope_section": [2, 2, 2]}} -> rope_scaling.type 'yarn'
{"rope_scaling": {"mrope_section": [2, 2, "2"]}} -> rope_scaling.mrope_section
{"hidden_size": "48"} -> hidden_size is '48'
{"hidden_size": 50} -> text.hidden_size must be a multiple of num_attention_heads
{"head_dim": 64} -> head_dim 64
{"rms_norm_eps": true} -> rms_norm_eps is True
{"quantization_config": {}} -> quantized
{"quantization_config": {"quant_method": "awq"}} -> give the original in bfloat16 or float32
{"layer_types": ["full_attention", "sliding_attention"]} -> layer_types
{"layer_types": ["full_attention"]} -> layer_types
{"is_causal": false} -> is_causal False
{"use_bidirectional_attention": true} -> use_bidirectional_attention = True: unknown field
{"attention_bias": true} -> attention_bias True is not supported
{"rope_scaling.factor": 4.0} -> rope_scaling.factor = 4.0: unknown field
{"rope_scaling.partial_rotary_factor": 0.5} -> rope_scaling.partial_rotary_factor 0.5
{"rope_scaling.mrope_interleaved": true} -> interleaved
{"rope_scaling": "yarn"} -> rope_scaling is 'yarn', not an object
{"vision_config.deepstack_indexes": [1]} -> vision_config.deepstack_indexes
{"use_sliding_window": 1} -> use_sliding_window 1
{"num_attention_heads": 0} -> num_attention_heads must be at least 1
{"rms_norm_eps": NaN} -> rms_norm_eps is nan
{"rms_norm_eps": "1e-6"} -> rms_norm_eps is '1e-6', not a number
{"vocab_size": [1, 2]} -> vocab_size is \[1, 2\]
{"vision_config": null} -> required fields of qwen2_5_vl are missing
{"hidden_act": ["silu"]} -> hidden_act \['silu'\]
{"vision_config": []} -> vision_config
{"text_config": 3} -> text_config
{"vision_config.in_chans": 1} -> in_chans 1
{"vision_config.hidden_act": "quick_gelu"} -> quick_gelu
{"vision_config.spatial_patch_size": 16} -> spatial_patch_size
{"vision_config.rope_parameters": {"rope_theta": 5.0}} -> vision_config.rope_parameters.rope_theta
"""


@pytest.mark.parametrize("line", VARIANTS.strip().splitlines())
@situation(
    "Models and checkpoints",
    "config.json of an unsupported variant (yarn, sliding windows, another activation, no "
    "causal mask) or with an unknown field that is set",
    "an error that names the field",
    since="0.2.0",
)
def test_variants_are_refused_by_field(line):
    change, named = line.split(" -> ")
    fields = config_json()
    for name, value in json.loads(change).items():
        section, _, field = name.rpartition(".")
        (fields[section] if section else fields)[field] = value
    with pytest.raises(ValueError, match=named):
        from_hf(fields, "float32")


def test_unsupported_tower_is_not_written():
    vision = dataclasses.replace(CFG.vision, rope_theta=5000.0)
    with pytest.raises(ValueError, match="rope_theta"):
        to_hf(dataclasses.replace(CFG, vision=vision), IDS, "float32", "5")


# Fields of PretrainedConfig in transformers 4.49.0 and 5.23.0, and of others, without effect.
INERT = json.loads(
    """{
    "_name_or_path": "x", "add_cross_attention": false, "architectures": ["A"],
    "auto_map": {"a": 1}, "bad_words_ids": null, "begin_suppress_tokens": null,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null,
    "decoder_start_token_id": null, "diversity_penalty": 0.0, "do_sample": false,
    "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": null, "finetuning_task": null,
    "forced_bos_token_id": null, "forced_eos_token_id": null, "id2label": {"0": "LABEL_0",
    "1": "LABEL_1"}, "is_decoder": false, "is_encoder_decoder": false, "label2id": {"LABEL_0": 0,
    "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": false, "output_hidden_states": false, "output_scores": false,
    "pad_token_id": 151643, "prefix": null, "problem_type": null, "pruned_heads": {},
    "remove_invalid_values": false, "repetition_penalty": 1.05, "return_dict": true,
    "return_dict_in_generate": false, "sep_token_id": null, "suppress_tokens": null,
    "task_specific_params": null, "temperature": 1e-06, "tf_legacy_loss": false,
    "tie_encoder_decoder": false, "tie_word_embeddings": false, "tokenizer_class": null,
    "top_k": 50, "top_p": 1.0, "torchscript": false, "typical_p": 1.0, "unsloth_fixed": true,
    "use_bfloat16": false, "vision_token_id": 151654, "eos_token_id": [1, 2],
    "_attn_implementation_autoset": true, "some_switch": false, "some_list": [], "some_note": null
    }"""
)


@situation(
    "Models and checkpoints",
    '`"quantization_config": null` in config.json',
    "loads; any other value is an error",
    since="0.2.0",
)
@situation(
    "Models and checkpoints",
    "a complete config.json of transformers 4.49 to 5.23, with generation settings and "
    "unknown fields that are unset",
    "loads",
    since="0.1.0",
)
@pytest.mark.parametrize("more", [INERT, {"quantization_config": None}])
def test_fields_without_effect_are_accepted(more):
    assert from_hf(config_json() | more, "float32") == CFG
    fields = nested_json()
    parts = {name: fields[name] | more for name in ("text_config", "vision_config")}
    assert from_hf(fields | more | parts, "float32") == CFG
    layers = ["full_attention"] * CFG.text.num_hidden_layers
    assert from_hf(config_json() | {"layer_types": layers, "is_causal": True}, "float32") == CFG


@pytest.mark.parametrize(
    "fields, dtype",
    [
        ({}, None),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float32"}, "float32"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "float16"),
        ({"text_config": 3}, None),
        ({"dtype": "torch.float32"}, "float32"),
    ],
)
def test_dtype_is_read_as_each_release_writes_it(fields, dtype):
    assert recorded_dtype(fields) == dtype
    for layout in ("4.49", "5"):
        assert recorded_dtype(to_hf(CFG, IDS, "float32", layout)) == "float32"


# Changes of the config.json that transformers writes for another architecture.
OTHER_VARIANTS = [
    ("qwen2vl", "vision_config.embed_dim", None, "missing: vision_config.embed_dim"),
    ("qwen2vl", "vision_config.mlp_ratio", None, "missing: vision_config.mlp_ratio"),
    ("qwen2vl", "vision_config.hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
    ("qwen2vl", "vision_config.fullatt_block_indexes", [1], "fullatt_block_indexes"),
    ("qwen2vl", "vision_config.hidden_size", 40, "out_hidden_size must be text.hidden_size"),
    ("qwen3vl", "text_config.head_dim", None, "missing: text_config.head_dim"),
    ("qwen3vl", "text_config.rope_parameters.rope_type", "yarn", "rope_type 'yarn' is not"),
    ("qwen3vl", "text_config.rope_parameters.mrope_interleaved", False, "mrope_interleaved False"),
    ("qwen3vl", "text_config.num_experts", 8, "text_config.num_experts = 8: unknown field"),
    ("qwen3vl", "vision_config.deepstack_visual_indexes", None, "deepstack_visual_indexes"),
    ("qwen3vl", "vision_config.deepstack_visual_indexes", [2, 0], "deepstack must be ascending"),
    ("qwen3vl", "vision_config.num_position_embeddings", 35, "35 is not a square"),
    ("qwen3vl", "vision_config", {"model_type": "siglip"}, "missing: vision_config.depth, .*"),
]


@pytest.mark.parametrize("script, field, value, message", OTHER_VARIANTS)
def test_variants_of_other_architectures_are_refused_by_field(script, field, value, message):
    numbers = np.load(GOLDENS / f"{script}.npz")
    fields = json.loads(str(numbers["config.json"]))
    from_hf(fields, "float32")
    *sections, name = field.split(".")
    part = fields
    for section in sections:
        part = part[section]
    part[name] = value
    with pytest.raises(ValueError, match=message):
        from_hf(fields, "float32")
