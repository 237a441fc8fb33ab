"""One table of suffixes; a GIF is a video if it moves."""

import io

import numpy as np
import pytest
from PIL import Image

from data.pairs.formats import _column
from data.pairs.media import check
from gve_jax.inputs.entries import read_entries
from gve_jax.media.suffixes import IMAGES, VIDEOS, is_animated_gif, media_kind
from tests.media.files import numbered, picture
from tests.situations import situation


def gif(count: int, **options) -> bytes:
    frames = [Image.fromarray(frame) for frame in numbered(count)]
    return picture(frames[0], "GIF", save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.mp4", "video"),
        ("A.MKV", "video"),
        ("a.wmv", "video"),
        ("a.mpg", "video"),
        ("a.flv", "video"),
        ("a.ogv", "video"),
        ("a.m2ts", "video"),
        ("a.3gp", "video"),
        ("a.jpg", "image"),
        ("a.JFIF", "image"),
        ("a.webp", "image"),
        ("a.tar", None),
        ("mp4", None),
        (".mp4", None),
        ("a.mp4.part", None),
    ],
)
def test_kinds_by_name(name, kind):
    assert media_kind(name) == kind


def test_the_tables_are_suffixes_and_share_none():
    assert not VIDEOS & IMAGES
    assert all(s.startswith(".") and s == s.lower() and " " not in s for s in VIDEOS | IMAGES)


@situation(
    "Images and animations",
    "animated and still .gif files in a folder to embed or import",
    "one with two frames or more is a video, any other an image",
    since="0.2.0",
)
@pytest.mark.parametrize(
    "count, options", [(1, {}), (2, {}), (24, {}), (1, {"comment": b"x" * 700})]
)
def test_a_gif_is_a_video_if_it_moves(tmp_path, count, options):
    path = tmp_path / "a.GIF"
    path.write_bytes(gif(count, **options))
    assert media_kind(path) == ("video" if count > 1 else "image")
    assert is_animated_gif(path.read_bytes()) == (count > 1)
    with Image.open(path) as image:  # Pillow's count
        assert image.n_frames == count


def test_a_damaged_gif_is_an_image(tmp_path):
    """It is refused when it is decoded; here it only ends."""
    data, rng = gif(3), np.random.default_rng(0)
    for kept in range(0, len(data), 7):
        is_animated_gif(data[:kept])
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        is_animated_gif(bytes(damaged))
    assert not is_animated_gif(data[:20]) and not is_animated_gif(b"")
    assert media_kind(tmp_path / "missing.gif") == "image"
    assert not is_animated_gif(picture(Image.open(io.BytesIO(data)), "PNG"))


def test_folders_and_imports_agree(tmp_path):
    """A folder to embed, a column of an import and bytes without a name."""
    files = {"a.gif": gif(3), "b.gif": gif(1), "c.WMV": b"", "d.jfif": b"", "e.txt": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    items = {entry.id: entry.item for entry in read_entries(tmp_path)}
    assert [bool(items[name].video) for name in sorted(items)] == [True, False, True, False]
    assert [check(files[name]) for name in ("a.gif", "b.gif")] == ["video", "image"]
    assert [list(_column(name, "x")) for name in files] == [
        ["medium"],
        ["medium"],
        ["video"],
        ["image"],
        ["text"],
    ]
