"""M-RoPE positions against what transformers 4.49 - 4.51.3 was measured to give (regime A)."""

import numpy as np
import pytest

from gve_jax.inputs.positions import mrope_positions

PREFIX, STEPS = 3, 4
# Sampled frames a second (or seconds of a clip of eight) -> time of each step, first text after.
BY_FPS = {
    2: ([3, 5, 7, 9], 10),
    1: ([3, 7, 11, 15], 16),
    4: ([3, 4, 5, 6], 7),
    2.1: ([3, 4, 6, 8], 9),
    0.3: ([3, 16, 29, 43], 44),
}
BY_DURATION = {
    5.7: ([3, 5, 8, 11], 20),
    14.4: ([3, 10, 17, 24], 25),
    15.0: ([3, 10, 18, 25], 26),
    30.1: ([3, 18, 33, 48], 49),
    53.9: ([3, 29, 56, 83], 84),
    1560.3: ([3, 783, 1563, 2343], 2344),
}
CASES = [(fps, (4, 6), *row) for fps, row in BY_FPS.items()]
CASES += [(8 / seconds, (20, 34), *row) for seconds, row in BY_DURATION.items()]


@pytest.mark.parametrize("fps, grid, times, tail", CASES)
def test_a_video_is_placed_as_measured(fps, grid, times, tail):
    rows, cols = grid[0] // 2, grid[1] // 2  # the table counts patches, segments merged tokens
    segments = [("text", PREFIX), ("visual", (STEPS, rows, cols), 2 / fps), ("text", 2)]
    positions = mrope_positions(segments, tokens_per_second=2)
    size = rows * cols
    assert positions.dtype == np.int32 and positions.shape == (3, PREFIX + STEPS * size + 2)
    assert positions[:, :PREFIX].tolist() == [[0, 1, 2]] * 3
    visual = positions[:, PREFIX:-2].reshape(3, STEPS, rows, cols)
    for step in range(STEPS):
        for row in range(rows):
            for col in range(cols):
                expected = [times[step], PREFIX + row, PREFIX + col]
                assert visual[:, step, row, col].tolist() == expected
    assert positions[:, -2:].tolist() == [[tail, tail + 1]] * 3


def test_an_image_stands_at_one_time():
    positions = mrope_positions([("text", 1), ("visual", (1, 2, 3), 0.0), ("text", 1)], 2)
    assert positions.T.tolist() == [
        [0, 0, 0],
        [1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3],
        [4, 4, 4],
    ]  # fmt: skip


def test_text_alone_counts_up_and_empty_segments_take_no_place():
    assert mrope_positions([("text", 4)], 2).tolist() == [[0, 1, 2, 3]] * 3
    with_empty = mrope_positions([("text", 2), ("text", 0), ("visual", (1, 1, 1), 0)], 2)
    assert with_empty.tolist() == [[0, 1, 2]] * 3


def test_an_unknown_regime_is_named():
    with pytest.raises(ValueError, match="hf999"):
        mrope_positions([("text", 1)], 2, regime="hf999")
