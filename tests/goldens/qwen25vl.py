"""Makes qwen25vl.npz: what transformers' Qwen2.5-VL gives for small random weights.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/goldens/qwen25vl.py

Weights and inputs are drawn from a seed by numpy, by name, so the file holds results and not
weights; the test draws the same ones. Position ids are written out by loops over single tokens (the
rule of Qwen's own training code), independently of gve_jax.
"""

import json
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

CONFIG = {
    "vision": dict(
        depth=3,
        hidden_size=32,
        intermediate_size=40,
        num_heads=2,
        out_hidden_size=48,
        fullatt_block_indexes=[1],
        window_size=112,
    ),
    "text": dict(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=[2, 2, 2],
    ),
}
VIDEO_PAD, IMAGE_PAD, VISION_START, VISION_END = 300, 301, 302, 303

# (video grid, image grid) in patches, seconds a step, text tokens before and after: grids that do
# not divide the 8 x 8 window, visuals mixed, text alone.
ITEMS = [
    dict(video=(3, 10, 14), image=(1, 4, 6), seconds=0.83, before=5, after=7),
    dict(video=(2, 8, 8), image=None, seconds=1.0, before=3, after=2),
    dict(video=None, image=(1, 18, 4), seconds=0.0, before=4, after=6),
    dict(video=None, image=None, seconds=0.0, before=6, after=9),
]


