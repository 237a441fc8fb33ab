"""Maps tensors of Hugging Face checkpoints to parameters: one table for loading and saving.

Parameters stack layers on a leading axis and have kernels [in, out]; checkpoints have one tensor
per layer and kernels [out, in]. Both key layouts of transformers are supported: that of 4.49
(`visual.*`, `model.layers.*`), used by the released Qwen2-VL and Qwen2.5-VL, and that of 4.52 and
later (`model.visual.*`, `model.language_model.*`), the only one of Qwen3-VL.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from gve_jax.model.config import ModelConfig

COPY, TRANSPOSE, CONV = "copy", "transpose", "conv"  # conv: [out, channel, time, row, column]

# (tensor name, parameter path, transform); the first match wins. A field in braces matches its
# expression in FIELDS and is carried over, with `.` for `/`; `layer` indexes the leading axis.
_Entry = tuple[str, str | None, str | None]
_COMMON: tuple[_Entry, ...] = (
    ("{visual}.patch_embed.proj.weight", "visual/patch_embed/kernel", CONV),
    ("{visual}.blocks.{layer}.{norm}.weight", "visual/blocks/{norm}/weight", COPY),
    ("{visual}.blocks.{layer}.{norm}.bias", "visual/blocks/{norm}/bias", COPY),
    ("{visual}.blocks.{layer}.{module}.weight", "visual/blocks/{module}/kernel", TRANSPOSE),
    ("{visual}.blocks.{layer}.{module}.bias", "visual/blocks/{module}/bias", COPY),
    ("{text}.embed_tokens.weight", "language/embed_tokens", COPY),
    ("{text}.layers.{layer}.{norm}.weight", "language/layers/{norm}/weight", COPY),
    ("{text}.layers.{layer}.{module}.weight", "language/layers/{module}/kernel", TRANSPOSE),
    ("{text}.layers.{layer}.{module}.bias", "language/layers/{module}/bias", COPY),
    ("{text}.norm.weight", "language/norm/weight", COPY),
    ("lm_head.weight", None, None),  # an embedder has no head
)
_QWEN2: tuple[_Entry, ...] = (
    ("{visual}.merger.ln_q.weight", "visual/merger/ln_q/weight", COPY),
    ("{visual}.merger.ln_q.bias", "visual/merger/ln_q/bias", COPY),
    ("{visual}.merger.mlp.{digit}.weight", "visual/merger/mlp_{digit}/kernel", TRANSPOSE),
    ("{visual}.merger.mlp.{digit}.bias", "visual/merger/mlp_{digit}/bias", COPY),
)
_QWEN3: tuple[_Entry, ...] = (
    ("{visual}.patch_embed.proj.bias", "visual/patch_embed/bias", COPY),
    ("{visual}.pos_embed.weight", "visual/pos_embed", COPY),
    ("{visual}.blocks.{layer}.mlp.linear_{fc}.weight", "visual/blocks/mlp/{fc}/kernel", TRANSPOSE),
    ("{visual}.blocks.{layer}.mlp.linear_{fc}.bias", "visual/blocks/mlp/{fc}/bias", COPY),
    *(
        entry
        for tensor, path in (
            ("{visual}.merger", "visual/merger"),
            ("{visual}.deepstack_merger_list.{layer}", "visual/deepstack"),
        )
        for entry in (
            (f"{tensor}.norm.weight", f"{path}/ln_q/weight", COPY),
            (f"{tensor}.norm.bias", f"{path}/ln_q/bias", COPY),
            (f"{tensor}.linear_fc1.weight", f"{path}/mlp_0/kernel", TRANSPOSE),
            (f"{tensor}.linear_fc1.bias", f"{path}/mlp_0/bias", COPY),
            (f"{tensor}.linear_fc2.weight", f"{path}/mlp_2/kernel", TRANSPOSE),
            (f"{tensor}.linear_fc2.bias", f"{path}/mlp_2/bias", COPY),
        )
    ),
)
TABLES: dict[str, tuple[_Entry, ...]] = {
    "qwen2_vl": _QWEN2 + _COMMON,
    "qwen2_5_vl": _QWEN2 + _COMMON,
    "qwen3_vl": _QWEN3 + _COMMON,
}
FIELDS = {
    "visual": r"(?:model\.)?visual",
    "text": r"(?:model\.)?language_model|model",
    "layer": r"\d+",
    "norm": r"norm[12]|(?:input|post_attention)_layernorm|self_attn[./][qk]_norm",
    "module": r"(?:attn|self_attn|mlp)[./]\w+",
    "digit": r"\d",
    "fc": r"fc[12]",
}
LAYOUTS = {
    "4.49": {"visual": "visual", "text": "model"},
    "5": {"visual": "model.visual", "text": "model.language_model"},
}


def _pattern(template: str) -> re.Pattern:
    named = re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{FIELDS[m[1]]})", re.escape(template))
    return re.compile(named)


# Names of tensors are unambiguous over all architectures.
_BY_TENSOR = [(_pattern(tensor), path) for tensor, path, _ in _QWEN3 + _QWEN2 + _COMMON]
_BY_PATH = {
    name: [(_pattern(path), tensor, how) for tensor, path, how in table if path]
    for name, table in TABLES.items()
}


class Source(NamedTuple):
    """The tensors of a parameter.

    Attributes:
      names: one tensor per layer, or a single one if the parameter is not stacked.
      shape: of each tensor.
      stacked: whether the parameter has a leading layer axis.
      transposed: whether a tensor, as a matrix [first axis, all others], is the transpose of the
        parameter.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool


