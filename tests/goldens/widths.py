"""Makes widths.npz: what transformers' Qwen2.5-VL gives at the widths of GVE-3B and GVE-7B.

    pip install torch==2.13.0 transformers==5.23.0
    PYTHONPATH=. python tests/goldens/widths.py

Widths, heads, windows and rotary sections are those of the released models; there is one block of
the tower of each kind and one layer of the decoder, and few rows of the vocabulary. Everything else
is as in qwen25vl.py, whose items these are: a video with an image in grids that do not divide the
window, and a text. Only the vectors and the hidden states of the last token are kept.
"""

import pathlib

import numpy as np

from tests.goldens.qwen25vl import ITEMS, record

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
NUMBERS = (0, 3)  # of ITEMS


if __name__ == "__main__":
    kept = {}
    for size, shapes in SIZES.items():
        found = record(shapes, {number: ITEMS[number] for number in NUMBERS})
        kept |= {f"{size}/names": found["names"], "versions": found["versions"]}
        for number in NUMBERS:
            kept[f"{size}/{number}/pooled"] = found[f"{number}/pooled"]
            kept[f"{size}/{number}/last"] = found[f"{number}/hidden"][-1]
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **kept)
