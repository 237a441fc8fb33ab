"""Makes widths.npz: what transformers gives at the widths of released models.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.goldens.widths [SIZE ...]

Sizes that are named (or all) are recorded, others are kept: last digits depend on the machine.

Widths, heads, windows and rotary sections are those of the released models; there is one block of
the tower of each kind and one layer of the decoder, two of each in Qwen2-VL and Qwen3-VL, and few
rows of the vocabulary. Everything else is as in the scripts of small models, whose items these are:
a video with an image in grids that do not divide the window, and a text. Only the vectors and the
hidden states of the last token are kept.
"""

import pathlib
import sys

import numpy as np

from tests.goldens import qwen2vl, qwen3vl, qwen25vl

_TOWER = dict(
    depth=2,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    fullatt_block_indexes=[1],
    window_size=112,
)
_DECODER = dict(vocab_size=320, num_hidden_layers=1, mrope_section=[16, 24, 24])
SIZES = {
    "3b": {
        "vision": _TOWER | dict(out_hidden_size=2048),
        "text": _DECODER
        | dict(
            hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2
        ),
    },
    "7b": {
        "vision": _TOWER | dict(out_hidden_size=3584),
        "text": _DECODER
        | dict(
            hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4
        ),
    },
}
_QWEN2 = dict(depth=2, embed_dim=1280, mlp_ratio=4, num_heads=16)
_QWEN3 = dict(
    depth=2,
    hidden_size=1024,
    intermediate_size=4096,
    num_heads=16,
    num_position_embeddings=2304,
)
_QWEN3_DECODER = dict(
    vocab_size=320,
    num_hidden_layers=2,
    num_key_value_heads=8,
    head_dim=128,
    mrope_section=[24, 20, 20],
)
# Size: the script of its architecture, and its shapes.
OTHERS = {
    "qwen2-vl-2b": (
        qwen2vl,
        {
            "vision": _QWEN2 | dict(hidden_size=1536),
            "text": _DECODER
            | dict(
                num_hidden_layers=2,
                hidden_size=1536,
                intermediate_size=8960,
                num_attention_heads=12,
                num_key_value_heads=2,
            ),
        },
    ),
    "qwen3-vl-2b": (
        qwen3vl,
        {
            "vision": _QWEN3 | dict(out_hidden_size=2048, deepstack_visual_indexes=[0]),
            "text": _QWEN3_DECODER
            | dict(hidden_size=2048, intermediate_size=6144, num_attention_heads=16),
        },
    ),
    "qwen3-vl-4b": (
        qwen3vl,
        {
            "vision": _QWEN3 | dict(out_hidden_size=2560, deepstack_visual_indexes=[0, 1]),
            "text": _QWEN3_DECODER
            | dict(hidden_size=2560, intermediate_size=9728, num_attention_heads=32),
        },
    ),
}
NUMBERS = (0, 3)  # of ITEMS


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_suffix(".npz")
    scripts = {size: (qwen25vl, shapes) for size, shapes in SIZES.items()} | OTHERS
    kept = dict(np.load(path))
    for size in sys.argv[1:] or scripts:
        script, shapes = scripts[size]
        found = script.record(shapes, {number: script.ITEMS[number] for number in NUMBERS})
        described = ("names", "shapes", "config.json")
        kept |= {f"{size}/{key}": found[key] for key in described if key in found}
        kept["versions"] = found["versions"]
        for number in NUMBERS:
            kept[f"{size}/{number}/pooled"] = found[f"{number}/pooled"]
            kept[f"{size}/{number}/last"] = found[f"{number}/hidden"][-1]
    np.savez_compressed(path, **kept)
