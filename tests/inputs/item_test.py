"""What an item accepts, and the one line that names what it does not."""

from pathlib import Path

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.item import Item, as_item, source_name


def test_a_text_that_is_a_path_stays_a_text(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    assert as_item(str(path)) == Item(text=str(path))


def test_empty_values_count_as_absent():
    fields = {"text": "a", "image": b"", "video": [], "instruction": "", "frame_order": "",
              "fps": None}  # fmt: skip
    assert as_item(fields) == Item(text="a")


def test_an_item_passes_through():
    item = Item(video=np.zeros((2, 4, 4, 3), np.uint8), fps=2.5, num_frames=np.int64(4))
    assert as_item(item) is item
    assert as_item({"video": Path("a.mp4"), "max_pixels": 784}).max_pixels == 784


@pytest.mark.parametrize("value, names", [
    (5, "int"),
    (None, "NoneType"),
    (b"text", "bytes"),
    (["a"], "list"),
    ("", "nothing to embed"),
    ({}, "nothing to embed"),
    (Item(), "nothing to embed"),
    ({"instruction": "find it"}, "nothing to embed"),
    ({"vidoe": "a.mp4"}, "vidoe"),
    ({1: "a", "b": "c"}, "unknown key"),
    ({"text": ["a"]}, "text must be a text, not list"),
    ({"text": b"a"}, "text must be a text, not bytes"),
    ({"text": "a", "instruction": 3}, "instruction must be a text, not int"),
    ({"text": "cut \ud83d"}, "text is not valid Unicode"),
    ({"text": "a", "instruction": "\udc00"}, "instruction is not valid Unicode"),
    ({"video": "a.mp4", "frame_order": "backwards"}, "backwards"),
    ({"video": "a.mp4", "num_frames": 0}, "num_frames"),
    ({"video": "a.mp4", "num_frames": -8}, "num_frames"),
    ({"video": "a.mp4", "num_frames": 7}, "num_frames must be an even number above 0, not 7"),
    ({"video": "a.mp4", "num_frames": 8.0}, "num_frames"),
    ({"video": "a.mp4", "num_frames": True}, "num_frames"),
    ({"image": "a.png", "max_pixels": 0}, "max_pixels"),
    ({"image": "a.png", "max_pixels": "big"}, "max_pixels"),
    ({"video": ["a.png"], "fps": 0}, "fps"),
    ({"video": ["a.png"], "fps": -1.0}, "fps"),
    ({"video": ["a.png"], "fps": float("nan")}, "fps"),
    ({"video": ["a.png"], "fps": float("inf")}, "fps"),
    ({"video": ["a.png"], "fps": "2"}, "fps"),
    # Elsewhere fps says how densely a file is sampled; here a file is sampled by num_frames.
    ({"video": "a.mp4", "fps": 1.0}, "fps is for a video given as frames"),
    ({"video": b"bytes", "fps": 1.0}, "fps is for a video given as frames"),
])  # fmt: skip
def test_a_mistake_is_named_in_one_line(value, names):
    with pytest.raises(UserError) as error:
        as_item(value)
    assert names in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("media, name", [
    ("a/b.mp4", "a/b.mp4"),
    (Path("b.png"), "b.png"),
    (b"abc", "<3 bytes>"),
    (np.zeros(3), "<ndarray>"),
])  # fmt: skip
def test_how_a_message_names_a_medium(media, name):
    assert source_name(media) == name
