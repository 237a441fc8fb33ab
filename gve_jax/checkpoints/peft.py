"""Reads and writes PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`.

Tensors are named after the modules of the adapted PyTorch model, in the layouts of
`gve_jax.checkpoints.weight_names.LAYOUTS`.
"""

import dataclasses
import functools
import json
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
from gve_jax.storage.filesystem import as_path, is_gcs_path

WEIGHTS = "adapter_model.safetensors"
# (parameter, tensor). As PEFT saves them: it removes `.weight` from the name of DoRA's vector.
HALVES = (("a", "lora_A.weight"), ("b", "lora_B.weight"))
MAGNITUDE = ("magnitude", "lora_magnitude_vector")

# Components of tensor names added by PyTorch wrappers: DDP and DeepSpeed, torch.compile, FSDP,
# activation checkpointing, Lightning Fabric.
_WRAPPERS = frozenset(
    """
    module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module
    """.split()
)
_PREFIX = "base_model.model."
_LISTED = 20  # problems listed in a message


class _Projection(NamedTuple):
    """The parameter of a linear module of the PyTorch model."""

    path: str
    layer: int  # index in the stack
    stack: tuple[int, ...]  # (layers,), or () if the parameter is not stacked
    inputs: int
    outputs: int


def read_adapter(
    directory: str | os.PathLike, cfg: ModelConfig
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a PEFT adapter for the base model `cfg`.

    Any layout is read, also with the prefixes of PyTorch wrappers. `use_rslora` becomes an alpha of
    the same effect. The tree of DoRA (`lora.has_magnitudes`) can only be merged.

    Args:
      directory: local, a gs:// path, or a Hub id.

    Returns:
      The configuration with its `lora`, and a tree of float32 numpy arrays for
      `gve_jax.model.lora.join`.

    Raises:
      UserError: missing or damaged files, an unsupported kind of adapter (naming the fields), or
        all tensors that are missing, unexpected, misshapen or not finite.
    """
    directory = find_directory(directory, (CONFIG, WEIGHTS))
    peft = read_config(directory / CONFIG)
    path = directory / WEIGHTS
    tensors = _read_tensors(path)
    where = f"{path} (an adapter of {peft.base})" if peft.base else f"{path}"
    if peft.architecture not in (None, cfg.architecture):
        raise UserError(f"{where}: of architecture {peft.architecture}, not {cfg.architecture}")
    projections = _targeted(peft, _layout_of(where, tensors, cfg))
    magnitudes = sum(name.endswith(MAGNITUDE[1]) for name in tensors)
    if bool(magnitudes) != peft.dora:
        raise UserError(
            f"{path}: {magnitudes or 'no'} tensors {MAGNITUDE[1]}, but {CONFIG} has use_dora = "
            f"{json.dumps(peft.dora)}: are both files of one adapter?"
        )
    leaves = (*HALVES, MAGNITUDE) if peft.dora else HALVES
    expected = {}
    for name, projection in projections.items():
        inputs, outputs = projection.inputs, projection.outputs
        shapes = ((peft.rank, inputs), (outputs, peft.rank), (outputs,))
        for (_, suffix), shape in zip(leaves, shapes, strict=False):
            expected[_tensor(name, suffix)] = shape
    _check(where, tensors, expected)

    arrays = {}
    for name, projection in projections.items():
        for leaf, suffix in leaves:
            tensor = tensors[_tensor(name, suffix)]
            leaf_path = (*projection.path.split("/"), "lora", leaf)
            rows, columns, *_ = (*tensor.shape, 1)  # a vector is a column
            if leaf_path not in arrays:
                arrays[leaf_path] = np.empty((*projection.stack, columns, rows), np.float32)
            out = arrays[leaf_path]
            out = out[projection.layer] if projection.stack else out
            tensor.read([Part((0, rows), (0, columns), out.T)])
    bad = ["/".join(leaf_path) for leaf_path, a in arrays.items() if not np.isfinite(a).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinite numbers in {', '.join(bad)}")
    paths = dict.fromkeys(projection.path for projection in projections.values())
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
    """Writes the adapters among `params` for PEFT.

    Args:
      params: of the whole model, or of the adapters only.
      layout: a key of `weight_names.LAYOUTS`: the release of transformers that names the modules.
      base_model: directory or Hub id of the base model, `org/name@revision` included, for PEFT's
        `base_model_name_or_path` and `revision`.

    Raises:
      UserError: an unknown layout, a model without adapters, adapters of DoRA.
    """
    lora.refuse_magnitudes(params)
    if layout not in weight_names.LAYOUTS:
        known = ", ".join(weight_names.LAYOUTS)
        raise UserError(f"adapter layout {layout!r} is unknown; known: {known}")
    flat = flatten_dict(lora.split(params)[1], sep="/")
    if not flat:
        raise UserError(f"{directory}: the model has no adapters to write")
    directory = as_path(directory)
    if not is_gcs_path(directory):
        directory.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, {}
    for name, projection in _projections(cfg, layout).items():
        if f"{projection.path}/lora/a" not in flat:
            continue
        modules[re.sub(r"\\\.\d+\\\.", r"\.\\d+\.", re.escape(name), count=1)] = None
        for leaf, suffix in HALVES:
            array = np.asarray(flat[f"{projection.path}/lora/{leaf}"], np.float32)
            array = array[projection.layer] if projection.stack else array
            tensors[_tensor(name, suffix)] = np.ascontiguousarray(array.T)
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
            # Full names: a list of last components would adapt the vision tower too. PEFT refuses
            # modules that another transformers names differently, and only warns about unmatched
            # tensors.
            "target_modules": "|".join(modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "init_lora_weights": True,
            "inference_mode": True,
        },
    )


def _tensor(module: str, suffix: str) -> str:
    return f"{_PREFIX}{module}.{suffix}"


@functools.cache
def _projections(cfg: ModelConfig, layout: str) -> dict[str, _Projection]:
    """Projections by the names of the PyTorch modules, layers in ascending order."""
    base = dataclasses.replace(cfg, lora=None)
    model = nnx.eval_shape(lambda: Embedder(base, rngs=nnx.Rngs(params=0)))
    kernels = {f"{path}/kernel": linear.kernel.shape for path, linear in lora.projections(model)}
    projections = {}
    for path, source in weight_names.sources(cfg, kernels, layout).items():
        *stack, inputs, outputs = kernels[path]
        for layer, name in enumerate(source.names):
            projections[name.removesuffix(".weight")] = _Projection(
                path.removesuffix("/kernel"), layer, tuple(stack), inputs, outputs
            )
    return projections


def _layout_of(
    where: str, tensors: Mapping[str, StoredTensor], cfg: ModelConfig
) -> dict[str, _Projection]:
    """The projections by the names of the layout that matches most tensors.

    Raises:
      UserError: no tensor matches any layout; it shows the prefix of the names.
    """
    layouts = [_projections(cfg, layout) for layout in weight_names.LAYOUTS]
    # AutoModel's class has no head, and its names have no `model.` prefix.
    headless = {name.removeprefix("model."): p for name, p in _projections(cfg, "5").items()}
    layouts.append(headless)

    def matches(projections: Mapping[str, _Projection]) -> int:
        return sum(_tensor(name, suffix) in tensors for name in projections for _, suffix in HALVES)

    best = max(layouts, key=matches)
    if matches(best):
        return best
    if not tensors:
        raise UserError(f"{where}: no tensors")
    for projections in layouts:
        for module in projections:
            for name, tensor in tensors.items():
                before, found, _ = name.partition(f".{module}.lora_")
                if found:
                    raise UserError(
                        f"{where}: tensor {tensor.name} has the unknown prefix "
                        f"{before.removeprefix(_PREFIX) + '.'!r}; rename the tensors as PEFT does: "
                        f"{_tensor(module, HALVES[0][1])}"
                    )
    raise UserError(
        f"{where}: no tensor belongs to a projection of this model; the first is "
        f"{next(iter(tensors.values())).name}, expected "
        f"{_tensor(next(iter(best)), HALVES[0][1])}: an adapter of another model?"
    )


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors by PEFT's names, without the prefixes of PyTorch wrappers."""
    pickle = path.with_suffix(".bin")
    if pickle.exists() and not path.exists():
        raise UserError(
            f"{pickle}: pickles are not supported; load it with PEFT and save it as {path.name} "
            "with save_pretrained(..., safe_serialization=True)"
        )
    tensors: dict[str, StoredTensor] = {}
    adapters = set()
    for name, tensor in read_header(path).items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        while parts[:2] == ["base_model", "model"]:
            del parts[:2]
        if MAGNITUDE[1] in parts[-3:-1] and parts[-1] == "weight":
            parts.pop()  # PEFT before 0.12 had no `.weight` in its state dict either
        # As in model.state_dict(): lora_A.default.weight, lora_magnitude_vector.default.
        if len(parts) > 2 and parts[-3] in ("lora_A", "lora_B"):
            adapters.add(parts.pop(-2))
        elif parts[-2:-1] == [MAGNITUDE[1]]:
            adapters.add(parts.pop())
        plain = _PREFIX + ".".join(parts)
        if plain in tensors:
            raise UserError(f"{path}: {tensors[plain].name} and {name} are the same tensor")
        tensors[plain] = tensor
        if len(adapters) > 1:
            raise UserError(f"{path}: several adapters in one file: {', '.join(sorted(adapters))}")
    return tensors


def _targeted(peft: PeftConfig, projections: dict[str, _Projection]) -> dict[str, _Projection]:
    """The projections that match the adapter's `target_modules`.

    Raises:
      UserError: no match, or only some layers of a stack.
    """
    chosen = {name: each for name, each in projections.items() if peft.adapts(name)}
    if not chosen:
        raise UserError(
            f"{peft.path}: target_modules match no projection of the model, such as "
            f"{next(iter(projections))}"
        )
    depth = Counter(projection.path for projection in projections.values())
    adapted = Counter(projection.path for projection in chosen.values())
    partly = [
        f"{name} ({count} of {depth[name]})"
        for name, count in adapted.items()
        if count < depth[name]
    ]
    if partly:
        raise UserError(f"{peft.path}: adapters of some layers only: {', '.join(partly)}")
    return chosen


def _check(
    where: str, tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]
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
        raise UserError(f"{where}: {'; '.join(problems[:_LISTED])}{more}")