def sources(
    cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]], layout: str = "4.49"
) -> dict[str, Source]:
    """Returns the tensors of each parameter.

    Args:
      shapes: shapes of the parameters by path, such as `language/layers/mlp/up_proj/kernel`.
      layout: a key of `LAYOUTS`; Qwen3-VL is always in layout "5".

    Raises:
      ValueError: a parameter without a name in checkpoints.
    """
    v, found = cfg.vision, {}
    prefixes = LAYOUTS["5" if cfg.architecture == "qwen3_vl" else layout]
    conv = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    for path, shape in shapes.items():
        match, template, how = _first(_BY_PATH[cfg.architecture], path)
        if match is None:
            raise ValueError(f"parameter {path} has no name in a Hugging Face checkpoint")
        fields = {key: value.replace("/", ".") for key, value in match.groupdict().items()}
        stacked = "{layer}" in template
        inner = shape[1:] if stacked else shape
        tensor_shape = inner if how == COPY else inner[::-1]
        names = tuple(
            template.format(layer=layer, **prefixes, **fields)
            for layer in range(shape[0] if stacked else 1)
        )
        if how == CONV:
            tensor_shape = (inner[1], *conv)
        found[path] = Source(names, tensor_shape, stacked, how != COPY)
    return found


def match_names(
    wanted: Mapping[str, Source], stored: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Finds the tensors of all parameters, whatever the key layout of the checkpoint.

    Args:
      wanted: `sources` in any layout.
      stored: shapes of the tensors of a checkpoint, by name.

    Returns:
      The stored names of each parameter, in the order of layers, and the list of problems: missing,
      unexpected, misshapen and duplicate tensors.
    """
    found: dict[tuple[str, int], str] = {}
    problems = []
    for name, shape in stored.items():
        match, path = _first(_BY_TENSOR, name)
        if match is not None and path is None:
            continue
        fields = match.groupdict() if match else {}
        layer = int(fields.pop("layer", 0))
        path = path.format(**{k: v.replace(".", "/") for k, v in fields.items()}) if match else ""
        source = wanted.get(path)
        if source is None or layer >= len(source.names):
            problems.append(f"unexpected: {name}")
        elif (path, layer) in found:
            problems.append(f"duplicate: {found[path, layer]} and {name}")
        elif shape != source.shape:
            problems.append(f"misshapen: {name} is {list(shape)}, not {list(source.shape)}")
        found.setdefault((path, layer), name)
    names = {}
    for path, source in wanted.items():
        names[path] = [found.get((path, layer), "") for layer in range(len(source.names))]
        problems += [
            f"missing: {wanted_name}"
            for wanted_name, name in zip(source.names, names[path], strict=True)
            if not name
        ]
    return names, problems


def _first(patterns, name: str):
    for pattern, *rest in patterns:
        if match := pattern.fullmatch(name):
            return match, *rest
    return None, *(None for _ in patterns[0][1:])
