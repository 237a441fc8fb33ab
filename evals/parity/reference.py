"""The reference of parity and speed: transformers' Qwen2.5-VL with random weights.

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

from gve_jax.inputs.preprocess import Preprocessor, Row
from gve_jax.inputs.prompt import SPECIALS
from gve_jax.media.item import Item

# Widths, heads and vocabulary rows of the released models (facts of their config.json), few layers.
# `text` and `vision` are arguments of transformers.
_TOWER = dict(hidden_size=1280, intermediate_size=3420, num_heads=16, window_size=112)
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}
SIZES = {
    "small": dict(
        vision=dict(hidden_size=256, intermediate_size=512, num_heads=4, window_size=112),
        text=dict(
            hidden_size=512, intermediate_size=1536, num_attention_heads=4, num_key_value_heads=2
        ),
        mrope_section=(16, 24, 24),
        tied=True,
    ),
    "3b": dict(
        vision=_TOWER,
        text=dict(
            hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2
        ),
        mrope_section=(16, 24, 24),
        tied=True,
    ),
    "7b": dict(
        vision=_TOWER,
        text=dict(
            hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4
        ),
        mrope_section=(16, 24, 24),
        tied=False,
    ),
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

    Every second block of the tower, including the last one, attends to complete frame pairs.
    """
    import torch

    import_torchvision()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    directory.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(directory / "tokenizer.json")
    shape = SIZES[size]
    full = list(range(vision_depth - 1, -1, -2))[::-1]
    config = Qwen2_5_VLConfig(
        text_config=shape["text"]
        | dict(
            num_hidden_layers=text_depth,
            vocab_size=_VOCABULARY,
            rms_norm_eps=1e-6,
            rope_parameters=_ROPE | {"mrope_section": list(shape["mrope_section"])},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=shape["tied"],
        ),
        vision_config=shape["vision"]
        | dict(
            depth=vision_depth,
            out_hidden_size=shape["text"]["hidden_size"],
            fullatt_block_indexes=full,
            tokens_per_second=2,
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape["tied"],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
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


@dataclasses.dataclass
class Example:
    """One item for both sides: our row, and the reference's patches and grids."""

    row: Row
    video: np.ndarray | None  # float32 [patches, 1176], raster order
    image: np.ndarray | None
    video_grid: tuple[int, int, int] | None  # in patches
    image_grid: tuple[int, int, int] | None
    seconds: float  # duration of a frame pair


def make_example(item: Item, preprocess: Preprocessor) -> Example:
    """Media must be arrays that need no resizing, to compare the models alone."""
    frames = None if item.video is None else np.asarray(item.video)
    image = None if item.image is None else np.asarray(item.image)[None]
    video, video_grid = (None, None) if frames is None else reference_patches(frames)
    picture, image_grid = (None, None) if image is None else reference_patches(image)
    seconds = 0.0 if item.fps is None else 2 / item.fps
    return Example(preprocess(item), video, picture, video_grid, image_grid, seconds)


def reference_patches(frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """uint8 [T, H, W, 3] -> float32 [patches, 1176] and the grid, in the axis order of
    transformers' Qwen2VLImageProcessor: (time, row / 2, column / 2, 2, 2, channel, 2, 14, 14)."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    t, h, w = len(frames) // 2, frames.shape[1] // 14, frames.shape[2] // 14
    x = ((frames / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    x = x.reshape(t, 2, 3, h // 2, 2, 14, w // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
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
        from transformers import Qwen2_5_VLForConditionalGeneration, logging

        logging.disable_progress_bar()
        self.torch = torch
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
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
            if seconds:
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
