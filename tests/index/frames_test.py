"""Moments have the pixels of the same spans of items, and every frame is decoded once."""

import collections

import numpy as np
import pytest
from PIL import Image

from gve_jax.index import frames as module
from gve_jax.index.frames import image_moment, read_windows, span_moment, video_moments
from gve_jax.index.windows import Windows, divide
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media.decoder import Decoder
from gve_jax.media.item import Item
from gve_jax.media.sandbox import Sandbox
from tests.index.fake import FIXED, SPEC, Local
from tests.media.animated import Part, apng
from tests.media.files import encode, numbered, numbers, picture, textured


@pytest.fixture
def decoded(monkeypatch) -> collections.Counter:
    """How often each packet was decoded."""
    counts, decode = collections.Counter(), Decoder.decode

    def count(self, packet, number, empty=False):
        if packet is not None:
            counts[packet.pts] += 1
        return decode(self, packet, number, empty)

    monkeypatch.setattr(Decoder, "decode", count)
    return counts


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_each_frame_is_decoded_once_whatever_the_overlap(tmp_path, decoded, monkeypatch, container):
    monkeypatch.setattr(module, "REQUEST", 12)
    path = tmp_path / "a.bin"
    path.write_bytes(encode(textured(60), container=container))
    policy = Windows("fixed", length=2.0, stride=0.5)
    seconds, moments = video_moments(Local(), path, policy, SPEC)
    moments = list(moments)
    assert seconds == pytest.approx(6) and len(moments) == 9
    assert sum(len(moment.item.video) for moment in moments) == 36
    assert max(decoded.values()) == 1 and 20 < len(decoded) <= 60


@pytest.mark.parametrize("fields", [{}, {"total_pixels": 4 * 28 * 28 * 3}, {"fps": 2.0}])
def test_moments_have_the_pixels_of_items(tmp_path, fields):
    spec = InputSpec(num_frames=4, max_length=512, **fields)
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(textured(45)))
    with Sandbox() as sandbox:
        _, moments = video_moments(sandbox, path, FIXED, spec)
        for moment in moments:
            start, end = moment.start_sec, moment.end_sec - 0.01
            item = Item(video=str(path), video_start=start, video_end=end)
            (expected,) = Preprocessor(None, spec).visuals(item)
            (found,) = Preprocessor(None, spec).visuals(moment.item)
            assert (found.patches == expected.patches).all() and found.grid == expected.grid
            assert found.seconds == pytest.approx(expected.seconds)
            alone = span_moment(sandbox, path, start, moment.end_sec, spec, "a")
            assert (alone.item.video == moment.item.video).all()


def test_animations_and_images(tmp_path):
    pixels = [np.full((56, 56, 4), 20 * k, np.uint8) | np.uint8([0, 0, 0, 255]) for k in range(8)]
    parts = [Part(frame, delay=(1, 2)) for frame in pixels]
    (tmp_path / "a.apng").write_bytes(apng(56, 56, parts))
    (tmp_path / "b.png").write_bytes(picture(Image.fromarray(textured(1)[0])))
    with Sandbox() as sandbox:
        seconds, moments = video_moments(sandbox, tmp_path / "a.apng", FIXED, SPEC)
        found = [(m.start_sec, m.end_sec, m.item.video[:, 0, 0, 0].tolist()) for m in moments]
        assert seconds == 4 and found == [
            (0, 2, [0, 20, 40, 60]),
            (1, 3, [40, 60, 80, 100]),
            (2, 4, [80, 100, 120, 140]),
        ]
        image = image_moment(sandbox, tmp_path / "b.png", SPEC)
        (expected,) = Preprocessor(None, SPEC).visuals(Item(image=str(tmp_path / "b.png")))
        (visual,) = Preprocessor(None, SPEC).visuals(image.item)
        assert (visual.patches == expected.patches).all()


def test_a_group_larger_than_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REQUEST", 5)
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(numbered(48), codec_options={"x264-params": "keyint=60:scenecut=0"}))
    sandbox = Local()
    outline = sandbox.outline(path)
    windows = divide(FIXED, outline, np.zeros(0, np.int64), SPEC)
    for window, moment in zip(
        windows, read_windows(sandbox, path, outline, windows, SPEC), strict=True
    ):
        assert numbers(moment.item.video) == window.positions.tolist()
