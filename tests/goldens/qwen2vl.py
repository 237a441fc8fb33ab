"""Makes qwen2vl.npz: what transformers' Qwen2-VL gives for small random weights.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.goldens.qwen2vl

As in qwen25vl.py, weights and inputs are drawn by name. Position ids are those of transformers 4.45
to 5.2: a step of a video is one position, the text after a visual is at the largest position + 1.
An item with sequential positions counts every token, as GME and Unite do.
"""

import pathlib

import numpy as np

from tests.goldens.qwen25vl import (
    IMAGE_PAD,
    TOKEN_IDS,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    Example,
    Sequence,
    description,
    draw_visuals,
    drawn_model,
    results,
    text_config,
)

CONFIG = {
    "vision": dict(depth=3, embed_dim=24, mlp_ratio=4, num_heads=2, hidden_size=32),
    "text": dict(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=[2, 1, 1],
    ),
}

# Visuals in order, with grids in patches: both kinds, more steps than rows, frames as images.
ITEMS = [
    dict(visuals=[("video", (3, 6, 10)), ("image", (1, 4, 6))], before=5, after=7),
    dict(visuals=[("video", (6, 4, 4))], before=1, after=2),
    dict(visuals=[("image", (1, 10, 4)), ("image", (1, 2, 8))], before=4, after=6),
    dict(visuals=[], before=6, after=9),
    dict(visuals=[("image", (1, 4, 8)), ("video", (2, 6, 4))], before=3, after=4, sequential=True),
]


def named_visuals(item) -> list[tuple]:
    """(name, kind, grid) of the visuals of an item."""
    return [(f"{kind}{index}", kind, grid) for index, (kind, grid) in enumerate(item["visuals"])]


def tokens_of(number: int, item) -> tuple[list[int], list[list[int]]]:
    """Token ids and their (time, row, column), token by token."""
    rng = np.random.default_rng(2000 + number)
    sequence = Sequence()
    sequence.text(rng.integers(0, 300, item["before"]))
    for kind, grid in item["visuals"]:
        sequence.text([VISION_START])
        sequence.visual(VIDEO_PAD if kind == "video" else IMAGE_PAD, grid, range(grid[0]))
        sequence.text([VISION_END])
    sequence.text(rng.integers(0, 300, item["after"]))
    if item.get("sequential"):
        sequence.positions = [[index] * 3 for index in range(len(sequence.ids))]
    return sequence.ids, sequence.positions


def example(number: int, item) -> Example:
    visuals = draw_visuals(number, named_visuals(item))
    return Example(*tokens_of(number, item), visuals)


def record(shapes: dict, items: dict[int, dict]) -> dict[str, np.ndarray]:
    """What the reference gives for items, by number, with its description."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    config = Qwen2VLConfig(
        text_config=text_config(shapes["text"], 1_000_000.0),
        vision_config=shapes["vision"],
        **TOKEN_IDS,
    )
    model = drawn_model(Qwen2VLModel, config)
    examples = {number: example(number, item) for number, item in items.items()}
    return results(model, examples) | description(model)


if __name__ == "__main__":
    numbers = record(CONFIG, dict(enumerate(ITEMS)))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **numbers)
