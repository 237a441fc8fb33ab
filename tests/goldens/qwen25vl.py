"""Makes qwen25vl.npz: what transformers' Qwen2.5-VL gives for small random weights.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/goldens/qwen25vl.py

Weights and inputs are drawn from a seed by numpy, by name, so the file holds results and not
weights; the test draws the same ones. Position ids are written out by loops over single tokens (the
rule of Qwen's own training code), independently of gve_jax.
"""

import pathlib
import zlib

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
    if name.endswith("norm.weight") or "norm1" in name or "norm2" in name or "layernorm" in name:
        return 1 + draw(name, shape, 0.1)
    if "ln_q" in name:
        return 1 + draw(name, shape, 0.1)
    if len(shape) == 1:
        return draw(name, shape, 0.1)
    return draw(name, shape, float(np.prod(shape[1:])) ** -0.5)


def frames_of(number: int, kind: str, grid) -> np.ndarray:
    """uint8 frames [2 t, 14 h, 14 w, 3]; an image is one frame."""
    rng = np.random.default_rng(zlib.crc32(f"{number}/{kind}".encode()))
    count = 1 if kind == "image" else 2 * grid[0]
    return rng.integers(0, 256, (count, 14 * grid[1], 14 * grid[2], 3)).astype(np.uint8)


def tokens_of(number: int, item) -> tuple[list[int], list[list[int]]]:
    """Token ids, and their (time, row, column) by the training code's rule, token by token."""
    rng = np.random.default_rng(1000 + number)
    ids, positions, start = [], [], 0

    def text(values):
        nonlocal start
        for value in values:
            ids.append(int(value))
            positions.append([start] * 3)
            start += 1

    def visual(pad, grid, seconds):
        nonlocal start
        t, h, w = grid[0], grid[1] // 2, grid[2] // 2
        biggest = 0
        for time in range(t):
            scaled = int(np.float32(time) * np.float32(seconds) * np.float32(2))
            for row in range(h):
                for col in range(w):
                    ids.append(pad)
                    positions.append([start + scaled, start + row, start + col])
                    biggest = max(biggest, scaled, row, col)
        start += biggest + 1

    text(rng.integers(0, 300, item["before"]))
    for kind, pad in (("video", VIDEO_PAD), ("image", IMAGE_PAD)):
        if item[kind]:
            text([VISION_START])
            visual(pad, item[kind], item["seconds"] if kind == "video" else 0)
            text([VISION_END])
    text(rng.integers(0, 300, item["after"]))
    return ids, positions


def reference_patches(frames: np.ndarray) -> np.ndarray:
    """float32 [patches, 1176] in the reference processor's order (facts of transformers 4.49)."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    x = ((frames / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    t, h, w = len(frames) // 2, frames.shape[1] // 14, frames.shape[2] // 14
    x = x.reshape(t, 2, 3, h // 2, 2, 14, w // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(t * h * w, 1176).astype(np.float32)


def record(shapes: dict, items: dict[int, dict]) -> dict[str, np.ndarray]:
    """What the reference gives for items, by number: merged tokens, hidden states, vectors."""
    import torch
    import transformers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    rope = {
        "rope_type": "default",
        "mrope_section": shapes["text"]["mrope_section"],
        "rope_theta": 1_000_000.0,
    }
    text = {k: v for k, v in shapes["text"].items() if k != "mrope_section"}
    config = Qwen2_5_VLConfig(
        text_config=text
        | {
            "rope_parameters": rope,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        vision_config=shapes["vision"] | {"tokens_per_second": 2},
        video_token_id=VIDEO_PAD,
        image_token_id=IMAGE_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    config._attn_implementation = "eager"
    model = Qwen2_5_VLModel(config).eval()
    state = {
        name: torch.from_numpy(draw_weight(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)

    out = {
        "names": np.array(sorted(state)),
        "versions": np.array(
            [f"transformers {transformers.__version__}", f"torch {torch.__version__}"]
        ),
    }
    for number, item in items.items():
        ids, positions = tokens_of(number, item)
        visual = {}
        for kind, values, grid_name in (
            ("video", "pixel_values_videos", "video_grid_thw"),
            ("image", "pixel_values", "image_grid_thw"),
        ):
            if item[kind]:
                pixels = torch.from_numpy(reference_patches(frames_of(number, kind, item[kind])))
                grid = torch.tensor([item[kind]])
                visual |= {values: pixels, grid_name: grid}
                with torch.no_grad():
                    merged = model.visual(pixels, grid_thw=grid)
                merged = getattr(merged, "pooler_output", merged)
                out[f"{number}/{kind}"] = merged.numpy()
        with torch.no_grad():
            hidden = model(
                input_ids=torch.tensor([ids]),
                position_ids=torch.tensor(positions).T[:, None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                mm_token_type_ids=torch.tensor(
                    [[2 if i == VIDEO_PAD else 1 if i == IMAGE_PAD else 0 for i in ids]]
                ),
                use_cache=False,
                **visual,
            ).last_hidden_state[0]
        out[f"{number}/hidden"] = hidden.numpy()
        out[f"{number}/pooled"] = torch.nn.functional.normalize(hidden[-1], dim=-1).numpy()
    return out


if __name__ == "__main__":
    numbers = record(CONFIG, dict(enumerate(ITEMS)))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **numbers)
