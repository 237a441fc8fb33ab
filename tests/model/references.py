"""Models and rows behind the goldens of Qwen2-VL and Qwen3-VL, read as checkpoints are."""

import json

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gve_jax.checkpoints.hf_config import from_hf
from gve_jax.checkpoints.weight_names import match_names, sources
from gve_jax.inputs.layout import window_layout
from gve_jax.inputs.preprocess import InputSpec, Row
from gve_jax.media.pixels import patchify
from gve_jax.model.config import ModelConfig
from gve_jax.model.embedder import init_params
from tests.goldens.qwen2vl import named_visuals
from tests.goldens.qwen25vl import IMAGE_PAD, VIDEO_PAD, draw_weight, frames_of


def read_config(numbers, prefix: str = "") -> ModelConfig:
    return from_hf(json.loads(str(numbers[f"{prefix}config.json"])), "float32")


def read_params(cfg: ModelConfig, numbers, prefix: str = ""):
    """The reference's weights as parameters, by the table of tensor names."""
    leaves = flatten_dict(jax.eval_shape(lambda: init_params(cfg, 0)[1]), sep="/")
    shapes = (tuple(map(int, shape.split())) for shape in numbers[f"{prefix}shapes"])
    stored = dict(zip(map(str, numbers[f"{prefix}names"]), shapes, strict=True))
    wanted = sources(cfg, {path: leaf.shape for path, leaf in leaves.items()})
    names, problems = match_names(wanted, stored)
    assert not problems
    params = {}
    for path, source in wanted.items():
        tensors = [draw_weight(name, stored[name]) for name in names[path]]
        if source.transposed:
            tensors = [tensor.reshape(len(tensor), -1).T for tensor in tensors]
        params[path] = jax.numpy.asarray(np.stack(tensors) if source.stacked else tensors[0])
        assert params[path].shape == leaves[path].shape, path
    return unflatten_dict(params, sep="/")


def input_spec(cfg: ModelConfig) -> InputSpec:
    return InputSpec(patch_size=cfg.vision.patch_size, window_side=cfg.vision.window_side)


def make_row(script, number: int, spec: InputSpec) -> Row:
    """An item of a script of goldens, with the script's positions."""
    item = script.ITEMS[number]
    ids, positions = script.tokens_of(number, item)
    patches, layouts = [], []
    for name, _, grid in named_visuals(item):
        layout = window_layout(grid[1], grid[2], spec.window_side, spec.merge)
        frames = frames_of(number, name, grid, spec.patch_size)
        patches += list(patchify(frames, layout, spec.patch_size, spec.temporal))
        layouts += [layout] * grid[0]
    places = np.flatnonzero(np.isin(ids, (VIDEO_PAD, IMAGE_PAD))).astype(np.int32)
    tokens, axes = np.array(ids, np.int32), np.array(positions, np.int32).T
    return Row(tokens, axes, patches, layouts, places)
