"""The reference of parity and speed: transformers' models with random weights.

Only this file and `reference_inputs` import torch, and only inside functions. The released weights
are not available everywhere, and the arithmetic does not depend on them.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gve_jax.gve import GVE
from gve_jax.inputs.preprocess import Row
from gve_jax.inputs.prompt import SPECIALS
from gve_jax.media.item import Item
from gve_jax.model.config import VisionConfig
from gve_jax.storage.files import read_json

# Classes of transformers: (configuration, model with a head).
CLASSES = {
    "qwen2_vl": ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
}
# Profiles that pool `<|endoftext|>` behind the same prompt, with M-RoPE.
PROFILES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "gve", "qwen3_vl": "qwen3-vl"}


@dataclasses.dataclass(frozen=True)
class Size:
    """Widths, heads and rotary sections of a released model (facts of its config.json).

    Attributes:
      architecture: a key of `CLASSES`.
      vision, text: arguments of transformers' configurations, without the numbers of layers.
      tied: whether the head is the token embedding.
    """

    architecture: str
    vision: dict
    text: dict
    tied: bool = True

    def __getitem__(self, part: str) -> dict:
        return getattr(self, part)


def _text(hidden: int, inner: int, heads: int, groups: int, **more) -> dict:
    widths = dict(hidden_size=hidden, intermediate_size=inner)
    return widths | dict(num_attention_heads=heads, num_key_value_heads=groups) | more


_QWEN2 = dict(embed_dim=1280, mlp_ratio=4, num_heads=16)
_QWEN2_5 = dict(hidden_size=1280, intermediate_size=3420, num_heads=16, window_size=112)
_QWEN3 = dict(hidden_size=1024, intermediate_size=4096, num_heads=16, num_position_embeddings=2304)
_SMALL = _text(512, 1536, 4, 2)
SIZES = {
    "small": Size(
        "qwen2_5_vl",
        dict(hidden_size=256, intermediate_size=512, num_heads=4, window_size=112),
        _SMALL,
    ),
    "3b": Size("qwen2_5_vl", _QWEN2_5, _text(2048, 11008, 16, 2)),
    "7b": Size("qwen2_5_vl", _QWEN2_5, _text(3584, 18944, 28, 4), tied=False),
    "qwen2vl-small": Size("qwen2_vl", dict(embed_dim=256, mlp_ratio=4, num_heads=4), _SMALL),
    "qwen2vl-2b": Size("qwen2_vl", _QWEN2, _text(1536, 8960, 12, 2)),
    "qwen3vl-small": Size(
        "qwen3_vl",
        _QWEN3 | dict(hidden_size=256, intermediate_size=512, num_heads=4),
        _text(512, 1536, 8, 2, head_dim=128),
    ),
    "qwen3vl-2b": Size("qwen3_vl", _QWEN3, _text(2048, 6144, 16, 8, head_dim=128)),
    "qwen3vl-4b": Size("qwen3_vl", _QWEN3, _text(2560, 9728, 32, 8, head_dim=128)),
}
_VOCABULARY = 512


def write_tokenizer(path: Path) -> dict[str, int]:
    """A tokenizer of single bytes with Qwen's special tokens; returns their ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(path))
    return {token: tokenizer.token_to_id(token) for token in SPECIALS}


def import_torchvision() -> None:
    """Imports torchvision 0.28, which transformers' models import if it is installed.

    Its compiled operators need CUDA's libraries and are missing. It needs their names when it is
    imported, and nothing else to resize images.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or hasattr(torch.ops.torchvision, "nms"):
        return
    source = Path(found.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    names = re.findall(r'register_meta\("(\w+)"|torchvision::(\w+)', source)
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted({first or second for first, second in names}):
        library.define(f"{name}(Tensor x) -> Tensor")
    import_torchvision.library = library  # keeps the operators registered
    import torchvision  # noqa: F401


def write_checkpoint(
    directory: Path, size: str, vision_depth: int = 2, text_depth: int = 2, seed: int = 0
) -> None:
    """Saves a transformers model with random weights, biases and norms included.

    Of Qwen2.5-VL's tower every second block, including the last one, attends to complete frame
    pairs; Qwen3-VL's has deepstack taps after its first blocks, as many as the decoder has layers
    but at most three.
    """
    import torch

    import_torchvision()
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(directory / "tokenizer.json")
    shape = SIZES[size]
    width = shape.text["hidden_size"]
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    vision = shape.vision | dict(depth=vision_depth)
    match shape.architecture:
        case "qwen2_vl":
            vision |= dict(hidden_size=width)
        case "qwen2_5_vl":
            full = list(range(vision_depth - 1, -1, -2))[::-1]
            vision |= dict(out_hidden_size=width, fullatt_block_indexes=full, tokens_per_second=2)
        case "qwen3_vl":
            taps = list(range(min(3, vision_depth, text_depth)))
            vision |= dict(out_hidden_size=width, deepstack_visual_indexes=taps)
            rope |= {"rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20]}
            rope["mrope_interleaved"] = True
    make_config, make_model = (getattr(transformers, name) for name in CLASSES[shape.architecture])
    config = make_config(
        text_config=shape.text
        | dict(
            num_hidden_layers=text_depth,
            vocab_size=_VOCABULARY,
            rms_norm_eps=1e-6,
            rope_parameters=rope,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=shape.tied,
        ),
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )
    model = make_model(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                scale = weight[0].numel() ** -0.5 if "embed_tokens" not in name else 0.1
                weight.normal_(0, scale, generator=generator)
            else:
                weight.normal_(0, 0.1, generator=generator)
                weight += 0.0 if name.endswith("bias") else 1.0
    model.save_pretrained(directory)


def load_gve(directory: Path, size: str, **options) -> GVE:
    """Our model of a checkpoint of `write_checkpoint`, in float32 unless `dtype` is given."""
    profile = PROFILES[SIZES[size].architecture]
    return GVE.from_pretrained(directory, profile=profile, **({"dtype": "float32"} | options))


@dataclasses.dataclass
class Example:
    """One item for both sides: our row, and the reference's patches and grids."""

    row: Row
    video: np.ndarray | None  # float32 [patches, patch_dim], raster order
    image: np.ndarray | None
    video_grid: tuple[int, int, int] | None  # (t, h, w), h and w in patches
    image_grid: tuple[int, int, int] | None
    seconds: float  # duration of a frame pair


