"""Window layout against a slow walk over the windows."""

import numpy as np
import pytest

from gve_jax.inputs.layout import window_layout

GRIDS = [(8, 8), (2, 2), (4, 6), (10, 14), (20, 34), (16, 8), (2, 30), (22, 2)]


def walk(gh, gw, side, merge):
    """Patches (row, col) window by window: inside one, merged tokens in raster order, and inside a
    merged token its patches in raster order."""
    windows = []
    for top in range(0, gh, side):
        for left in range(0, gw, side):
            window = []
            for row in range(top, min(top + side, gh), merge):
                for col in range(left, min(left + side, gw), merge):
                    for i in range(merge):
                        for j in range(merge):
                            window.append((row + i, col + j))
            windows.append(window)
    return windows


@pytest.mark.parametrize("gh, gw", GRIDS)
@pytest.mark.parametrize("side", [8, 4])
def test_layout_equals_a_walk_over_the_windows(gh, gw, side):
    merge = 2
    layout = window_layout(gh, gw, side, merge)
    windows = walk(gh, gw, side, merge)
    order = [patch for window in windows for patch in window]
    assert [tuple(pair) for pair in layout.coords.tolist()] == order
    slots = layout.window_slots.reshape(-1, side**2)
    assert len(slots) == len(windows)
    start = 0
    for slot, window in zip(slots, windows, strict=True):
        filled = list(range(start, start + len(window)))
        assert slot.tolist() == filled + [-1] * (side**2 - len(window))
        start += len(window)
    np.testing.assert_array_equal(layout.window_slots[layout.window_inverse], np.arange(len(order)))
    # The merged token at (row, col) of the raster is the one whose first patch is at twice that.
    raster = [(row, col) for row in range(0, gh, merge) for col in range(0, gw, merge)]
    first = order[:: merge**2]
    assert layout.merged.tolist() == [first.index(place) for place in raster]
