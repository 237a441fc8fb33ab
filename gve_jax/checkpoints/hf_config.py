"""Converts between ModelConfig and the config.json of a Hugging Face Qwen2.5-VL checkpoint.

Two layouts are read: the flat one of the released checkpoints, with the decoder's fields at the top
level, and the nested one of transformers 5 (`text_config`, `rope_parameters`). Fields that affect
shapes or numbers have no defaults: those of transformers' classes differ from the released models
(`tokens_per_second` 4 instead of 2, a tower 3,584 wide).

Each field is read, has no effect on an encoder (`_INERT`), or is unknown. Unknown fields are
ignored if null, false or empty, and refused by name otherwise: they may stand for arithmetic that
is not implemented.
"""

import math
import sys
from collections.abc import Mapping, Set
from typing import Any

from gve_jax.model.config import PIXEL_MEAN, PIXEL_STD, ModelConfig, TextConfig, VisionConfig

MODEL_TYPE = "qwen2_5_vl"
# Integers with the same name on both sides.
_TEXT_FIELDS = tuple(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads
    """.split()
)
_VISION_FIELDS = tuple(
    """
    depth hidden_size intermediate_size num_heads out_hidden_size window_size patch_size
    spatial_merge_size temporal_patch_size tokens_per_second
    """.split()
)
_TOWER_THETA, _TOWER_EPS = 10_000.0, 1e-6  # constants of the architecture, not in config.json
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
    if kind != MODEL_TYPE:
        raise ValueError(f"model_type is {kind!r}; only {MODEL_TYPE!r} can be loaded")
    missing: list[str] = []
    flat = fields.get("text_config") is None
    top = _Fields(fields, "", missing)
    text = top if flat else top.section("text_config")
    vision = top.section("vision_config")
    rope_name = "rope_parameters" if "rope_parameters" in text.fields else "rope_scaling"
    rope = text.section(rope_name)
    theta = rope if "rope_theta" in rope.fields else text
    config = dict(
        vision=dict(
            {name: vision.integer(name) for name in _VISION_FIELDS},
            fullatt_block_indexes=vision.integers("fullatt_block_indexes"),
            in_channels=vision.integer("in_channels", "in_chans"),
        ),
        text=dict(
            {name: text.integer(name) for name in _TEXT_FIELDS},
            mrope_section=rope.integers("mrope_section"),
            rope_theta=theta.number("rope_theta"),
            rms_norm_eps=text.number("rms_norm_eps"),
        ),
    )
    if fields.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config: quantized checkpoints cannot be loaded; give the original in "
            "bfloat16 or float32"
        )
    if missing:
        raise ValueError(f"required fields of {MODEL_TYPE} are missing: {', '.join(missing)}")
    for part in (text, vision):
        part.only("hidden_act", "silu")
    text.only("use_sliding_window", False)
    text.only("is_causal", True)
    layers = config["text"]["num_hidden_layers"]
    text.only("layer_types", ["full_attention"] * layers)
    for name in ("rope_type", "type"):
        rope.only(name, "default", "mrope")
    rope.only("partial_rotary_factor", 1.0)
    vision.only("in_channels", 3)
    vision.only("in_chans", 3)
    vision.only("spatial_patch_size", config["vision"]["patch_size"])
    tower_rope = vision.section("rope_parameters")
    tower_rope.only("rope_theta", _TOWER_THETA)
    tower_rope.only("rope_type", "axial", "default")
    built = ModelConfig(
        vision=VisionConfig(**config["vision"], rope_theta=_TOWER_THETA, rms_norm_eps=_TOWER_EPS),
        text=TextConfig(**config["text"]),
        dtype=dtype,
        param_dtype=dtype,
    )
    text.only("head_dim", built.text.head_dim)
    # Last, so that a known variant is reported as such.
    for part in (rope, tower_rope):
        part.refuse_unknown(frozenset())
    vision.refuse_unknown(_INERT | _TOKEN_IDS)
    inert = _INERT | _TEXT_INERT | _TOKEN_IDS | {"gve_jax"}
    text.refuse_unknown(inert)
    if not flat:
        top.refuse_unknown(inert | text.known | {"rope_theta", "rope_scaling", "rope_parameters"})
    return built


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
    read.only("image_mean", list(PIXEL_MEAN))
    read.only("image_std", list(PIXEL_STD))
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
    v, t = cfg.vision, cfg.text
    if (v.rope_theta, v.rms_norm_eps) != (_TOWER_THETA, _TOWER_EPS):
        raise ValueError(
            f"Qwen2.5-VL's tower has rope_theta {_TOWER_THETA} and rms_norm_eps "
            f"{_TOWER_EPS}, not {v.rope_theta} and {v.rms_norm_eps}"
        )
    text = dict(
        {name: getattr(t, name) for name in _TEXT_FIELDS},
        rms_norm_eps=t.rms_norm_eps,
        hidden_act="silu",
        attention_dropout=0.0,
        max_position_embeddings=128_000,  # as in the released models
        use_sliding_window=False,
        use_cache=True,
        bos_token_id=ids["bos_token_id"],
        eos_token_id=ids["eos_token_id"],
    )
    vision = dict(
        {name: getattr(v, name) for name in _VISION_FIELDS},
        fullatt_block_indexes=list(v.fullatt_block_indexes),
        spatial_patch_size=v.patch_size,
        in_channels=v.in_channels,
        in_chans=v.in_channels,
        hidden_act="silu",
    )
    section = list(t.mrope_section)
    shared = dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        model_type=MODEL_TYPE,
        tie_word_embeddings=True,
        **{name: ids[name] for name in ids if name.split("_")[0] in ("image", "video", "vision")},
    )
    if layout == "4.49":
        rope = {"type": "mrope", "mrope_section": section}
        flat = dict(rope_theta=t.rope_theta, rope_scaling=rope, torch_dtype=dtype)
        return shared | text | flat | {"vision_config": vision}
    rope = {"rope_type": "default", "rope_theta": t.rope_theta, "mrope_section": section}
    text |= {"model_type": f"{MODEL_TYPE}_text", "rope_parameters": rope, "dtype": dtype}
    vision |= {"model_type": f"{MODEL_TYPE}_vision", "dtype": dtype}
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
