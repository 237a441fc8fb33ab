"""Frames by seeking are, bit for bit, those that decoding everything gives.

The oracle is PyAV's own loop over all frames of the whole file, without the library.
"""

import io

import av
import numpy as np
import pytest

from gve_jax.media import seek, video
from gve_jax.media.errors import MediaError
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video
from tests.media.files import encode, numbers, textured
from tests.situations import situation

X264 = "keyint=12:min-keyint=12:scenecut=0:"
X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0:bframes=4:b-adapt=0:"
STREAMS = {
    "h264": ("libx264", {"x264-params": X264}),
    "h264 open": ("libx264", {"x264-params": X264 + "open-gop=1:bframes=5:b-adapt=0"}),
    "h264 pyramid": ("libx264", {"x264-params": X264 + "bframes=7:b-pyramid=strict:b-adapt=0"}),
    "h264 no b": ("libx264", {"x264-params": X264 + "bframes=0"}),
    "h264 one key": ("libx264", {"x264-params": "keyint=250"}),
    "h264 keys only": ("libx264", {"x264-params": "keyint=1"}),
    "h264 refresh": ("libx264", {"x264-params": "keyint=12:intra-refresh=1"}),
    "h264 fields": ("libx264", {"x264-params": X264 + "tff=1"}),
    "hevc": ("libx265", {"x265-params": X265}),
    "hevc closed": ("libx265", {"x265-params": X265 + "open-gop=0"}),
    "hevc radl": ("libx265", {"x265-params": X265 + "open-gop=0:radl=2"}),
    "hevc layers": ("libx265", {"x265-params": X265 + "temporal-layers=3"}),
    "mpeg4": ("mpeg4", {}),
    "mpeg4 b": ("mpeg4", {"bf": "2"}),
    "vp8": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "10", "svtav1-params": "lp=1"}),
}
CASES = [
    (container, name)
    for container, names in {
        "mp4": [name for name in STREAMS if name != "vp8"],
        "mov": ["h264 open", "mpeg4 b", "hevc"],
        "matroska": list(STREAMS),
        "webm": ["vp8", "vp9", "av1"],
        "avi": ["h264", "h264 no b", "mpeg4", "mpeg4 b", "vp8"],
        "mpegts": [name for name in STREAMS if name[:2] in ("h2", "he", "mp")],
    }.items()
    for name in names
]
# Decoded from the beginning: AVI knows no times of showing; intra refresh has no keyframe.
WHOLE = {("avi", "h264"), ("avi", "h264 no b"), ("avi", "mpeg4 b")}


