"""Which tensor of a Hugging Face checkpoint is which parameter: one table, for both directions.

A parameter's layers are stacked on a leading axis here and are separate tensors there; a kernel is
[in, out] here and [out, in] there. Both of transformers' key layouts are read and written: that of
4.49 (`visual.*`, `model.layers.*`), which the released checkpoints have, and that of 4.52 and later
(`model.visual.*`, `model.language_model.*`).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from gve_jax.model.config import ModelConfig

COPY, TRANSPOSE, CONV = "copy", "transpose", "conv"  # conv: [out, channel, time, row, column]

# (their name, our path, transform). First match wins. A field in braces stands for its expression
# in FIELDS and is carried over, with `.` for `/`; `layer` is the index on our leading axis.
TABLE: tuple[tuple[str, str | None, str | None], ...] = (
    ("{visual}.patch_embed.proj.weight", "visual/patch_embed/kernel", CONV),
    ("{visual}.blocks.{layer}.{norm}.weight", "visual/blocks/{norm}/weight", COPY),
    ("{visual}.blocks.{layer}.{module}.weight", "visual/blocks/{module}/kernel", TRANSPOSE),
    ("{visual}.blocks.{layer}.{module}.bias", "visual/blocks/{module}/bias", COPY),
    ("{visual}.merger.ln_q.weight", "visual/merger/ln_q/weight", COPY),
    ("{visual}.merger.mlp.{digit}.weight", "visual/merger/mlp_{digit}/kernel", TRANSPOSE),
    ("{visual}.merger.mlp.{digit}.bias", "visual/merger/mlp_{digit}/bias", COPY),
    ("{text}.embed_tokens.weight", "language/embed_tokens", COPY),
    ("{text}.layers.{layer}.{norm}.weight", "language/layers/{norm}/weight", COPY),
    ("{text}.layers.{layer}.{module}.weight", "language/layers/{module}/kernel", TRANSPOSE),
    ("{text}.layers.{layer}.{module}.bias", "language/layers/{module}/bias", COPY),
    ("{text}.norm.weight", "language/norm/weight", COPY),
    ("lm_head.weight", None, None),  # tied or not: an embedder has no head
)
FIELDS = {
    "visual": r"(?:model\.)?visual",
    "text": r"(?:model\.)?language_model|model",
    "layer": r"\d+",
    "norm": r"norm[12]|(?:input|post_attention)_layernorm",
    "module": r"(?:attn|self_attn|mlp)[./]\w+",
    "digit": r"\d",
}
LAYOUTS = {
    "4.49": {"visual": "visual", "text": "model"},
    "5": {"visual": "model.visual", "text": "model.language_model"},
}


def _pattern(template: str) -> re.Pattern:
    named = re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{FIELDS[m[1]]})", re.escape(template))
    return re.compile(named)


_THEIRS = [(_pattern(theirs), ours) for theirs, ours, _ in TABLE]
_OURS = [(_pattern(ours), theirs, how) for theirs, ours, how in TABLE if ours]


class Source(NamedTuple):
    """Where a parameter comes from.

    Attributes:
      names: its tensors in a checkpoint, one a layer; a single one when it is not stacked.
      shape: of each of them.
      stacked: whether the parameter has a leading layer axis.
      transposed: whether a tensor, seen as the matrix [first axis, all others], is the transpose of
        ours.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool


def sources(
    cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]], layout: str = "4.49"
) -> dict[str, Source]:
    """The tensors behind each parameter.

    Args:
      cfg: the model.
      shapes: our parameters by path, `language/layers/mlp/up_proj/kernel`.
      layout: a key of `LAYOUTS`.

    Raises:
      ValueError: a parameter that a checkpoint has no name for.
    """
    v, found = cfg.vision, {}
    conv = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    for path, shape in shapes.items():
        match, theirs, how = _first(_OURS, path)
        if match is None:
            raise ValueError(f"parameter {path} has no name in a Hugging Face checkpoint")
        fields = {key: value.replace("/", ".") for key, value in match.groupdict().items()}
        stacked = "{layer}" in theirs
        inner = shape[1:] if stacked else shape
        their_shape = inner if how == COPY else inner[::-1]
        names = tuple(
            theirs.format(layer=layer, **LAYOUTS[layout], **fields)
            for layer in range(shape[0] if stacked else 1)
        )
        if how == CONV:
            their_shape = (inner[1], *conv)
        found[path] = Source(names, their_shape, stacked, how != COPY)
    return found


def match_names(
    wanted: Mapping[str, Source], stored: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Finds every wanted tensor among those stored, whatever their key layout.

    Args:
      wanted: `sources` in any layout.
      stored: shapes of the tensors of a checkpoint, by name.

    Returns:
      The stored names of each parameter, in the order of layers, and all that is wrong: tensors
      missing, unexpected, misshapen or there twice.
    """
    found: dict[tuple[str, int], str] = {}
    problems = []
    for name, shape in stored.items():
        match, path = _first(_THEIRS, name)
        if match is not None and path is None:
            continue
        fields = match.groupdict() if match else {}
        layer = int(fields.pop("layer", 0))
        path = path.format(**{k: v.replace(".", "/") for k, v in fields.items()}) if match else ""
        source = wanted.get(path)
        if source is None or layer >= len(source.names):
            problems.append(f"unexpected: {name}")
        elif (path, layer) in found:
            problems.append(f"twice: {found[path, layer]} and {name}")
        elif shape != source.shape:
            problems.append(f"misshapen: {name} is {list(shape)}, not {list(source.shape)}")
        found.setdefault((path, layer), name)
    names = {}
    for path, source in wanted.items():
        names[path] = [found.get((path, layer), "") for layer in range(len(source.names))]
        problems += [
            f"missing: {theirs}"
            for theirs, name in zip(source.names, names[path], strict=True)
            if not name
        ]
    return names, problems


def _first(patterns, name: str):
    for pattern, *rest in patterns:
        if match := pattern.fullmatch(name):
            return match, *rest
    return None, *(None for _ in patterns[0][1:])
