"""The configuration of a training run as dataclasses.

Each field states its type, default, comment, range and resume rule (`gve_jax.fields.setting`);
sections of other packages are the dataclasses of those packages. The files in `configs/` state
differences from the defaults; docs/configuration.md lists all fields.
"""

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from gve_jax.checkpoints.pretrained import PretrainedModel
from gve_jax.errors import UserError
from gve_jax.fields import as_json, build, default_config, setting
from gve_jax.inputs.batch import Buckets
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.learning.curriculum import PyramidConfig
from gve_jax.learning.loss import LossConfig
from gve_jax.learning.patterns import assign
from gve_jax.media.limits import Limits
from gve_jax.model.config import LoraConfig, ModelConfig, TextConfig, VisionConfig
from gve_jax.model.quantize import KINDS

# Fields of `InputSpec` that follow from `config.model` and `config.buckets`.
DERIVED_INPUTS = (
    "max_length",
    "patch_size",
    "merge",
    "temporal",
    "window_side",
    "tokens_per_second",
    "timestamps",
)
MAX_STEPS = 2**31 - 1  # step numbers are int32
# Formats: {name: (folder in the workdir, file that is written last, pattern of another file)}.
EXPORTS = {
    # For GVE.from_pretrained; adapters are stored separately.
    "gve_jax": ("model", "config.json", "params"),
    # Only the adapters.
    "peft": ("adapter", "adapter_config.json", "*.safetensors"),
    # For transformers; adapters are merged.
    "hf": ("hf", "config.json", "*.safetensors"),
}


def _select(name: str, kind: type, left_out: tuple[str, ...] = (), **replaced) -> type:
    """Returns a dataclass with the fields of `kind`, except `left_out`.

    Args:
      replaced: new types of fields, whose default becomes None.
    """
    hints, selected = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        if field.name in replaced:
            optional = dataclasses.field(default=None, metadata=field.metadata)
            selected.append((field.name, replaced[field.name], optional))
        elif field.name not in left_out:
            same = dataclasses.field(default=field.default, metadata=field.metadata)
            selected.append((field.name, hints[field.name], same))
    return dataclasses.make_dataclass(name, selected, frozen=True, kw_only=True)


