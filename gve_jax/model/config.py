"""Sizes and parts of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL encoder, named as in its config.json."""

import ast
import dataclasses
import re
from typing import Any

from gve_jax.fields import setting

# As in the paper: queries, keys, values and the MLP of the decoder, not the output projection.
LORA_TARGETS = r"^language/layers/(self_attn/(q|k|v)_proj|mlp/(gate|up|down)_proj)$"

# What the backward pass reuses of a layer's forward pass: everything; the outputs of projections
# (attention and elementwise operations are recomputed); only the layer's input.
REMAT = ("none", "dots", "full")
ATTENTION = ("xla", "cudnn", "splash")  # kernels of gve_jax.model.attention
DTYPES = ("float32", "bfloat16", "float16")
NORMS = ("rms", "layer")
MLPS = ("swiglu", "quick_gelu", "gelu_tanh")
ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # `model_type` of config.json

# Statistics of pixels from 0 to 1, as in each preprocessor_config.json.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Qwen2-VL and Qwen2.5-VL
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # Qwen3-VL


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower (`vision_config`)."""

    depth: int = setting(help="blocks", least=1)
    hidden_size: int = setting(help="width", least=1)
    intermediate_size: int = setting(help="width of the MLP", least=1)
    num_heads: int = setting(help="attention heads", least=1)
    out_hidden_size: int = setting(help="width of merged tokens: that of the decoder", least=1)
    fullatt_block_indexes: tuple[int, ...] = setting(
        help="blocks that attend to the full frame pair, others within windows", least=0
    )
    window_size: int = setting(112, "side of an attention window, in pixels; 0: none", least=0)
    patch_size: int = setting(14, "side of a patch, in pixels", least=1)
    spatial_merge_size: int = setting(2, "side of a merged token, in patches", least=1)
    temporal_patch_size: int = setting(2, "frames of a patch", least=1)
    in_channels: int = setting(3, "color channels", least=3, most=3)
    tokens_per_second: int = setting(
        2, "M-RoPE positions per second; 0: one per time step", least=0
    )
    rope_theta: float = setting(10_000.0, "base of the rotary frequencies", above=0)
    rms_norm_eps: float = setting(1e-6, "epsilon of the norms", above=0)
    norm: str = setting(
        "rms", "norm of blocks and mergers; layer: with bias", choices=NORMS, later=True
    )
    mlp: str = setting("swiglu", "MLP of the blocks", choices=MLPS, later=True)
    patch_bias: bool = setting(False, "bias of the patch embedding", later=True)
    position_side: int = setting(
        0,
        "side of the table of learned positions, which is interpolated; 0: none",
        least=0,
        later=True,
    )
    deepstack: tuple[int, ...] = setting(
        (),
        "blocks whose output is also merged, and added after the first decoder layers",
        least=0,
        later=True,
    )
    pixel_mean: tuple[float, float, float] = setting(
        CLIP_MEAN, "mean of the colors", least=0, later=True
    )
    pixel_std: tuple[float, float, float] = setting(
        CLIP_STD, "their deviation", above=0, later=True
    )

    @property
    def has_windows(self) -> bool:
        """Whether a block attends within windows."""
        return len(set(self.fullatt_block_indexes)) < self.depth

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch: channels x frames x height x width (1,176 for Qwen2.5-VL)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches in a merged token."""
        return self.spatial_merge_size**2

    @property
    def window_side(self) -> int:
        """Side of an attention window in patches, a multiple of `spatial_merge_size`; 0 if no block
        has windows."""
        if not self.has_windows:
            return 0
        merged = self.window_size // self.patch_size // self.spatial_merge_size
        return merged * self.spatial_merge_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The causal decoder (`text_config`, or the top level of a released config.json)."""

    vocab_size: int = setting(help="tokens, at least those of the tokenizer", least=1)
    hidden_size: int = setting(help="width", least=1)
    intermediate_size: int = setting(help="width of the MLP", least=1)
    num_hidden_layers: int = setting(help="layers", least=1)
    num_attention_heads: int = setting(help="attention heads", least=1)
    num_key_value_heads: int = setting(help="key and value heads", least=1)
    mrope_section: tuple[int, int, int] = setting(
        help="rotary frequencies for time, row and column", least=0
    )
    rope_theta: float = setting(1_000_000.0, "base of the rotary frequencies", above=0)
    rms_norm_eps: float = setting(1e-6, "epsilon of RMSNorm", above=0)
    head_dim: int = setting(
        0, "size of a head; 0: hidden_size / num_attention_heads", least=0, later=True
    )
    qkv_bias: bool = setting(
        True, "biases of the projections to queries, keys and values", later=True
    )
    qk_norm: bool = setting(False, "RMSNorm of each head's query and key", later=True)
    mrope_interleaved: bool = setting(
        False,
        "whether the axes' frequencies alternate, instead of one block for each axis",
        later=True,
    )

    def __post_init__(self):
        if not self.head_dim and self.num_attention_heads > 0:
            size, rest = divmod(self.hidden_size, self.num_attention_heads)
            _require(not rest, "text.hidden_size", "a multiple of num_attention_heads")
            object.__setattr__(self, "head_dim", size)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen projections; the defaults are the paper's (Table 9).

    `targets` is a regular expression that is searched in the path of a projection, such as
    `language/layers/self_attn/o_proj`, `visual/blocks/attn/qkv` or `visual/merger/mlp_0`. It
    applies to all layers of a stack. Names of projections, as PEFT's `target_modules` has them, are
    converted: `("q_proj", "v_proj")`, or such a tuple as text.
    """

    rank: int = setting(16, "rank", least=1)
    alpha: float = setting(32.0, "scale times rank", above=0)
    dropout: float = setting(0.1, "dropout of the adapters' inputs in training", least=0, below=1)
    targets: str | tuple[str, ...] = setting(
        LORA_TARGETS,
        "regular expression of the paths of adapted projections, or their names: "
        "('q_proj', 'v_proj')",
    )

    def __post_init__(self):
        _require(self.rank > 0, "lora.rank", "positive")
        _require(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)")
        object.__setattr__(self, "targets", _expression(self.targets))
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"model config: lora.targets: {error}") from error

    @property
    def scale(self) -> float:
        """The factor of an adapter's output."""
        return self.alpha / self.rank


