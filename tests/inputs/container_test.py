"""The index of packets: the quick one of an MP4 is the one that reading all packets gives."""

import io

import numpy as np
import pytest

from gve_jax.inputs import container, mp4
from gve_jax.inputs.limits import Limits
from gve_jax.inputs.video import load_video
from tests.inputs.media import encode, numbered, numbers
from tests.inputs.seek_test import STREAMS

EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]


def indices(data: bytes, monkeypatch):
    """The index as it is made, whether that was from the table, and the index by reading all."""
    calls = []
    inner = container._read

    with monkeypatch.context() as patch:
        patch.setattr(container, "_read", lambda *args: calls.append(1) or inner(*args))
        with container.open_video(data, "v", Limits()) as (opened, stream, file):
            quick = container.read_index(opened, stream, file, "v", Limits())
        table = not calls
        patch.setattr(container.mp4, "composition_offsets", lambda *_: None)
        with container.open_video(data, "v", Limits()) as (opened, stream, file):
            slow = container.read_index(opened, stream, file, "v", Limits())
    return quick, table, slow


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "vp8"])
@pytest.mark.parametrize("box", ["mp4", "mov"])
@pytest.mark.parametrize("times", [None, [0, 1, 2, 5, 9, 10, 20, 21, 22, 30, 31, 32]])
def test_the_table_of_an_mp4_says_what_its_packets_say(name, box, times, monkeypatch):
    codec, options = STREAMS[name]
    if box == "mov" and codec not in ("libx264", "libx265", "mpeg4"):
        pytest.skip("FFmpeg writes no such mov")
    data = encode(numbered(12 if times else 40), container=box, codec=codec, times=times,
                  codec_options=options)  # fmt: skip
    quick, table, slow = indices(data, monkeypatch)
    assert table
    for field in ("pts", "dts", "size", "key", "shown"):
        np.testing.assert_array_equal(getattr(quick, field), getattr(slow, field), field)
    if name != "vp9":  # whose parser makes all durations alike
        np.testing.assert_array_equal(quick.duration[:-1], slow.duration[:-1])


@pytest.mark.parametrize("options, shift, table", [
    ({}, 0, True),
    ({"moov_size": "4000"}, 0, True),
    ({"movflags": "negative_cts_offsets"}, 0, True),
    ({"use_editlist": "0"}, 0, True),
    ({}, 7, True),  # an empty edit before the first frame
    ({"avoid_negative_ts": "disabled"}, -5, False),  # an edit list that cuts frames away
    ({"movflags": "frag_keyframe+empty_moov"}, 0, False),
    ({"movflags": "frag_keyframe"}, 0, False),
])  # fmt: skip
def test_plain_files_and_others(options, shift, table, monkeypatch):
    data = encode(numbered(24), options=options, shift=shift,
                  codec_options={"bf": "0" if shift else "3"})  # fmt: skip
    quick, quickly, slow = indices(data, monkeypatch)
    assert quickly == table
    for field in ("pts", "dts", "size", "key", "shown"):
        np.testing.assert_array_equal(getattr(quick, field), getattr(slow, field), field)
    if shift >= 0:
        assert numbers(load_video(data, 8).frames) == EIGHT


def test_the_payload_is_not_read(tmp_path):
    """Of a long file only its header, and what is decoded."""
    path = tmp_path / "v.mp4"
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (48, 160, 240, 3)).astype(np.uint8)
    path.write_bytes(encode(frames, codec_options={"x264-params": "keyint=4:bframes=0"}))
    read = 0

    class Counted(io.FileIO):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    with Counted(path) as file, container.av.open(file) as opened:
        stream = opened.streams.video[0]
        read = 0
        index = container.read_index(opened, stream, file, "v", Limits())
    assert len(index.pts) == 48
    assert read < 0.2 * path.stat().st_size


@pytest.mark.parametrize("change", ["count", "rows", "samples", "track", "kinds"])
def test_a_table_that_does_not_fit_is_not_used(change):
    data = bytearray(encode(numbered(24), codec_options={"bf": "3"}))
    assert mp4.composition_offsets(io.BytesIO(bytes(data)), 1, 24).shape == (24,)
    at = data.index(b"ctts")
    if change == "count":
        data[at + 12 : at + 16] = b"\xff\xff\xff\xff"  # as many times the same: not allocated
    elif change == "rows":
        data[at + 8 : at + 12] = b"\xff\xff\xff\xff"
    elif change == "kinds":  # two descriptions of samples
        kinds = data.index(b"stsd") + 8
        assert data[kinds : kinds + 4] == (1).to_bytes(4)
        data[kinds : kinds + 4] = (2).to_bytes(4)
    track, samples = 2 if change == "track" else 1, 25 if change == "samples" else 24
    assert mp4.composition_offsets(io.BytesIO(bytes(data)), track, samples) is None


def test_any_bytes_are_no_table():
    data = encode(numbered(24), options={"moov_size": "4000"})
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: rng.integers(1, len(data))])
        for _ in range(3):
            damaged[rng.integers(min(len(damaged), 1100))] = rng.integers(256)
        found = mp4.composition_offsets(io.BytesIO(bytes(damaged)), 1, 24)
        assert found is None or found.shape == (24,)


def test_a_stream_that_begins_midway_is_no_crash():
    """PyAV numbers the streams at the beginning: a later one is off its list."""

    class Midway:
        def demux(self, _):
            yield from [][0]

    with pytest.raises(ValueError, match="begins midway"):
        list(container.packets(Midway(), None))