def draw(name: str, shape, scale: float = 1.0) -> np.ndarray:
    """float32 normal numbers that depend on the name only."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def draw_weight(name: str, shape) -> np.ndarray:
    if len(shape) == 1:  # weights of norms are near 1
        return int(name.endswith("weight")) + draw(name, shape, 0.1)
    return draw(name, shape, float(np.prod(shape[1:])) ** -0.5)


def frames_of(number: int, kind: str, grid, patch: int = 14) -> np.ndarray:
    """uint8 frames [2 t, patch h, patch w, 3]; an image is one frame."""
    rng = np.random.default_rng(zlib.crc32(f"{number}/{kind}".encode()))
    count = 1 if kind.startswith("image") else 2 * grid[0]
    return rng.integers(0, 256, (count, patch * grid[1], patch * grid[2], 3)).astype(np.uint8)


class Sequence:
    """Token ids and their (time, row, column), written token by token."""

    def __init__(self):
        self.ids: list[int] = []
        self.positions: list[list[int]] = []
        self.start = 0

    def text(self, values):
        for value in values:
            self.ids.append(int(value))
            self.positions.append([self.start] * 3)
            self.start += 1

    def visual(self, pad: int, grid, times):
        """Merged tokens of a grid in patches; `times` are positions of its steps, from 0."""
        biggest = 0
        for time in times:
            for row in range(grid[1] // 2):
                for col in range(grid[2] // 2):
                    self.ids.append(pad)
                    self.positions.append([self.start + time, self.start + row, self.start + col])
                    biggest = max(biggest, time, row, col)
        self.start += biggest + 1


def tokens_of(number: int, item) -> tuple[list[int], list[list[int]]]:
    """Token ids, and their (time, row, column) by the training code's rule, token by token."""
    rng = np.random.default_rng(1000 + number)
    sequence = Sequence()
    sequence.text(rng.integers(0, 300, item["before"]))
    for kind, pad in (("video", VIDEO_PAD), ("image", IMAGE_PAD)):
        if item[kind]:
            seconds = item["seconds"] if kind == "video" else 0
            sequence.text([VISION_START])
            steps = np.arange(item[kind][0], dtype=np.float32)
            times = [int(step * np.float32(seconds) * np.float32(2)) for step in steps]
            sequence.visual(pad, item[kind], times)
            sequence.text([VISION_END])
    sequence.text(rng.integers(0, 300, item["after"]))
    return sequence.ids, sequence.positions


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def reference_patches(
    frames: np.ndarray, patch: int = 14, mean=CLIP_MEAN, std=CLIP_STD
) -> np.ndarray:
    """float32 [patches, 6 patch^2] in the reference processor's order (facts of transformers
    4.49)."""
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    x = ((frames / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    t, h, w = len(frames) // 2, frames.shape[1] // patch, frames.shape[2] // patch
    x = x.reshape(t, 2, 3, h // 2, 2, patch, w // 2, 2, patch)
    return x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1).astype(np.float32)


class Visual(NamedTuple):
    """A video or an image of an item; its merged tokens are recorded by `name`."""

    name: str
    kind: str  # "video" or "image"
    grid: tuple[int, int, int]
    patches: np.ndarray


class Example(NamedTuple):
    """An item as the reference takes it."""

    ids: list[int]
    positions: list[list[int]]
    visuals: list[Visual]


def draw_visuals(number: int, named: list[tuple], patch: int = 14, **normal) -> list[Visual]:
    """The visuals of an item, by (name, kind, grid)."""
    return [
        Visual(*one, reference_patches(frames_of(number, one[0], one[2], patch), patch, **normal))
        for one in named
    ]


def example(number: int, item) -> Example:
    named = [(kind, kind, item[kind]) for kind in ("video", "image") if item[kind]]
    return Example(*tokens_of(number, item), draw_visuals(number, named))


TOKEN_IDS = dict(
    video_token_id=VIDEO_PAD,
    image_token_id=IMAGE_PAD,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
)


def text_config(fields: dict, theta: float, **rope) -> dict:
    """`text_config` of transformers."""
    text = {k: v for k, v in fields.items() if k != "mrope_section"}
    rope |= {"rope_type": "default", "mrope_section": fields["mrope_section"], "rope_theta": theta}
    no_tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return text | {"rope_parameters": rope, "rms_norm_eps": 1e-6} | no_tokens


def record(shapes: dict, items: dict[int, dict]) -> dict[str, np.ndarray]:
    """What the reference gives for items, by number: merged tokens, hidden states, vectors."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    config = Qwen2_5_VLConfig(
        text_config=text_config(shapes["text"], 1_000_000.0),
        vision_config=shapes["vision"] | {"tokens_per_second": 2},
        **TOKEN_IDS,
    )
    model = drawn_model(Qwen2_5_VLModel, config)
    return results(model, {number: example(number, item) for number, item in items.items()})


def drawn_model(architecture, config):
    """A model of transformers with the weights of `draw_weight`."""
    import torch

    config._attn_implementation = "eager"
    model = architecture(config).eval()
    state = {
        name: torch.from_numpy(draw_weight(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def results(model, examples: dict[int, Example]) -> dict[str, np.ndarray]:
    """Merged tokens of each visual, with deepstack features [K, V, E] if the tower has them,
    hidden states after the final norm and unit vectors of the last token, by number of the item."""
    import torch
    import transformers

    out = {
        "names": np.array(sorted(model.state_dict())),
        "versions": np.array(
            [f"transformers {transformers.__version__}", f"torch {torch.__version__}"]
        ),
    }
    for number, (ids, positions, visuals) in examples.items():
        for visual in visuals:
            with torch.no_grad():
                merged = model.visual(
                    torch.from_numpy(visual.patches), grid_thw=torch.tensor([visual.grid])
                )
            out[f"{number}/{visual.name}"] = merged.pooler_output.numpy()
            if features := getattr(merged, "deepstack_features", None):
                out[f"{number}/{visual.name}/deepstack"] = torch.stack(features).numpy()
        hidden = hidden_states(model, ids, positions, visuals)
        out[f"{number}/hidden"] = hidden.numpy()
        out[f"{number}/pooled"] = torch.nn.functional.normalize(hidden[-1], dim=-1).numpy()
    return out


def description(model) -> dict[str, np.ndarray]:
    """The config.json that transformers writes, and the shape of each of the `names`."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return {
        "config.json": np.array(json.dumps(model.config.to_dict())),
        "shapes": np.array([" ".join(map(str, shapes[name])) for name in sorted(shapes)]),
    }


def hidden_states(model, ids, positions, visuals: list[Visual]):
    """torch [L, E], after the final norm."""
    import torch

    inputs = {}
    for kind, values, grid in (
        ("video", "pixel_values_videos", "video_grid_thw"),
        ("image", "pixel_values", "image_grid_thw"),
    ):
        if some := [visual for visual in visuals if visual.kind == kind]:
            inputs[values] = torch.from_numpy(np.concatenate([one.patches for one in some]))
            inputs[grid] = torch.tensor([one.grid for one in some])
    kinds = {VIDEO_PAD: 2, IMAGE_PAD: 1}
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor(positions).T[:, None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            mm_token_type_ids=torch.tensor([[kinds.get(i, 0) for i in ids]]),
            use_cache=False,
            **inputs,
        ).last_hidden_state[0]


if __name__ == "__main__":
    numbers = record(CONFIG, dict(enumerate(ITEMS)))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **numbers)
