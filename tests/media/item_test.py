"""What an item accepts, and the one line that names what it does not."""

from pathlib import Path

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.media.item import Item, as_item, is_frames, source_name
from tests.situations import situation


@situation(
    "Python API",
    "a text that is the path of a file",
    "embedded as a text; media go under `image` and `video`",
    since="0.1.0",
)
def test_a_text_that_is_a_path_stays_a_text(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    assert as_item(str(path)) == Item(text=str(path))


def test_empty_values_count_as_absent():
    fields = {
        "text": "a",
        "image": b"",
        "video": [],
        "instruction": "",
        "frame_order": "",
        "fps": None,
    }
    assert as_item(fields) == Item(text="a")


def test_an_item_passes_through():
    item = Item(video=np.zeros((2, 4, 4, 3), np.uint8), fps=2.5, num_frames=np.int64(4))
    assert as_item(item) is item
    assert as_item({"video": Path("a.mp4"), "max_pixels": 784}).max_pixels == 784


@situation(
    "Python API",
    "an input with a misspelled key, a wrong type, or options that exclude each other",
    "one line that names the key and what is accepted",
    since="0.1.0",
)
@pytest.mark.parametrize(
    "value, names",
    [
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
        (
            {"video": "a.mp4", "num_frames": "8"},
            "num_frames must be an even number above 0, not '8'",
        ),
        ({"video": __file__, "num_frames": "all"}, "num_frames 'all' is for an array"),
        ({"video": b"bytes", "num_frames": "all"}, "set the number of frames, or fps"),
        ({"video": ["a.png"], "num_frames": "All"}, "'all' takes every frame of an array"),
        ({"video": ["a.png"], "num_frames": "all", "max_frames": 8}, "exclude each other"),
        ({"image": "a.png", "max_pixels": 0}, "max_pixels"),
        ({"image": "a.png", "min_pixels": 0}, "min_pixels must be a whole number above 0, not 0"),
        ({"image": "a.png", "min_pixels": -784}, "min_pixels"),
        ({"image": "a.png", "min_pixels": 784.0}, "min_pixels"),
        ({"image": "a.png", "min_pixels": True}, "min_pixels"),
        ({"image": "a.png", "min_pixels": "784"}, "min_pixels"),
        ({"image": "a.png", "min_pixels": 3136, "max_pixels": 784}, "min_pixels 3136 is above"),
        (
            {"video": "a.mp4", "total_pixels": 0},
            "total_pixels must be a whole number above 0, not 0",
        ),
        ({"video": "a.mp4", "total_pixels": False}, "total_pixels"),
        (
            {"image": "a.png", "exif_orientation": 1},
            "exif_orientation must be True or False, not 1",
        ),
        ({"image": "a.png", "exif_orientation": "yes"}, "exif_orientation"),
        ({"video": "a.mp4", "nframes": 8}, "'nframes' in an input; use num_frames"),
        ({"image": "a.png", "resized_height": 280}, "use min_pixels and max_pixels, or an im"),
        ({"image_url": "http://a"}, "use image"),
        ({"image": "a.png", "max_pixels": "big"}, "max_pixels"),
        ({"video": ["a.png"], "fps": 0}, "fps"),
        ({"video": ["a.png"], "fps": -1.0}, "fps"),
        ({"video": ["a.png"], "fps": float("nan")}, "fps"),
        ({"video": ["a.png"], "fps": float("inf")}, "fps"),
        ({"video": ["a.png"], "fps": "2"}, "fps"),
        ({"video": "a.mp4", "fps": 10**400}, "fps must be a number above 0"),
        ({"video": "a.mp4", "video_start": 10**400}, "video_start"),
        ({"video": "a.mp4", "total_pixels": 10**400}, "total_pixels"),
        ({"video": "a.mp4", "fps": True}, "fps"),
        ({"video": "a.mp4", "fps": 1.0, "num_frames": 8}, "fps and num_frames exclude each other"),
        ({"video": b"bytes", "fps": 1.0, "num_frames": 8}, "fps and num_frames exclude each other"),
        ({"video": "a.mp4", "min_frames": 0}, "min_frames must be a whole number above 0, not 0"),
        ({"video": "a.mp4", "max_frames": 1}, "max_frames must be a whole number above 1, not 1"),
        ({"video": "a.mp4", "max_frames": 8.0}, "max_frames"),
        ({"video": "a.mp4", "max_frames": 8, "num_frames": 8}, "num_frames and max_frames exclude"),
        ({"video": "a.mp4", "min_frames": 8, "num_frames": 8}, "num_frames and min_frames exclude"),
        ({"video": "a.mp4", "video_start": -1}, "video_start must be a number of seconds from 0"),
        ({"video": "a.mp4", "video_start": "1"}, "video_start"),
        ({"video": "a.mp4", "video_end": 0}, "video_end must be a number of seconds above 0"),
        ({"video": "a.mp4", "video_end": float("inf")}, "video_end"),
        ({"video": "a.mp4", "video_start": 2, "video_end": 2.0}, "video_start 2 is not before"),
    ],
)
def test_a_mistake_is_named_in_one_line(value, names):
    with pytest.raises(UserError) as error:
        as_item(value)
    assert names in str(error.value) and "\n" not in str(error.value)


def test_fps_is_a_rate_of_frames_or_a_density_of_sampling(tmp_path):
    frames = np.zeros((4, 4, 4, 3), np.uint8)
    for video in (frames, list(frames), tmp_path, str(tmp_path)):
        for count in (2, "all"):
            item = as_item({"video": video, "fps": 5, "num_frames": count})
            assert is_frames(item.video)
    as_item({"video": "missing", "num_frames": "all"})  # reading it will say that it is missing
    for video in ("a.mp4", Path("a.mp4"), b"bytes"):
        item = as_item({"video": video, "fps": 0.5, "min_frames": 4, "max_frames": 32})
        assert not is_frames(item.video)


@pytest.mark.parametrize(
    "media, name",
    [
        ("a/b.mp4", "a/b.mp4"),
        (Path("b.png"), "b.png"),
        (b"abc", "<3 bytes>"),
        (np.zeros(3), "<ndarray>"),
    ],
)
def test_how_a_message_names_a_medium(media, name):
    assert source_name(media) == name
