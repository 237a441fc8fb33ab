"""Indices against qwen-vl-utils 0.0.14 (goldens), and by hand where it has no answer."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from gve_jax.inputs.errors import MediaError
from gve_jax.inputs.sampling import Sampling, Timeline, sample, spread
from tests.goldens.sampling import grid

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "sampling.json").read_text())


def indices(total: int, rate: float = 10.0, **fields) -> list[int]:
    return sample(Sampling(**fields), Timeline(total, rate), "v")[0].tolist()


@pytest.mark.parametrize("total, wanted, expected", [
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
])  # fmt: skip
def test_indices_worked_out_by_hand(total, wanted, expected):
    assert indices(total, num_frames=wanted) == expected


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


@pytest.mark.parametrize("fields, expected", [
    ({"num_frames": 2}, ([0, 5], 2 / 6 * 0.6)),  # six frames in ten seconds
    ({"fps": 0.4}, ([0, 2, 3, 5], 0.4)),  # four of ten seconds
    ({"num_frames": 2, "start": 1.0}, ([1, 5], 2 / 9)),
    ({"num_frames": 2, "start": 1.1}, ([2, 5], 2 / 8)),
    ({"num_frames": 4, "end": 6.5}, ([0, 1, 2, 3], 4 / 7)),
    ({"num_frames": 2, "end": 7.0}, ([0, 4], 2 / 9)),
    ({"num_frames": 2, "start": 2.0, "end": 3.0}, ([2, 3], 2 / 5)),
])  # fmt: skip
def test_frames_of_differing_length_go_by_their_times(fields, expected):
    timeline = Timeline(6, 0.6, np.array([0.0, 1.0, 2.0, 3.0, 7.0, 9.0, 10.0]))
    found, fps = sample(Sampling(**fields), timeline, "v")
    assert (found.tolist(), pytest.approx(fps)) == expected


@pytest.mark.parametrize("times", [None, np.arange(11) / 10])
@pytest.mark.parametrize("fields, names", [
    ({"start": 5.0}, "v: no two frames between 5 s and 1 s of 1.00 s"),
    ({"start": 0.52, "end": 0.68}, "between 0.52 s and 0.68 s"),
    ({"end": 0.0}, "between 0 s and 0 s"),
    ({"end": -1.0}, "no two frames"),
])  # fmt: skip
def test_a_range_without_frames_is_refused(times, fields, names):
    with pytest.raises(MediaError, match=names):
        sample(Sampling(**fields), Timeline(10, 10.0, times), "v")
