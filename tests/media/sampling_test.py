"""Indices against qwen-vl-utils 0.0.14 (goldens), and by hand where it has no answer."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from gve_jax.errors import UserError
from gve_jax.inputs.preprocess import InputSpec, Preprocessor, sampling_of
from gve_jax.media.errors import MediaError
from gve_jax.media.item import Item
from gve_jax.media.limits import Limits
from gve_jax.media.sampling import Sampling, Timeline, sample, spread
from tests.goldens.sampling import grid
from tests.media.files import clip
from tests.situations import situation

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "sampling.json").read_text())


def indices(total: int, rate: float = 10.0, **fields) -> list[int]:
    return sample(Sampling(**fields), Timeline(total, rate), "v")[0].tolist()


@pytest.mark.parametrize(
    "total, wanted, expected",
    [
        (24, 8, [0, 3, 7, 10, 13, 16, 20, 23]),  # 23/7 = 3.286 apart, rounded
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (11, 2, [0, 10]),
        (4, 3, [0, 3]),
        (2, 8, [0, 1]),
        (3, 8, [0, 2]),  # two frames of three: pairs have no third
        (7, 8, [0, 1, 2, 4, 5, 6]),
        (6, 4, [0, 2, 3, 5]),
        (4, 2, [0, 3]),
        (26, 6, [0, 5, 10, 15, 20, 25]),
        (14, 27, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        (10, 7, [0, 2, 4, 5, 7, 9]),
        (16, 11, [0, 2, 3, 5, 7, 8, 10, 12, 13, 15]),
        (46, 31, [round(k * 45 / 29) for k in range(30)]),
        (1, 8, [0]),
    ],
)
def test_indices_worked_out_by_hand(total, wanted, expected):
    assert indices(total, num_frames=wanted) == expected


@situation(
    "Media",
    "`fps`, `num_frames`, `min_frames`, `max_frames`, `video_start`, `video_end` of an item",
    "the frames that qwen-vl-utils takes, to the last index",
    since="0.1.0",
)
def test_every_case_of_the_reference():
    """Frames asked for beyond what a video has, and one frame alone, are ours: it raises there."""
    for ele, total, rate, answer in GOLDEN["cases"]:
        fields = {
            "fps": ele.get("fps"),
            "num_frames": ele.get("nframes", 8),
            "min_frames": ele.get("min_frames", 4),
            "max_frames": ele.get("max_frames", 768),
            "start": ele.get("video_start"),
            "end": ele.get("video_end"),
        }
        if answer is not None:
            found, fps = sample(Sampling(**fields), Timeline(total, rate), "v")
            assert found.tolist() == answer[:-1], (ele, total, rate)
            assert fps == answer[-1], (ele, total, rate)
        else:
            try:
                found, _ = sample(Sampling(**fields), Timeline(total, rate), "v")
            except MediaError:
                continue
            assert len(found) == 1 or len(found) < fields["num_frames"], (ele, total, rate)
    assert sum(answer is not None for *_, answer in GOLDEN["cases"]) > 600


def test_lines_are_those_of_torch():
    digest = hashlib.sha256()
    for total, count in grid():
        digest.update(spread(0, total - 1, count).astype("<i4").tobytes())
    assert digest.hexdigest() == GOLDEN["grid"]


def test_the_line_of_numpy_would_not_do():
    """Why `spread` is not `np.linspace`: elsewhere the two agree, here one index differs."""
    apart = [
        (total, count)
        for total, count in grid()
        if (np.linspace(0, total - 1, count).round() != spread(0, total - 1, count)).any()
    ]
    assert apart


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"num_frames": 2}, ([0, 5], 2 / 6 * 0.6)),  # six frames in ten seconds
        ({"fps": 0.4}, ([0, 2, 3, 5], 0.4)),  # four of ten seconds
        ({"num_frames": 2, "start": 1.0}, ([1, 5], 2 / 9)),
        ({"num_frames": 2, "start": 1.1}, ([2, 5], 2 / 8)),
        ({"num_frames": 4, "end": 6.5}, ([0, 1, 2, 3], 4 / 7)),
        ({"num_frames": 2, "end": 7.0}, ([0, 4], 2 / 9)),
        ({"num_frames": 2, "start": 2.0, "end": 3.0}, ([2, 3], 2 / 5)),
    ],
)
def test_frames_of_differing_length_go_by_their_times(fields, expected):
    timeline = Timeline(6, 0.6, np.array([0.0, 1.0, 2.0, 3.0, 7.0, 9.0, 10.0]))
    found, fps = sample(Sampling(**fields), timeline, "v")
    assert (found.tolist(), pytest.approx(fps)) == expected


@situation(
    "Media",
    "`video_start` and `video_end` that no two frames lie between",
    "refused; the message states the range and the length",
    since="0.1.0",
)
@pytest.mark.parametrize("times", [None, np.arange(11) / 10])
@pytest.mark.parametrize(
    "fields, names",
    [
        ({"start": 5.0}, "v: no two frames between 5 s and 1 s of 1.00 s"),
        ({"start": 0.52, "end": 0.68}, "between 0.52 s and 0.68 s"),
        ({"end": 0.0}, "between 0 s and 0 s"),
        ({"end": -1.0}, "no two frames"),
    ],
)
def test_a_range_without_frames_is_refused(times, fields, names):
    with pytest.raises(MediaError, match=names):
        sample(Sampling(**fields), Timeline(10, 10.0, times), "v")


@pytest.mark.parametrize("video", ["v.mp4", b"bytes"])
def test_an_item_s_sampling_of_a_file(video):
    spec = InputSpec(num_frames=6)
    assert sampling_of(Item(video=video), spec) == Sampling(num_frames=6)
    assert sampling_of(Item(video=video, num_frames=4), spec) == Sampling(num_frames=4)
    found = sampling_of(Item(video=video, fps=1.5, min_frames=2, max_frames=9), spec)
    assert found == Sampling(6, fps=1.5, min_frames=2, max_frames=9)
    found = sampling_of(Item(video=video, video_start=1.5, video_end=3), spec)
    assert found == Sampling(6, start=1.5, end=3)
    spec = InputSpec(fps=2.0, min_frames=6, max_frames=32)
    assert sampling_of(Item(video=video), spec) == Sampling(8, 2.0, 6, 32)
    assert sampling_of(Item(video=video, fps=1.0, max_frames=8), spec) == Sampling(8, 1.0, 6, 8)
    assert sampling_of(Item(video=video, num_frames=4), spec).fps is None


def test_an_item_s_sampling_of_frames(tmp_path):
    """Their fps is a rate, and says nothing of how many are taken."""
    for video in (np.zeros((4, 4, 4, 3), np.uint8), ["a.png"], tmp_path):
        assert sampling_of(Item(video=video, fps=5.0), InputSpec()) == Sampling()
        assert sampling_of(Item(video=video, fps=5.0), InputSpec(fps=1.0)).fps == 1.0
        assert sampling_of(Item(video=video, fps=5.0, num_frames=2), InputSpec(fps=1.0)).fps is None


@pytest.mark.parametrize("key", ["min_frames", "max_frames"])
def test_bounds_without_a_rate_are_a_mistake(key):
    with pytest.raises(UserError, match=f"{key} requires fps"):
        sampling_of(Item(video="v.mp4", **{key: 8}), InputSpec())


@pytest.mark.parametrize(
    "fields, names",
    [
        ({"fps": 0.0}, "fps must be a number above 0, not 0.0"),
        ({"fps": float("nan")}, "fps"),
        ({"min_frames": 0}, "min_frames must be at least 1, not 0"),
        ({"max_frames": 1}, "max_frames must be at least 2, not 1"),
    ],
)
def test_a_spec_that_cannot_be(fields, names):
    with pytest.raises(UserError, match=names):
        InputSpec(**fields)


def test_bounds_that_cross_are_the_reference_s():
    """`min(max(n, 32), 8)`: GVE's own setting gives every clip of 8 frames or more exactly 8."""
    assert len(indices(3000, 30.0, fps=1.0, min_frames=32, max_frames=8)) == 8
    assert len(indices(9, 30.0, fps=1.0, min_frames=32, max_frames=8)) == 8


def test_the_preprocessor_samples_and_limits(tmp_path, prompt):
    path = tmp_path / "v.mp4"
    path.write_bytes(clip(60))
    preprocess = Preprocessor(prompt, InputSpec(max_length=512), Limits(frames=60))

    def pairs(**fields):
        return len(preprocess(Item(video=str(path), max_pixels=784, **fields)).patches)

    assert pairs() == 4 and pairs(num_frames=4) == 2
    assert pairs(fps=2.0) == 6 and pairs(fps=2.0, video_start=3.0) == 3
    assert pairs(fps=2.0, max_frames=4) == 2
    preprocess.limits = Limits(frames=59)
    with pytest.raises(MediaError, match="limit of 59"):
        pairs()
