"""Windows cover a video, have the frames that the same span of an item has, and respect limits."""

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.index.windows import Windows, divide, span
from gve_jax.inputs.preprocess import InputSpec
from gve_jax.media.errors import MediaError
from gve_jax.media.outline import Outline
from gve_jax.media.sampling import Sampling, Timeline, sample

SPEC = InputSpec(num_frames=8)
NO_CUTS = np.zeros(0, np.int64)


def outline(total: int, rate: float = 10.0, times=None) -> Outline:
    zeros = np.zeros(total, np.int64)
    return Outline(Timeline(total, rate, times), zeros, zeros, zeros == 1)


def spans(windows) -> list[tuple[float, float]]:
    return [(window.start_sec, window.end_sec) for window in windows]


def test_fixed_windows_overlap_and_the_last_one_ends_with_the_video():
    found = divide(Windows("fixed", length=8, stride=4), outline(210), NO_CUTS, SPEC)
    assert spans(found) == [(0, 8), (4, 12), (8, 16), (12, 20), (13, 21)]
    assert spans(divide(Windows("fixed"), outline(50), NO_CUTS, SPEC)) == [(0, 5)]
    assert spans(divide(Windows("fixed"), outline(80), NO_CUTS, SPEC)) == [(0, 8)]
    assert spans(divide(Windows("whole"), outline(210), NO_CUTS, SPEC)) == [(0, 21)]


def test_windows_sample_as_an_item_with_the_same_span():
    shown = outline(1000, 29.97)
    for window in divide(Windows("fixed"), shown, NO_CUTS, SPEC):
        options = Sampling(8, start=window.start_sec - 0.001, end=window.end_sec - 0.002)
        positions, fps = sample(options, shown.timeline, "clip")
        assert (positions == window.positions).all() and fps == pytest.approx(window.fps)
        again = span(shown, window.start_sec, window.end_sec, SPEC, "clip")
        assert spans([again]) == spans([window])
        assert (again.positions == window.positions).all()


def test_shots_are_joined_and_divided():
    policy = Windows("shots", length=8, shortest=2)
    found = divide(policy, outline(300), np.array([100, 105, 130]), SPEC)
    # 10 s; 0.5 s, which joins the 2.5 s after it; 17 s.
    assert spans(found) == [(0, 5), (5, 10), (10, 13), (13, 18.7), (18.7, 24.4), (24.4, 30)]
    covered = np.concatenate([np.arange(int(a * 10), int(b * 10)) for a, b in spans(found)])
    assert (np.sort(covered) == np.arange(300)).all()


def test_shots_of_uneven_frames():
    times = np.cumsum([0, *([0.1] * 30), *([1.0] * 10)])
    found = divide(Windows("shots"), outline(40, times=times), np.array([30]), SPEC)
    assert spans(found) == [(0, 3), (3, 8), (8, 13)]


def test_every_cut_may_be_too_close():
    found = divide(Windows("shots"), outline(30), np.arange(1, 30), SPEC)
    assert spans(found)[0][0] == 0 and spans(found)[-1][1] == 3
    assert all(len(window.positions) >= 2 for window in found)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("kind", ["shots", "fixed", "whole"])
def test_few_frames_are_windows_too(total, kind):
    found = divide(Windows(kind), outline(total), NO_CUTS, SPEC)
    assert spans(found) == [(0, total / 10)]
    assert len(found[0].positions) == max(1, min(8, total // 2 * 2))


def test_a_span_without_frames_is_refused():
    with pytest.raises(MediaError, match="no frame between 12 s and 13 s of 10.00 s"):
        span(outline(100), 12, 13, SPEC, "clip")
    assert spans([span(outline(100), None, None, SPEC, "clip")]) == [(0, 10)]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kind": "scenes"}, "kind 'scenes' must be one of"),
        ({"length": 0.0}, "length 0.0 must be above 0"),
        ({"kind": "fixed", "stride": 9.0}, "stride 9 is above length 8"),
        ({"shortest": 5.0}, "shortest 5 must be at most half of length 8"),
    ],
)
def test_policies_are_checked(fields, message):
    with pytest.raises(UserError, match=message):
        Windows(**fields)
