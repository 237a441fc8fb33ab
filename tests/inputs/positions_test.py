"""M-RoPE positions equal those recorded from transformers (evals/parity/goldens/mrope.py)."""

from pathlib import Path

import numpy as np
import pytest

from evals.parity.goldens import mrope as golden
from gve_jax.errors import UserError
from gve_jax.inputs.positions import MROPE, mrope_positions
from gve_jax.inputs.preprocess import InputSpec, Preprocessor
from gve_jax.media.item import Item
from tests.media.files import numbered

NUMBERS = np.load(Path(golden.__file__).with_suffix(".npz"))

PREFIX, STEPS = 3, 4
# Measured apart from the goldens. Time of each step, then the first text after, by regime:
# by sampled frames a second on a grid of 4 x 6 patches, and by the seconds of a clip of eight
# frames on 20 x 34.
BY_FPS = {
    2: ([3, 5, 7, 9], 10, [3, 5, 7, 9], 10, 6),
    1: ([3, 7, 11, 15], 16, [3, 7, 11, 15], 16, 6),
    4: ([3, 4, 5, 6], 7, [3, 3, 3, 3], 6, 6),
    2.1: ([3, 4, 6, 8], 9, [3, 3, 3, 3], 6, 6),
    0.3: ([3, 16, 29, 43], 44, [3, 15, 27, 39], 40, 6),
}
BY_DURATION = {
    5.7: ([3, 5, 8, 11], 20, [3, 5, 7, 9], 20, 20),
    14.4: ([3, 10, 17, 24], 25, [3, 9, 15, 21], 22, 20),
    15.0: ([3, 10, 18, 25], 26, [3, 9, 15, 21], 22, 20),
    30.1: ([3, 18, 33, 48], 49, [3, 17, 31, 45], 46, 20),
    53.9: ([3, 29, 56, 83], 84, [3, 29, 55, 81], 82, 20),
    1560.3: ([3, 783, 1563, 2343], 2344, [3, 783, 1563, 2343], 2344, 20),
}
TABLE = [(fps, (4, 6), *row) for fps, row in BY_FPS.items()]
TABLE += [(8 / seconds, (20, 34), *row) for seconds, row in BY_DURATION.items()]


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.parametrize("regime", MROPE)
def test_positions_are_those_of_the_release(regime, case):
    expected = NUMBERS[f"{regime}/{case}"]
    mine = mrope_positions(golden.segments(case), golden.CASES[case][0], regime)
    assert mine.dtype == np.int32
    np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("regime", MROPE)
def test_the_goldens_name_the_releases_they_came_from(regime):
    releases = {
        "qwen_train": ("4.49.", "4.51."),
        "hf452": ("4.52.", "4.57.", "5.2."),
        "hf53": ("5.6.", "5.12.", "5.17."),
        "hf518": ("5.18.", "5.23."),
    }[regime]
    made_by = NUMBERS[f"{regime}/versions"].tolist()
    for release in releases:
        assert any(v.startswith(f"transformers {release}") for v in made_by), (release, made_by)


@pytest.mark.parametrize("fps, grid, a_times, a_tail, b_times, b_tail, late_tail", TABLE)
def test_a_video_is_placed_as_measured(fps, grid, a_times, a_tail, b_times, b_tail, late_tail):
    rows, cols = grid[0] // 2, grid[1] // 2  # the table counts patches, segments merged tokens
    segments = [("text", PREFIX), ("visual", (STEPS, rows, cols), 2 / fps), ("text", 2)]
    expected = {
        "qwen_train": (a_times, a_tail),
        "hf452": (b_times, b_tail),
        "hf53": (b_times, late_tail),
        "hf518": (a_times, late_tail),
    }
    for regime, (times, tail) in expected.items():
        positions = mrope_positions(segments, 2, regime)
        assert positions[:, :PREFIX].tolist() == [[0, 1, 2]] * 3
        visual = positions[:, PREFIX:-2].reshape(3, STEPS, rows, cols)
        for step in range(STEPS):
            for row in range(rows):
                for col in range(cols):
                    where = [times[step], PREFIX + row, PREFIX + col]
                    assert visual[:, step, row, col].tolist() == where, regime
        assert positions[:, -2:].tolist() == [[tail, tail + 1]] * 3, regime


@pytest.mark.parametrize("regime", MROPE)
@pytest.mark.parametrize("seconds", [0.0, 1.0, 7.5])
def test_an_image_stands_at_one_time(regime, seconds):
    segments = [("text", 1), ("visual", (1, 2, 3), seconds), ("text", 1)]
    assert mrope_positions(segments, 2, regime).T.tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [1, 1, 2],
        [1, 1, 3],
        [1, 2, 1],
        [1, 2, 2],
        [1, 2, 3],
        [4, 4, 4],
    ]


