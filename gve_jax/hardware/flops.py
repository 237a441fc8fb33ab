"""Model FLOPs of a training step or an encoding, by arithmetic: the work that is necessary.

Only matrix products count, a multiply-add as two. Causal attention counts half, window attention
only its windows. Gradients of inputs count if a layer below trains, gradients of weights if the
weights train; adapters count as small products. Everything else does not count: padding,
recomputation, GradCache's second forward pass, rows of the last layer that are not pooled. The
similarity matrix, less than a thousandth, is left out.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gve_jax.inputs.counts import Counts
from gve_jax.model.config import ModelConfig

Trains = Callable[[str], bool]
"""Whether a regular expression matches the path of a parameter that trains."""


class Flops(NamedTuple):
    """FLOPs of the tower (with its merger) and the decoder."""

    tower: float
    decoder: float

    @property
    def total(self) -> float:
        return self.tower + self.decoder


def trains(names: Iterable[str]) -> Trains:
    """Makes a `Trains` from the paths of trained parameters, `language/.../up_proj/lora/a`."""
    names = tuple(names)
    return lambda pattern: any(re.search(pattern, name) for name in names)


def encode(cfg: ModelConfig, counts: Counts) -> Flops:
    """FLOPs of encoding, including adapters if `cfg` has them."""
    return train(cfg, [counts], lambda pattern: False)


def train(cfg: ModelConfig, sides: Iterable[Counts], trained: Trains) -> Flops:
    """FLOPs of a training step; `sides` are the counts of queries, positives and each set of
    negatives."""
    works = [(_tower(cfg, side, trained), _decoder(cfg, side, trained)) for side in sides]
    return Flops(*map(sum, zip(*works, strict=True)))


def _projection(
    cfg: ModelConfig, path: str, rows: float, sizes: tuple[int, int], below: bool, trained: Trains
) -> float:
    """FLOPs of `rows @ kernel` with its adapter; `below`: whether the rows need gradients."""
    inputs, outputs = sizes
    kernel = trained(rf"^{path}/kernel$")
    total = (1 + below + kernel) * 2.0 * rows * inputs * outputs
    if cfg.lora is not None and re.search(cfg.lora.targets, path):
        a, b = (trained(rf"^{path}/lora/{leaf}$") for leaf in "ab")
        total += (1 + below + a) * 2.0 * rows * inputs * cfg.lora.rank
        total += (1 + (below or a) + b) * 2.0 * rows * cfg.lora.rank * outputs
    return total


def _attention(pairs: float, width: int, query: bool, key: bool, value: bool) -> float:
    """FLOPs of scores and weighted values, with gradients of query, key and value as flagged."""
    return 2.0 * pairs * width * (2 + query + key + (query or key) + value)


def _mlp(cfg, path, rows, sizes, below, trained, gated: bool = True) -> float:
    ins, out = (("gate_proj", "up_proj"), "down_proj") if gated else (("fc1",), "fc2")
    total = sum(_projection(cfg, f"{path}/{one}", rows, sizes, below, trained) for one in ins)
    below = below or trained(rf"^{path}/({'|'.join(ins)})/")
    return total + _projection(cfg, f"{path}/{out}", rows, sizes[::-1], below, trained)


def _tower(cfg: ModelConfig, counts: Counts, trained: Trains) -> float:
    v, rows, wide = cfg.vision, counts.patches, cfg.vision.hidden_size
    if not rows:
        return 0.0
    total = _projection(cfg, "visual/patch_embed", rows, (v.patch_dim, wide), False, trained)
    first, blocks = trained("^visual/(patch_embed/|pos_embed$)"), trained("^visual/blocks/")
    for layer in range(v.depth):
        path = "visual/blocks"  # stacked: a parameter trains in all layers or in none
        below = first or (blocks and layer > 0) or trained(rf"^{path}/norm1/")
        total += _projection(cfg, f"{path}/attn/qkv", rows, (wide, 3 * wide), below, trained)
        below = below or trained(rf"^{path}/attn/qkv/")
        pairs = counts.full_pairs if layer in v.fullatt_block_indexes else counts.window_pairs
        total += _attention(pairs, wide, below, below, below)
        total += _projection(cfg, f"{path}/attn/proj", rows, (wide, wide), below, trained)
        below = below or trained(rf"^{path}/(attn/proj|norm2)/")
        sizes, gated = (wide, v.intermediate_size), v.mlp == "swiglu"
        total += _mlp(cfg, f"{path}/mlp", rows, sizes, below, trained, gated)
    side, rows = wide * v.merge_unit, rows / v.merge_unit
    for path in ["visual/merger"] + ["visual/deepstack"] * len(v.deepstack):
        below = first or blocks or trained(f"^{path}/ln_q/")
        total += _projection(cfg, f"{path}/mlp_0", rows, (side, side), below, trained)
        below = below or trained(f"^{path}/mlp_0/")
        sizes = (side, v.out_hidden_size)
        total += _projection(cfg, f"{path}/mlp_2", rows, sizes, below, trained)
    return total


def _decoder(cfg: ModelConfig, counts: Counts, trained: Trains) -> float:
    t, wide, path = cfg.text, cfg.text.hidden_size, "language/layers"
    heads, keys = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    first = trained("^language/embed_tokens$") or (counts.patches > 0 and trained("^visual/"))
    layers, total = trained(f"^{path}/"), 0.0
    for layer in range(t.num_hidden_layers):
        last = layer == t.num_hidden_layers - 1  # only its pooled rows are computed
        rows = counts.items if last else counts.tokens
        pairs = counts.tokens if last else counts.causal_pairs
        below = first or (layers and layer > 0) or trained(f"^{path}/input_layernorm/")
        need_gradients = []
        for name, count, size in (
            ("q", rows, heads),
            ("k", counts.tokens, keys),
            ("v", counts.tokens, keys),
        ):
            name = f"{path}/self_attn/{name}_proj"
            total += _projection(cfg, name, count, (wide, size), below, trained)
            need_gradients.append(below or trained(f"^{name}/"))
        total += _attention(pairs, heads, *need_gradients)
        below = any(need_gradients)
        total += _projection(cfg, f"{path}/self_attn/o_proj", rows, (heads, wide), below, trained)
        below = below or trained(f"^{path}/(self_attn/o_proj|post_attention_layernorm)/")
        total += _mlp(cfg, f"{path}/mlp", rows, (wide, t.intermediate_size), below, trained)
    return total
