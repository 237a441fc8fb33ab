"""PEFT's adapter directories: `adapter_config.json` and `adapter_model.safetensors`.

The tensors are named after the modules of the PyTorch model that was adapted, so they come in as
many layouts as transformers had ways to nest Qwen2.5-VL
(`gve_jax.checkpoints.weight_names.LAYOUTS`).
"""

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.checkpoints import weight_names
from gve_jax.checkpoints.hub import find_directory, split_revision
from gve_jax.checkpoints.peft_config import CONFIG, PeftConfig, read_config
from gve_jax.checkpoints.safetensors import DTYPES, Part, StoredTensor, read_header, write_file
from gve_jax.errors import UserError
from gve_jax.model import lora
from gve_jax.model.config import LoraConfig, ModelConfig
from gve_jax.model.embedder import Embedder
from gve_jax.storage.files import write_json
from gve_jax.storage.filesystem import as_path, is_bucket

WEIGHTS = "adapter_model.safetensors"
HALVES = (("a", "A"), ("b", "B"))  # our leaf, their tensor

# Parts of a tensor's name that wrappers of PyTorch add: DDP and DeepSpeed, torch.compile, FSDP,
# activation checkpointing, Lightning's Fabric.
_WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
_PREFIX = "base_model.model."
_LISTED = 20  # of all that is wrong with the tensors


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
    read, and names with the parts that wrappers of PyTorch add to them. `use_rslora` becomes an
    alpha of the same effect.

    Args:
      directory: local, in a bucket, or a Hub id.

    Raises:
      UserError: no such files, damaged ones, a kind of adapter that is not supported (by the names
        of its fields), tensors that are missing, unexpected, misshapen or not finite (all of them).
    """
    directory = find_directory(directory, (CONFIG, WEIGHTS))
    peft = read_config(directory / CONFIG)
    path = directory / WEIGHTS
    tensors = _read_tensors(path)
    places = _targeted(peft, _layout_of(path, tensors, cfg))
    expected = {}
    for name, place in places.items():
        expected[_tensor(name, "A")] = (peft.rank, place.inputs)
        expected[_tensor(name, "B")] = (place.outputs, peft.rank)
    _check(path, tensors, expected)

    arrays = {}
    for name, place in places.items():
        for leaf, half in HALVES:
            tensor = tensors[_tensor(name, half)]
            leaf_path, (rows, columns) = (*place.path.split("/"), "lora", leaf), tensor.shape
            if leaf_path not in arrays:
                arrays[leaf_path] = np.empty((*place.stack, columns, rows), np.float32)
            out = arrays[leaf_path][place.layer] if place.stack else arrays[leaf_path]
            tensor.read([Part((0, rows), (0, columns), out.T)])
    bad = ["/".join(leaf_path) for leaf_path, a in arrays.items() if not np.isfinite(a).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinite numbers in {', '.join(bad)}")
    paths = dict.fromkeys(place.path for place in places.values())
    config = LoraConfig(
        rank=peft.rank,
        alpha=peft.alpha,
        dropout=peft.dropout,
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
      layout: a key of `weight_names.LAYOUTS`: the release of transformers whose names are used.
      base_model: directory or Hub id of the base, for PEFT's `base_model_name_or_path` and, of
        `org/name@revision`, its `revision`.

    Raises:
      UserError: no such layout, a model without adapters.
    """
    if layout not in weight_names.LAYOUTS:
        raise UserError(f"adapter layout {layout!r} is none of {', '.join(weight_names.LAYOUTS)}")
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
    alpha, revision = cfg.lora.alpha, None
    if base_model is not None:
        base_model, revision = split_revision(base_model)
    write_json(
        directory / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base_model,
            "revision": revision,
            "r": cfg.lora.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": cfg.lora.dropout,
            # Whole names: a list of last names would adapt the tower too. PEFT refuses modules that
            # another transformers names differently, and only warns about unmatched tensors.
            "target_modules": "|".join(modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "init_lora_weights": True,
            "inference_mode": True,
        },
    )


def _tensor(module: str, half: str) -> str:
    return f"{_PREFIX}{module}.lora_{half}.weight"


