"""Small checkpoints in the format of transformers, written by the safetensors library."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from gve_jax.model.config import ModelConfig
from tests.goldens import qwen25vl as golden
from tests.media.files import small_tokenizer

CFG = ModelConfig.from_dict({part: dict(fields) for part, fields in golden.CONFIG.items()})
NAMES = np.load(Path(golden.__file__).with_suffix(".npz"))["names"]  # of transformers 5, bare model
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Prefixes by layout, in place of those of the bare model in transformers 5.
PREFIXES = {
    "4.49": {"visual.": "visual.", "language_model.": "model."},
    "5": {"visual.": "model.visual.", "language_model.": "model.language_model."},
    "bare": {"visual.": "visual.", "language_model.": "language_model."},
}


def tensors(layout: str = "4.49") -> dict[str, np.ndarray]:
    """The weights behind goldens/qwen25vl.npz, float32, named as in a layout."""
    names = [str(name) for name in NAMES]
    return {_renamed(name, layout): golden.draw_weight(name, _shape(name)) for name in names}


def _renamed(name: str, layout: str) -> str:
    before, after = next(pair for pair in PREFIXES[layout].items() if name.startswith(pair[0]))
    return after + name.removeprefix(before)


def _shape(name: str) -> tuple[int, ...]:
    """Shapes in transformers, [out, in], from the configuration."""
    v, t = golden.CONFIG["vision"], golden.CONFIG["text"]
    wide, inner = v["hidden_size"], v["intermediate_size"]
    width, mlp = t["hidden_size"], t["intermediate_size"]
    keys = width // t["num_attention_heads"] * t["num_key_value_heads"]
    matrices = {
        "patch_embed.proj": (wide, 3, 2, 14, 14),
        "attn.qkv": (3 * wide, wide),
        "attn.proj": (wide, wide),
        "merger.mlp.0": (4 * wide, 4 * wide),
        "merger.mlp.2": (width, 4 * wide),
        "embed_tokens": (t["vocab_size"], width),
        "q_proj": (width, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, width),
    }
    rows, columns = (inner, wide) if name.startswith("visual") else (mlp, width)
    matrices |= {
        "gate_proj": (rows, columns),
        "up_proj": (rows, columns),
        "down_proj": (columns, rows),
    }
    module, kind = name.rsplit(".", 1)
    for ending, shape in matrices.items():
        if module.endswith(ending):
            return shape if kind == "weight" else shape[:1]
    return (wide,) if name.startswith("visual") else (width,)  # norms


def config_json(ids: dict[str, int] | None = None) -> dict:
    """The flat config.json of the released checkpoints, for the small model."""
    v, t = golden.CONFIG["vision"], golden.CONFIG["text"]
    text = {name: value for name, value in t.items() if name != "mrope_section"}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        **(ids or {}),
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.49.0.dev0",
        "use_cache": True,
        "use_sliding_window": False,
        **text,
        "vision_config": {
            **v,
            "hidden_act": "silu",
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": t["mrope_section"]},
    }


def nested_json(ids: dict[str, int] | None = None) -> dict:
    """The nested config.json of transformers 5."""
    flat = config_json(ids)
    names = """
        hidden_act rms_norm_eps use_sliding_window vocab_size hidden_size intermediate_size
        num_hidden_layers num_attention_heads num_key_value_heads
    """.split()
    text = {name: flat[name] for name in names}
    rope = {
        "mrope_section": flat["rope_scaling"]["mrope_section"],
        "rope_theta": 1000000.0,
        "rope_type": "default",
    }
    vision = dict(
        flat["vision_config"],
        in_channels=3,
        model_type="qwen2_5_vl_vision",
        rope_parameters={"rope_theta": 10000.0, "rope_type": "axial"},
    )
    del vision["in_chans"], vision["spatial_patch_size"]
    return {
        **(ids or {}),
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "text_config": text
        | {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": rope,
            "layer_types": ["full_attention"] * text["num_hidden_layers"],
        },
        "vision_config": vision,
    }


def write(
    directory: Path,
    layout: str = "4.49",
    files: int = 1,
    dtype: str = "float32",
    head: bool = False,
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a checkpoint with a tokenizer; layout "5" has the nested config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
    }
    config = nested_json(ids) if layout == "5" else config_json(ids)
    (directory / "config.json").write_text(json.dumps(config))
    weights = tensors(layout) if weights is None else weights
    weights = {name: np.asarray(value, DTYPES[dtype]) for name, value in weights.items()}
    if head:
        shape = (CFG.text.vocab_size, CFG.text.hidden_size)
        weights["lm_head.weight"] = np.zeros(shape, DTYPES[dtype])
    if files == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[number::files]}
        save_file(part, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
