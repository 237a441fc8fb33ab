"""Our ModelConfig and the config.json of a Hugging Face Qwen2.5-VL checkpoint, both ways.

Two forms of the file are read: the flat one of the released checkpoints, which has the decoder's
fields at its top level, and the nested one of transformers 5 (`text_config`, `rope_parameters`).
What shapes the model or its numbers is never filled in from a class default: transformers' own
differ from the released models (`tokens_per_second` 4 instead of 2, a tower 3,584 wide).
"""

from collections.abc import Mapping
from typing import Any

from gve_jax.model.config import ModelConfig, TextConfig, VisionConfig

MODEL_TYPE = "qwen2_5_vl"
# Whole numbers that both sides call the same.
_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip
_VISION_FIELDS = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "window_size",
    "patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second",
)  # fmt: skip
_TOWER_THETA, _TOWER_EPS = 10_000.0, 1e-6  # constants of the architecture, in no config.json


def from_hf(fields: Mapping[str, Any], dtype: str) -> ModelConfig:
    """The model that a config.json describes, run and stored in `dtype`.

    Raises:
      ValueError: another architecture, fields missing (all of them are named), or a variant of the
        architecture that is not implemented.
    """
    kind = fields.get("model_type")
    if kind != MODEL_TYPE:
        raise ValueError(f"model_type is {kind!r}; only {MODEL_TYPE!r} can be loaded")
    missing: list[str] = []
    flat = "text_config" not in fields
    text = _Fields(
        fields if flat else fields["text_config"], "" if flat else "text_config.", missing
    )
    vision = _Fields(fields.get("vision_config", {}), "vision_config.", missing)
    rope_name = "rope_parameters" if "rope_parameters" in text.fields else "rope_scaling"
    rope = _Fields(text.fields.get(rope_name) or {}, f"{text.prefix}{rope_name}.", missing)
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
    )  # fmt: skip
    if missing:
        raise ValueError(f"lacks what the format of {MODEL_TYPE} must have: {', '.join(missing)}")
    for part in (text, vision):
        part.only("hidden_act", "silu")
    text.only("use_sliding_window", False)
    rope.only("rope_type", "default", "mrope")
    rope.only("type", "default", "mrope")
    vision.only("in_channels", 3)
    vision.only("in_chans", 3)
    vision.only("spatial_patch_size", config["vision"]["patch_size"])
    tower_rope = vision.fields.get("rope_parameters") or {}
    _Fields(tower_rope, "vision_config.rope_parameters.", []).only("rope_theta", _TOWER_THETA)
    if "quantization_config" in fields:
        raise ValueError("quantization_config: quantized checkpoints cannot be loaded")
    built = ModelConfig(
        vision=VisionConfig(**config["vision"], rope_theta=_TOWER_THETA, rms_norm_eps=_TOWER_EPS),
        text=TextConfig(**config["text"]),
        dtype=dtype,
        param_dtype=dtype,
    )
    text.only("head_dim", built.text.head_dim)
    return built


def to_hf(cfg: ModelConfig, ids: Mapping[str, int], dtype: str, layout: str) -> dict[str, Any]:
    """The config.json of a checkpoint in a key layout of `gve_jax.model.weights`.

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
        raise ValueError(f"Qwen2.5-VL's tower has rope_theta {_TOWER_THETA} and rms_norm_eps "
                         f"{_TOWER_EPS}, not {v.rope_theta} and {v.rms_norm_eps}")  # fmt: skip
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

    def __init__(self, fields: Mapping[str, Any], prefix: str, missing: list[str]):
        if not isinstance(fields, Mapping):
            raise ValueError(f"{prefix.rstrip('.')} is {fields!r}, not an object")
        self.fields, self.prefix, self._missing = fields, prefix, missing

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
        return self._checked(name, value, _is_whole(value) or type(value) is float, "a number")

    def only(self, name: str, *allowed) -> None:
        """Refuses a value other than those implemented; the field may be absent."""
        value = self.fields.get(name)
        if value is not None and value not in allowed:
            raise ValueError(f"{self.prefix}{name} {value!r} is not implemented, {allowed[0]!r} is")

    def _get(self, *names: str):
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
