"""Converts between ModelConfig and the config.json of a Hugging Face checkpoint of Qwen2-VL,
Qwen2.5-VL or Qwen3-VL.

Two layouts are read: the flat one of the released Qwen2-VL and Qwen2.5-VL, with the decoder's
fields at the top level, and the nested one of Qwen3-VL and of transformers 5 (`text_config`,
`rope_parameters`). Fields that affect shapes or numbers have no defaults: those of transformers'
classes differ from the released models (`tokens_per_second` 4 instead of 2, a tower 3,584 wide).

Each field is read, has no effect on an encoder (`_INERT`), or is unknown. Unknown fields are
ignored if null, false or empty, and refused by name otherwise: they may stand for arithmetic that
is not implemented.
"""

import math
import sys
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from gve_jax.model.config import HALF, ModelConfig, TextConfig, VisionConfig

# Integers with the same name on both sides.
_TEXT_FIELDS = tuple(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads
    """.split()
)
_SHARED_VISION_FIELDS = "depth num_heads patch_size spatial_merge_size temporal_patch_size"
_TOWER_THETA, _TOWER_EPS = 10_000.0, 1e-6  # constants of the architecture, not in config.json


class _Architecture(NamedTuple):
    """What distinguishes the config.json of one `model_type`.

    Attributes:
      head: class of transformers with a vocabulary head.
      vision: fields of `vision_config` with the name of ours, beside those that all have.
      activations: of the tower, as config.json names them.
      tower, decoder: fields of ours that the architecture implies.
      nested: whether releases have a `text_config`.
      max_positions: of the released models.
    """

    head: str
    vision: str
    activations: tuple[str, ...]
    tower: Mapping[str, Any]
    decoder: Mapping[str, Any]
    nested: bool
    max_positions: int


_ARCHITECTURES = {
    "qwen2_vl": _Architecture(
        "Qwen2VLForConditionalGeneration",
        "",
        ("quick_gelu",),
        dict(norm="layer", mlp="quick_gelu", window_size=0, tokens_per_second=0),
        {},
        nested=False,
        max_positions=32_768,
    ),
    "qwen2_5_vl": _Architecture(
        "Qwen2_5_VLForConditionalGeneration",
        "hidden_size intermediate_size out_hidden_size window_size tokens_per_second",
        ("silu",),
        {},
        {},
        nested=False,
        max_positions=128_000,
    ),
    "qwen3_vl": _Architecture(
        "Qwen3VLForConditionalGeneration",
        "hidden_size intermediate_size out_hidden_size",
        ("gelu_pytorch_tanh",),
        dict(
            norm="layer",
            mlp="gelu_tanh",
            window_size=0,
            tokens_per_second=0,
            patch_bias=True,
            pixel_mean=HALF,
            pixel_std=HALF,
        ),
        dict(qkv_bias=False, qk_norm=True, mrope_interleaved=True),
        nested=True,
        max_positions=262_144,
    ),
}
MODEL_TYPES = {name: name for name in _ARCHITECTURES} | {"unite_qwen2_vl": "qwen2_vl"}
# Architectures that users may take for one of these.
_OTHERS = {
    "qwen3_vl_moe": "its mixture of experts is not implemented",
    "qwen3_5": "its gated delta-rule layers are not implemented",
    "qwen3_5_moe": "its gated delta-rule layers and experts are not implemented",
    "qwen2": "it has no vision tower",
    "qwen3": "it has no vision tower",
}
_DTYPES = ("float32", "bfloat16", "float16")

# Fields of transformers' PretrainedConfig (4.49.0) and PreTrainedConfig (5.23.0) that are metadata,
# read by `generate`, or used only in training or by another head.
_NOTES = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation_autoset name_or_path architectures auto_map
    model_type transformers_version processor_class tokenizer_class torch_dtype dtype
    torchscript use_bfloat16 tf_legacy_loss return_dict output_hidden_states output_attentions
    attn_implementation finetuning_task id2label label2id num_labels problem_type
    task_specific_params prefix initializer_range attention_dropout use_cache
    tie_word_embeddings bos_token_id eos_token_id pad_token_id sep_token_id
    decoder_start_token_id chunk_size_feed_forward unsloth_fixed unsloth_version
    """.split()
)
_GENERATION = frozenset(
    """
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)
# Token ids do not affect the arithmetic; `gve_jax.inputs.tokenizer` compares them.
_TOKEN_IDS = frozenset(
    """
    image_token_id video_token_id vision_start_token_id vision_end_token_id vision_token_id
    """.split()
)
# Of the decoder: a length without effect while rope_type is "default", and sizes of sliding
# windows, which `use_sliding_window` and `layer_types` enable.
_TEXT_INERT = frozenset({"max_position_embeddings", "sliding_window", "max_window_layers"})
_INERT = _NOTES | _GENERATION


def from_hf(fields: Mapping[str, Any], dtype: str) -> ModelConfig:
    """Returns the configuration of a model whose parameters and activations have `dtype`.

    Raises:
      ValueError: another architecture, missing fields (all are named), a field of another type, an
        unsupported variant of the architecture, an unknown field that is set.
    """
    kind = fields.get("model_type")
    if kind not in MODEL_TYPES:
        why = f", {_OTHERS[kind]}" if kind in _OTHERS else ""
        known = ", ".join(MODEL_TYPES)
        raise ValueError(f"model_type is {kind!r}{why}; supported: {known}")
    name = MODEL_TYPES[kind]
    architecture = _ARCHITECTURES[name]
    missing: list[str] = []
    flat = fields.get("text_config") is None
    top = _Fields(fields, "", missing)
    text = top if flat else top.section("text_config")
    vision = top.section("vision_config")
    rope_name = "rope_parameters" if "rope_parameters" in text.fields else "rope_scaling"
    rope = text.section(rope_name)
    theta = rope if "rope_theta" in rope.fields else text
    config = dict(
        vision=_vision(name, vision) | dict(architecture.tower),
        text=dict(
            {name: text.integer(name) for name in _TEXT_FIELDS},
            mrope_section=rope.integers("mrope_section"),
            rope_theta=theta.number("rope_theta"),
            rms_norm_eps=text.number("rms_norm_eps"),
            **architecture.decoder,
        ),
    )
    if architecture.nested:
        config["text"]["head_dim"] = text.integer("head_dim")
    if fields.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config: quantized checkpoints cannot be loaded; give the original in "
            "bfloat16 or float32"
        )
    if missing:
        raise ValueError(f"required fields of {kind} are missing: {', '.join(missing)}")
    text.only("hidden_act", "silu")
    vision.only("hidden_act", *architecture.activations)
    text.only("attention_bias", False)
    text.only("use_sliding_window", False)
    text.only("is_causal", True)
    layers = config["text"]["num_hidden_layers"]
    text.only("layer_types", ["full_attention"] * layers)
    for field in ("rope_type", "type"):
        rope.only(field, "default", "mrope")
    rope.only("partial_rotary_factor", 1.0)
    rope.only("mrope_interleaved", architecture.decoder.get("mrope_interleaved", False))
    vision.only("in_channels", 3)
    vision.only("in_chans", 3)
    vision.only("spatial_patch_size", config["vision"]["patch_size"])
    tower_rope = vision.section("rope_parameters")
    tower_rope.only("rope_theta", _TOWER_THETA)
    tower_rope.only("rope_type", "axial", "default")
    built = ModelConfig(
        vision=VisionConfig(**config["vision"], rope_theta=_TOWER_THETA, rms_norm_eps=_TOWER_EPS),
        text=TextConfig(**config["text"]),
        architecture=name,
        dtype=dtype,
        param_dtype=dtype,
    )
    text.only("head_dim", built.text.head_dim)
    # Last, so that a known variant is reported as such.
    for part in (rope, tower_rope):
        part.refuse_unknown(frozenset())
    vision.refuse_unknown(_INERT | _TOKEN_IDS)
    inert = _INERT | _TEXT_INERT | _TOKEN_IDS | {"gve_jax", "emb_token_ids"}
    text.refuse_unknown(inert)
    if not flat:
        top.refuse_unknown(inert | text.known | {"rope_theta", "rope_scaling", "rope_parameters"})
    return built


def _vision(name: str, vision: "_Fields") -> dict[str, Any]:
    """The fields of a `vision_config` that its architecture does not imply."""
    named = f"{_SHARED_VISION_FIELDS} {_ARCHITECTURES[name].vision}".split()
    found = {field: vision.integer(field) for field in named}
    found["in_channels"] = vision.integer("in_channels", "in_chans")
    if name == "qwen2_vl":
        width, ratio = vision.integer("embed_dim"), vision.number("mlp_ratio")
        # There `hidden_size` is the decoder's width.
        found |= dict(hidden_size=width, out_hidden_size=vision.integer("hidden_size"))
        found["intermediate_size"] = None if None in (width, ratio) else int(width * ratio)
    if name == "qwen2_5_vl":
        found["fullatt_block_indexes"] = vision.integers("fullatt_block_indexes")
    else:
        found["fullatt_block_indexes"] = tuple(range(found["depth"] or 0))
    if name == "qwen3_vl":
        found["deepstack"] = vision.integers("deepstack_visual_indexes")
        positions = vision.integer("num_position_embeddings")
        found["position_side"] = None if positions is None else math.isqrt(positions)
        if positions is not None and found["position_side"] ** 2 != positions:
            raise ValueError(f"num_position_embeddings {positions} is not a square")
    return found


def recorded_dtype(fields: Mapping[str, Any]) -> str | None:
    """Returns the dtype that a config.json records for its tensors, or None.

    Raises:
      ValueError: an unsupported dtype.
    """
    text = fields.get("text_config")
    for part in (fields, text if isinstance(text, Mapping) else {}):
        for name in ("dtype", "torch_dtype"):
            value = part.get(name)
            if value is None:
                continue
            dtype = value.removeprefix("torch.") if isinstance(value, str) else value
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{name} is {value!r}, not one of {', '.join(_DTYPES)}; choose one by dtype="
                )
            return dtype
    return None


def check_preprocessor(fields: Mapping[str, Any], vision: VisionConfig) -> None:
    """Checks that a preprocessor_config.json describes what `gve_jax.inputs` does.

    Pixel and frame budgets (`min_pixels`, `max_pixels`, `size`, `fps`) are not read: the model's
    input settings hold them. Unknown fields are ignored, as by transformers' image processor.

    Raises:
      ValueError: naming the field and the supported value.
    """
    read = _Fields(fields, "", [])
    read.only("image_mean", list(vision.pixel_mean))
    read.only("image_std", list(vision.pixel_std))
    read.only("resample", 3)  # bicubic
    for name in ("do_normalize", "do_rescale", "do_resize"):
        read.only(name, True)
    for name in ("do_center_crop", "do_pad"):
        read.only(name, False)
    read.only("patch_size", vision.patch_size)
    read.only("merge_size", vision.spatial_merge_size)
    read.only("temporal_patch_size", vision.temporal_patch_size)
    factor = fields.get("rescale_factor")
    if factor is not None and not (type(factor) is float and math.isclose(factor, 1 / 255)):
        raise ValueError(f"rescale_factor {factor!r} is not supported; only {1 / 255!r} is")


def to_hf(cfg: ModelConfig, ids: Mapping[str, int], dtype: str, layout: str) -> dict[str, Any]:
    """Returns the config.json of a checkpoint in a layout of `gve_jax.checkpoints.weight_names`.

    transformers 4.49 and later read layout "4.49" (flat), 5 reads both. The head is declared as
    tied to the embeddings, so that a checkpoint without a head is complete.

    Args:
      ids: token ids by field name, such as `image_token_id`.
      dtype: of the tensors, "bfloat16".

    Raises:
      ValueError: a tower that config.json cannot describe.
    """
    v, t, name = cfg.vision, cfg.text, cfg.architecture
    architecture = _ARCHITECTURES[name]
    if (v.rope_theta, v.rms_norm_eps) != (_TOWER_THETA, _TOWER_EPS):
        raise ValueError(
            f"the tower of {name} has rope_theta {_TOWER_THETA} and rms_norm_eps "
            f"{_TOWER_EPS}, not {v.rope_theta} and {v.rms_norm_eps}"
        )
    for part, implied in ((v, architecture.tower), (t, architecture.decoder)):
        for field, value in implied.items():
            if getattr(part, field) != value:
                raise ValueError(f"{name} has {field} {value!r}, not {getattr(part, field)!r}")
    text = dict(
        {field: getattr(t, field) for field in _TEXT_FIELDS},
        rms_norm_eps=t.rms_norm_eps,
        hidden_act="silu",
        attention_dropout=0.0,
        max_position_embeddings=architecture.max_positions,
        use_cache=True,
        bos_token_id=ids["bos_token_id"],
        eos_token_id=ids["eos_token_id"],
    )
    if architecture.nested:
        text |= dict(head_dim=t.head_dim, attention_bias=False)
    else:
        text["use_sliding_window"] = False
    named = f"{_SHARED_VISION_FIELDS} {architecture.vision}".split()
    vision = dict(
        {field: getattr(v, field) for field in named},
        in_channels=v.in_channels,
        hidden_act=architecture.activations[0],
    )
    if name == "qwen2_vl":
        if v.intermediate_size % v.hidden_size:
            raise ValueError("vision.intermediate_size must be a multiple of its hidden_size")
        ratio = v.intermediate_size // v.hidden_size
        vision |= dict(embed_dim=v.hidden_size, mlp_ratio=ratio, hidden_size=v.out_hidden_size)
    if name == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = list(v.fullatt_block_indexes)
    if name == "qwen3_vl":
        vision["deepstack_visual_indexes"] = list(v.deepstack)
        vision["num_position_embeddings"] = v.position_side**2
    else:
        vision |= dict(spatial_patch_size=v.patch_size, in_chans=v.in_channels)
    shared = dict(
        architectures=[architecture.head],
        model_type=name,
        tie_word_embeddings=True,
        **{key: ids[key] for key in ids if key.split("_")[0] in ("image", "video", "vision")},
    )
    rope = {"mrope_section": list(t.mrope_section)}
    if t.mrope_interleaved:
        rope["mrope_interleaved"] = True
    if layout == "4.49":
        if not architecture.nested:
            rope["type"] = "mrope"
            flat = dict(rope_theta=t.rope_theta, rope_scaling=rope, torch_dtype=dtype)
            return shared | text | flat | {"vision_config": vision}
        rope["rope_type"] = "default"
        text |= dict(rope_theta=t.rope_theta, rope_scaling=rope)
    else:
        text["rope_parameters"] = rope | {"rope_type": "default", "rope_theta": t.rope_theta}
    text |= {"model_type": f"{name}_text", "dtype": dtype}
    vision |= {"model_type": f"{name}_vision", "dtype": dtype}
    return shared | {"dtype": dtype, "text_config": text, "vision_config": vision}


class _Fields:
    """A section of a config.json; appends missing fields to `missing` by their full names."""

    def __init__(self, fields: object, prefix: str, missing: list[str]):
        if not isinstance(fields, Mapping):
            raise ValueError(f"{prefix.rstrip('.')} is {fields!r}, not an object")
        self.fields, self.prefix, self._missing = fields, prefix, missing
        self.known: set[str] = set()

    def section(self, name: str) -> "_Fields":
        """The object `name`; empty if absent."""
        self.known.add(name)
        fields = self.fields.get(name)
        return _Fields({} if fields is None else fields, f"{self.prefix}{name}.", self._missing)

    def integer(self, *names: str) -> int | None:
        """An integer, under the first of `names` that is present."""
        value = self._get(*names)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]  # transformers 5 allows [height, width]
        return self._checked(names[0], value, _is_count(value), "an integer of at least 0")

    def integers(self, name: str) -> tuple[int, ...] | None:
        value = self._get(name)
        good = isinstance(value, list) and all(map(_is_count, value))
        value = self._checked(name, value, good, "a list of integers of at least 0")
        return None if value is None else tuple(value)

    def number(self, name: str) -> float | None:
        value = self._get(name)
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return self._checked(name, value, good, "a number")

    def only(self, name: str, *allowed) -> None:
        """Checks that a field is absent or has a supported value."""
        self.known.add(name)
        value = self.fields.get(name)
        if value is not None and not any(_same(value, each) for each in allowed):
            raise ValueError(
                f"{self.prefix}{name} {value!r} is not supported; only {allowed[0]!r} is"
            )

    def refuse_unknown(self, inert: Set[str]) -> None:
        """Raises ValueError for a field that is set, was not read, and is not in `inert`."""
        for name, value in self.fields.items():
            if name in self.known or name in inert or is_off(value):
                continue
            raise ValueError(
                f"{self.prefix}{name} = {value!r}: unknown field, which may change what the model "
                "computes; remove it if it does not"
            )

    def _get(self, *names: str):
        self.known.update(names)
        for name in names:
            if self.fields.get(name) is not None:
                return self.fields[name]
        self._missing.append(self.prefix + names[0])
        return None

    def _checked(self, name: str, value, good: bool, kind: str):
        if value is not None and not good:
            raise ValueError(f"{self.prefix}{name} is {value!r}, not {kind}")
        return value


def _is_count(value) -> bool:
    return type(value) is int and value >= 0


def is_off(value) -> bool:
    """Whether a field is unset. 0 is not: it may be the index of the first layer."""
    return value is None or value is False or value in ("", [], {})


def _same(value, allowed) -> bool:
    """Equality that distinguishes 0 from False and 1 from True."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
