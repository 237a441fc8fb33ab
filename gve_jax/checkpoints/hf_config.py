"""Our ModelConfig and the config.json of a Hugging Face Qwen2.5-VL checkpoint, both ways.

Two forms of the file are read: the flat one of the released checkpoints, which has the decoder's
fields at its top level, and the nested one of transformers 5 (`text_config`, `rope_parameters`).
What shapes the model or its numbers is never filled in from a class default: transformers' own
differ from the released models (`tokens_per_second` 4 instead of 2, a tower 3,584 wide).

Every field of the file is one of three: read, without effect on an encoder (`_INERT`), or unknown.
An unknown field that is off (null, false, empty) is skipped, and one that is on is refused by name:
it may stand for arithmetic that is not implemented.
"""

import math
import sys
from collections.abc import Mapping, Set
from typing import Any

from gve_jax.model.config import PIXEL_MEAN, PIXEL_STD, ModelConfig, TextConfig, VisionConfig

MODEL_TYPE = "qwen2_5_vl"
# Whole numbers that both sides call the same.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_VISION_FIELDS = (
    "depth",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "out_hidden_size",
    "window_size",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
)
_TOWER_THETA, _TOWER_EPS = 10_000.0, 1e-6  # constants of the architecture, in no config.json
_DTYPES = ("float32", "bfloat16", "float16")

# Of transformers' PretrainedConfig (4.49.0) and PreTrainedConfig (5.23.0): notes, what `generate`
# reads, what only training or another head uses.
_NOTES = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation_autoset",
        "name_or_path",
        "architectures",
        "auto_map",
        "model_type",
        "transformers_version",
        "processor_class",
        "tokenizer_class",
        "torch_dtype",
        "dtype",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "attn_implementation",
        "finetuning_task",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "task_specific_params",
        "prefix",
        "initializer_range",
        "attention_dropout",
        "use_cache",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "chunk_size_feed_forward",
        "unsloth_fixed",
        "unsloth_version",
    }
)
_GENERATION = frozenset(
    {
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
    }
)
# Ids of tokens that do not enter the arithmetic; `gve_jax.inputs.tokenizer` compares them.
_TOKEN_IDS = frozenset(
    {
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
    }
)
# Of the decoder: a length that scales nothing while rope_type is "default", and the sizes of
# sliding windows, which `use_sliding_window` and `layer_types` turn on.
_TEXT_INERT = frozenset({"max_position_embeddings", "sliding_window", "max_window_layers"})
_INERT = _NOTES | _GENERATION


def from_hf(fields: Mapping[str, Any], dtype: str) -> ModelConfig:
    """The model that a config.json describes, run and stored in `dtype`.

    Raises:
      ValueError: another architecture, fields missing (all of them are named), a field of another
        type, a variant of the architecture that is not implemented, an unknown field that is on.
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
            {name: vision.whole(name) for name in _VISION_FIELDS},
            fullatt_block_indexes=vision.wholes("fullatt_block_indexes"),
            in_channels=vision.whole("in_channels", "in_chans"),
        ),
        text=dict(
            {name: text.whole(name) for name in _TEXT_FIELDS},
            mrope_section=rope.wholes("mrope_section"),
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
        raise ValueError(f"lacks what the format of {MODEL_TYPE} must have: {', '.join(missing)}")
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
    # Last, so that a known variant is named as such. In the nested form text_config alone counts.
    for part in (rope, tower_rope):
        part.no_more(frozenset())
    vision.no_more(_INERT | _TOKEN_IDS)
    inert = _INERT | _TEXT_INERT | _TOKEN_IDS | {"gve_jax"}
    text.no_more(inert)
    if not flat:
        top.no_more(inert | text.known | {"rope_theta", "rope_scaling", "rope_parameters"})
    return built


def recorded_dtype(fields: Mapping[str, Any]) -> str | None:
    """The dtype that a config.json records for its tensors; None where it records none.

    Raises:
      ValueError: a dtype that parameters cannot have here.
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
    """Refuses a preprocessor_config.json that asks for other pixels than the encoder gets here.

    Pixel and frame budgets (`min_pixels`, `max_pixels`, `size`, `fps`) are not read: those of the
    GVE paper, or the recorded ones, are in the model's input settings. What else the file states
    must be what `gve_jax.inputs` does; fields that are unknown there are left to transformers,
    whose image processor ignores them too.

    Raises:
      ValueError: the field and the value that is implemented.
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
        raise ValueError(f"rescale_factor {factor!r} is not implemented, {1 / 255!r} is")


def to_hf(cfg: ModelConfig, ids: Mapping[str, int], dtype: str, layout: str) -> dict[str, Any]:
    """The config.json of a checkpoint in a key layout of `gve_jax.checkpoints.weight_names`.

    transformers 4.49 and later read layout "4.49" (flat), 5 reads both. The head counts as tied to
    the embeddings, so that a checkpoint without one is complete.

    Args:
      ids: token ids by field, `image_token_id` and the like.
      dtype: of the tensors, "bfloat16".

    Raises:
      ValueError: a tower that no config.json can describe.
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
        max_position_embeddings=128_000,  # the released models'
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
    """One part of a config.json; what it lacks is added to `missing` by its full name."""

    def __init__(self, fields: object, prefix: str, missing: list[str]):
        if not isinstance(fields, Mapping):
            raise ValueError(f"{prefix.rstrip('.')} is {fields!r}, not an object")
        self.fields, self.prefix, self._missing = fields, prefix, missing
        self.known: set[str] = set()

    def section(self, name: str) -> "_Fields":
        """The object under `name`; an empty one where there is none."""
        self.known.add(name)
        fields = self.fields.get(name)
        return _Fields({} if fields is None else fields, f"{self.prefix}{name}.", self._missing)

    def whole(self, *names: str) -> int | None:
        """A whole number, under the first of `names` that is there."""
        value = self._get(*names)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]  # transformers 5: a patch may be [height, width]
        return self._checked(names[0], value, _is_whole(value), "a whole number")

    def wholes(self, name: str) -> tuple[int, ...] | None:
        value = self._get(name)
        good = isinstance(value, list) and all(map(_is_whole, value))
        value = self._checked(name, value, good, "a list of whole numbers")
        return None if value is None else tuple(value)

    def number(self, name: str) -> float | None:
        value = self._get(name)
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return self._checked(name, value, good, "a number")

    def only(self, name: str, *allowed) -> None:
        """Refuses a value other than those implemented; the field may be absent."""
        self.known.add(name)
        value = self.fields.get(name)
        if value is not None and not any(_same(value, each) for each in allowed):
            raise ValueError(f"{self.prefix}{name} {value!r} is not implemented, {allowed[0]!r} is")

    def no_more(self, inert: Set[str]) -> None:
        """Refuses a field that is on, was not read, and is not one of `inert`."""
        for name, value in self.fields.items():
            if name in self.known or name in inert or is_off(value):
                continue
            raise ValueError(
                f"{self.prefix}{name} = {value!r}: an unknown field, which may change what the "
                "model computes; if it does not, remove it"
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


def _is_whole(value) -> bool:
    return type(value) is int and value >= 0


def is_off(value) -> bool:
    """Whether a field of a configuration says nothing. 0 does: as a layer it is the first."""
    return value is None or value is False or value in ("", [], {})


def _same(value, allowed) -> bool:
    """Equal, and not 0 for False or 1 for True."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
