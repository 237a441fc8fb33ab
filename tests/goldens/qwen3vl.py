"""Makes qwen3vl.npz: what transformers' Qwen3-VL gives for small random weights.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.goldens.qwen3vl

As in qwen25vl.py, weights and inputs are drawn by name. Each frame pair of a video is a visual of
its own behind the tokens of its time, as in the processor of transformers 4.57; position ids are
those of all releases: the step of a visual has time 0, the text after it is at the largest
position + 1.
"""

import pathlib

import numpy as np

from tests.goldens.qwen2vl import named_visuals
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

# heads * head_dim is not the width; 2 * sum(mrope_section) is head_dim.
CONFIG = {
    "vision": dict(
        depth=4,
        hidden_size=24,
        intermediate_size=40,
        num_heads=2,
        out_hidden_size=32,
        num_position_embeddings=36,
        deepstack_visual_indexes=[0, 2],
    ),
    "text": dict(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        mrope_section=[4, 2, 2],
    ),
}
PATCH = 16
TIME_TOKENS = 6  # "<0.5 seconds>"

# Grids are smaller than the learned positions' 6 x 6, equal, and larger, by rows and by columns.
ITEMS = [
    dict(visuals=[("video", (2, 6, 4)), ("image", (1, 10, 6))], before=5, after=7),
    dict(visuals=[("video", (3, 2, 8))], before=1, after=2),
    dict(visuals=[("image", (1, 2, 2)), ("image", (1, 6, 6))], before=4, after=6),
    dict(visuals=[], before=6, after=9),
    dict(visuals=[("image", (1, 14, 12)), ("video", (1, 4, 10))], before=2, after=1),
]


def tokens_of(number: int, item) -> tuple[list[int], list[list[int]]]:
    """Token ids and their (time, row, column), token by token."""
    rng = np.random.default_rng(3000 + number)
    sequence = Sequence()
    sequence.text(rng.integers(0, 300, item["before"]))
    for kind, grid in item["visuals"]:
        for _ in range(grid[0]):
            if kind == "video":
                sequence.text(rng.integers(0, 300, TIME_TOKENS))
            sequence.text([VISION_START])
            sequence.visual(VIDEO_PAD if kind == "video" else IMAGE_PAD, (1, *grid[1:]), [0])
            sequence.text([VISION_END])
    sequence.text(rng.integers(0, 300, item["after"]))
    return sequence.ids, sequence.positions


def example(number: int, item) -> Example:
    visuals = draw_visuals(number, named_visuals(item), PATCH, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Example(*tokens_of(number, item), visuals)


def record(shapes: dict, items: dict[int, dict]) -> dict[str, np.ndarray]:
    """What the reference gives for items, by number, with its description."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    config = Qwen3VLConfig(
        text_config=text_config(shapes["text"], 5_000_000.0, mrope_interleaved=True),
        vision_config=shapes["vision"],
        **TOKEN_IDS,
    )
    model = drawn_model(Qwen3VLModel, config)
    examples = {number: example(number, item) for number, item in items.items()}
    return results(model, examples) | description(model)


if __name__ == "__main__":
    numbers = record(CONFIG, dict(enumerate(ITEMS)))
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **numbers)
