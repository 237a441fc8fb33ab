"""Packets that hold one field, no picture, a hidden picture or one that is not coded."""

import io

import av
import numpy as np
import pytest

from gve_jax.media import container, picture_headers, seek, video
from gve_jax.media.errors import MediaError
from gve_jax.media.limits import Limits
from gve_jax.media.sampling import Sampling
from gve_jax.media.video import load_video
from tests.media import paff
from tests.media.files import encode, numbered, numbers
from tests.media.remux import Coded, prefixed, put_together, take_apart
from tests.situations import situation

EIGHT = [0, 3, 7, 10, 13, 16, 20, 23]
BOXES = ("mp4", "mov", "matroska", "mpegts")


def brute_force(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def count_packets(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as file:
        return sum(packet.size > 0 for packet in file.demux(video=0))


@pytest.fixture
def no_long_way(monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded from the beginning")

    monkeypatch.setattr(seek, "decode_all", refuse)


FIELDS = {
    "fields": {},
    "bottom field first": {"bottom_first": True},
    "fields and frames": {"whole": (3, 8, 9, 20)},
    "half of it unreferenced": {"unreferenced": True},
}


@situation(
    "Media",
    "H.264 coded as pairs of fields (AVCHD cameras, DVB) in MPEG-TS, M2TS, MP4, MOV or MKV, where "
    "each packet holds one field",
    "accepted; a pair of fields is one frame, at the times FFmpeg gives them",
    since="0.2.0",
)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("joined", [False, True])
def test_a_pair_of_fields_is_one_frame(name, box, joined, no_long_way):
    """`paff` draws the frames that decoding must give; 25 of them a second."""
    data = paff.mux(paff.packets(24, **FIELDS[name]), box, joined=joined)
    if not joined:
        assert count_packets(data) == 48 - len(FIELDS[name].get("whole", ()))
    found = load_video(data, 8)
    assert numbers(found.frames[:, :48]) == EIGHT
    assert found.fps == pytest.approx(8 / 24 * 25)
    np.testing.assert_array_equal(found.frames, brute_force(data)[EIGHT])


@pytest.mark.parametrize("box", BOXES)
def test_any_frames_of_fields_are_those_of_the_whole(box, monkeypatch):
    data = paff.mux(paff.packets(24, unreferenced=True), box)
    every, rng = brute_force(data), np.random.default_rng(0)
    assert numbers(every[:, :48]) == list(range(24))
    for wanted in ([0], [23], [7, 8], [9, 15], *(rng.choice(24, 3, False) for _ in range(4))):
        places = np.sort(wanted)
        monkeypatch.setattr(video, "sample", lambda *_, places=places: (places, 1.0))
        np.testing.assert_array_equal(load_video(data, 2).frames, every[places])


def test_a_range_of_time_of_fields():
    data = paff.mux(paff.packets(24), "mp4")
    found = load_video(data, Sampling(num_frames=4, start=0.28, end=0.61))
    assert numbers(found.frames[:, :48])[0] == 7 and numbers(found.frames[:, :48])[-1] == 15


@pytest.mark.parametrize("lost", [9, 30, 47])
@pytest.mark.parametrize("box", ["matroska", "mp4"])
def test_a_field_that_is_damaged_is_refused(lost, box):
    frames = paff.packets(24)
    fields = list(frames[lost // 2])
    data = bytearray(fields[lost % 2])
    data[200:] = bytes(len(data) - 200)  # no samples any more
    fields[lost % 2] = bytes(data)
    frames[lost // 2] = tuple(fields)
    with pytest.raises(MediaError, match="damaged|not a readable video"):
        load_video(paff.mux(frames, box), 24)


# Units that hold no part of a picture: a message, a delimiter, filler beyond what is looked at.
H264 = {
    "message": b"\x06\x05\x04abcd\x80",
    "delimiter": b"\x09\x10",
    "filler": b"\x0c" + b"\xff" * 1800 + b"\x80",
}
HEVC = {"message": b"\x4e\x01\x05\x04abcd\x80", "delimiter": b"\x46\x01\x50"}


@situation(
    "Media",
    "MP4, MOV or MKV of H.264 or HEVC with samples that hold no picture (a message, a delimiter, "
    "filler)",
    "accepted; such samples count as no frame",
    since="0.2.0",
)
@pytest.mark.parametrize("box", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize(
    "codec, unit",
    [("libx264", unit) for unit in H264.values()] + [("libx265", unit) for unit in HEVC.values()],
)
def test_samples_without_a_picture_are_not_frames(box, codec, unit):
    hevc = codec == "libx265"
    data = encode(
        numbered(24), codec=codec, codec_options={"x265-params": "log-level=none"} if hevc else {}
    )
    coded = []
    for k, each in enumerate(take_apart(data)):
        coded.append(each)
        if k % 5 == 2:
            coded.append(Coded(prefixed(unit), each.pts + 0.5, each.dts + 0.5, False))
    changed = put_together(data, coded, box)
    assert count_packets(changed) == 29
    assert numbers(load_video(changed, 8).frames) == EIGHT
    assert numbers(load_video(changed, 64).frames) == list(range(24))


def test_a_large_sample_without_a_picture_is_found_when_a_frame_is_missing():
    """Of an MP4's large samples the headers are not read unless decoding gives fewer frames."""
    data = encode(numbered(24))
    coded = take_apart(data)
    filler = b"\x0c" + b"\xff" * 5000 + b"\x80"
    coded.insert(12, Coded(prefixed(filler), coded[11].pts + 0.5, coded[11].dts + 0.5, False))
    found = load_video(put_together(data, coded, "mp4"), 64)
    assert numbers(found.frames) == list(range(24)) and found.fps == pytest.approx(10)


def not_coded(data: bytes) -> bytes:
    """A P-VOP of MPEG-4 that says no more than that the frame before it stays (vop_coded is 0)."""
    bits = "01" + "0" + "1" + "0101" + "1" + "0" + "0" + "11111"
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(2)


@situation(
    "Media",
    "MPEG-4 (Xvid, DivX) in AVI, MP4 or MKV whose encoder dropped frames: pictures that are not "
    "coded",
    "accepted; FFmpeg's frames, which are those that are coded",
    since="0.2.0",
)
@pytest.mark.parametrize("box", ["avi", "mp4", "matroska"])
def test_uncoded_pictures_are_not_frames(box):
    data = encode(numbered(24), container="avi", codec="mpeg4")
    coded = []
    for k, each in enumerate(take_apart(data)):
        coded.append(each.data)
        if k % 4 == 1:
            coded.append(not_coded(each.data))
    rows = [
        Coded(each, k, k, each.startswith(b"\0\0\1\xb0") or k == 0) for k, each in enumerate(coded)
    ]
    changed = put_together(data, rows, box)
    assert count_packets(changed) == 30 and numbers(brute_force(changed)) == list(range(24))
    assert numbers(load_video(changed, 24).frames) == list(range(24))
    assert numbers(load_video(changed, 8).frames) == EIGHT


@situation(
    "Media",
    "DivX or Xvid in AVI with two pictures in one packet (a packed bitstream)",
    "accepted; FFmpeg's frames",
    since="0.2.0",
)
def test_packed_mpeg4_keeps_all_its_frames():
    data = encode(numbered(24), container="avi", codec="mpeg4", codec_options={"bf": "2"})
    packed, queue = [], []  # the first of each run of B-pictures goes with the picture before it
    for each in take_apart(data):
        mark = b"\0\0\1\xb2DivX503b1393p\0"
        unit = each.data.replace(b"\0\0\1\xb6", mark + b"\0\0\1\xb6", 1)
        at = unit.rindex(b"\0\0\1\xb6") + 4
        if unit[at] >> 6 != 2:
            packed += [not_coded(unit)] * len(queue)
            queue = []
            packed.append(unit)
        elif not queue:
            queue.append(each.data)
            packed[-1] += each.data
        else:
            packed.append(each.data)
    packed += [not_coded(b"")] * len(queue)
    rows = [Coded(each, k, k, k == 0) for k, each in enumerate(packed)]
    changed = put_together(data, rows, "avi")
    assert numbers(brute_force(changed)) == list(range(24))
    assert numbers(load_video(changed, 24).frames) == list(range(24))
    assert numbers(load_video(changed, 8).frames) == EIGHT


def test_a_large_picture_that_says_it_is_not_coded_is_damaged():
    data = encode(numbered(24), container="matroska", codec="mpeg4")
    coded = take_apart(data)
    victim = next(each for each in coded[3:] if len(each.data) > 60 and not each.key)
    at = victim.data.index(b"\0\0\1\xb6") + 5
    changed = bytearray(victim.data)
    changed[at] &= 0b01111111  # vop_coded: behind 2, 1, 1, 4 and 1 bits
    victim.data = bytes(changed)
    with pytest.raises(MediaError, match="damaged|not a readable"):
        load_video(put_together(data, coded, "matroska"), 24)


@pytest.mark.parametrize(
    "codec, data, holds",
    [
        # VP9: frame_marker, two bits of profile, show_existing_frame, frame_type, show_frame
        ("vp9", [0b10000110], picture_headers.FRAME),
        ("vp9", [0b10000100], picture_headers.HIDDEN),
        ("vp9", [0b10001000], picture_headers.FRAME),  # shows an earlier one
        ("vp9", [0b10000100, 5, 0b11000000], picture_headers.FRAME),  # a superframe
        ("vp9", [0b10110010, 0], picture_headers.HIDDEN),  # profile 3 has a bit more
        # AV1: an OBU's header with its type and has_size, its size; then show_existing_frame,
        # frame_type, show_frame
        ("av1", [0x12, 0, 0x32, 1, 0b00110000], picture_headers.FRAME),
        ("av1", [0x12, 0, 0x32, 1, 0b00100000], picture_headers.HIDDEN),
        ("av1", [0x12, 0, 0x32, 1, 0b00100000, 0x1A, 1, 0b10000000], picture_headers.FRAME),
        ("av1", [0x30, 0b00110000], picture_headers.FRAME),  # without a size
        ("av1", [0x0A, 1, 0b00011000, 0x32, 1, 0], picture_headers.FRAME),  # a still picture
        # VP8: frame_type, three bits of version, show_frame
        ("vp8", [0b00010001], picture_headers.FRAME),
        ("vp8", [0b00000001], picture_headers.HIDDEN),
    ],
)
def test_headers_reveal_hidden_pictures(codec, data, holds):
    headers = picture_headers.Headers(av.CodecContext.create(codec, "r"))
    assert headers.read_bytes(bytes(data)) == holds


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "vp8", "vp9", "av1", "mpeg2video"])
def test_any_bytes_are_some_packet(codec):
    rng = np.random.default_rng(0)
    headers = picture_headers.Headers(av.CodecContext.create(codec, "r"))
    for size in rng.integers(0, 200, 400):
        data = rng.bytes(size)
        for each in (data, b"\0\0\0\1" + data, b"\0\0\1\xb6" + data, b"\0\0\1\x20" + data):
            assert headers.read_bytes(each) in range(5)


@pytest.mark.parametrize("box", BOXES)
def test_the_index_tells_fields_from_frames(box):
    data = paff.mux(paff.packets(24, whole=(5,)), box)
    with container.open_video(data, "v", Limits()) as (opened, stream, file):
        index = container.read_index(opened, stream, file, "v", Limits())
    assert index.shown.sum() == 24 and index.second.sum() == 23
    np.testing.assert_array_equal(index.owner[index.second], np.flatnonzero(index.second) - 1)
    seconds = index.duration[index.shown] * index.tick
    stated = 0 if box == "mpegts" else 1 / 25  # both fields
    np.testing.assert_allclose(seconds, stated, rtol=0.1)