@functools.cache
def _places(cfg: ModelConfig, layout: str) -> dict[str, _Place]:
    """Modules of the PyTorch model by name, layers in ascending order."""
    base = dataclasses.replace(cfg, lora=None)
    model = nnx.eval_shape(lambda: Embedder(base, rngs=nnx.Rngs(params=0)))
    kernels = {f"{path}/kernel": linear.kernel.shape for path, linear in lora.projections(model)}
    places = {}
    for path, source in weight_names.sources(cfg, kernels, layout).items():
        *stack, inputs, outputs = kernels[path]
        own = path.removesuffix("/kernel")
        for layer, name in enumerate(source.names):
            place = _Place(own, layer, tuple(stack), inputs, outputs)
            places[name.removesuffix(".weight")] = place
    return places


def _layout_of(
    path: Path, tensors: Mapping[str, StoredTensor], cfg: ModelConfig
) -> dict[str, _Place]:
    """The places by the names of the layout in which most tensors have a place.

    Raises:
      UserError: no tensor has a place in any layout; it says what their names begin with instead.
    """
    layouts = [_places(cfg, layout) for layout in weight_names.LAYOUTS]
    # AutoModel's class is the model without a head, and without the prefix that goes with it.
    headless = {name.removeprefix("model."): p for name, p in _places(cfg, "5").items()}
    layouts.append(headless)

    def matches(places: Mapping[str, _Place]) -> int:
        return sum(_tensor(name, half) in tensors for name in places for _, half in HALVES)

    best = max(layouts, key=matches)
    if matches(best):
        return best
    first = next(iter(tensors.values())).name if tensors else None
    if first is None:
        raise UserError(f"{path}: holds no tensors")
    for places in layouts:
        for module in places:
            for name, tensor in tensors.items():
                before, found, _ = name.partition(f".{module}.lora_")
                if found:
                    raise UserError(
                        f"{path}: its tensors are named {tensor.name}; the prefix "
                        f"{before.removeprefix(_PREFIX) + '.'!r} is unknown, rename them as PEFT "
                        f"does: {_tensor(module, 'A')}"
                    )
    raise UserError(
        f"{path}: no tensor belongs to a projection of this model; the first is {first}, where "
        f"{_tensor(next(iter(best)), 'A')} is expected: an adapter of another model?"
    )


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors by the names that PEFT gives them, whoever wrapped the model before."""
    pickle = path.with_suffix(".bin")
    if pickle.exists() and not path.exists():
        raise UserError(
            f"{pickle}: a pickle, which is not read; load it with PEFT and save it as {path.name} "
            "with save_pretrained(..., safe_serialization=True)"
        )
    found: dict[str, StoredTensor] = {}
    adapters = set()
    for name, tensor in read_header(path).items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        while parts[:2] == ["base_model", "model"]:
            del parts[:2]
        if len(parts) > 2 and parts[-3] in ("lora_A", "lora_B"):
            adapters.add(parts.pop(-2))  # as in model.state_dict(): lora_A.default.weight
        plain = _PREFIX + ".".join(parts)
        if plain in found:
            raise UserError(f"{path}: {found[plain].name} and {name} are the same tensor")
        found[plain] = tensor
        if len(adapters) > 1:
            raise UserError(f"{path}: holds several adapters: {', '.join(sorted(adapters))}")
    return found


def _targeted(peft: PeftConfig, places: dict[str, _Place]) -> dict[str, _Place]:
    """The places that the adapter's `target_modules` adapts.

    Raises:
      UserError: none, or only some layers of a stack.
    """
    chosen = {name: place for name, place in places.items() if peft.adapts(name)}
    if not chosen:
        raise UserError(
            f"{peft.path}: target_modules match no projection of the model, such as "
            f"{next(iter(places))}"
        )
    depth = Counter(place.path for place in places.values())
    adapted = Counter(place.path for place in chosen.values())
    partly = [
        f"{name} ({count} of {depth[name]})"
        for name, count in adapted.items()
        if count < depth[name]
    ]
    if partly:
        raise UserError(f"{peft.path}: adapters of some layers only: {', '.join(partly)}")
    return chosen


def _check(
    path: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [
        f"unexpected: {tensor.name}" for name, tensor in tensors.items() if name not in expected
    ]
    for name in sorted(tensors.keys() & expected.keys()):
        tensor, shape = tensors[name], expected[name]
        if tensor.shape != shape:
            problems.append(f"misshapen: {tensor.name} is {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{tensor.name} is {tensor.dtype}, not one of {', '.join(DTYPES)}")
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(f"{path}: {'; '.join(problems[:_LISTED])}{more}")
