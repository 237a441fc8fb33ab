"""PEFT's adapter directories: `adapter_config.json` and `adapter_model.safetensors`.

The tensors are named after the modules of the PyTorch model that was adapted, so they come in as
many layouts as transformers had ways to nest Qwen2.5-VL (`gve_jax.model.weights.LAYOUTS`).
"""

import dataclasses
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.buckets import as_path, is_bucket, local_copy
from gve_jax.errors import UserError
from gve_jax.files import write_json
from gve_jax.model import lora, weights
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.model.embedder import Embedder
from gve_jax.safetensors import DTYPES, Part, StoredTensor, read_header, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HALVES = (("a", "A"), ("b", "B"))  # our leaf, their tensor

# Variants of LoRA that compute something else, tune more, or give layers sizes of their own; each
# is off where the field is absent or empty.
REFUSED = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "kasa_config",
    "layer_replication", "layers_to_transform", "lora_bias", "modules_to_save",
    "monteclora_config", "rank_pattern", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora", "velora_config",
)  # fmt: skip
# Other initialisations (PiSSA, OLoRA, LoftQ, CorDA) change the base as well.
INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")


class _Place(NamedTuple):
    """A module of the PyTorch model in our tree."""

    path: str  # of the projection
    layer: int  # in its stack
    stack: tuple[int, ...]  # (layers,), or () where there is no stack
    inputs: int
    outputs: int


