"""Resizing, beside what torch and Pillow 12 gave and beside the filter's formula in float64."""

import numpy as np
import pytest

from evals.parity.goldens import resize as golden
from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.resize import RESIZE, resize


@pytest.fixture(scope="module")
def recorded():
    return np.load(golden.FILE)


@pytest.mark.parametrize("name", golden.CASES)
def test_a_video_is_resized_as_torchvision_does(recorded, name):
    frames, expected = recorded[f"{name}/frames"], recorded[f"{name}/video"]
    mine = resize(frames, *expected.shape[1:3], "video", "exact")
    difference = np.abs(mine.astype(int) - expected)
    # Sums in another order: few of them lie that near to a half.
    assert mine.dtype == np.uint8 and difference.max() <= 1 and (difference > 0).mean() < 0.001


@pytest.mark.parametrize("mode, kind", [("exact", "image"), ("uint8", "image"), ("uint8", "video")])
@pytest.mark.parametrize("name", golden.CASES)
def test_an_image_is_resized_as_pillow_12_does(recorded, name, mode, kind):
    frames, expected = recorded[f"{name}/frames"], recorded[f"{name}/image"]
    mine = resize(frames, *expected.shape[1:3], kind, mode)
    np.testing.assert_array_equal(mine, expected)


def bicubic(frame: np.ndarray, size: int, axis: int) -> np.ndarray:
    """One antialiased pass (a = -0.5) in float64."""
    frame = np.moveaxis(frame.astype(np.float64), axis, 0)
    scale = len(frame) / size
    wide = max(scale, 1.0)
    out = np.empty((size, *frame.shape[1:]))
    for i in range(size):
        centre = (i + 0.5) * scale
        taps = np.arange(
            max(0, int(centre - 2 * wide + 0.5)), min(len(frame), int(centre + 2 * wide + 0.5))
        )
        x = np.abs((taps + 0.5 - centre) / wide)
        weight = np.where(
            x < 1,
            1.5 * x**3 - 2.5 * x**2 + 1,
            np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0),
        )
        out[i] = np.tensordot(weight / weight.sum(), frame[taps], 1)
    return np.moveaxis(out, 0, axis)


SIZES = [(28, 56), (84, 56), (56, 140), (60, 28), (28, 70), (616, 28)]


@pytest.mark.parametrize("size", SIZES)
def test_exact_is_the_formula_rounded_once(size):
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 70, 3), dtype=np.uint8)
    mine = resize(frames, *size, "video", "exact")
    assert mine.shape == (3, *size, 3)
    for frame, got in zip(frames, mine, strict=True):
        expected = np.clip(bicubic(bicubic(frame, size[1], 1), size[0], 0), 0, 255)
        assert np.abs(got - expected).max() < 0.501


@pytest.mark.parametrize("size", SIZES)
def test_uint8_is_rounded_between_the_passes_width_first(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 70, 3), dtype=np.uint8)
    mine = resize(frames, *size, "video", "uint8")
    for frame, got in zip(frames, mine, strict=True):
        across = np.clip(np.floor(bicubic(frame, size[1], 1) + 0.5), 0, 255)
        expected = np.clip(np.floor(bicubic(across, size[0], 0) + 0.5), 0, 255)
        difference = np.abs(got - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # Pillow's fixed point


def test_a_frame_of_the_size_is_returned_and_each_frame_stands_alone():
    frames = np.random.default_rng(0).integers(0, 256, (5, 60, 70, 3), dtype=np.uint8)
    for mode in RESIZE:
        assert resize(frames, 60, 70, "video", mode) is frames
        together = resize(frames[::-1], 56, 84, "video", mode)
        for frame, got in zip(frames[::-1], together, strict=True):
            np.testing.assert_array_equal(resize(frame[None], 56, 84, "video", mode)[0], got)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="unknown resize mode 'fast'; known: exact, uint8"):
        InputSpec(resize="fast")
    with pytest.raises(UserError, match="total_pixels must be above 0, not 0"):
        InputSpec(total_pixels=0)