def _expression(targets: str | tuple[str, ...]) -> str:
    """The regular expression of `LoraConfig.targets`, for names as well."""
    names = targets
    if isinstance(targets, str):
        if targets[:1] not in ("(", "["):
            return targets
        try:
            names = ast.literal_eval(targets)
        except (ValueError, SyntaxError):  # an expression that begins with a group
            return targets
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        return targets
    return f"(^|/)({'|'.join(map(re.escape, names))})$"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A General Video Embedder: tower, decoder, dtypes, recomputation and kernels."""

    vision: VisionConfig
    text: TextConfig
    architecture: str = setting(
        "qwen2_5_vl",
        "model_type of config.json; None: that of pretrained",
        choices=ARCHITECTURES,
        later=True,
    )
    dtype: str = setting("float32", "dtype of activations", choices=DTYPES)
    param_dtype: str = setting(
        "float32", "dtype of parameters; adapters are float32", choices=DTYPES
    )
    remat_vision: str = setting(
        "none",
        "recomputation in the tower's backward pass: nothing, all but projections, everything",
        choices=REMAT,
        resume=True,
    )
    remat_text: str = setting(
        "none", "recomputation in the decoder's backward pass", choices=REMAT, resume=True
    )
    attention: str = setting(
        "xla", "attention kernel: cudnn for NVIDIA, splash for TPU", choices=ATTENTION, resume=True
    )
    lora: LoraConfig | None = None

    def __post_init__(self):
        v, t = self.vision, self.text
        for part, cfg in (("vision", v), ("text", t)):
            for field in dataclasses.fields(cfg):
                value, rule = getattr(cfg, field.name), field.metadata["rule"]
                if not isinstance(value, tuple):
                    _require(rule.allows(value), f"{part}.{field.name}", str(rule))
        _require(
            self.architecture in ARCHITECTURES, "architecture", f"one of {', '.join(ARCHITECTURES)}"
        )
        for name in ("remat_vision", "remat_text"):
            _require(getattr(self, name) in REMAT, name, f"one of {', '.join(REMAT)}")
        _require(v.hidden_size % v.num_heads == 0, "vision.hidden_size", "a multiple of num_heads")
        _require(v.hidden_size // v.num_heads % 4 == 0, "vision head size", "a multiple of 4")
        _require(v.out_hidden_size == t.hidden_size, "vision.out_hidden_size", "text.hidden_size")
        if v.has_windows:
            _require(v.window_side > 0, "vision.window_size", "at least one merged token")
        for name in ("fullatt_block_indexes", "deepstack"):
            blocks = getattr(v, name)
            _require(all(0 <= i < v.depth for i in blocks), f"vision.{name}", "indices of blocks")
        _require(v.deepstack == tuple(sorted({*v.deepstack})), "vision.deepstack", "ascending")
        _require(
            len(v.deepstack) <= t.num_hidden_layers,
            "vision.deepstack",
            f"at most as many as text.num_hidden_layers, {t.num_hidden_layers}",
        )
        _require(
            t.num_attention_heads % t.num_key_value_heads == 0,
            "text.num_attention_heads",
            "a multiple of num_key_value_heads",
        )
        _require(2 * sum(t.mrope_section) == t.head_dim, "text.mrope_section", "half of head_dim")

    @property
    def embedding_dim(self) -> int:
        return self.text.hidden_size

    @property
    def visual_dim(self) -> int:
        """Width of the tower's output: a merged token and its deepstack features."""
        return (1 + len(self.vision.deepstack)) * self.vision.out_hidden_size

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Builds a config from nested dicts (JSON or ml_collections); lists become tuples."""
        fields = dict(fields)
        vision = VisionConfig(**_tuples(fields.pop("vision")))
        text = TextConfig(**_tuples(fields.pop("text")))
        lora = fields.pop("lora", None)
        lora = None if lora is None else LoraConfig(**lora)
        return cls(vision=vision, text=text, lora=lora, **fields)


def _tuples(fields) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in dict(fields).items()}


def _require(condition: bool, field: str, rule: str):
    if not condition:
        raise ValueError(f"model config: {field} must be {rule}")