def make_example(item: Item, model: GVE) -> Example:
    """Media must be arrays that need no resizing, to compare the models alone."""
    vision = model.config.vision
    frames = None if item.video is None else np.asarray(item.video)
    image = None if item.image is None else np.asarray(item.image)[None]
    video, video_grid = (None, None) if frames is None else reference_patches(frames, vision)
    picture, image_grid = (None, None) if image is None else reference_patches(image, vision)
    seconds = 0.0 if item.fps is None else 2 / item.fps
    row = model.preprocess(item)
    return Example(row, video, picture, video_grid, image_grid, seconds)


def reference_patches(
    frames: np.ndarray, vision: VisionConfig
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """uint8 [T, H, W, 3] -> float32 [patches, patch_dim] and the grid, in the axis order of
    transformers' Qwen2VLImageProcessor: (time, row / 2, column / 2, 2, 2, channel, 2, p, p)."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    p, mean, std = vision.patch_size, np.array(vision.pixel_mean), np.array(vision.pixel_std)
    t, h, w = len(frames) // 2, frames.shape[1] // p, frames.shape[2] // p
    x = ((frames / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    x = x.reshape(t, 2, 3, h // 2, 2, p, w // 2, 2, p).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * h * w, -1).astype(np.float32), (t, h, w)


class Reference:
    """transformers' model of a checkpoint directory.

    Args:
      directory: checkpoint of `write_checkpoint` or `gve_jax`.
      dtype: "float32" or "bfloat16".
      attention: transformers' `attn_implementation`.
    """

    def __init__(self, directory: Path, dtype: str = "float32", attention: str = "sdpa"):
        import torch

        import_torchvision()
        import transformers

        transformers.logging.disable_progress_bar()
        self.torch = torch
        architecture = read_json(directory / "config.json")["model_type"]
        self.model = (
            getattr(transformers, CLASSES[architecture][1])
            .from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation=attention)
            .eval()
        )
        self.config = self.model.config

    @property
    def core(self):
        """The model without its head; the output follows the final norm."""
        return self.model.model

    def inputs(self, examples: Sequence[Example], own_positions: bool = False) -> dict:
        """One right-padded batch. With `own_positions` the model computes the positions by the rule
        of its release; else they are those of the rows (`qwen_train`)."""
        torch, size = self.torch, len(examples)
        length = max(len(e.row.tokens) for e in examples)
        ids = np.zeros((size, length), np.int64)
        mask = np.zeros((size, length), np.int64)
        positions = np.zeros((3, size, length), np.int64)
        for i, example in enumerate(examples):
            count = len(example.row.tokens)
            ids[i, :count], mask[i, :count] = example.row.tokens, 1
            positions[:, i, :count] = example.row.positions
        video, image = self.config.video_token_id, self.config.image_token_id
        batch = dict(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            mm_token_type_ids=torch.from_numpy(np.where(ids == video, 2, (ids == image) * 1)),
        )
        for kind, pixels, grid in (
            ("video", "pixel_values_videos", "video_grid_thw"),
            ("image", "pixel_values", "image_grid_thw"),
        ):
            found = [e for e in examples if getattr(e, kind) is not None]
            if found:
                patches = np.concatenate([getattr(e, kind) for e in found])
                batch[pixels] = torch.from_numpy(patches).to(self.model.dtype)
                batch[grid] = torch.tensor([getattr(e, f"{kind}_grid") for e in found])
        if own_positions:
            seconds = [e.seconds for e in examples if e.video is not None]
            if seconds and self.config.model_type == "qwen2_5_vl":
                batch["second_per_grid_ts"] = torch.tensor(seconds)
        else:
            batch["position_ids"] = torch.from_numpy(positions)
        return batch

    def hidden(self, examples: Sequence[Example], own_positions: bool = False):
        """Hidden states after the final norm, a torch tensor [B, L, D]."""
        with self.torch.inference_mode():
            batch = self.inputs(examples, own_positions)
            return self.core(**batch, use_cache=False).last_hidden_state

    def embed(self, examples: Sequence[Example], own_positions: bool = False) -> np.ndarray:
        """Unit vectors, float32 [B, D], pooled at the last token."""
        hidden = self.hidden(examples, own_positions)
        last = [len(e.row.tokens) - 1 for e in examples]
        pooled = hidden[range(len(examples)), last].float()
        return self.torch.nn.functional.normalize(pooled, dim=-1).numpy()