@pytest.mark.parametrize("regime", MROPE)
def test_text_alone_counts_up_and_empty_segments_take_no_place(regime):
    assert mrope_positions([("text", 4)], 2, regime).tolist() == [[0, 1, 2, 3]] * 3
    with_empty = mrope_positions([("text", 2), ("text", 0), ("visual", (1, 1, 1), 0)], 2, regime)
    assert with_empty.tolist() == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    "regime, steps, last",
    [
        ("qwen_train", [0, 3, 6, 9], 21),
        ("hf452", [0, 2, 4, 6], 18),
        ("hf53", [0, 2, 4, 6], 13),
        ("hf518", [0, 3, 6, 9], 13),
    ],
)
def test_positions_follow_the_regime_of_the_spec(prompt, regime, steps, last):
    """8 frames at 1.3 a second, 2 x 2 merged tokens a step; `last`: from the video's start."""
    spec = InputSpec(max_length=512, max_pixels=4 * 28 * 28, mrope=regime)
    item = Item("a red ring", video=numbered(8)[:, :28, :28], fps=1.3)
    row = Preprocessor(prompt, spec)(item)
    start = row.positions[0, row.visual_tokens[0]]
    assert (row.positions[0, row.visual_tokens[::4]] - start).tolist() == steps
    assert (row.positions[:, -1] - start).tolist() == [last] * 3


def test_the_default_is_the_released_weights():
    segments = golden.segments("fps 2.1")
    np.testing.assert_array_equal(
        mrope_positions(segments, 2), mrope_positions(segments, 2, "qwen_train")
    )


def test_an_unknown_regime_is_named():
    with pytest.raises(UserError, match="unknown M-RoPE regime 'hf999'.*qwen_train.*hf518"):
        mrope_positions([("text", 1)], 2, regime="hf999")


# Integers that transformers gave for Qwen2-VL and Qwen3-VL (4.49.0, 4.57.6 and 5.23.0), (time, row,
# column), with one position for each time step.
def axes(time: str, row: str | None = None, column: str | None = None) -> list[list[int]]:
    def numbers(text: str) -> list[int]:
        found = []
        for word in text.split():
            value, _, count = word.partition("x")
            found += [int(value)] * int(count or 1)
        return found

    return [numbers(time), numbers(row or time), numbers(column or row or time)]


COUNTED = [
    (  # three texts, a video of 2 x 2 x 3 merged tokens between vision tokens, two texts
        [("text", 4), ("visual", (2, 2, 3), 9.9), ("text", 3)],
        axes(
            "0 1 2 3 4x6 5x6 7 8 9",
            "0 1 2 3 4x3 5x3 4x3 5x3 7 8 9",
            "0 1 2 3 4 5 6 4 5 6 4 5 6 4 5 6 7 8 9",
        ),
        ("qwen_train", "hf452", "hf518"),
    ),
    (  # more time steps than rows: releases differ in the text after it
        [("text", 2), ("visual", (6, 2, 2), 1.0), ("text", 2)],
        axes("0 1 2x4 3x4 4x4 5x4 6x4 7x4 8 9")[0],
        ("qwen_train", "hf452"),
    ),
    (
        [("text", 2), ("visual", (6, 2, 2), 1.0), ("text", 2)],
        axes("0 1 2x4 3x4 4x4 5x4 6x4 7x4 4 5")[0],
        ("hf53", "hf518"),
    ),
    (  # two images
        [("text", 2), ("visual", (1, 2, 2), 0), ("text", 2), ("visual", (1, 2, 3), 0), ("text", 2)],
        axes("0 1 2x4 4 5 6x6 9 10")[0],
        ("qwen_train", "hf518"),
    ),
    (  # Qwen3-VL: two frame pairs of 2 x 2 tokens, each after its time
        [
            ("text", 10),
            ("visual", (1, 2, 2), 0),
            ("text", 8),
            ("visual", (1, 2, 2), 0),
            ("text", 4),
        ],
        axes("0 1 2 3 4 5 6 7 8 9 10x4 12 13 14 15 16 17 18 19 20x4 22 23 24 25")[0],
        ("qwen_train", "hf452", "hf53", "hf518"),
    ),
]


@pytest.mark.parametrize("segments, wanted, regimes", COUNTED)
def test_time_steps_are_counted_where_no_seconds_are(segments, wanted, regimes):
    for regime in regimes:
        found = mrope_positions(segments, 0, regime).tolist()
        assert (found if isinstance(wanted[0], list) else found[0]) == wanted


def test_positions_in_sequence_are_indices():
    segments = COUNTED[0][0]
    found = mrope_positions(segments, 2, "sequential")
    assert found.tolist() == [list(range(19))] * 3
    bare = mrope_positions([("visual", (2, 2, 3), 1.0), ("text", 2)], 2, "sequential")
    assert bare.tolist() == [list(range(14))] * 3