def brute_force(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


@pytest.fixture
def no_long_way(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded from the beginning")

    monkeypatch.setattr(seek, "decode_all", refuse)


@pytest.fixture(scope="module")
def streams():
    made = {}

    def get(container, name):
        if (container, name) not in made:
            codec, options = STREAMS[name]
            made[container, name] = encode(
                textured(60), container=container, codec=codec, codec_options=options
            )
        return made[container, name]

    return get


def load_some(data: bytes, every: np.ndarray, wanted: list[int], monkeypatch) -> None:
    """Any frames, not only evenly spaced ones, by way of the loader."""
    places = np.array(wanted)
    monkeypatch.setattr(video, "sample", lambda *_: (places, 1.0))
    found = load_video(data, 2).frames
    np.testing.assert_array_equal(found, every[places])


@situation(
    "Media",
    "long H.264, HEVC, MPEG-4, VP8, VP9 or AV1 of which a few frames are wanted",
    "bit for bit the frames of decoding everything; only their groups are decoded",
    since="0.1.0",
)
@pytest.mark.parametrize("container, name", CASES)
def test_any_frames_are_those_of_the_whole(streams, container, name, monkeypatch):
    data = streams(container, name)
    every = brute_force(data)
    assert len(every) == 60 and numbers(every[:, :48]) == list(range(60))
    rng = np.random.default_rng(0)
    draws = [rng.choice(60, rng.integers(1, 6), replace=False) for _ in range(8)]
    draws += [[11, 12], [12, 10], [59], [0], [24, 22, 23, 25, 21], range(60)]
    for wanted in draws:
        load_some(data, every, sorted(wanted), monkeypatch)


@pytest.mark.parametrize("container, name", [c for c in CASES if c not in WHOLE])
def test_they_come_without_decoding_the_whole(streams, container, name, no_long_way):
    if name == "h264 refresh":
        with pytest.raises(AssertionError, match="from the beginning"):
            load_video(streams(container, name), Sampling(4, start=2.5))
    else:
        assert numbers(load_video(streams(container, name), 8).frames[:, :48])[-1] == 59


@pytest.mark.parametrize("container, name", sorted(WHOLE))
def test_without_seeking_all_packets_are_decoded(streams, container, name, monkeypatch):
    def refuse(*_):
        raise AssertionError("sought")

    monkeypatch.setattr(seek, "decode_wanted", refuse)
    assert numbers(load_video(streams(container, name), 8).frames[:, :48])[-1] == 59


def decoded_packets(data: bytes, sampling, monkeypatch) -> int:
    """How many packets a decoder is given."""
    count = 0
    inner = seek._Reader.take

    def take(self, number):
        nonlocal count
        count += 1
        return inner(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(seek._Reader, "take", take)
        load_video(data, sampling)
    return count


def test_only_the_groups_of_the_wanted_frames_are_read(streams, monkeypatch):
    data = streams("mp4", "h264 no b")
    late = Sampling(2, start=3.0, end=3.3)  # frames 30 and 33 of the group 24..35
    assert decoded_packets(data, late, monkeypatch) == 10
    assert decoded_packets(data, 2, monkeypatch) == 1 + 12  # 0, and 48..59
    assert decoded_packets(data, 60, monkeypatch) == 60


@pytest.mark.parametrize("damage", ["every packet is a keyframe", "a time is another's"])
def test_an_index_that_lies_costs_time_but_no_frame(streams, damage, monkeypatch):
    data = streams("mp4", "h264")
    every = brute_force(data)
    inner = video.read_index

    def lie(*args):
        index = inner(*args)
        if damage.startswith("every"):
            index.key[:] = True
        else:
            index.pts[[14, 15]] = index.pts[[15, 14]]
        return index

    monkeypatch.setattr(video, "read_index", lie)
    for wanted in ([5], [17, 18], [14, 15, 16], [40, 50]):
        load_some(data, every, wanted, monkeypatch)


@situation(
    "Media",
    "MP4 without a table of keyframes, so that every frame claims to be one",
    "right frames; decoded from the beginning",
    since="0.1.0",
)
def test_an_mp4_without_its_table_of_keyframes(streams):
    """Then every frame counts as one, as the format says; decoding finds out."""
    data = bytearray(streams("mp4", "h264"))
    at = data.index(b"stss")
    data[at : at + 4] = b"free"
    every = brute_force(bytes(data))
    found = load_video(bytes(data), Sampling(4, start=2.05, end=4.45))
    np.testing.assert_array_equal(found.frames, every[[21, 29, 36, 44]])


@pytest.mark.parametrize("shift", [-30, -5, 7, 100])
@pytest.mark.parametrize("bframes", ["0", "3"])
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_shifted_times_and_edit_lists(container, bframes, shift, no_long_way):
    options = {"x264-params": X264 + f"bframes={bframes}"}
    data = encode(
        textured(60),
        container=container,
        codec_options=options,
        shift=shift,
        options={"avoid_negative_ts": "disabled"} if container == "mp4" else {},
    )
    every = brute_force(data)
    found = load_video(data, 8)
    places = np.linspace(0, len(every) - 1, 8).round().astype(int)
    np.testing.assert_array_equal(found.frames, every[places])
    if container == "mp4" and shift < 0:
        assert numbers(every[:1, :48]) == [-shift]  # the edit list cuts the frames before time 0


@situation(
    "Media",
    "MPEG-TS recording that begins between two keyframes",
    "accepted from the first keyframe on",
    since="0.1.0",
)
@pytest.mark.parametrize("name", ["h264", "h264 open", "hevc", "mpeg4 b"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_recording_that_begins_between_two_keyframes(streams, name, share):
    """Its first frames refer to what is not there; the rest of them are a whole video."""
    data = streams("mpegts", name)
    data = data[int(len(data) * share) // 188 * 188 :]
    found = load_video(data, 2)
    first, last = numbers(found.frames[:, :48])
    whole = brute_force(streams("mpegts", name))
    with av.open(io.BytesIO(streams("mpegts", name))) as file:
        keys = [k for k, frame in enumerate(file.decode(video=0)) if frame.key_frame]
    assert first in keys[1:] and last == 59
    assert 2 / found.fps * 10 == pytest.approx(60 - first)  # from that keyframe on, all frames
    np.testing.assert_array_equal(found.frames, whole[[first, last]])


def test_times_that_jump_back_midway(streams):
    """Two recordings in one file of MPEG-TS: the second begins at time 0 again."""
    data = streams("mpegts", "h264")
    every = brute_force(data)
    found = load_video(data + data, 8)
    places = np.linspace(0, 119, 8).round().astype(int) % 60
    np.testing.assert_array_equal(found.frames, every[places])


@situation(
    "Media",
    "damaged pictures in a part of the video that is not sampled",
    "not noticed; refused when a sampled frame needs them",
    since="0.1.0",
)
def test_damage_is_refused_only_near_wanted_frames(streams):
    """The price of not decoding: what is not needed is not looked at."""
    data = bytearray(streams("mp4", "h264 no b"))
    with av.open(io.BytesIO(bytes(data))) as file:
        places = {p.pts // 1024: (p.pos, p.size) for p in file.demux(video=0) if p.size}
    at, size = places[30]
    data[at + 5 : at + size] = bytes(size - 5)
    every = brute_force(streams("mp4", "h264 no b"))
    early = load_video(bytes(data), Sampling(8, end=2.35))
    np.testing.assert_array_equal(early.frames, every[[0, 3, 7, 10, 13, 16, 20, 23]])
    with pytest.raises(MediaError, match="not a readable video|damaged"):
        load_video(bytes(data), Sampling(2, start=2.5, end=3.2))