def read_adapter(
    directory: str | os.PathLike, cfg: ModelConfig
) -> tuple[ModelConfig, dict[str, Any]]:
    """(config with its `lora`, adapters) of a PEFT adapter for the base model `cfg`.

    The adapters are a tree of float32 numpy arrays for `gve_jax.model.lora.join`. Any layout is
    read. `use_rslora` becomes an alpha of the same effect.

    Raises:
      UserError: no such files, damaged ones, a kind of adapter that is not supported (by the names
        of its fields), tensors that are missing, unexpected, misshapen or not finite (all of them).
    """
    directory = as_path(directory)
    if is_bucket(directory):
        directory = local_copy(directory, (CONFIG, WEIGHTS))
    fields = _read_config(directory / CONFIG)
    tensors = _read_header(directory / WEIGHTS)
    places = _targeted(directory / CONFIG, fields, _layout_of(tensors, cfg))
    rank = fields["r"]
    expected = {}
    for name, place in places.items():
        expected[_tensor(name, "A")] = (rank, place.inputs)
        expected[_tensor(name, "B")] = (place.outputs, rank)
    _check(directory / WEIGHTS, tensors, expected)

    arrays = {}
    for name, place in places.items():
        for leaf, half in HALVES:
            tensor = tensors[_tensor(name, half)]
            path, (rows, columns) = (*place.path.split("/"), "lora", leaf), tensor.shape
            if path not in arrays:
                arrays[path] = np.empty((*place.stack, columns, rows), np.float32)
            out = arrays[path][place.layer] if place.stack else arrays[path]
            tensor.read([Part((0, rows), (0, columns), out.T)])
    bad = ["/".join(path) for path, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{directory / WEIGHTS}: NaN or infinite numbers in {', '.join(bad)}")
    alpha = float(fields["lora_alpha"]) * (math.sqrt(rank) if fields.get("use_rslora") else 1)
    paths = dict.fromkeys(place.path for place in places.values())
    config = LoraConfig(
        rank=rank,
        alpha=alpha,
        dropout=fields.get("lora_dropout", 0.0),
        targets=f"^({'|'.join(paths)})$",
    )
    return dataclasses.replace(cfg, lora=config), unflatten_dict(arrays)


def write_adapter(
    directory: str | os.PathLike,
    params: dict[str, Any],
    cfg: ModelConfig,
    *,
    layout: str = "5",
    base_model: str | None = None,
) -> None:
    """Writes the adapters in `params` (of the whole model, or they alone) for PEFT.

    Args:
      layout: a key of `weights.LAYOUTS`: the release of transformers whose names are used.
      base_model: directory or hub id of the base, for PEFT's `base_model_name_or_path`.

    Raises:
      UserError: no such layout, a model without adapters.
    """
    if layout not in weights.LAYOUTS:
        raise UserError(f"adapter layout {layout!r} is none of {', '.join(weights.LAYOUTS)}")
    flat = flatten_dict(lora.split(params)[1], sep="/")
    if not flat:
        raise UserError(f"{directory}: the model has no adapters to write")
    directory = as_path(directory)
    if not is_bucket(directory):
        directory.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, {}
    for name, place in _places(cfg, layout).items():
        if f"{place.path}/lora/a" not in flat:
            continue
        modules[re.sub(r"\\\.\d+\\\.", r"\.\\d+\.", re.escape(name), count=1)] = None
        for leaf, half in HALVES:
            array = np.asarray(flat[f"{place.path}/lora/{leaf}"], np.float32)
            array = array[place.layer] if place.stack else array
            tensors[_tensor(name, half)] = np.ascontiguousarray(array.T)
    shapes = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    write_file(directory / WEIGHTS, shapes, iter(tensors.values()))
    alpha = cfg.lora.alpha
    write_json(directory / CONFIG, {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": cfg.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": cfg.lora.dropout,
        # Whole names: PEFT only warns of tensors it finds no place for, but refuses modules that
        # another transformers names otherwise. A list of last names would adapt the tower too.
        "target_modules": "|".join(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    })  # fmt: skip


def _tensor(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def _places(cfg: ModelConfig, layout: str) -> dict[str, _Place]:
    """Modules of the PyTorch model by name, layers in ascending order."""
    base = dataclasses.replace(cfg, lora=None)
    model = nnx.eval_shape(lambda: Embedder(base, rngs=nnx.Rngs(params=0)))
    kernels = {f"{path}/kernel": linear.kernel.shape for path, linear in lora.projections(model)}
    places = {}
    for path, source in weights.sources(cfg, kernels, layout).items():
        *stack, inputs, outputs = kernels[path]
        own = path.removesuffix("/kernel")
        for layer, name in enumerate(source.names):
            place = _Place(own, layer, tuple(stack), inputs, outputs)
            places[name.removesuffix(".weight")] = place
    return places


def _layout_of(tensors: Mapping[str, StoredTensor], cfg: ModelConfig) -> dict[str, _Place]:
    """The places by the names of the layout in which most tensors have a place."""
    layouts = [_places(cfg, layout) for layout in weights.LAYOUTS]
    # AutoModel's class is the model without a head, and without the prefix that goes with it.
    headless = {name.removeprefix("model."): p for name, p in _places(cfg, "5").items()}
    layouts.append(headless)
    return max(layouts, key=lambda places: sum(_tensor(name, "A") in tensors for name in places))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: not an adapter directory (no {CONFIG})")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if kind != "LORA":
        raise UserError(f"{path}: peft_type {kind!r} is not 'LORA'")
    refused = [name for name in REFUSED if fields.get(name)]
    if fields.get("bias") not in (None, "none"):
        refused.append("bias")
    if fields.get("init_lora_weights") not in INITIALISATIONS:
        refused.append("init_lora_weights")
    if refused:
        values = ", ".join(f"{name} = {json.dumps(fields[name])}" for name in refused)
        raise UserError(f"{path}: not supported: {values}")
    wrong = [
        name
        for name, kinds in (("r", int), ("lora_alpha", int | float), ("target_modules", str | list))
        if not isinstance(fields.get(name), kinds) or (name == "r" and fields["r"] < 1)
    ]
    if wrong:
        raise UserError(f"{path}: no usable {', '.join(wrong)}")
    return fields


def _read_header(path: Path) -> dict[str, StoredTensor]:
    pickle = path.with_suffix(".bin")
    if pickle.exists() and not path.exists():
        raise UserError(f"{pickle}: a pickle, which is not read; save it as {path.name}")
    return read_header(path)


def _targeted(path: Path, fields: dict[str, Any], places: dict[str, _Place]) -> dict[str, _Place]:
    """The places that the adapter's `target_modules` adapts.

    Raises:
      UserError: none, or only some layers of a stack.
    """
    try:
        chosen = {
            name: place for name, place in places.items()
            if _names(fields["target_modules"], name)
            and not _names(fields.get("exclude_modules"), name)
        }  # fmt: skip
    except re.error as error:
        raise UserError(f"{path}: target_modules: {error}") from error
    if not chosen:
        raise UserError(f"{path}: target_modules match no projection of the model")
    depth = Counter(place.path for place in places.values())
    adapted = Counter(place.path for place in chosen.values())
    partly = [
        f"{name} ({count} of {depth[name]})"
        for name, count in adapted.items()
        if count < depth[name]
    ]
    if partly:
        raise UserError(f"{path}: adapters of some layers only: {', '.join(partly)}")
    return chosen


def _names(modules: str | list[str] | None, name: str) -> bool:
    """PEFT's rule: an expression for the whole name, or a list of names or their last parts."""
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == module or name.endswith(f".{module}") for module in modules or ())


def _check(
    path: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in expected]
    for name in sorted(tensors.keys() & expected.keys()):
        tensor, shape = tensors[name], expected[name]
        if tensor.shape != shape:
            problems.append(f"misshapen: {name} is {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} is {tensor.dtype}, none of {', '.join(DTYPES)}")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