# Shapes are optional: by default they come from the config.json of `config.pretrained`.
ModelFields = _select(
    "ModelFields",
    ModelConfig,
    vision=VisionConfig | None,
    text=TextConfig | None,
    architecture=str | None,
)
InputFields = _select("InputFields", InputSpec, DERIVED_INPUTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """`config.data`."""

    pairs: Mapping[str, str] | tuple[str, ...] | str = setting(
        help="training pairs: TFDS directories or names, or JSONL files, local or gs://; LOCATION "
        "or NAME=LOCATION, which prefixes the source names; several by commas, * as wildcard",
        resume=True,
        per_host=True,
    )
    cache: str = setting(
        "~/.cache/gve_jax/pairs",
        "local folder for copies of gs:// files and indices of JSONL",
        resume=True,
        per_host=True,
    )
    sources: tuple[str, ...] = setting((), "patterns of full names of sources to train on; (): all")
    tokenizer: str | None = setting(
        None, "tokenizer file; None: that of config.pretrained", resume=True, per_host=True
    )
    batch_sizes: tuple[tuple[str, int | float], ...] = setting(
        (),
        "(source pattern, share of batch_size up to 1, or pairs above 1); the first pattern that "
        "matches a source decides; no match: batch_size",
        above=0,
    )
    repeat: tuple[tuple[str, int], ...] = setting(
        (),
        "(source pattern, maximum passes over it); 0 or no match: unlimited",
        least=0,
        most=10**6,
    )
    siblings: Mapping[str, int] = setting(
        {}, "consecutive records that share a batch as hard negatives, by source", least=1
    )
    workers: int = setting(
        8, "decoding processes per host; 0: threads", least=0, most=1024, resume=True, per_host=True
    )
    max_bad_share: float = setting(
        0.01, "share of unreadable pairs above which the run stops", least=0, most=1, resume=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`config.optimizer`: AdamW with a cosine schedule, see `gve_jax.learning.optimizer`."""

    learning_rate: float = setting(help="peak learning rate", above=0)
    warmup_steps: int = setting(100, "steps of linear warm-up", least=0)
    b1: float = setting(0.9, "decay of the first moment", least=0, below=1)
    b2: float = setting(0.999, "decay of the second moment", least=0, below=1)
    weight_decay: float = setting(0.1, "decoupled weight decay", least=0)
    clip_norm: float = setting(1.0, "maximum global norm of the gradients", above=0)
    rates: tuple[tuple[str, float], ...] = setting(
        help="(parameter pattern, factor of the learning rate): the first pattern that matches a "
        "parameter's path; 0 freezes it",
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """`config.checkpoint`."""

    every: int = setting(200, "steps between checkpoints", least=1)
    keep: int = setting(3, "newest checkpoints that are retained", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """`config.mesh`: devices along each axis; -1 for one axis: all remaining devices."""

    data: int = setting(1, "devices along the data axis; -1: all remaining", least=-1)
    fsdp: int = setting(1, "devices that shard parameters and data", least=-1)
    tensor: int = setting(1, "devices that shard each layer", least=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A complete training config.

    `resume=True` allows a field to change when a run is resumed: it affects where and how the run
    executes, not its result. `pretrained` may move because the digest of its weights is compared.
    """

    seed: int = setting(42, "seed of all random numbers", least=0, most=2**32 - 1)
    steps: int = setting(help="optimizer steps of the run", least=1, most=MAX_STEPS)
    batch_size: int = setting(
        help="pairs of a global batch; data.batch_sizes sets it by source", least=1
    )
    pretrained: str | None = setting(
        None,
        "directory or Hub id of the initial weights, with their tokenizer; None: random",
        resume=True,
        per_host=True,
    )
    quantize: str | None = setting(
        None, "quantization of the frozen decoder (QLoRA), on one device; None: off", choices=KINDS
    )
    model: ModelFields = setting()
    inputs: InputFields = setting()
    buckets: Buckets = setting()
    data: DataConfig = setting()
    limits: Limits = setting(resume=True)
    gradcache_chunk: int = setting(
        0, "pairs encoded at a time (GradCache); 0: all at once", least=0, resume=True
    )
    loss: LossConfig = setting()
    optimizer: OptimizerConfig = setting()
    pyramid: PyramidConfig = setting()
    mesh: MeshConfig = setting(resume=True)
    checkpoint: CheckpointConfig = setting(resume=True)
    log_every: int = setting(1, "steps between lines of metrics.jsonl", least=1, resume=True)
    export: tuple[str, ...] = setting(
        ("gve_jax",),
        "formats of the trained model; hf: merged",
        choices=tuple(EXPORTS),
        resume=True,
    )
    profile: tuple[int, ...] = setting(
        (),
        "(first step, steps) to trace for XProf in WORKDIR/profile; (): none",
        least=0,
        resume=True,
    )
    wandb: str | None = setting(
        None, "Weights & Biases project that receives metrics; None: off", resume=True
    )

    def __post_init__(self):
        self._check_steps()
        if not self.export:
            raise UserError(
                f"config.export must name a format of the trained model: {', '.join(EXPORTS)}"
            )
        if self.profile and (len(self.profile) != 2 or self.profile[1] < 1):
            raise UserError(f"config.profile {self.profile} must be () or (first step, steps)")
        if self.inputs.min_pixels < 1:
            raise UserError(f"config.inputs.min_pixels {self.inputs.min_pixels} must be at least 1")
        for name, value in (
            ("pretrained", self.pretrained),
            ("wandb", self.wandb),
            ("data.tokenizer", self.data.tokenizer),
            ("pyramid.prober", self.pyramid.prober),
        ):
            if value == "":
                raise UserError(f"config.{name} is empty; set None to leave it out")

    def _check_steps(self) -> None:
        """All that depends on the number of steps is named at once."""
        warmup, stages = self.optimizer.warmup_steps, self.pyramid.stages
        wrong = {}
        if not warmup < self.steps:
            wrong["optimizer.warmup_steps"] = (warmup, self.steps - 1, self.steps // 10)
        if stages > self.steps and not self.pyramid.bounds:
            wrong["pyramid.stages"] = (stages, self.steps, self.steps)
        if wrong:
            values = " and ".join(
                f"config.{name} {value} must be at most {most}"
                for name, (value, most, _) in wrong.items()
            )
            flags = " ".join(f"--config.{name}={value}" for name, (*_, value) in wrong.items())
            raise UserError(f"{values}, since config.steps is {self.steps}; for example {flags}")


def base_config() -> ConfigDict:
    """Returns a config of all defaults, from which config files state the differences."""
    return default_config(Settings)


def read_settings(config: object) -> Settings:
    """Converts an `ml_collections.ConfigDict`, or nested mappings, to `Settings`.

    Raises:
      UserError: a field, which the message names, is invalid; see `gve_jax.fields.build`.
    """
    if isinstance(config, ConfigDict):
        try:
            config = config.to_dict()
        except ValueError as error:  # a required placeholder without a value
            raise UserError(f"config: {' '.join(str(error).split())}") from error
    return build(Settings, config, "config")


def source_batch_sizes(settings: Settings, names: Iterable[str]) -> dict[str, int]:
    """Number of pairs in a global batch of each source.

    Raises:
      UserError: `data.batch_sizes` yields a fraction of a pair; a pattern matches no source.
    """
    values = assign("data.batch_sizes", settings.data.batch_sizes, names, 1)
    return {name: _pairs(value, settings.batch_size) for name, value in values.items()}


def largest_batch_size(settings: Settings) -> int:
    """Number of pairs in the largest global batch of any source, for the planner."""
    names = settings.data.sources
    if names and all(re.fullmatch(r"\w+", name) for name in names):
        return max(source_batch_sizes(settings, names).values())
    values = [1, *(value for _, value in settings.data.batch_sizes)]  # patterns: sources unknown
    return max(_pairs(value, settings.batch_size) for value in values)


def _pairs(value: float, batch_size: int) -> int:
    pairs = value * batch_size if value <= 1 else value
    if abs(pairs - round(pairs)) > 1e-6:
        raise UserError(
            f"data.batch_sizes: {value} must give a whole number of pairs, not {pairs:g}; "
            f"batch_size is {batch_size}"
        )
    return round(pairs)


def model_config(settings: Settings, base: PretrainedModel | None) -> ModelConfig:
    """Returns the model to train: shapes from the base's config.json, the rest from `config.model`.

    Shapes that the configuration states too (the planner reads no weights) must be equal.

    Raises:
      UserError: shapes differ from those of the base; fields are missing or inconsistent.
    """
    fields = {
        field.name: getattr(settings.model, field.name)
        for field in dataclasses.fields(settings.model)
    }
    for part in ("vision", "text"):
        stated = fields[part]
        if base is None:
            if stated is None:
                raise UserError(f"config.model.{part} is missing: set it or config.pretrained")
            continue
        fields[part] = getattr(base.config, part)
        for name, value in dataclasses.asdict(fields[part]).items():
            if stated is not None and getattr(stated, name) != value:
                raise UserError(
                    f"config.model.{part}.{name} is {getattr(stated, name)}; {base.directory} has "
                    f"{value}; to take all shapes from config.pretrained, remove "
                    f"config.model.{part} (del config.model.{part}), or use the form :own"
                )
    stated = fields.pop("architecture")
    if base is not None:
        if stated not in (None, base.config.architecture):
            raise UserError(
                f"config.model.architecture is {stated}; {base.directory} has "
                f"{base.config.architecture}"
            )
        stated = base.config.architecture
    if stated is not None:
        fields["architecture"] = stated
    if base is not None and base.config.lora is not None:
        _check_adapters(fields["lora"], base)
    try:
        return ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error


def _check_adapters(stated: LoraConfig | None, base: PretrainedModel) -> None:
    """Raises UserError unless `config.model.lora` are the base's adapters, which train on."""
    for name in ("rank", "alpha", "targets"):
        has = getattr(base.config.lora, name)
        if stated is None or getattr(stated, name) != has:
            now = None if stated is None else getattr(stated, name)
            raise UserError(
                f"config.pretrained: {base.directory} has adapters with {name} {has}, "
                f"config.model.lora states {now}: state the same to train them on, or merge them "
                f"into a new base: python -m gve_jax.convert --input {base.directory} --to hf "
                "--output BASE"
            )


def resume_fields(settings: Settings, model: ModelConfig) -> dict[str, Any]:
    """The fields that must not change for a run to resume as if it had never stopped."""
    fields = as_json(settings, leave_out="resume")
    fields["model"] = as_json(model, leave_out="resume")
    text = fields["model"]["text"]  # runs of 0.2.0 do not record the usual size of a head
    if text["head_dim"] * text["num_attention_heads"] == text["hidden_size"]:
        del text["head_dim"]
    fields["start"] = "random" if settings.pretrained is None else "pretrained"
    return fields


def shared_fields(settings: Settings) -> dict[str, Any]:
    """The fields that must be equal on all hosts of a job."""
    return as_json(settings, leave_out="per_host")
