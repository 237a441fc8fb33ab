"""A configuration's fields, checked one by one, so that a mistake is named before anything runs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gve_jax.base import Base
from gve_jax.errors import UserError
from gve_jax.model.config import ModelConfig, TextConfig, VisionConfig

# What each section must have, and may have: other sections are fields of a dataclass.
FIELDS: dict[str, tuple[str, ...]] = {
    "data": ("pairs", "cache", "sources", "tokenizer", "batch_sizes", "repeat", "siblings",
             "workers", "max_bad_share"),
    "optimizer": ("learning_rate", "warmup_steps", "b1", "b2", "weight_decay", "clip_norm",
                  "rates"),
    "checkpoint": ("every", "keep"),
}  # fmt: skip
WHOLE = ("seed", "steps", "batch_size", "pretrained", "quantize", "model", "inputs", "buckets",
         "data", "limits", "gradcache_chunk", "loss", "optimizer", "pyramid", "mesh", "checkpoint",
         "log_every", "export", "profile", "wandb")  # fmt: skip
# What makes no other run of it: where and how it is computed, kept and told of. `pretrained` is a
# place; the contents stand in its stead.
FREE = ("checkpoint", "log_every", "mesh", "limits", "export", "gradcache_chunk", "pretrained",
        "profile", "wandb")  # fmt: skip
FREE_MODEL = ("attention", "remat_vision", "remat_text")
FREE_DATA = ("pairs", "cache", "tokenizer", "workers", "max_bad_share")  # likewise
FREE_LOSS = ("form",)

# field -> what it must satisfy, and how that is said.
_RANGES = {
    "steps": (lambda v: v >= 1, "at least 1"),
    "batch_size": (lambda v: v >= 1, "at least 1"),
    "gradcache_chunk": (lambda v: v >= 0, "at least 0"),
    "log_every": (lambda v: v >= 1, "at least 1"),
    "checkpoint.every": (lambda v: v >= 1, "at least 1"),
    "checkpoint.keep": (lambda v: v >= 1, "at least 1"),
    "optimizer.learning_rate": (lambda v: v > 0, "above 0"),
    "optimizer.b1": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optimizer.b2": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "optimizer.weight_decay": (lambda v: v >= 0, "at least 0"),
    "optimizer.clip_norm": (lambda v: v > 0, "above 0"),
    "loss.temperature": (lambda v: v > 0, "above 0"),
    "data.workers": (lambda v: v >= 0, "at least 0"),
    "data.max_bad_share": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "pyramid.pairs": (lambda v: v >= 1, "at least 1"),
}


def check_fields(config: ConfigDict) -> None:
    """Raises UserError, naming the field, for one that is missing, unknown or out of range."""
    missing = [name for name in WHOLE if name not in config]
    for section, names in FIELDS.items():
        if section not in missing:
            missing += [f"{section}.{name}" for name in names if name not in config[section]]
            for name in sorted(set(config[section]) - set(names)):
                raise UserError(f"config.{section}.{name}: unknown field")
    if missing:
        raise UserError(f"config.{missing[0]} is missing")
    for field, (good, rule) in _RANGES.items():
        value = config
        for part in field.split("."):
            value = value[part] if part in value else None
        try:
            right = value is None or good(value)
        except TypeError:
            right = False
        if not right:
            raise UserError(f"config.{field} {value!r} must be {rule}")
    if not 0 <= config.optimizer.warmup_steps < config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps {config.optimizer.warmup_steps} is not in "
            f"0..{config.steps - 1} (config.steps is {config.steps})"
        )


def build(section: str, kind: type, fields: Mapping[str, Any], **more) -> Any:
    """The dataclass `kind` of a section; UserError that names the field which does not fit."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name in sorted(set(fields) - known):
        raise UserError(f"config.{section}.{name}: unknown field; known: {', '.join(known)}")
    try:
        return kind(**(dict(fields) | more))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{section}: {error}") from error


def model_config(config: ConfigDict, base: Base | None) -> ModelConfig:
    """The model to train: shapes from the base's config.json, the rest from `config.model`.

    Shapes that the configuration states as well (a planner needs no weights) must be the same.

    Raises:
      UserError: other shapes than the base's, fields that are missing or do not fit.
    """
    fields = config.model.to_dict()
    for part, kind in (("vision", VisionConfig), ("text", TextConfig)):
        given = fields.get(part)
        if given is None and base is None:
            raise UserError(f"config.model.{part} is missing, and so is config.pretrained")
        if given is not None:
            given = build(f"model.{part}", kind, {k: _tuple(v) for k, v in given.items()})
            given = dataclasses.asdict(given)
        if base is None:
            continue
        stored = dataclasses.asdict(getattr(base.config, part))
        for name, value in stored.items():
            if given is not None and given[name] != value:
                raise UserError(
                    f"config.model.{part}.{name} is {given[name]}; {base.directory} has {value}"
                )
        fields[part] = stored
    if base is not None and base.config.lora is not None:
        raise UserError(f"config.pretrained: {base.directory} has adapters; merge them first "
                        "(python -m gve_jax.convert)")  # fmt: skip
    try:
        return ModelConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def kept_fields(config: ConfigDict, model: ModelConfig) -> dict[str, Any]:
    """What must stay the same for a resumed run to go on as if it had never stopped."""
    kept = {k: v for k, v in config.to_dict().items() if k not in FREE}
    kept["model"] = {k: v for k, v in model.to_dict().items() if k not in FREE_MODEL}
    kept["loss"] = {k: v for k, v in kept["loss"].items() if k not in FREE_LOSS}
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in FREE_DATA}
    kept["start"] = "random" if config.pretrained is None else "pretrained"
    return kept
