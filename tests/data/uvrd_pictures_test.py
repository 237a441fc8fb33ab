"""Decoded frames, motion, clips, and similarity with its cache."""

import io

import numpy as np
import pytest
from PIL import Image

from configs.uvrd import get_config
from data.shapes.render import decode_mp4, encode_mp4
from data.uvrd import pictures, world
from data.uvrd.responder import SceneIndex
from data.uvrd.settings import Settings
from data.uvrd.similarity import Similarity
from gve_jax.media.sandbox import Failure


@pytest.fixture(scope="module")
def decoder():
    config = get_config("world")
    config.run.decoders = 1
    decoder = pictures.Decoder(Settings.of(config))
    yield decoder
    decoder.close()


def test_frames_equal_those_of_the_file(decoder, raw):
    data = (raw / "videos" / "00000.mp4").read_bytes()
    clip = decoder.decode(data)
    frames = decode_mp4(data)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.seconds == pytest.approx(4.0) and clip.time(15) == pytest.approx(3.75)
    span = decoder.decode(data, 1.0, 2.0)
    np.testing.assert_array_equal(span.frames, frames[[4, 5, 7, 8]])


def test_wide_video_keeps_its_layout(decoder):
    # A 2:1 frame with marks in three corners, whose sides are not multiples of 28.
    frames = np.zeros((4, 60, 120, 3), np.uint8)
    frames[:, :20, :20, 0], frames[:, -20:, -20:, 1], frames[:, :20, -20:, 2] = 255, 255, 255
    seen = decoder.decode(encode_mp4(frames)).frames
    height, width = seen.shape[1:3]
    assert (height % 28, width % 28) == (0, 0) and width == 2 * height
    for pixel, channel in (((5, 5), 0), ((-5, -5), 1), ((5, -5), 2)):
        assert seen[0][pixel].argmax() == channel and seen[0][pixel].max() > 180


def test_unreadable_videos_are_failures(decoder, raw):
    rows = [row.split('"')[3] for row in (raw / world.CAPTIONS).read_text().splitlines()]
    assert len(rows) == 26
    cut, none = (raw / "videos" / f"{n:05}.mp4" for n in (23, 25))
    for path in (cut, none):
        assert isinstance(decoder.decode(str(path)), Failure)
        assert isinstance(decoder.decode(path.read_bytes()), Failure)


def test_motion_is_the_mean_change():
    black, white = np.zeros((2, 64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 255, np.uint8)
    assert pictures.motion(np.concatenate([black, white])) == pytest.approx(0.5)
    assert pictures.motion(black) == 0.0
    noise = np.random.default_rng(0).integers(100, 140, (4, 320, 320, 3), np.uint8)
    assert pictures.motion(noise) < 0.01  # noise of 8 % of the range, averaged away


def test_encoded_clip_has_the_same_frames():
    frames = np.zeros((6, 56, 84, 3), np.uint8)
    frames[:, :, :, 1] = np.arange(6)[:, None, None] * 40
    data = pictures.encode_clip(pictures.Clip(frames, 4.0), crf=18)
    assert data == pictures.encode_clip(pictures.Clip(frames, 4.0), crf=18)
    assert np.abs(decode_mp4(data).astype(int) - frames).max() < 12


def test_scenes_are_found_by_their_frames(raw):
    scenes = SceneIndex(raw)
    for index in (0, 4, 8):  # good videos
        frames = decode_mp4((raw / "videos" / f"{index:05}.mp4").read_bytes())
        shown = [frames[2], frames[7], frames[13]]
        jpegs = [pictures.encode_image(frame, "jpeg", 60) for frame in shown]
        scene, numbers = scenes.find([_decode(jpeg) for jpeg in jpegs])
        assert scene == world.sample(3, index)
        found = scenes._small[index][numbers]
        np.testing.assert_array_equal(found, scenes._small[index][[2, 7, 13]])


def _decode(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


class _Model:
    """Unit vectors by the first byte of an input; inputs that start with `?` are unreadable."""

    fingerprint, embedding_dim = {"weights": "1"}, 2

    def __init__(self):
        self.seen = 0

    def encode_valid(self, items, ids, quarantine):
        self.seen += len(items)
        given = [item.text.encode() if item.text else item.video for item in items]
        angles = np.array([data[0] for data in given if data[:1] != b"?"], np.float64)
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        return vectors, np.array([data[:1] != b"?" for data in given])


def test_similarities_are_cosines_and_cached(tmp_path):
    model = _Model()
    similar = Similarity(model, tmp_path)
    texts, videos = ["\x01a", "\x02b", "\x01a", "\x04d"], [b"\x01", b"\x05", b"?", b"\x01"]
    cosines = similar(texts, videos)
    np.testing.assert_allclose(cosines[[0, 1, 3]], [1, np.cos(3), np.cos(3)], atol=1e-6)
    assert np.isnan(cosines[2]) and model.seen == 6  # three texts, three files
    again = Similarity(model, tmp_path)(texts, videos)
    np.testing.assert_array_equal(again, cosines)
    assert model.seen == 7  # only unreadable inputs are tried again
    model.fingerprint = {"weights": "2"}
    Similarity(model, tmp_path)(texts, videos)
    assert model.seen == 13  # another model has other vectors
