"""One table of suffixes; a GIF is a video if it moves."""

import io

import numpy as np
import pytest
from PIL import Image

from data.pairs.formats import _column
from data.pairs.media import check
from data.uvrd.source import is_folder_of_videos
from data.uvrd.source import read_entries as uvrd_entries
from gve_jax.errors import UserError
from gve_jax.inputs.entries import read_entries
from gve_jax.inputs.user_inputs import _medium_named_by
from gve_jax.media.errors import MediaError
from gve_jax.media.frames import in_order
from gve_jax.media.suffixes import KINDS, is_animated_gif, media_kind
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


def test_suffixes_are_lower_case():
    assert all(s.startswith(".") and s == s.lower() and " " not in s for s in KINDS)


@pytest.mark.parametrize("suffix, frames", [*((s, 1) for s in [*KINDS, ".txt"]), (".gif", 2)])
def test_a_suffix_is_of_one_kind_everywhere(tmp_path, suffix, frames):
    """A folder to embed, texts that name files, frames, imported columns, videos to synthesize."""
    name = f"a{suffix.upper()}"
    (tmp_path / name).write_bytes(gif(frames) if suffix == ".gif" else b"x")
    kind = media_kind(tmp_path / name)
    assert kind == KINDS.get(suffix, (None,))[frames - 1]
    if kind is None:
        with pytest.raises(UserError, match="nothing to embed"):
            read_entries(tmp_path)
    else:
        (item,) = [entry.item for entry in read_entries(tmp_path)]
        assert (item.video is None, item.image is None) == (kind == "image", kind == "video")
    named = KINDS.get(suffix, (None,))
    assert _medium_named_by(str(tmp_path / name)) == named[0]
    column = {(None,): "text", ("image", "video"): "medium"}.get(named, named[0])
    assert list(_column(name, "x")) == [column]
    if "image" in named:
        assert in_order(tmp_path, "x") == [str(tmp_path / name)]
    else:
        with pytest.raises(MediaError, match="which is not an image"):
            in_order(tmp_path, "x")
    videos = [entry.id for entry in uvrd_entries(tmp_path)] if kind == "video" else []
    assert videos == [name] * (kind == "video") and is_folder_of_videos(tmp_path) == bool(videos)


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
