"""Reads PEFT's adapter_config.json by an allow-list.

Each field is read, has no effect on a trained adapter (`_RECORDS`), or must be unset. Other fields
that are set are refused by name, including those of later releases of PEFT: ignoring an option
would silently give other vectors. The lists follow `LoraConfig` in peft 0.21.2.
"""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

from gve_jax.checkpoints.hf_config import is_off
from gve_jax.errors import UserError
from gve_jax.storage.files import read_json

CONFIG = "adapter_config.json"
_ALL_LINEAR = "all-linear"

# Metadata, and options of initialization: `eva_config` and similar belong to an `init_lora_weights`
# of that name, `megatron_core` to `megatron_config`, `qalora_group_size` to `use_qalora`,
# `layers_pattern` to `layers_to_transform`, `ensure_weight_tying` to tied modules.
_RECORDS = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config
    inference_mode layers_pattern loftq_config lora_ga_config megatron_core peft_version
    qalora_group_size revision runtime_config task_type
    """.split()
)
# PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA also change the base model; MiCA is another variant.
_INITIALIZATIONS = ("gaussian", "orthogonal", "eva")


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_names(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    )


# (whether a value is valid, what it must be) by field. PEFT ignores `fan_in_fan_out` for nn.Linear.
_READ: dict[str, tuple[Callable[[object], bool], str]] = {
    "peft_type": (lambda v: v == "LORA", "'LORA'"),
    "r": (lambda v: type(v) is int and v > 0, "an integer above 0"),
    "lora_alpha": (_is_number, "a number"),
    "lora_dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "target_modules": (
        lambda v: _is_names(v) and bool(v),
        "a regular expression or a list of names",
    ),
    "exclude_modules": (
        lambda v: v is None or _is_names(v),
        "a regular expression or a list of names",
    ),
    "use_rslora": (_is_switch, "true or false"),
    "use_dora": (_is_switch, "true or false"),
    "fan_in_fan_out": (_is_switch, "true or false"),
    "bias": (lambda v: v in (None, "none"), "'none'"),
    "init_lora_weights": (
        lambda v: _is_switch(v) or v in _INITIALIZATIONS,
        f"true, false or one of {', '.join(_INITIALIZATIONS)}",
    ),
}
_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The fields of a LoRA or DoRA adapter."""

    path: Path
    rank: int
    alpha: float  # of plain LoRA; includes the square root of the rank for rank-stabilized LoRA
    dropout: float
    targets: str | list[str]
    excluded: str | list[str]
    dora: bool
    base: str | None  # directory or Hub id of the base model
    architecture: str | None  # its folder in `transformers.models`, if recorded

    def adapts(self, module: str) -> bool:
        """Whether a linear module of the PyTorch model has an adapter.

        As in PEFT: an expression that matches the full name, or a list of names or their suffixes.
        """
        if isinstance(self.targets, str) and self.targets.lower() == _ALL_LINEAR:
            chosen = True  # PEFT excludes the output layer, which an encoder does not have
        else:
            chosen = self._names("target_modules", self.targets, module)
        return chosen and not self._names("exclude_modules", self.excluded, module)

    def _names(self, field: str, modules: str | list[str], name: str) -> bool:
        if isinstance(modules, list):
            return any(name == module or name.endswith(f".{module}") for module in modules)
        try:
            return re.fullmatch(modules, name) is not None
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"{self.path}: {field} {modules!r} is not a regular expression ({error})"
            ) from error


def read_config(path: Path) -> PeftConfig:
    """Raises UserError, naming the file and all fields that are invalid or not supported."""
    if not path.is_file():
        raise UserError(f"{path.parent}: not an adapter directory (no {CONFIG})")
    fields = read_json(path)
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {fields.get('peft_type')!r} is not 'LORA'")
    wrong = {
        name: f"{name} = {_shown(fields.get(name))} must be {rule}"
        for name, (good, rule) in _READ.items()
        if (name in fields or name in _REQUIRED) and not good(fields.get(name))
    }
    variants = [
        f"{name} = {_shown(value)}"
        for name, value in fields.items()
        if name not in _READ and name not in _RECORDS and not is_off(value)
    ]
    if wrong:
        listed = "; ".join([*wrong.values(), *variants])
        raise UserError(f"{path}: invalid {', '.join(wrong)}: {listed}")
    if variants:
        raise UserError(
            f"{path}: not supported: {'; '.join(variants)} (a variant of LoRA, or a field that "
            "peft 0.21.2 does not have); merge the adapter with PEFT and load the merged model"
        )
    rank, alpha = fields["r"], float(fields["lora_alpha"])
    return PeftConfig(
        path=path,
        rank=rank,
        alpha=alpha * (math.sqrt(rank) if fields.get("use_rslora") else 1),
        dropout=float(fields.get("lora_dropout", 0.0)),
        targets=fields["target_modules"],
        excluded=fields.get("exclude_modules") or [],
        dora=bool(fields.get("use_dora")),
        base=fields.get("base_model_name_or_path"),
        architecture=_architecture(fields.get("auto_mapping")),
    )


def _architecture(mapping: object) -> str | None:
    """From `auto_mapping`: PEFT records the module of the base model's class there."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    found = re.match(r"transformers\.models\.(\w+)", library) if isinstance(library, str) else None
    return found and found[1]


def _shown(value: object, most: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
