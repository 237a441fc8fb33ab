"""Videos given as frames, and animations with the times they state."""

import numpy as np
import pytest
from PIL import Image

from gve_jax.media import frames as frames_module
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.sampling import Sampling, spread
from gve_jax.media.video import load_video
from tests.media.files import numbered, numbers, picture
from tests.situations import situation


def refused(source, names: str, **options) -> None:
    with pytest.raises(MediaError, match=names) as error:
        load_video(source, 8, **options)
    assert "\n" not in str(error.value)


def folder(path, count: int = 12):
    for k, frame in enumerate(numbered(count)):
        (path / f"frame{k}.png").write_bytes(picture(Image.fromarray(frame)))
    return path


@situation(
    "Media",
    "folder of numbered frames (`2.png`, `10.png`), hidden files among them",
    "sorted by number, hidden files skipped; 2 frames a second unless `fps` says otherwise",
    since="0.1.0",
)
def test_a_folder_is_sorted_by_number(tmp_path):
    (tmp_path / ".hidden").write_text("of an editor")
    found = load_video(folder(tmp_path), 12, fps=6.0)
    assert numbers(found.frames) == list(range(12)) and found.fps == 6.0
    assert load_video(str(tmp_path), 12).fps == 2.0  # the reference's default
    by_rate = load_video(tmp_path, Sampling(fps=1.0, min_frames=2), fps=3.0)
    assert numbers(by_rate.frames) == spread(0, 11, 4).tolist() and by_rate.fps == 1.0
    part = load_video(tmp_path, Sampling(num_frames=4, start=1.0, end=4.0))
    assert numbers(part.frames) == [2, 4, 6, 8]


def test_names_with_and_without_numbers(tmp_path):
    names = ["a.png", "a1.png", "a02.PNG", "a2.png", "a10b3.png", "a10b20.png", "b1.png", "3.png"]
    for k, name in enumerate(sorted(names)):
        Image.fromarray(numbered(8)[k]).save(tmp_path / name, "PNG")
    expected = ["3.png", "a1.png", "a02.PNG", "a2.png", "a10b3.png", "a10b20.png", "a.png"]
    expected.append("b1.png")
    assert numbers(load_video(tmp_path, 8).frames) == [sorted(names).index(n) for n in expected]


@situation(
    "Media",
    "folder of frames that also holds a text, a video or a folder",
    "refused; the message names what is not an image",
    since="0.1.0",
)
@pytest.mark.parametrize("name", ["notes.txt", "clip.mp4", "Thumbs.db", "more"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path, name):
    folder(tmp_path)
    (tmp_path / name).mkdir() if name == "more" else (tmp_path / name).write_text("x")
    refused(tmp_path, f"contains '{name}', which is not an image")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "no frame")


def test_only_the_frames_that_are_sampled_are_read(tmp_path, monkeypatch):
    read = []

    def load_image(source, most_pixels, exif):
        read.append(source)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(frames_module, "load_image", load_image)
    load_video([f"{k}.png" for k in range(1000)], 4)
    assert read == ["0.png", "333.png", "666.png", "999.png"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("as_path", [True, False])
def test_animations(kind, as_path, tmp_path):
    source = animation(numbered(24), kind, [40] * 24)
    if as_path:
        (tmp_path / "a").write_bytes(source)
        source = tmp_path / "a"
    found = load_video(source, 8)
    assert found.frames.dtype == np.uint8 and found.frames.shape == (8, 48, 96, 3)
    assert numbers(found.frames) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert found.fps == pytest.approx(8 / 24 * 25)


@situation(
    "Images and animations",
    "GIF, APNG or WebP whose frames last differently long",
    "ranges and rates go by the durations that the file states",
    since="0.1.0",
)
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_with_frames_of_differing_length(kind):
    source = animation(numbered(8), kind, [100, 100, 500, 1000, 100, 200, 1000, 1000])  # 4 s
    assert load_video(source, 8).fps == pytest.approx(2.0)
    part = load_video(source, Sampling(num_frames=2, start=0.6, end=1.9))
    assert numbers(part.frames) == [3, 5] and part.fps == pytest.approx(2 / 1.3)  # 0.7 to 2 s
    by_rate = load_video(source, Sampling(fps=1.0))
    assert len(by_rate.frames) == 4 and by_rate.fps == pytest.approx(1.0)


@situation(
    "Images and animations",
    "GIF whose frames state no duration",
    "each frame lasts 100 ms, as in browsers",
    since="0.1.0",
)
def test_frames_without_a_length_last_as_long_as_in_browsers():
    source = animation(numbered(8), "GIF", [0] * 8)
    assert load_video(source, 8).fps == pytest.approx(10)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_transparency_is_put_on_white(kind):
    images = []
    for k in range(2):
        image = Image.new("RGBA", (32, 16), (0, 0, 0, 0))
        image.paste((255, 0, 0, 255), (8 * k, 0, 8 * k + 8, 16))
        images.append(image)
    options = {"disposal": 2} if kind == "GIF" else {"lossless": True} if kind == "WEBP" else {}
    source = picture(
        images[0], kind, save_all=True, append_images=images[1:], duration=100, **options
    )
    if kind == "WEBP":  # libwebp sees opaque parts only, and does not say that the rest is clear
        source = source[:20] + bytes([source[20] | 0x10]) + source[21:]
    found = load_video(source, 2).frames
    expected = np.full((2, 16, 32, 3), 255, np.uint8)
    expected[0, :, :8], expected[1, :, 8:16] = (255, 0, 0), (255, 0, 0)
    np.testing.assert_array_equal(found, expected)


@situation(
    "Images and animations",
    "still PNG, WebP or JPEG given as a video",
    "refused; the message says to give it as an image",
    since="0.1.0",
)
@situation(
    "Images and animations",
    "GIF of one frame given as a video",
    "a video of one frame",
    since="0.1.0",
)
def test_one_frame_and_pictures_without_motion():
    one = Image.fromarray(numbered(2)[1])
    assert numbers(load_video(picture(one, "GIF"), 8).frames) == [1]
    for kind in ("PNG", "WEBP"):
        refused(picture(one, kind), "a still image; pass it as an image")
    refused(picture(one, "JPEG"), "not a readable video")


@situation(
    "Images and animations",
    "GIF, APNG or WebP cut in the middle",
    "refused as damaged",
    since="0.1.0",
)
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_damaged_animations_give_no_other_error(kind, share):
    source = animation(numbered(24), kind, [40] * 24)
    refused(source[: int(len(source) * share)], "not a readable video")
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(source)
        damaged[rng.integers(12, len(source))] ^= 1 << rng.integers(8)
        try:
            load_video(bytes(damaged), 8)
        except MediaError:
            pass


def test_limits():
    frames = numbered(24)
    gif = animation(frames, "GIF", [40] * 24)
    for source in (frames, list(frames), gif):
        refused(source, "24 frames are above the limit of 23", limits=Limits(frames=23))
    refused(frames, "24 s are above the limit of 20 s", fps=1.0, limits=Limits(duration=20))
    refused(gif, "above the limit of 0.9 s", limits=Limits(duration=0.9))
    refused(gif, "96 x 48 are above the limit of 4000 pixels", limits=Limits(frame_pixels=4000))
    assert len(load_video(gif, 8, limits=Limits(frame_pixels=96 * 48)).frames) == 8


def animation(frames: np.ndarray, kind: str, milliseconds: list[int]) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    options = {"lossless": True} if kind == "WEBP" else {}
    return picture(
        images[0],
        kind,
        save_all=True,
        append_images=images[1:],
        loop=0,
        duration=milliseconds,
        **options,
    )
