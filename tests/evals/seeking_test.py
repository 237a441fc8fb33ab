"""The benchmark of seeking, at a small size."""

import json

import av
import numpy as np
import pytest

from evals.speed import harness, seeking


def test_writes_measurements(tmp_path, capsys):
    options = ["--size", "64", "96", "--seconds", "4", "--unique", "60", "--keyint", "10", "30"]
    options += ["--repeats", "1", "--folder", str(tmp_path), "--output", str(tmp_path / "r.json")]
    harness.run("seeking", options)
    result = json.loads((tmp_path / "r.json").read_text())["result"]
    assert set(result) == {
        "a keyframe every 10",
        "a keyframe every 30",
        "open groups, a keyframe every 10",
    }
    assert all(entry["ratio of processor s"] > 0 for entry in result.values())
    for keyint in (10, 30):
        with av.open(str(tmp_path / f"4s-64x96-k{keyint}-u60.mp4")) as clip:
            keys = [k for k, frame in enumerate(clip.decode(video=0)) if frame.key_frame]
        assert keys == list(range(0, 120, keyint))


def test_stops_if_frames_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(seeking, "decode_all", lambda *_: np.zeros((8, 64, 96, 3), np.uint8))
    options = ["--size", "64", "96", "--seconds", "2", "--unique", "60", "--keyint", "10"]
    with pytest.raises(SystemExit, match="other frames"):
        harness.run("seeking", [*options, "--repeats", "1", "--folder", str(tmp_path)])
