"""Shot cuts: exact on hard cuts, whether or not the encoder marks them, without decoding all."""

import numpy as np
import pytest

from gve_jax.index import shots
from gve_jax.index.shots import SIZE, find_cuts, pick_cuts
from tests.index.fake import Local
from tests.media.files import encode

CUTS = [31, 75, 76 + 24, 150, 171]
ENCODINGS = {
    "keyframes at cuts": "keyint=250:scenecut=40:min-keyint=1",
    "fixed keyframes": "keyint=30:scenecut=0",
    "few keyframes": "keyint=90:scenecut=0:bframes=3",
}


def film(seed: int = 0) -> np.ndarray:
    """Frames of pictures that move by a pixel a frame, with a cut at each of `CUTS`."""
    rng = np.random.default_rng(seed)
    parts = []
    for first, stop in zip([0, *CUTS], [*CUTS, 200], strict=True):
        colour = rng.integers(30, 226, 3)
        blocks = rng.integers(-30, 30, (8, 20, 1)) + colour
        picture = np.clip(blocks, 0, 255).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        parts += [picture[:, k % 64 : k % 64 + 96] for k in range(stop - first)]
    return np.stack(parts)


class Counting(Local):
    read = 0

    def cuts(self, path) -> list[int]:
        outline = self.outline(path)

        def read(positions):
            self.read += len(positions)
            return self.pictures(path, positions, outline, size=SIZE)

        return find_cuts(outline, read).tolist()


@pytest.mark.parametrize("params", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("cheap", [True, False])
def test_hard_cuts_are_exact(tmp_path, monkeypatch, params, cheap):
    if not cheap:
        monkeypatch.setattr(shots, "CHEAP", 0)
        monkeypatch.setattr(shots, "REQUEST", 40)
    path, sandbox = tmp_path / "a.mp4", Counting()
    path.write_bytes(encode(film(), codec_options={"x264-params": params}))
    assert sandbox.cuts(path) == CUTS
    assert sandbox.read == 200 if cheap else sandbox.read < 220


def test_most_of_a_film_with_keyframes_at_its_cuts_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(shots, "CHEAP", 0)
    path, sandbox = tmp_path / "a.mp4", Counting()
    params = "keyint=250:scenecut=40:min-keyint=1"
    path.write_bytes(encode(np.tile(film(), (3, 1, 1, 1)), codec_options={"x264-params": params}))
    found = sandbox.cuts(path)
    assert [cut for cut in found if cut < 200] == CUTS and len(found) == 17
    assert sandbox.read < 300


def test_motion_and_short_videos_have_no_cuts(tmp_path):
    path, sandbox = tmp_path / "a.mp4", Counting()
    for frames in (film()[: CUTS[0]], film()[:1], film()[:3]):
        path.write_bytes(encode(frames))
        assert sandbox.cuts(path) == []


def test_a_change_must_stand_out():
    change = np.full(20, 9.0)
    change[[0, 10]] = 60
    assert pick_cuts(change).tolist() == [10]
    change[8:13] = 60
    assert pick_cuts(change).tolist() == []
    assert pick_cuts(np.full(20, 7.0) * (np.arange(20) == 5)).tolist() == []
